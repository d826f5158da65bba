"""How well a language model predicts a text, and how far its predictions are from those of another.

    surprise    -log p(next token)           at every token that has a next one; perplexity is exp of its mean
    kl          KL(p_dense || p)             of the two predictions at a token
    agrees      argmax p = argmax p_dense

Predictions over 49,152 tokens at every position of a text are too many to keep. What is kept of the dense network is
its last residual stream, some hundred numbers a token, from which they are made again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from abstraction.checks import finite, whole
from abstraction.models import Decoder, Network
from abstraction.models.positions import check_tokens, token_mask
from abstraction.sharding import mesh_of, on_host, over_rows, shared_rows
from abstraction.typing import AnyArray


class TextScores(NamedTuple):
    """What a network makes of a text, for the M tokens that have a next one.

    Attributes:
      surprise: -log p(next token), nats, `[M]`.
      kl: from the dense network, nats, `[M]`.
      agrees: whether both would choose the same next token, `[M]`.
    """

    surprise: Float[np.ndarray, " M"]
    kl: Float[np.ndarray, " M"]
    agrees: Bool[np.ndarray, " M"]

    @property
    def perplexity(self) -> float:
        """exp of the mean surprise."""
        return float(np.exp(self.surprise.mean()))


class DenseText(NamedTuple):
    """A text, and what the dense network makes of it.

    Attributes:
      network: the dense one.
      tokens: `[N, T]`, padded with -1 on the right.
      streams: its last residual stream, `[N, T, W]`.
    """

    network: Network
    tokens: Int[np.ndarray, "N T"]
    streams: Float[np.ndarray, "N T W"]


def text_decoder(network: Network) -> Decoder:
    """Return the decoder of a network that predicts the next token of a text.

    Raises:
      ValueError: another network, or one of answer symbols.
    """
    model = network.model
    if not isinstance(model, Decoder):
        raise ValueError(f"got a network of {type(model).__name__}, expected one of Decoder")
    if model.answers:
        raise ValueError("got a decoder of answer symbols, expected one of the whole vocabulary: Decoder(config)")
    return model


def row_batches(tokens: Int[AnyArray, "N T"], batch_size: int, mesh: Mesh | None = None) -> list[Int[Array, "B T"]]:
    """Cut rows into batches of one size; the last is filled up with padding, which counts nowhere.

    Args:
      tokens: the rows.
      batch_size: rows at once; devices that share them get equally many, so that there may be some more.
      mesh: whose devices share them.
    """
    tokens = np.asarray(tokens)
    size = shared_rows(mesh, min(batch_size, len(tokens)))
    missing = -len(tokens) % size
    rows = np.concatenate([tokens, np.full((missing, tokens.shape[1]), -1, tokens.dtype)])
    return [over_rows(mesh, jnp.asarray(part, jnp.int32)) for part in np.split(rows, len(rows) // size)]


def dense_text(network: Network, tokens: Int[AnyArray, "N T"], *, batch_size: int = 8) -> DenseText:
    """Run the dense network on a text and keep what its predictions are made of.

    Args:
      network: a `Decoder` of the whole vocabulary.
      tokens: rows of two tokens or more, padded with -1 on the right.
      batch_size: rows at once.

    Raises:
      ValueError: another network, tokens that are none, are padded elsewhere, or have no next one.
    """
    _check_text(network, tokens, batch_size)
    mesh = mesh_of(network.params)
    parts = [on_host(_streams(network, batch)) for batch in row_batches(tokens, batch_size, mesh)]
    streams = np.concatenate(parts)[: len(tokens)]
    return DenseText(network, np.asarray(tokens), finite("the last residual stream", streams))


def score_text(network: Network, dense: DenseText, *, batch_size: int = 8) -> TextScores:
    """Let a network predict a text, beside the dense one.

    Args:
      network: a `Decoder` of the whole vocabulary; the dense one again, or one made of it, on the same mesh if on one.
      dense: the text.
      batch_size: rows at once.

    Raises:
      ValueError: another network, or one of another vocabulary.
    """
    _check_text(network, dense.tokens, batch_size)
    sizes = [text_decoder(each).config.vocabulary for each in (network, dense.network)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"got networks of {sizes[0]} and {sizes[1]} tokens, expected one vocabulary")
    mesh, parts = mesh_of(network.params), []
    for index, batch in enumerate(row_batches(dense.tokens, batch_size, mesh)):
        size = len(batch)
        streams = dense.streams[index * size : (index + 1) * size]
        streams = np.pad(streams, ((0, size - len(streams)), (0, 0), (0, 0)))
        parts.append(on_host(_scores(network, dense.network, batch, over_rows(mesh, jnp.asarray(streams)))))
    surprise, kl, agrees, counted = (np.concatenate(part) for part in zip(*parts, strict=True))
    # What is not finite stays: a network that breaks is measured as such.
    return TextScores(*(values[counted] for values in (surprise, kl, agrees)))


def _check_text(network: Network, tokens: AnyArray, batch_size: int) -> None:
    decoder = text_decoder(network)
    check_tokens(tokens, decoder.config.vocabulary)
    whole("batch size", batch_size)
    there = np.asarray(tokens) >= 0
    if there.shape[1] < 2 or not there[:, :2].all() or (there[:, 1:] & ~there[:, :-1]).any():
        raise ValueError("got rows of text without a next token, or padded elsewhere, expected padding on the right")


@jax.jit
def _streams(network: Network, tokens: Int[Array, "N T"]) -> Float[Array, "N T W"]:
    model: Any = network.model
    run = model.scan(network.params, tokens, {}, ("final_input",), at=None, cache=False)
    return run.recorded["final_input"][0]


@jax.jit
def _scores(network: Network, dense: Network, tokens: Int[Array, "N T"], streams: Float[Array, "N T W"]) -> Any:
    there = token_mask(tokens)
    logits, target = _read(network, _streams(network, tokens)), _read(dense, streams)
    log_q, log_p = jax.nn.log_softmax(logits), jax.nn.log_softmax(target)
    following = jnp.maximum(tokens[:, 1:], 0).reshape(-1)
    surprise = -log_q[jnp.arange(len(following)), following]
    kl = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return surprise, kl, log_p.argmax(-1) == log_q.argmax(-1), (there[:, :-1] & there[:, 1:]).reshape(-1)


def _read(network: Network, streams: Float[Array, "N T W"]) -> Float[Array, "M V"]:
    """Return the logits at all tokens but the last of each row."""
    model: Any = network.model
    flat = streams[:, :-1].reshape(-1, streams.shape[-1])
    return model.read(model.network(network.params), flat).astype(jnp.float32)
