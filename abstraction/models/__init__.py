"""The low-level side: networks whose activations can be recorded and edited. The only room that imports Flax."""

from abstraction.models.base import Model
from abstraction.models.gru import GRU
from abstraction.models.mlp import MLP
from abstraction.models.taps import NO_EDITS, Edit, Edits, Tap

__all__ = ["GRU", "MLP", "NO_EDITS", "Edit", "Edits", "Model", "Tap"]
