"""The pipeline from a network to a smaller one: what it promises, and what it refuses."""

import dataclasses
import warnings
from itertools import pairwise

import jax
import numpy as np
import pytest
from tiny_decoder import TinyDecoder

from abstraction.evaluation import bernoulli_trials, interchanged_outputs
from abstraction.evaluation.interchange import view
from abstraction.models import GRU, Activation, Dense, Network, Sequential
from abstraction.models.layers import Convolution, Flatten
from abstraction.models.taps import NO_EDITS
from abstraction.reduction import METHODS, Calibration, affine_fold, bill, compile_plan, reduce_network
from abstraction.reduction.compiling import patch
from abstraction.reduction.discrepancies import LOGIT
from abstraction.reduction.methods import method_named
from abstraction.reduction.pipeline import Procedure, compose_folds, replace_units
from abstraction.reduction.ranking import rank_units, share_budget
from abstraction.reduction.risk import second_order_risk

MODEL = Sequential(
    (6,),
    (Dense("one", 12), Activation("hidden1", "relu"), Dense("two", 10), Activation("hidden2", "relu"), Dense("out", 4)),
)
# float32 sums in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(name="params")
def _params():
    """Weights large enough that units saturate, and biases that keep all of them alive."""
    params = jax.tree.map(lambda leaf: 3 * leaf, MODEL.init(jax.random.key(1)))
    for name in ("one", "two"):
        params[name]["bias"] = params[name]["bias"] + 1.0
    return params


@pytest.fixture(name="calibration")
def _calibration(rng):
    inputs = rng.standard_normal((120, 6)).astype(np.float32)
    return Calibration(inputs, rng.integers(0, 4, 120).astype(np.int32))


def _outputs(reduction, inputs):
    return np.asarray(reduction.network.model.apply(reduction.network.params, inputs, reduction.edits)[0])


class LastToken(TinyDecoder):
    """A decoder that is asked for the token after the last one only."""

    def apply(self, params, inputs, edits=NO_EDITS, record=()):
        outputs, recorded = super().apply(params, inputs, edits, record)
        return outputs[:, -1], recorded


@pytest.mark.filterwarnings("ignore:.*unstable.*")
@pytest.mark.parametrize("name", METHODS)
def test_every_method_compiles_to_what_its_plan_patches(name, params, calibration):
    ranking = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS[name], key=jax.random.key(0))
    bare = ranking._replace(method=dataclasses.replace(ranking.method, refit=None))
    compiled, patched = replace_units(bare, 4), replace_units(bare, 4, backend="patch")
    np.testing.assert_allclose(_outputs(compiled, calibration.inputs), _outputs(patched, calibration.inputs), **CLOSE)
    assert compiled.network.model.taps["hidden2"].width == 4
    assert compiled.network.params["two"]["kernel"].shape == (12, 4)
    assert patched.network.model == MODEL


@pytest.mark.parametrize("name", METHODS)
def test_keeping_every_unit_changes_nothing(name, params, calibration):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranking = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS[name], key=jax.random.key(0))
        reduction = replace_units(ranking, 10)
    np.testing.assert_array_equal(_outputs(reduction, calibration.inputs), MODEL.apply(params, calibration.inputs)[0])


def test_one_ranking_serves_every_budget_and_budgets_are_nested(params, calibration):
    ranking = rank_units(Network(MODEL, params), calibration, "hidden1", METHODS["cmr-closed"])
    sets = [set(ranking.kept(keep).tolist()) for keep in range(1, 13)]
    assert all(small < large for small, large in pairwise(sets))
    risks = [replace_units(ranking, keep).plan.risks[0] for keep in (12, 8, 4, 2)]
    assert risks == sorted(risks)
    assert risks[0] == 0


def test_the_risk_of_a_plan_is_the_elimination_paths(params, calibration):
    ranking = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["obs-affine"])
    plan = replace_units(ranking, 3).plan
    assert ranking.path is not None
    # Elimination leaves out directions of less than a millionth of the largest curvature, which float32 rounds anyway.
    assert plan.risks[0] == pytest.approx(ranking.path.risk(3) / 2, rel=2e-5)
    # The last layer is linear and its metric constant, so the model of the risk is the risk, but for the ridge's share.
    measured = second_order_risk(
        Network(MODEL, params), calibration.inputs, plan.folds[0], discrepancy=LOGIT, batch_size=50
    )
    assert plan.risks[0] == pytest.approx(measured, rel=2e-3)


def test_layers_are_reduced_one_after_the_other_on_what_is_left(params, calibration):
    reduction = reduce_network(Network(MODEL, params), calibration, {"hidden2": 5, "hidden1": 6}, METHODS["cmr-closed"])
    assert [fold.tap for fold in reduction.plan.folds] == ["hidden1", "hidden2"]
    assert [reduction.network.model.taps[tap].width for tap in ("hidden1", "hidden2")] == [6, 5]
    patched = MODEL.apply(params, calibration.inputs, patch(Network(MODEL, params), reduction.plan))[0]
    np.testing.assert_allclose(_outputs(reduction, calibration.inputs), patched, **CLOSE)
    again = compile_plan(Network(MODEL, params), reduction.plan)
    np.testing.assert_allclose(again.model.apply(again.params, calibration.inputs)[0], patched, **CLOSE)


@pytest.mark.slow
def test_rounds_rank_anew_and_end_in_one_fold(params, calibration):
    once = reduce_network(Network(MODEL, params), calibration, {"hidden1": 3}, METHODS["kl-const"])
    rounds = reduce_network(
        Network(MODEL, params), calibration, {"hidden1": 3}, METHODS["cmr-closed"], procedure=Procedure(rounds=4)
    )
    assert len(rounds.plan.folds) == len(once.plan.folds) == 1
    assert rounds.plan.folds[0].width == 12
    patched = MODEL.apply(params, calibration.inputs, patch(Network(MODEL, params), rounds.plan))[0]
    np.testing.assert_allclose(_outputs(rounds, calibration.inputs), patched, **CLOSE)


def test_composed_folds_are_one_after_the_other(rng):
    first = affine_fold("hidden1", [0, 2, 3, 5], [1, 4], rng.standard_normal(2), rng.standard_normal((2, 4)))
    second = affine_fold("hidden1", [0, 3], [1, 2], rng.standard_normal(2), rng.standard_normal((2, 2)))
    joined = compose_folds(first, second)
    assert np.asarray(joined.kept).tolist() == [0, 5]
    assert np.asarray(joined.replaced).tolist() == [1, 2, 3, 4]
    state = rng.standard_normal(6)
    inner = state[[0, 2, 3, 5]]
    inner[[1, 2]] = np.asarray(second.intercept) + np.asarray(second.coefficients) @ inner[[0, 3]]
    outer = np.asarray(first.intercept) + np.asarray(first.coefficients) @ inner
    expected = np.array([outer[0], inner[1], inner[2], outer[1]])
    values = np.asarray(joined.intercept) + np.asarray(joined.coefficients) @ state[[0, 5]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("refit", ["bias", "head"])
def test_a_refit_lowers_the_divergence_under_interventions_and_moves_only_readers(refit, params, calibration):
    method = dataclasses.replace(METHODS["vbp"], refit=refit)
    ranking = rank_units(Network(MODEL, params), calibration, "hidden2", method)
    bare = replace_units(ranking._replace(method=METHODS["vbp"]), 4)
    fitted = replace_units(ranking, 4, key=jax.random.key(0))
    assert fitted.refitted is not None
    assert fitted.refitted.after < fitted.refitted.before * (0.99 if refit == "bias" else 0.9)
    for name in ("one", "two"):
        np.testing.assert_array_equal(fitted.network.params[name]["kernel"], bare.network.params[name]["kernel"])
    same = np.array_equal(fitted.network.params["out"]["kernel"], bare.network.params["out"]["kernel"])
    assert same == (refit == "bias")


def test_a_bias_refit_is_the_best_bias(params, calibration):
    """Without interventions the problem is convex in 4 numbers: its gradient, mean p_reduced - p_dense, is 0."""
    method = dataclasses.replace(METHODS["vbp"], refit="bias", law=(0.0,))
    fitted = replace_units(rank_units(Network(MODEL, params), calibration, "hidden2", method), 3)
    p, q = (
        np.asarray(jax.nn.softmax(outputs))
        for outputs in (MODEL.apply(params, calibration.inputs)[0], _outputs(fitted, calibration.inputs))
    )
    np.testing.assert_allclose(q.mean(0), p.mean(0), atol=1e-4)  # where float32 L-BFGS stops


def test_interventional_folds_beat_observational_ones_under_interventions(params, rng):
    inputs = rng.standard_normal((2000, 6)).astype(np.float32)
    losses = {}
    for law in ((0.0,), (0.5,)):
        method = dataclasses.replace(METHODS["cmr-closed"], law=law)
        reduction = replace_units(rank_units(Network(MODEL, params), Calibration(inputs), "hidden2", method), 4)
        kept = np.asarray(reduction.plan.folds[0].kept)
        for p in (0.0, 0.5):
            trials = bernoulli_trials(np.random.default_rng(0), examples=2000, units=4, probability=p, trials=8000)
            dense = interchanged_outputs(view(Network(MODEL, params), "hidden2", kept), inputs, trials)
            smaller = interchanged_outputs(reduction.view("hidden2"), inputs, trials)
            error = np.asarray(smaller - dense)
            losses[law[0], p] = ((error - error.mean(1, keepdims=True)) ** 2).sum(1).mean()
    assert losses[0.5, 0.5] < losses[0.0, 0.5]
    assert losses[0.0, 0.0] < losses[0.5, 0.0]


def test_a_budget_is_shared_by_what_units_are_worth(params, calibration):
    rankings = [
        rank_units(Network(MODEL, params), calibration, tap, METHODS["cmr-closed"]) for tap in ("hidden1", "hidden2")
    ]
    shared = share_budget(rankings, 12, min_keep=2)
    assert sum(shared.values()) == 12
    assert min(shared.values()) >= 2
    dearer = share_budget(rankings, 12, min_keep=2, costs={"hidden1": 1e6, "hidden2": 1.0})
    assert dearer["hidden1"] == 2
    rounded = share_budget(rankings, 12, min_keep=2, round_to=4)
    assert all(count % 4 == 0 or count == MODEL.taps[tap].width for tap, count in rounded.items())
    vbp = [rank_units(Network(MODEL, params), calibration, tap, METHODS["vbp"]) for tap in ("hidden1", "hidden2")]
    with pytest.raises(ValueError, match="whose scores are losses"):
        share_budget(vbp, 12)


def test_groups_stay_or_go_together(params, calibration):
    groups = [[0, 1, 2], [3, 4], [5, 6, 7, 8, 9]]
    ranking = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["kl-const"], groups=groups)
    assert tuple(ranking.kept(2)) in {tuple(sorted(groups[i] + groups[j])) for i, j in ((0, 1), (0, 2), (1, 2))}
    equal = [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]
    eliminated = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["cmr-closed"], groups=equal)
    kept = eliminated.kept(2)
    assert sorted(unit % 5 for unit in kept)[::2] == sorted({unit % 5 for unit in kept})
    assert replace_units(eliminated, 2).network.taps["hidden2"].width == 4
    with pytest.raises(ValueError, match="expected equally many"):
        rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["cmr-closed"], groups=groups)
    with pytest.raises(ValueError, match="miss units"):
        rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["kl-const"], groups=[[0, 1]])


def test_units_of_a_decoders_mlp_and_whole_heads_are_reduced(rng):
    model = LastToken(tokens=11, width=8, size=4, groups=((0, 0), (0, 1)), widths=(12, 12))
    params = model.init(jax.random.key(0))
    inputs = rng.integers(0, 11, (40, 5)).astype(np.int32)
    reduction = reduce_network(
        Network(model, params), Calibration(inputs), {"mlp0": 7, "mlp1": 5}, METHODS["cmr-closed"]
    )
    patched = model.apply(params, inputs, patch(Network(model, params), reduction.plan))[0]
    np.testing.assert_allclose(_outputs(reduction, inputs), patched, **CLOSE)
    assert (
        bill(reduction.network, (5,), dtype=np.int32).parameters
        < bill(Network(model, params), (5,), dtype=np.int32).parameters
    )


def test_channels_of_a_convolution_are_reduced(rng):
    model = Sequential(
        (6, 6, 1),
        (
            Convolution("conv", 6),
            Activation("channels", "relu"),
            Convolution("next", 4),
            Flatten("flat"),
            Dense("out", 3),
        ),
    )
    params, inputs = model.init(jax.random.key(0)), rng.standard_normal((30, 6, 6, 1)).astype(np.float32)
    reduction = replace_units(rank_units(Network(model, params), Calibration(inputs), "channels", METHODS["cmr"]), 3)
    assert reduction.network.model.taps["channels"].width == 3
    assert reduction.refitted is not None
    assert reduction.refitted.after < reduction.refitted.before


def test_an_unstable_method_warns_and_writes_it_down(params, rng):
    inputs = rng.standard_normal((200, 6)).astype(np.float32)
    labels = np.asarray(MODEL.apply(params, inputs)[0]).argmin(-1).astype(np.int32)
    ranking = rank_units(Network(MODEL, params), Calibration(inputs, labels), "hidden2", METHODS["cip-const"])
    with pytest.warns(UserWarning, match="each is right alone, together they add up"):
        reduction = replace_units(ranking, 4)
    assert "unstable" in reduction.plan.notes[0]["warning"]
    stable = rank_units(Network(MODEL, params), Calibration(inputs, labels), "hidden2", METHODS["cmr"])
    assert stable.warning is None


def test_what_cannot_work_is_refused_clearly(params, calibration):
    rank = lambda name, **options: rank_units(Network(MODEL, params), calibration, "hidden2", METHODS[name], **options)
    with pytest.raises(ValueError, match=r"got keep 11, expected 1 to 10"):
        replace_units(rank("cmr-closed"), 11)
    with pytest.raises(ValueError, match=r"got keep 0"):
        replace_units(rank("vbp"), 0)
    few = Calibration(calibration.inputs[:4])
    with pytest.raises(ValueError, match="expected more than kept units"):
        replace_units(rank_units(Network(MODEL, params), few, "hidden2", METHODS["cmr-closed"]), 6)
    with pytest.raises(ValueError, match="got no labels"):
        rank_units(Network(MODEL, params), few, "hidden2", METHODS["cip-const"])
    with pytest.raises(ValueError, match="without a key"):
        rank("random")
    with pytest.raises(ValueError, match=r"got tap 'nope', expected one of"):
        rank_units(Network(MODEL, params), few, "nope")
    with pytest.raises(ValueError, match=r"got method 'nope', expected one of cmr, "):
        method_named("nope")
    with pytest.raises(ValueError, match=r"got keep \{'nope': 3\}, expected units to keep by tap"):
        reduce_network(Network(MODEL, params), calibration, {"nope": 3})
    with pytest.raises(ValueError, match="rounds with a patch"):
        reduce_network(
            Network(MODEL, params),
            calibration,
            {"hidden1": 3},
            METHODS["vbp"],
            backend="patch",
            procedure=Procedure(rounds=2),
        )
    with pytest.raises(ValueError, match=r"with a patch, .* expected the backend 'compile'"):
        reduce_network(Network(MODEL, params), calibration, {"hidden1": 3}, METHODS["cmr"], backend="patch")


def test_activations_that_are_not_finite_are_refused_by_number(params, calibration):
    inputs = np.array(calibration.inputs)
    inputs[7] = np.nan
    with pytest.raises(ValueError, match=r"got calibration inputs with 6 values of 720 not finite"):
        rank_units(Network(MODEL, params), Calibration(inputs), "hidden2")


def test_affine_folds_before_a_nonlinearity_are_refused_and_can_be_patched(params, calibration):
    ranking = rank_units(Network(MODEL, params), calibration, "two", METHODS["cmr-closed"])
    with pytest.raises(ValueError, match=r"does not pass Activation 'hidden2'; expected"):
        replace_units(ranking, 4)
    patched = replace_units(ranking, 4, backend="patch")
    assert np.isfinite(_outputs(patched, calibration.inputs)).all()
    assert "patch only" in str(patched.plan)


def _recurrent(rng):
    model = GRU(2, 6, 3)
    return Network(model, model.init(jax.random.key(0))), rng.standard_normal((60, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("name", ["cmr-closed", "obs-affine", "cip-affine", "vbp-affine", "vbp-zero"])
def test_a_state_that_starts_at_zero_is_reduced_through_the_origin(name, rng):
    network, inputs = _recurrent(rng)
    calibration = Calibration(inputs, np.zeros(60, np.int32))
    both = [
        reduce_network(network, calibration, {"hidden": 4}, METHODS[name], backend=backend)
        for backend in ("compile", "patch")
    ]
    assert both[0].network.model == GRU(2, 4, 3)
    assert both[0].plan.obstacles == ("",)
    assert not np.asarray(both[0].plan.folds[0].intercept).any()
    np.testing.assert_allclose(*(_outputs(reduction, inputs) for reduction in both), **CLOSE)


@pytest.mark.slow
def test_the_readers_of_a_state_are_refitted_through_time(rng):
    network, inputs = _recurrent(rng)
    bare = reduce_network(network, inputs, {"hidden": 3}, METHODS["cmr-closed"])
    fitted = reduce_network(network, inputs, {"hidden": 3}, METHODS["cmr"])
    assert fitted.refitted.after < fitted.refitted.before
    moved = {
        path
        for path in ("cell", "step", "final")
        if not np.array_equal(*(jax.tree.leaves(one.network.params[path])[-1] for one in (bare, fitted)))
    }
    assert moved == {"cell", "step", "final"}


def test_constants_do_not_pass_a_reader_that_starts_at_zero_but_can_be_patched(rng):
    network, inputs = _recurrent(rng)
    with pytest.raises(ValueError, match=r"got a fold at 'hidden'.*a constant other than 0 does not pass"):
        reduce_network(network, inputs, {"hidden": 4}, METHODS["vbp"])
    patched = reduce_network(network, inputs, {"hidden": 4}, METHODS["vbp"], backend="patch")
    assert np.isfinite(_outputs(patched, inputs)).all()


def test_folds_through_the_origin_are_least_squares_about_zero(rng):
    network, inputs = _recurrent(rng)
    states = np.asarray(network(inputs, record=("hidden",))[1]["hidden"], np.float64).reshape(-1, 6)
    second = states.T @ states / len(states)
    ranking = rank_units(network, inputs, "hidden", METHODS["obs-affine"])
    for chosen in (ranking, ranking.keeping([5, 0, 2, 3])):
        (fold,) = replace_units(chosen, 4).plan.folds
        kept, replaced = np.asarray(fold.kept), np.asarray(fold.replaced)
        gram = second[np.ix_(kept, kept)]
        expected = np.linalg.solve(gram + 1e-4 * np.diag(np.diag(gram)), second[np.ix_(kept, replaced)]).T
        # the states are float32, and solving amplifies their rounding
        np.testing.assert_allclose(fold.coefficients, expected, rtol=1e-3, atol=1e-5)
    assert kept.tolist() == [0, 2, 3, 5]
    (zero,) = replace_units(rank_units(network, inputs, "hidden", METHODS["vbp-zero"]), 4).plan.folds
    assert np.asarray(zero.kept).tolist() == sorted(np.argsort(np.diagonal(second))[2:].tolist())


def test_a_consumer_without_a_bias_gets_one(rng):
    layers = (Dense("one", 8), Activation("hidden", "relu"), Dense("out", 3, use_bias=False))
    model = Sequential((4,), layers)
    params, inputs = model.init(jax.random.key(0)), rng.standard_normal((60, 4)).astype(np.float32)
    ranking = rank_units(Network(model, params), Calibration(inputs), "hidden", METHODS["cmr"])
    reduction = replace_units(ranking, 3)
    assert reduction.network.params["out"]["bias"].shape == (3,)
    assert np.isfinite(_outputs(reduction, inputs)).all()


def test_constant_and_dead_units_go_first_and_cost_nothing(params, calibration):
    two = {"kernel": params["two"]["kernel"].at[:, 2].set(0.0), "bias": params["two"]["bias"].at[2].set(1.5)}
    two = {"kernel": two["kernel"].at[:, 7].set(0.0), "bias": two["bias"].at[7].set(-1.0)}
    planted = {**params, "two": two}
    for name in ("cmr-closed", "kl-const", "vbp", "joint-const"):
        ranking = rank_units(Network(MODEL, planted), calibration, "hidden2", METHODS[name])
        reduction = replace_units(ranking, 8)
        assert np.asarray(reduction.plan.folds[0].replaced).tolist() == [2, 7], name
        np.testing.assert_allclose(reduction.plan.folds[0].intercept, [1.5, 0.0], atol=1e-7)
        np.testing.assert_allclose(
            _outputs(reduction, calibration.inputs), MODEL.apply(planted, calibration.inputs)[0], **CLOSE
        )
