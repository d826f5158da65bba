"""A small decoder-only transformer for tests of reduction, written without the package's layers.

    h <- h + W_O z + b_O,   z = (heads' causal attention of norm(h));   h <- h + W_down (silu(g) u) + b_down

Pre-norm (RMS), grouped queries: a block lists for each query head the key-value head that it reads. Taps: `headsN`, the
z of all query heads side by side, and `mlpN`, the products silu(g) u. Output maps have no bias until a fold needs one.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from abstraction.models import Consumer, Tap
from abstraction.models.taps import NO_EDITS, at_depth, check_taps, tapped
from abstraction.models.wiring import take_units

_NAMES = {"heads": "out", "mlp": "down"}


@dataclass(frozen=True)
class TinyDecoder:
    """Two fields of sizes per block: `groups`, the key-value head of each query head, and `widths`, of the MLP."""

    tokens: int
    width: int
    size: int
    groups: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    biased: tuple[tuple[str, str], ...] = ()

    @property
    def taps(self):
        taps = [Tap("inputs", self.width), Tap("logits", self.tokens)]
        for block, (group, width) in enumerate(zip(self.groups, self.widths, strict=True)):
            taps += [Tap(f"heads{block}", len(group) * self.size), Tap(f"mlp{block}", width)]
        return {tap.name: tap for tap in taps}

    def init(self, key):
        shapes = {"embed": {"kernel": (self.tokens, self.width)}, "unembed": {"kernel": (self.width, self.tokens)}}
        for block, (group, width) in enumerate(zip(self.groups, self.widths, strict=True)):
            queries, keys = len(group) * self.size, (max(group) + 1) * self.size
            shapes[f"block{block}"] = {
                "query": (self.width, queries), "key": (self.width, keys), "value": (self.width, keys),
                "out": (queries, self.width), "gate": (self.width, width), "up": (self.width, width),
                "down": (width, self.width),
            }  # fmt: skip
        for block, name in self.biased:
            shapes[block][f"{name}_bias"] = (self.width,)
        leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        draws = [jax.random.normal(k, s) * 0.3 for k, s in zip(jax.random.split(key, len(leaves)), leaves, strict=True)]
        return jax.tree.unflatten(tree, draws)

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        check_taps(self.taps, edits, record)
        edits = at_depth(edits, 0)
        stream = tapped("inputs", params["embed"]["kernel"][inputs], edits)
        recorded = {"inputs": stream}
        for block, group in enumerate(self.groups):
            weights = params[f"block{block}"]
            heads = tapped(f"heads{block}", _attention(weights, _norm(stream), group, self.size), edits)
            stream = stream + self._write(weights, block, "out", heads)
            read = _norm(stream)
            products = jax.nn.silu(read @ weights["gate"]) * (read @ weights["up"])
            products = tapped(f"mlp{block}", products, edits)
            stream = stream + self._write(weights, block, "down", products)
            recorded |= {f"heads{block}": heads, f"mlp{block}": products}
        recorded["logits"] = tapped("logits", _norm(stream) @ params["unembed"]["kernel"], edits)
        return recorded["logits"], {name: recorded[name][None] for name in record}

    def resume(self, params, tap, depth, activation, *, inputs, states):
        raise ValueError(f"got a resume from {tap!r}, expected none")

    def consumers(self, tap):
        block, name = self._place(tap)
        return (Consumer((f"block{block}", name), (f"block{block}", f"{name}_bias")),)

    def with_biases(self, params, tap):
        block, name = self._place(tap)
        weights = {**params[f"block{block}"], f"{name}_bias": jnp.zeros(self.width)}
        return replace(self, biased=(*self.biased, (f"block{block}", name))), {**params, f"block{block}": weights}

    def narrowed(self, params, tap, kept):
        block, name = self._place(tap)
        weights, width = dict(params[f"block{block}"]), self.taps[tap].width
        weights[name] = take_units(weights[name], kept, width, axis=0)
        if name == "down":
            weights |= {part: take_units(weights[part], kept, width) for part in ("gate", "up")}
            widths = (*self.widths[:block], len(kept), *self.widths[block + 1 :])
            return replace(self, widths=widths), {**params, f"block{block}": weights}
        heads = np.unique(np.asarray(kept) // self.size)
        if len(heads) * self.size != len(kept):
            raise ValueError(f"got {len(kept)} units of {tap!r}, expected whole heads of {self.size}")
        group = np.array(self.groups[block])[heads]
        used = np.unique(group)
        columns = (used[:, None] * self.size + np.arange(self.size)).ravel()
        weights["query"] = take_units(weights["query"], kept, width)
        weights |= {part: weights[part][:, columns] for part in ("key", "value")}
        groups = (*self.groups[:block], tuple(np.searchsorted(used, group).tolist()), *self.groups[block + 1 :])
        return replace(self, groups=groups), {**params, f"block{block}": weights}

    def _place(self, tap):
        if tap.rstrip("0123456789") not in _NAMES:
            raise ValueError(f"got tap {tap!r}, which is read through a norm, expected headsN or mlpN")
        return int(tap.lstrip("headsmlp")), _NAMES[tap.rstrip("0123456789")]

    def _write(self, weights, block, name, value):
        bias = weights[f"{name}_bias"] if (f"block{block}", name) in self.biased else 0.0
        return value @ weights[name] + bias


def _norm(stream):
    return stream * jax.lax.rsqrt((stream**2).mean(axis=-1, keepdims=True) + 1e-6)


def _attention(weights, read, group, size):
    split = lambda part: (read @ weights[part]).reshape(*read.shape[:2], -1, size)
    query, key, value = split("query"), split("key")[:, :, np.array(group)], split("value")[:, :, np.array(group)]
    scores = jnp.einsum("nqhs,nkhs->nhqk", query, key) / size**0.5
    causal = jnp.tril(jnp.ones((read.shape[1], read.shape[1]), bool))
    weight = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
    return jnp.einsum("nhqk,nkhs->nqhs", weight, value).reshape(*read.shape[:2], -1)
