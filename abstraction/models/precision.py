"""The precision that a decoder computes in: float32, or bfloat16 as accelerators are fast in.

Weights, the residual stream and what is recorded of it are of it. Logits, losses, signatures, and the frames and
weights of handles are float32 whatever it is; an edit is made in float32 and rounded to the stream's precision.
"""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp

from abstraction.checks import one_of
from abstraction.models.decoder import Decoder
from abstraction.models.decoder_config import Precision
from abstraction.models.network import Network


def in_precision(network: Network, dtype: Precision) -> Network:
    """Return a decoder that computes in another precision, its weights rounded to it.

    Args:
      network: a network whose model is a `Decoder`.
      dtype: `float32` or `bfloat16`.

    Raises:
      ValueError: another model, or another precision.
    """
    one_of("precision", dtype, get_args(Precision))
    model: Any = network.model
    if not isinstance(model, Decoder):
        raise ValueError(f"got a network of {type(model).__name__}, expected one of Decoder")
    decoder = dataclasses.replace(model, config=dataclasses.replace(model.config, dtype=dtype))
    return Network(decoder, jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(dtype), network.params))
