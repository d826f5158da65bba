"""Models as JSON: a frozen dataclass is its name and its fields; only the classes listed here are ever made."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from abstraction.models import (
    GRU,
    MLP,
    Activation,
    Decoder,
    DecoderConfig,
    Dense,
    Model,
    PlaceView,
    Sequential,
    TokenView,
    UnrolledDecoder,
)
from abstraction.models.decoder_config import BlockShape, RopeScaling
from abstraction.models.layers import AveragePool, BatchNorm, Convolution, Flatten, GlobalAverage, MaxPool

_CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        GRU, MLP, Sequential, Decoder, UnrolledDecoder, TokenView, PlaceView,
        DecoderConfig, RopeScaling, BlockShape,
        Activation, AveragePool, BatchNorm, Convolution, Dense, Flatten, GlobalAverage, MaxPool,
    )
}  # fmt: skip


def described(value: Any) -> Any:
    """Return what JSON can hold of a model, of settings, or of a number.

    Raises:
      ValueError: an object of a class that is not one of the library's models and layers.
    """
    if dataclasses.is_dataclass(value) and type(value).__name__ in _CLASSES:
        fields = {field.name: described(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, "fields": fields}
    if isinstance(value, tuple | list):
        return [described(part) for part in value]
    if isinstance(value, Mapping):
        return {str(name): described(part) for name, part in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"got a {type(value).__name__} to write down, expected one of {sorted(_CLASSES)}, or plain values")


def model_of(description: Any) -> Model:
    """Make the model that `described` has written down.

    Raises:
      ValueError: it is not a model's description, or the library has no such model.
    """
    model = _made(description)
    if not isinstance(model, Model):
        raise ValueError(f"got a {type(model).__name__}, expected the description of a model")
    return model


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_made(part) for part in value)
    if not isinstance(value, dict):
        return value
    name, fields = value.get("class"), value.get("fields")
    if name not in _CLASSES or not isinstance(fields, dict):
        raise ValueError(f"got a description of {name!r}, expected one of {sorted(_CLASSES)}")
    try:
        return _CLASSES[name](**{key: _made(part) for key, part in fields.items()})
    except TypeError as error:
        raise ValueError(f"got fields {sorted(fields)} of {name}, expected those of this version: {error}") from error
