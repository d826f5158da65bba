"""A transformer whose variables' places are known: a RASP program, compiled by tracr to a Haiku network.

The program reads tokens t0, t1, t2 and says, at every token,

    p = t0 mod 2,    q = t1 div 2,    y = p + 2 q

`parity` and `half` of every token are written by the first MLP, p and q by the second attention, each as a one-hot code
at coordinates that the compiler labels, and y by the second MLP.
"""

from typing import Any, NamedTuple

import numpy as np
from tracr.compiler import compiling
from tracr.rasp import rasp

TOKENS = (0, 1, 2, 3)
LENGTH = 3
AFTER_FIRST_MLP, AFTER_SECOND_ATTENTION, AFTER_SECOND_MLP = 1, 2, 3
"""Depths of the residual stream, which is a tap after each attention and each MLP."""


class Compiled(NamedTuple):
    """A compiled network.

    Attributes:
      model: what tracr returns.
      bos: the token that begins every prompt.
    """

    model: Any
    bos: int

    def coordinates(self, name: str) -> list[int]:
        """Return the coordinates of the residual stream that the compiler labels by a variable, `name_7:value`."""
        labels = [label.split(":")[0].rsplit("_", 1)[0] for label in self.model.residual_labels]
        return [index for index, label in enumerate(labels) if label == name]


def compiled() -> Compiled:
    """Compile the program."""
    p, q = _at(0, "parity", lambda token: token % 2, "p"), _at(1, "half", lambda token: token // 2, "q")
    y = rasp.categorical(rasp.SequenceMap(lambda p, q: p + 2 * q, p, q)).named("y")
    model = compiling.compile_rasp_to_model(y, vocab=set(TOKENS), max_seq_len=LENGTH, compiler_bos="BOS")
    return Compiled(model, model.input_encoder.encoding_map["BOS"])


def _at(position, mapped, function, name):
    """Let every token know a function of the token at one position."""
    here = rasp.Map(lambda index: position, rasp.indices).named(f"place{position}")
    chosen = rasp.Select(rasp.indices, here, rasp.Comparison.EQ)
    return rasp.categorical(rasp.Aggregate(chosen, rasp.Map(function, rasp.tokens).named(mapped))).named(name)


def prompts(network: Compiled, setting: dict[str, np.ndarray]) -> np.ndarray:
    """Write settings of t0, t1, t2 as tokens `[N, 4]`."""
    tokens = [np.asarray(setting[f"t{place}"]) for place in range(LENGTH)]
    return np.stack([np.full_like(tokens[0], network.bos), *tokens], axis=1)
