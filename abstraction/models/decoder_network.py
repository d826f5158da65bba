"""A decoder's parameters: embeddings, blocks, and what reads the residual stream in the end."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from abstraction.models.decoder_blocks import Block, Norm
from abstraction.models.decoder_config import BlockShape, DecoderConfig


class Network(nnx.Module):
    """Parameters: `embedding` [V, D], `positions` or None, blocks, `final_norm`, `unembedding` or None."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        draw = lambda rows: nnx.Param(
            (jax.random.normal(rngs.params(), (rows, config.width)) * config.width**-0.5).astype(config.precision)
        )
        self.embedding = draw(config.vocabulary)
        self.positions = draw(config.learned_positions) if config.learned_positions else None
        self.build(rngs)
        self.final_norm = Norm(config)
        self.unembedding = None if config.tied else draw(config.vocabulary)

    def build(self, rngs: nnx.Rngs) -> None:
        """Make the blocks."""
        raise NotImplementedError

    def embed(self, tokens: Int[Array, "N T"], positions: Int[Array, "N T"]) -> Float[Array, "N T D"]:
        """Begin the residual stream; an id that is no token's becomes NaN, which reaches the outputs."""
        scale = jnp.asarray(self.config.embedding_scale, self.config.precision)
        # JAX takes the last row for an id past the end and -1 is padding: the factor says which ids are none. A factor
        # in place of a gather that fills: that would compile to other sums.
        none = (tokens < -1) | (tokens >= self.config.vocabulary) | (tokens < 0).all(axis=1, keepdims=True)
        factor = jnp.where(none, jnp.nan, scale)
        stream = self.embedding[...][jnp.maximum(tokens, 0)] * factor[..., None].astype(scale.dtype)
        return stream if self.positions is None else stream + self.positions[...][positions]

    def logits(self, stream: Float[Array, "N D"], tokens: Int[np.ndarray, " A"] | None) -> Float[Array, "N A"]:
        """Read the logits of some tokens, by default all."""
        table = (self.embedding if self.unembedding is None else self.unembedding)[...]
        table = table if tokens is None else table[tokens]
        return jnp.einsum("nd,vd->nv", stream, table, preferred_element_type=jnp.float32)


class StackedNetwork(Network):
    """Blocks of one shape, `blocks`, stacked over depth: they run in a scan."""

    def build(self, rngs: nnx.Rngs) -> None:
        """Make the blocks."""
        shape = self.config.block
        stack = nnx.split_rngs(splits=self.config.depth)(nnx.vmap(lambda rngs: Block(self.config, shape, rngs)))
        self.blocks = stack(rngs)


class UnrolledNetwork(Network):
    """Blocks `block0`, `block1`, ..., each of its own shape."""

    def __init__(self, config: DecoderConfig, shapes: tuple[BlockShape, ...], rngs: nnx.Rngs):
        self.shapes = shapes
        super().__init__(config, rngs)

    def build(self, rngs: nnx.Rngs) -> None:
        """Make the blocks."""
        for index, shape in enumerate(self.shapes):
            setattr(self, f"block{index}", Block(self.config, shape, rngs))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in the order they run."""
        return tuple(getattr(self, f"block{index}") for index in range(len(self.shapes)))
