"""The paper's experiments, and larger ones, as cases: programs to compile, not to run (`abstraction.explaining`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from abstraction.evaluation import Bits
from abstraction.explaining import Case, Searches, shape
from abstraction.models import GRU, MLP, Decoder, Prompts, TokenView
from abstraction.models.decoder_config import DecoderConfig

LETTERS = tuple((1000 + letter,) for letter in range(26))
"""Tokens that stand for the 26 letters; which they are does not matter to a shape."""

_GEMMA = {
    "vocabulary": 256_000, "head_size": 256, "norm_offset": 1.0, "post_norms": True, "activation": "gelu_tanh",
    "attention_cap": 50.0, "final_cap": 30.0, "window": 4096, "dtype": "bfloat16",
}  # fmt: skip


def gemma(width: int, depth: int, heads: int, kv_heads: int, hidden: int, query: float) -> DecoderConfig:
    """Return the sizes of a Gemma-2: every other block has a window."""
    sizes = {"width": width, "depth": depth, "heads": heads, "kv_heads": kv_heads, "hidden": hidden}
    windowed = tuple(block % 2 == 0 for block in range(depth))
    return DecoderConfig(**sizes, **_GEMMA, windowed=windowed, embedding_scale=width**0.5, query_scale=query**-0.5)  # pyright: ignore[reportArgumentType]


GEMMA_2B = gemma(2304, 26, 8, 4, 9216, 256)
GEMMA_9B = gemma(3584, 42, 16, 8, 14_336, 256)


def prompts(tokens: int) -> Callable[[int], Prompts]:
    """Return shapes of prompts of so many tokens."""
    return lambda count: Prompts(shape((count, tokens), jnp.int32), shape((count,), jnp.int32))


def language_model(name: str, config: DecoderConfig, tokens: int, pairs: int, searches: Sequence[Searches]) -> Case:
    """Make a case of multiple choice: letters and the largest other logit, at the last token."""
    view = TokenView(Decoder(config, LETTERS, rest=True))
    return Case(name, view, prompts(tokens), "block_output", pairs, 3 * pairs, searches)


def cases() -> list[Case]:
    """Return the paper's experiments, and one on a model of nine billion parameters (PLOT, Sec. 4).

    Searches are as many as are trained together: of multiple choice 11 ranks, 2 variables and 2 restarts at one depth,
    or of every third part of them at the depths of one of six bands, filled up as `padded_searches` does.
    """
    band = "Full DAS, a band"
    narrow = Searches("PLOT-DAS", 48, 2304), Searches(band, 64, 2304, 5)
    wide = Searches("PLOT-DAS", 48, 3584), Searches(band, 96, 3584, 7)
    vectors: Callable[[int], Any] = lambda count: shape((count, 16))
    steps: Callable[[int], Any] = lambda count: shape((count, 4, 2))
    heq, carries = [Searches("Full DAS", 96, 16, 3, batch=128)], [Searches("Full DAS", 120, 16, 4)]
    return [
        Case("equality", MLP(16, 16, 3, 2), vectors, "hidden", 1000, 3000, heq),
        Case("addition", GRU(2, 16, 4), steps, "hidden", 3328, 6656, carries, Bits()),
        language_model("mcqa, Gemma-2-2B", GEMMA_2B, 100, 200, narrow),
        language_model("mcqa, Gemma-2-9B", GEMMA_9B, 100, 200, wide),
    ]
