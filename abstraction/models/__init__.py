"""The low-level side: networks whose activations can be recorded and edited. The only room that imports Flax."""

from abstraction.models.base import Model, Padded, Recordable
from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig, RopeScaling
from abstraction.models.decoder_files import read_decoder, save_decoder
from abstraction.models.decoder_unrolled import UnrolledDecoder, stacked_decoder, unrolled_decoder
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
from abstraction.models.positions import AtPositions, at_positions
from abstraction.models.sequential import Sequential
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap
from abstraction.models.token_views import Prompts, TokenView, prompts_at, window_of
from abstraction.models.unrolling import stacked, unrolled
from abstraction.models.weights import load_config, load_decoder
from abstraction.models.wiring import Consumer, Passage, Reducible

__all__ = [
    "GRU",
    "MLP",
    "NO_EDITS",
    "Activation",
    "AtPositions",
    "AveragePool",
    "BatchNorm",
    "Consumer",
    "Convolution",
    "Decoder",
    "DecoderConfig",
    "Dense",
    "Edit",
    "Edits",
    "Flatten",
    "GlobalAverage",
    "Layer",
    "MaxPool",
    "Model",
    "Padded",
    "Passage",
    "Prompts",
    "Recordable",
    "Reducible",
    "RopeScaling",
    "Sequential",
    "Tap",
    "TokenView",
    "UnrolledDecoder",
    "at_positions",
    "load_config",
    "load_decoder",
    "prompts_at",
    "read_decoder",
    "save_decoder",
    "stacked",
    "stacked_decoder",
    "unrolled",
    "unrolled_decoder",
    "window_of",
]
