"""Reducing transformers of every family: units of MLPs and whole heads, with prompts that are padded."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded
from once import parts

from abstraction.evaluation import bernoulli_trials, interchanged_outputs
from abstraction.evaluation.interchange import view
from abstraction.interventions import Interchange, Set
from abstraction.models import Decoder, Network
from abstraction.models.decoder_unrolled import stacked_decoder, unrolled_decoder
from abstraction.models.taps import NO_EDITS
from abstraction.reduction import METHODS, Calibration, affine_fold, bill, compile_plan, reduce_network
from abstraction.reduction.compiling import patch
from abstraction.reduction.moments import collect_statistics
from abstraction.reduction.pipeline import Procedure, replace_units
from abstraction.reduction.plans import reduction_plan
from abstraction.reduction.ranking import rank_units

N, T, SHORTEST = 48, 7, 4
# float32 sums in another order, through three blocks, of outputs of order 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@partial(jax.jit, static_argnums=0, static_argnames="record")
def _apply(model, params, tokens, edits=NO_EDITS, record=()):
    return model.apply(params, tokens, edits, record)


def _outputs(reduction, tokens):
    return np.asarray(_apply(reduction.network.model, reduction.network.params, tokens, reduction.edits)[0])


def _network(family, **options):
    decoder = Decoder(FAMILIES[family], **options)
    return unrolled_decoder(decoder, drawn(decoder))


@pytest.fixture(name="llama", scope="module")
def _llama():
    return _network("llama", answers=((1,), (4, 7), (2,)))


@pytest.fixture(name="tokens")
def _tokens(rng):
    return padded(rng, N, T, SHORTEST)


def _units(model):
    return "mlp_product" if model.decoder.config.gated else "mlp_hidden"


def _fold(model, rng, tap, replaced, kind):
    width = model.taps[tap].width
    kept = np.setdiff1d(np.arange(width), replaced)
    coefficients = rng.normal(size=(len(replaced), len(kept))) * (kind == "affine") / len(kept) ** 0.5
    return affine_fold(tap, kept, replaced, rng.normal(size=len(replaced)), coefficients)


@pytest.mark.parametrize("kind", [pytest.param("constant", marks=pytest.mark.slow), "affine"])
@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow) if name != "gpt2" else name for name in FAMILIES]
)
def test_the_compiled_decoder_is_the_patched_one(family, kind, rng, tokens):
    model, params = _network(family)
    size = model.decoder.config.head_size
    fold = partial(_fold, model, rng, kind=kind)
    folds = [fold(f"{_units(model)}{block}", np.array([0, 3, 4, 11, 20]) + block) for block in range(3)]
    folds.insert(2, fold("head_output2", np.arange(2 * size, 4 * size)))
    folds.insert(0, fold("head_output0", np.arange(size)))
    plan = reduction_plan(Network(model, params), folds)
    assert plan.obstacles == ("",) * len(folds)
    small, arrays = parts(compile_plan(Network(model, params), plan))
    patched = _apply(model, params, tokens, patch(Network(model, params), plan))[0]
    np.testing.assert_allclose(_apply(small, arrays, tokens)[0], patched, **CLOSE)
    plain = _apply(model, params, tokens)[0]
    assert np.abs(plain - patched).max() > 0.1 * np.abs(plain).max()
    assert [shape.hidden for shape in small.blocks] == [19, 19, 19]
    assert [shape.heads for shape in small.blocks] == [3, 4, 2]
    costs = [bill(Network(*network), (T,), dtype=np.int32) for network in ((small, arrays), (model, params))]
    assert costs[0].multiply_adds < costs[1].multiply_adds


def test_half_a_head_is_refused_and_can_be_patched(llama, rng):
    model, params = llama
    plan = reduction_plan(Network(model, params), [_fold(model, rng, "head_output1", [1, 2], "affine")])
    with pytest.raises(ValueError, match=r"got 14 units of 'head_output1', expected whole heads of 4; expected"):
        compile_plan(Network(model, params), plan)
    assert set(patch(Network(model, params), plan)) == {"head_output1"}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.slow
def test_padding_is_not_counted(llama, tokens, side):
    """The statistics of padded prompts are those of the same prompts, length by length and without padding."""
    model, params = llama
    lengths = (tokens >= 0).sum(1)
    if side == "right":
        tokens = np.stack([np.roll(row, length - T) for row, length in zip(tokens, lengths, strict=True)])
    target = np.roll(_apply(model, params, tokens)[0], 1, axis=0)
    found = collect_statistics(
        Network(model, params), Calibration(tokens, target=target), "mlp_product1", batch_size=20
    )
    parts, states = {}, []
    for length in np.unique(lengths):
        rows = lengths == length
        whole = tokens[rows][tokens[rows] >= 0].reshape(-1, length)
        parts[rows.sum(), length] = collect_statistics(
            Network(model, params), Calibration(whole, target=target[rows]), "mlp_product1"
        )
        states.append(np.asarray(_apply(model, params, whole, record=("mlp_product1",))[1]["mlp_product1"][0], float))
    flat = np.concatenate([part.reshape(-1, 24) for part in states])
    # float32 networks, summed in float64
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found.mean, flat.mean(0), **close)
    np.testing.assert_allclose(found.covariance, np.cov(flat.T, bias=True), **close)
    np.testing.assert_allclose(found.low, flat.min(0), **close)
    np.testing.assert_allclose(found.high, flat.max(0), **close)
    assert (found.count, found.positions * N) == (N, pytest.approx(lengths.sum()))
    for name in ("gradient_eps", "gradient_kappa", "eps_eps", "eps_kappa", "kappa_kappa", "hessian"):
        expected = sum(count * np.asarray(getattr(part, name)) for (count, _), part in parts.items()) / N
        np.testing.assert_allclose(getattr(found, name), expected, **close, err_msg=name)


def test_padding_is_not_interchanged(llama, tokens):
    """A prompt takes the source's units at the positions that both have; the others keep their own."""
    model, params = llama
    trials = bernoulli_trials(np.random.default_rng(0), examples=N, units=24, probability=0.5, trials=30)
    found = interchanged_outputs(view(Network(model, params), "mlp_product1", np.arange(24)), tokens, trials)
    states = np.asarray(_apply(model, params, tokens, record=("mlp_product1",))[1]["mlp_product1"][0])
    expected = []
    for base, source, mask in zip(trials.base, trials.source, trials.masks, strict=True):
        hybrid = states[base].copy()
        for position in range(T):
            if tokens[base, position] >= 0 and tokens[source, position] >= 0:
                hybrid[position, mask] = states[source, position, mask]
        expected.append(
            _apply(model, params, tokens[[base]], {"mlp_product1": Set(jnp.asarray(hybrid[None, None]))})[0][0]
        )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_neither_is_it_where_blocks_are_stacked(llama, tokens):
    """Units are then interchanged in all blocks at once; one mask for all of them."""
    decoder, stacked = stacked_decoder(*llama)
    trials = bernoulli_trials(np.random.default_rng(0), examples=N, units=24, probability=0.5, trials=20)
    found = interchanged_outputs(view(Network(decoder, stacked), "mlp_product", np.arange(24)), tokens, trials)
    sources = _apply(decoder, stacked, tokens[trials.source], record=("mlp_product",))[1]["mlp_product"]
    both = (tokens[trials.base] >= 0) & (tokens[trials.source] >= 0)
    weight = (both[..., None] & trials.masks[:, None]).astype(np.float32)
    edit = Interchange(sources, jnp.broadcast_to(weight, sources.shape))
    expected = _apply(decoder, stacked, tokens[trials.base], {"mlp_product": edit})[0]
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.slow
def test_units_and_heads_are_reduced_in_one_call(llama, tokens):
    model, params = llama
    keep = {"head_output0": 2, "mlp_product2": 9}
    options = {"procedure": Procedure({"head_output0": model.head_groups("head_output0")}, rounds=2)}
    reduction = reduce_network(Network(model, params), Calibration(tokens), keep, METHODS["cmr-closed"], **options)
    assert [fold.tap for fold in reduction.plan.folds] == list(keep)
    small = reduction.network.model
    assert [(shape.heads, shape.hidden) for shape in small.blocks] == [(2, 24), (4, 24), (4, 9)]
    heads = np.asarray(reduction.plan.folds[0].kept).reshape(2, 4) // 4
    assert (heads == heads[:, :1]).all()
    patched = _apply(model, params, tokens, patch(Network(model, params), reduction.plan))[0]
    np.testing.assert_allclose(_outputs(reduction, tokens), patched, **CLOSE)
    random = reduce_network(
        Network(model, params), Calibration(tokens), keep, METHODS["random"], key=jax.random.key(3), **options
    )
    dense = np.asarray(_apply(model, params, tokens)[0])
    error = lambda outputs: np.mean((outputs - dense) ** 2)
    assert error(_outputs(reduction, tokens)) < 0.8 * error(_outputs(random, tokens))


@pytest.mark.slow
def test_a_refit_fits_what_the_network_answers(llama, tokens):
    """A residual stream passes the reduced tap by; the divergences told are those of the networks themselves."""
    model, params = llama
    method = dataclasses.replace(METHODS["cmr"], law=(0.0,))
    ranking = rank_units(Network(model, params), Calibration(tokens), "mlp_product1", method)
    bare = replace_units(ranking._replace(method=dataclasses.replace(method, refit=None)), 2)
    fitted = replace_units(ranking, 2, key=jax.random.key(0))
    p = jax.nn.log_softmax(_apply(model, params, tokens)[0])
    divergence = lambda r: float((jnp.exp(p) * (p - jax.nn.log_softmax(_outputs(r, tokens)))).sum(1).mean())
    assert fitted.refitted.before == pytest.approx(divergence(bare), rel=1e-3)
    assert fitted.refitted.after == pytest.approx(divergence(fitted), rel=1e-2, abs=1e-6)
    assert divergence(fitted) < 0.7 * divergence(bare)


@pytest.mark.slow
def test_a_decoder_of_one_smaller_shape_is_a_decoder_again(llama, tokens):
    model, params = llama
    keep = {f"mlp_product{block}": 10 for block in range(3)}
    reduction = reduce_network(Network(model, params), Calibration(tokens), keep, METHODS["obs-affine"])
    decoder, stacked = stacked_decoder(reduction.network.model, reduction.network.params)
    assert decoder.config.hidden == 10
    np.testing.assert_allclose(_apply(decoder, stacked, tokens)[0], _outputs(reduction, tokens), **CLOSE)


def test_groups_and_forms_that_do_not_fit_are_refused(llama, tokens):
    model, params = llama
    decoder, stacked = stacked_decoder(model, params)
    with pytest.raises(ValueError, match=r"got tap 'mlp_product' of shape .* form of `unrolled_decoder`"):
        rank_units(Network(decoder, stacked), Calibration(tokens), "mlp_product")
    groups = {"head_output0": model.head_groups("head_output0")}
    with pytest.raises(ValueError, match=r"got groups of \['head_output0'\], expected taps that are reduced"):
        reduce_network(
            Network(model, params), Calibration(tokens), {"mlp_product0": 4}, procedure=Procedure(groups=groups)
        )
    with pytest.raises(ValueError, match="got keep 5, expected 1 to 4"):
        reduce_network(
            Network(model, params), Calibration(tokens), {"head_output0": 5}, procedure=Procedure(groups=groups)
        )
