"""The low-level side: networks whose activations can be recorded and edited. The only room that imports Flax."""

from abstraction.models.any_model import At, WrappedModel, listing, tap, wrap
from abstraction.models.base import Model
from abstraction.models.checking import check_model
from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import DecoderConfig
from abstraction.models.decoder_files import read_decoder, save_decoder
from abstraction.models.decoder_unrolled import UnrolledDecoder
from abstraction.models.gru import GRU
from abstraction.models.layers import Activation, Dense
from abstraction.models.meshes import on_mesh
from abstraction.models.mlp import MLP
from abstraction.models.network import Network
from abstraction.models.places import PlaceView, placed
from abstraction.models.positions import at_positions, highlighted
from abstraction.models.precision import in_precision
from abstraction.models.sequential import Sequential
from abstraction.models.taps import Edit, Tap
from abstraction.models.token_views import Prompts, TokenView, prompts_at
from abstraction.models.weights import load_decoder
from abstraction.models.wiring import Consumer, Passage, Reducible

__all__ = [
    "GRU",
    "MLP",
    "Activation",
    "At",
    "Consumer",
    "Decoder",
    "DecoderConfig",
    "Dense",
    "Edit",
    "Model",
    "Network",
    "Passage",
    "PlaceView",
    "Prompts",
    "Reducible",
    "Sequential",
    "Tap",
    "TokenView",
    "UnrolledDecoder",
    "WrappedModel",
    "at_positions",
    "check_model",
    "highlighted",
    "in_precision",
    "listing",
    "load_decoder",
    "on_mesh",
    "placed",
    "prompts_at",
    "read_decoder",
    "save_decoder",
    "tap",
    "wrap",
]
