"""A decoder in its second form: blocks that may differ, where `Decoder` scans over blocks of one shape.

The scan compiles once for any depth and is what is searched; this form is what units are removed from. Its taps are
those of `Decoder` block by block, each once: `mlp_product0`, `head_output3`. Two kinds can be reduced:

    mlp_product (mlp_hidden where there is no gate)    units of the MLP, read by W_down
    head_output                                        z of the query heads, read by W_O; whole heads, `head_groups`

Both readers are affine, so constants and affine maps of kept units fold exactly, whatever norms come after. A key-value
head goes with the last query head that reads it.

Source: CMR, arXiv 2602.24266, folding into affine consumers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from abstraction.models.decoder import ONCE, RESUMES, Decoder
from abstraction.models.decoder_blocks import Place
from abstraction.models.decoder_config import BlockShape
from abstraction.models.decoder_network import UnrolledNetwork
from abstraction.models.positions import check_edited_positions, last_token, picked
from abstraction.models.taps import NO_EDITS, Edits, Tap, at_depth, check_resume, check_taps, tapped
from abstraction.models.wiring import Consumer, check_kept, take_units
from abstraction.typing import AnyArray, Outputs, Params

_READERS = {"mlp_product": "down", "mlp_hidden": "down", "head_output": "output"}


@dataclass(frozen=True)
class UnrolledDecoder:
    """A decoder of blocks of different shapes; implements `abstraction.models.Reducible`.

    Attributes:
      decoder: what it was before units were removed; what is not a block's own is still as there.
      blocks: the shape of every block.
    """

    decoder: Decoder
    blocks: tuple[BlockShape, ...]

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Those of `Decoder`, in the order they run, block by block."""
        known = self.decoder.taps
        last = known["block_output"]
        parts = [tap for tap in known.values() if tap.name not in ONCE and tap != last]
        taps = [self._tap(part, index) for index in range(len(self.blocks)) for part in (*parts, last)]
        return {tap.name: tap for tap in (*taps, known["final_input"], known["logits"])}

    def init(self, key: Array) -> Params:
        """Draw parameters as `Decoder.init` does."""
        self.decoder.config.check()
        return _initial(self, key)

    def apply(
        self, params: Params, inputs: Int[AnyArray, "N T"], edits: Edits = NO_EDITS, record: Sequence[str] = ()
    ) -> tuple[Outputs, dict[str, Array]]:
        """Run the network; see `Model.apply`."""
        check_taps(self.taps, edits, record)
        check_edited_positions(self.taps, edits, inputs)
        edits = at_depth(edits, 0)
        network, (tokens, place) = self._network(params), self.decoder.placed(inputs)
        stream, recorded = self._continued(network, network.embed(tokens, place.positions), 0, place, edits)
        stream = recorded["final_input"] = tapped("final_input", stream, edits)
        outputs = self.decoder.read(network, picked(stream, last_token(tokens)))
        recorded["logits"] = tapped("logits", outputs, edits)
        return recorded["logits"], {name: recorded[name][None] for name in record}

    def resume(
        self,
        params: Params,
        tap: str,
        depth: Int[Array, ""],
        activation: Float[Array, "N T D"],
        *,
        inputs: Int[AnyArray, "N T"],
        states: Array,
    ) -> Outputs:
        """Run from the residual stream before or after one block. See `Model.resume`."""
        check_resume(self.taps, tap, depth, activation)
        name, index = _parts(tap)
        network, (tokens, place) = self._network(params), self.decoder.placed(inputs)
        stream, _ = self._continued(network, activation, index + RESUMES[name], place, NO_EDITS)
        return self.decoder.read(network, picked(stream, last_token(tokens)))

    def present(self, inputs: Int[AnyArray, "N T"], tap: str) -> Bool[Array, "N P"]:
        """Return where a tap holds no padding; see `abstraction.models.Padded`."""
        return self.decoder.present(inputs, tap)

    def consumers(self, tap: str) -> tuple[Consumer, ...]:
        """Return what reads the units of a tap; see `Reducible.consumers`."""
        name, index = self._reduced(tap)
        reader = (f"block{index}", _READERS[name])
        return (Consumer((*reader, "kernel"), (*reader, "bias")),)

    def with_biases(self, params: Params, tap: str) -> tuple["UnrolledDecoder", Params]:
        """Give the map that reads a tap a bias; see `Reducible.with_biases`."""
        name, index = self._reduced(tap)
        block, reader = f"block{index}", _READERS[name]
        if "bias" in params[block][reader]:
            return self, params
        kernel = params[block][reader]["kernel"]
        zeros = kernel.__array_namespace__().zeros(kernel.shape[-1], kernel.dtype)
        arrays = {**params[block], reader: {"kernel": kernel, "bias": zeros}}
        return self._with(index, **{f"{reader}_bias": True}), {**params, block: arrays}

    def narrowed(self, params: Params, tap: str, kept: Int[np.ndarray, " K"]) -> tuple["UnrolledDecoder", Params]:
        """Remove the other units of a tap; see `Reducible.narrowed`."""
        name, index = self._reduced(tap)
        reader, width = _READERS[name], self.taps[tap].width
        kept = check_kept(tap, kept, width)
        arrays = dict(params[f"block{index}"])
        arrays[reader] = {**arrays[reader], "kernel": take_units(arrays[reader]["kernel"], kept, width, axis=0)}
        if reader == "down":
            arrays = _taken(arrays, ("gate", "up"), kept, width)
            return self._with(index, hidden=len(kept)), {**params, f"block{index}": arrays}
        size, shape = self.decoder.config.head_size, self.blocks[index]
        heads = np.unique(kept // size)
        if len(heads) * size != len(kept):
            raise ValueError(f"got {len(kept)} units of {tap!r}, expected whole heads of {size}")
        groups = np.array(shape.groups)[heads]
        used = np.unique(groups)
        columns = (used[:, None] * size + np.arange(size)).ravel()
        arrays = _taken(arrays, ("query",), kept, width)
        arrays = _taken(arrays, ("key", "value"), columns, shape.kv_heads * size)
        fewer = self._with(index, groups=tuple(np.searchsorted(used, groups).tolist()))
        return fewer, {**params, f"block{index}": arrays}

    def head_groups(self, tap: str) -> tuple[tuple[int, ...], ...]:
        """Return the units of every head of `head_output`, which stay or go together.

        Raises:
          ValueError: another tap.
        """
        name, index = self._reduced(tap)
        if name != "head_output":
            raise ValueError(f"got tap {tap!r}, which has no heads, expected 'head_output{index}'")
        size = self.decoder.config.head_size
        return tuple(tuple(range(start, start + size)) for start in range(0, self.taps[tap].width, size))

    def _continued(
        self, network: UnrolledNetwork, stream: Array, start: int, place: Place, edits: Edits
    ) -> tuple[Float[Array, "N T D"], dict[str, Array]]:
        """Run blocks `start` and later; return the stream after the last, and the value of their taps."""
        windowed = self.decoder.config.windowed or (False,) * len(self.blocks)
        recorded: dict[str, Array] = {}
        for index, block in enumerate(network.blocks[start:], start):
            stream, _, values = block(stream, place, None, jnp.asarray(windowed[index]), edits, index)
            recorded |= values
        return stream, recorded

    def _tap(self, tap: Tap, index: int) -> Tap:
        """Return a tap of `Decoder` in one block."""
        size, shape = self.decoder.config.head_size, self.blocks[index]
        heads, kv_heads = shape.heads * size, shape.kv_heads * size
        widths = {"query": heads, "key": kv_heads, "value": kv_heads, "head_output": heads}
        widths |= {"mlp_hidden": shape.hidden, "mlp_product": shape.hidden}
        return Tap(f"{tap.name}{index}", widths.get(tap.name, tap.width), 1, tap.about, tap.resumes)

    def _reduced(self, tap: str) -> tuple[str, int]:
        """Return name and block of a tap whose units can be removed."""
        name, index = _parts(tap)
        units = "mlp_product" if self.decoder.config.gated else "mlp_hidden"
        valid = [f"{kind}{block}" for block in range(len(self.blocks)) for kind in ("head_output", units)]
        if tap not in valid:
            gate = name == "mlp_hidden" and index in range(len(self.blocks))
            why = "is multiplied by the other half" if gate else "has readers that are not affine, or is unknown"
            raise ValueError(f"got tap {tap!r}, which {why}; expected one of {valid}")
        return name, index

    def _with(self, index: int, **changes: Any) -> "UnrolledDecoder":
        shape = replace(self.blocks[index], **changes)
        return replace(self, blocks=(*self.blocks[:index], shape, *self.blocks[index + 1 :]))

    def _network(self, params: Params) -> UnrolledNetwork:
        return nnx.merge(self._graph, params)

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: UnrolledNetwork(self.decoder.config, self.blocks, nnx.Rngs(0))))[0]


def unrolled_decoder(decoder: Decoder, params: Params) -> tuple[UnrolledDecoder, Params]:
    """Write a decoder whose blocks are stacked as one whose blocks may differ: the form to reduce.

    Args:
      decoder: of L blocks.
      params: its weights; each leaf of `blocks` leads with L.

    Returns:
      The same function; params `block0`, `block1`, ..., without that axis, stand in place of `blocks`.
    """
    depth = decoder.config.depth
    apart = {f"block{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"]) for i in range(depth)}
    ends = {name: leaf for name, leaf in params.items() if name != "blocks"}
    return UnrolledDecoder(decoder, (decoder.config.block,) * depth), {**ends, **apart}


def stacked_decoder(unrolled: UnrolledDecoder, params: Params) -> tuple[Decoder, Params]:
    """Write a decoder whose blocks have one shape as a scan over them: `unrolled_decoder`, backwards.

    What `Decoder` is searched with is then open to a reduced one. Biases that only some maps have become zeros
    elsewhere.

    Raises:
      ValueError: blocks differ in hidden units or heads, or key-value heads serve unequal numbers of query heads.
    """
    shapes = {(shape.groups, shape.hidden) for shape in unrolled.blocks}
    first = unrolled.blocks[0]
    if len(shapes) != 1 or not first.even:
        raise ValueError(
            f"got blocks of shapes {unrolled.blocks}, expected one shape, whose key-value heads serve equally many "
            "query heads each"
        )
    old = unrolled.decoder.config
    output_bias = any(shape.output_bias for shape in unrolled.blocks)
    mlp_bias = any(shape.down_bias for shape in unrolled.blocks)
    sizes = {"heads": first.heads, "kv_heads": first.kv_heads, "hidden": first.hidden}
    biased = (["output"] if output_bias else []) + (["gate", "up", "down"] if mlp_bias else [])
    names = [f"block{index}" for index in range(len(unrolled.blocks))]
    blocks = [_with_zero_biases(params[name], biased) for name in names]
    ends = {name: leaf for name, leaf in params.items() if name not in names}
    decoder = replace(unrolled.decoder, config=replace(old, **sizes, output_bias=output_bias, mlp_bias=mlp_bias))
    return decoder, {**ends, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def even_heads(unrolled: UnrolledDecoder, params: Params) -> tuple[UnrolledDecoder, Params]:
    """Repeat key-value heads until each serves equally many query heads in a row: the same function, stackable.

    Removing query heads leaves key-value heads that serve unequal numbers `n_g` of them. With `s` the greatest common
    divisor of all `n_g` of all blocks, head `g` stands `n_g / s` times: at worst there are as many as query heads, and
    that much more memory goes to keys, values and their maps.

    Args:
      unrolled: blocks of any shapes.
      params: its weights.

    Returns:
      The network itself where all blocks are even already and share alike.
    """
    if len({shape.kv_heads for shape in unrolled.blocks}) == 1 and all(shape.even for shape in unrolled.blocks):
        return unrolled, params
    size, heads = unrolled.decoder.config.head_size, [np.array(shape.groups) for shape in unrolled.blocks]
    share = int(np.gcd.reduce(np.concatenate([np.bincount(groups) for groups in heads])))
    blocks, arrays = [], dict(params)
    for index, (shape, groups) in enumerate(zip(unrolled.blocks, heads, strict=True)):
        columns = (groups[::share, None] * size + np.arange(size)).ravel()
        block = dict(params[f"block{index}"])
        for name in ("key", "value"):
            block[name] = jax.tree.map(lambda leaf, columns=columns: leaf[..., columns], block[name])
        arrays[f"block{index}"] = block
        blocks.append(replace(shape, groups=tuple((np.arange(len(groups)) // share).tolist())))
    return replace(unrolled, blocks=tuple(blocks)), arrays


def _with_zero_biases(arrays: Params, names: Sequence[str]) -> Params:
    """Give these maps of a block a bias where they are there and have none."""
    kernels = {name: arrays[name]["kernel"] for name in names if name in arrays and "bias" not in arrays[name]}
    new = {
        name: {"kernel": kernel, "bias": jnp.zeros(kernel.shape[-1:], kernel.dtype)} for name, kernel in kernels.items()
    }
    return {**arrays, **new}


def _taken(arrays: Params, names: Sequence[str], kept: Int[np.ndarray, " K"], width: int) -> Params:
    """Keep some outputs of those of these maps that are there, with their biases."""
    there = [name for name in names if name in arrays]
    take = lambda leaf: take_units(leaf, kept, width)
    return {**arrays, **{name: jax.tree.map(take, arrays[name]) for name in there}}


def _parts(tap: str) -> tuple[str, int]:
    """Split `mlp_product3` in name and block; what has no block is in block -1."""
    name = tap.rstrip("0123456789")
    return name, int(tap[len(name) :] or -1)


@partial(jax.jit, static_argnames=("model",))
def _initial(model: UnrolledDecoder, key: Array) -> Params:
    return nnx.to_pure_dict(nnx.split(UnrolledNetwork(model.decoder.config, model.blocks, nnx.Rngs(key)))[1])
