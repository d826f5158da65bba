"""Predictions of text, against networks that are run on every beginning of it."""

import jax
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn
from scipy.special import log_softmax

from abstraction.evaluation.text import dense_text, score_text
from abstraction.models import Decoder, Network


@pytest.fixture(name="network", scope="module")
def _network():
    decoder = Decoder(FAMILIES["llama"])
    return Network(decoder, drawn(decoder))


@pytest.fixture(name="other", scope="module")
def _other():
    decoder = Decoder(FAMILIES["llama"])
    return Network(decoder, drawn(decoder, 5))


@pytest.fixture(name="tokens")
def _tokens(rng):
    tokens = rng.integers(23, size=(5, 6), dtype=np.int32)
    tokens[1, 4:], tokens[3, 2:] = -1, -1
    return tokens


def test_scores_are_those_of_every_beginning_of_the_text(network, other, tokens):
    surprise, kl, agrees = [], [], []
    outputs = jax.jit(lambda network, tokens: network(tokens)[0][0])
    for row in tokens:
        for end in range(1, (row >= 0).sum()):
            beginning = np.where(np.arange(len(row)) < end, row, -1)[None]
            p, q = (log_softmax(np.asarray(outputs(each, beginning), np.float64)) for each in (network, other))
            surprise.append(-q[row[end]])
            kl.append((np.exp(p) * (p - q)).sum())
            agrees.append(p.argmax() == q.argmax())
    found = score_text(other, dense_text(network, tokens, batch_size=2), batch_size=2)
    close = {"rtol": 1e-5, "atol": 1e-5}  # float32 networks
    np.testing.assert_allclose(found.surprise, surprise, **close)
    np.testing.assert_allclose(found.kl, kl, **close)
    np.testing.assert_array_equal(found.agrees, agrees)
    assert found.perplexity == pytest.approx(np.exp(np.mean(surprise)), rel=1e-5)


def test_a_network_is_as_itself(network, tokens):
    found = score_text(network, dense_text(network, tokens))
    assert found.agrees.all()
    assert np.abs(found.kl).max() < 1e-5


def test_a_network_that_breaks_is_measured_as_such(network, tokens):
    broken = Network(network.model, jax.tree.map(lambda leaf: leaf * np.nan, network.params))
    assert np.isnan(score_text(broken, dense_text(network, tokens)).perplexity)
