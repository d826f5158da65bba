"""Statistics of language models from one pass over text, and what is reduced by them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import Add
from abstraction.models import Decoder, Network
from abstraction.reduction import METHODS, compile_plan
from abstraction.reduction.blocks import (
    block_budgets,
    block_taps,
    fold_blocks,
    folded_decoder,
    rank_blocks,
    unrolled_network,
    written_root,
)
from abstraction.reduction.compiling import patch
from abstraction.reduction.text import DRAWN, WRITES, block_statistics, text_statistics

N, T, SHORTEST = 40, 7, 4


def _network(family="llama"):
    decoder = Decoder(FAMILIES[family])
    return Network(decoder, drawn(decoder))


@pytest.fixture(name="tokens")
def _tokens(rng):
    """Rows of text, padded on the right."""
    rows = padded(rng, N, T, SHORTEST)
    return np.stack([np.concatenate([row[row >= 0], row[row < 0]]) for row in rows])


@pytest.fixture(name="statistics")
def _statistics(tokens):
    return text_statistics(_network(), tokens, jax.random.key(0), batch_size=16)


@pytest.mark.parametrize("tap", ["mlp_product", "head_output"])
def test_moments_are_those_of_all_tokens_and_no_padding(tokens, statistics, tap):
    states = np.asarray(_network()(tokens, record=(tap,))[1][tap], np.float64)
    flat = states[:, tokens >= 0]
    found = statistics.units[tap]
    assert int(statistics.tokens) == (tokens >= 0).sum() == flat.shape[1]
    close = {"rtol": 1e-4, "atol": 1e-5}  # products summed in float32
    np.testing.assert_allclose(found.mean, flat.mean(1), **close)
    np.testing.assert_allclose(found.covariance, [np.cov(each.T, bias=True) for each in flat], **close)
    np.testing.assert_allclose(found.low, flat.min(1), **close)
    np.testing.assert_allclose(found.high, flat.max(1), **close)


def _logits(network, row, offset, tap):
    model = network.model
    run = model.scan(network.params, row[None], {tap: Add(offset)}, ("final_input",), at=None, cache=False)
    return model.read(model.network(network.params), run.recorded["final_input"][0, 0])


@pytest.mark.parametrize("discrepancy", DRAWN)
@pytest.mark.parametrize("tap", [pytest.param("mlp_product", marks=pytest.mark.slow), "head_output"])
def test_one_draw_a_token_is_the_curvature_on_average(rng, discrepancy, tap):
    """J^T B J, summed over all later predictions, row by row and without a draw."""
    network, rows = _network(), rng.integers(23, size=(2, 4), dtype=np.int32)
    shape = (network.model.config.depth, 1, rows.shape[1], network.model.config.width)
    exact = 0.0
    for row in rows:
        logits = np.asarray(_logits(network, row, jnp.zeros(shape), WRITES[tap]), np.float64)
        jacobian = jax.jacrev(lambda offset, row=row: _logits(network, row, offset, WRITES[tap]))(jnp.zeros(shape))
        jacobian = np.asarray(jacobian, np.float64)[:, :, :, 0]  # [T, V, L, T, W]
        for at, z in enumerate(logits):
            p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            one = np.ones((len(z), len(z))) / len(z)
            bend = np.diag(p) - np.outer(p, p) if discrepancy == "kl" else 2 * (np.eye(len(z)) - one)
            exact = exact + np.einsum("cltw,cd,dltv->lwv", jacobian[at], bend, jacobian[at]) / rows.size
    copies = np.tile(rows, (2000, 1))
    found = text_statistics(network, copies, jax.random.key(1), discrepancies=(discrepancy,), batch_size=1000)
    error = np.asarray(found.units[tap].written[discrepancy]) - exact
    # 4000 rows of draws leave 8 % of noise; a factor that is missing would be 50 % or more.
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(exact)


def test_statistics_of_batches_are_those_of_the_whole(tokens, statistics):
    whole = text_statistics(_network(), tokens, jax.random.key(0), batch_size=N)
    for tap in WRITES.keys() & whole.units.keys():
        np.testing.assert_allclose(whole.units[tap].covariance, statistics.units[tap].covariance, rtol=1e-4, atol=1e-5)


def test_the_root_at_hand_is_one_of_the_curvature(statistics):
    network = unrolled_network(_network())
    for tap in (*block_taps(network, "mlp"), *block_taps(network, "heads")):
        root = written_root(network, statistics, tap, "kl")
        hessian = block_statistics(network, statistics, tap, "kl").hessian
        np.testing.assert_allclose(root.T @ root, hessian, atol=1e-9 * np.abs(hessian).max())


@pytest.mark.parametrize("method", ["cmr-closed", "flap", "wanda-zero"])
@pytest.mark.parametrize("part", ["mlp", "heads"])
def test_folded_compiled_and_patched_decoders_are_one_function(tokens, statistics, method, part):
    network = unrolled_network(_network())
    rankings = list(rank_blocks(network, statistics, part, METHODS[method], share=0.25))
    plan = fold_blocks(rankings, block_budgets(rankings, 0.5, "global"))
    plain, outputs = _network()(tokens)[0], network(tokens, patch(network, plan))[0]
    close = {"rtol": 1e-5, "atol": 2e-5}  # float32 sums in another order, through three blocks
    np.testing.assert_allclose(folded_decoder(network, plan)(tokens)[0], outputs, **close)
    np.testing.assert_allclose(compile_plan(network, plan)(tokens)[0], outputs, **close)
    assert np.abs(plain - outputs).max() > 1e-2


@pytest.mark.parametrize("method", ["cmr-closed", "flap"])
def test_one_budget_is_spent_where_units_are_worth_most(statistics, method):
    network = unrolled_network(_network())
    rankings = list(rank_blocks(network, statistics, "mlp", METHODS[method], share=0.25))
    uniform, spread = (block_budgets(rankings, 0.5, name) for name in ("uniform", "global"))
    assert set(uniform.values()) == {12}
    assert sum(spread.values()) == 36
    assert min(spread.values()) >= 6


def test_affine_folds_lose_less_than_means(tokens):
    rows = np.concatenate([tokens] * 2)
    network = _network()
    statistics, unrolled = text_statistics(network, rows, jax.random.key(0)), unrolled_network(network)
    dense, lost = np.asarray(network(tokens)[0]), {}
    for method in ("obs-affine", "flap"):
        rankings = list(rank_blocks(unrolled, statistics, "mlp", METHODS[method]))
        reduced = folded_decoder(unrolled, fold_blocks(rankings, block_budgets(rankings, 0.5)))
        lost[method] = float(((np.asarray(reduced(tokens)[0]) - dense) ** 2).mean())
    assert lost["obs-affine"] < 0.8 * lost["flap"]
