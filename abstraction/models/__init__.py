"""The low-level side: networks whose activations can be recorded and edited. The only room that imports Flax."""

from abstraction.models.base import Model
from abstraction.models.gru import GRU
from abstraction.models.layers import (
    Activation,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    Flatten,
    GlobalAverage,
    Layer,
    MaxPool,
)
from abstraction.models.mlp import MLP
from abstraction.models.sequential import Sequential
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap
from abstraction.models.unrolling import stacked, unrolled
from abstraction.models.wiring import Consumer, Passage, Reducible

__all__ = [
    "GRU",
    "MLP",
    "NO_EDITS",
    "Activation",
    "AveragePool",
    "BatchNorm",
    "Consumer",
    "Convolution",
    "Dense",
    "Edit",
    "Edits",
    "Flatten",
    "GlobalAverage",
    "Layer",
    "MaxPool",
    "Model",
    "Passage",
    "Reducible",
    "Sequential",
    "Tap",
    "stacked",
    "unrolled",
]
