"""Sweeps: every value is that of a full run, place by place, and a map says where it is from."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot
import numpy as np
import pytest
from planted import UNITS, planted, planted_adder, recorded_banks

from abstraction.evaluation import Repeats
from abstraction.evaluation.controls import chance_level, shuffled_order
from abstraction.interventions import Set, unit_sites
from abstraction.interventions.bases import random_frames
from abstraction.localization import Sweeping, sweep
from abstraction.localization.measures import Labels
from abstraction.models import MLP, Network
from abstraction.randomness import host_generator, named_key

matplotlib.use("Agg")
NONE = Sweeping(controls=None)


@dataclasses.dataclass(frozen=True)
class _Grid(MLP):
    """An MLP of four layers that calls them two layers of two positions."""

    @property
    def taps(self):
        axes = (("layer", ("0", "1")), ("position", ("first", "last")))
        return {
            name: dataclasses.replace(tap, places=axes if tap.depth > 1 else ()) for name, tap in super().taps.items()
        }


@pytest.fixture(scope="module", name="grid")
def _grid():
    model = _Grid(4, 6, 4, 4, "tanh")
    network = Network(model, jax.tree.map(lambda leaf: 2 * leaf, model.init(jax.random.key(3))))
    return network, recorded_banks(network)[0]


@pytest.fixture(scope="module", name="adder")
def _adder():
    plant = planted_adder()
    return plant.network, plant.fit


def _full_run(network, recorded, depth, coordinates, value):
    """Run the whole network with some coordinates of one depth set: outputs, on the host."""
    tap = network.taps[recorded.tap]
    weight = np.zeros((tap.depth, 1, tap.width), np.float32)
    weight[depth, 0, coordinates] = 1.0
    edit = Set(jnp.broadcast_to(value, np.shape(recorded.runs.base[tap.name])), weight)
    return np.asarray(network(recorded.runs.inputs, {tap.name: edit})[0], np.float64)


def _hits(outputs, bank, v, read):
    labels, active = bank.labels[v], bank.active[v]
    right = read(outputs) == labels
    return np.mean([right[half].mean() for half in (active, ~active) if half.any()])


def _classes(outputs):
    return outputs.argmax(axis=1)


def _bits(outputs):
    return ((outputs >= 0) << np.arange(outputs.shape[1])).sum(axis=1)


def _softmax(outputs):
    shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("case", ["grid", "adder"])
def test_values_are_those_of_full_runs_place_by_place(request, case):
    network, recorded = request.getfixturevalue(case)
    read, bank = (_classes if case == "grid" else _bits), recorded.bank
    found = sweep(network, recorded, 4, dataclasses.replace(NONE, group="head"))
    places = [name for name, _ in network.taps["hidden"].axes]
    assert found.dims == ("variable", *places, "head")
    assert found.coords["head"] == ("0", "1"), "four coordinates, and the two that are left"
    flat = found.values.reshape(2, -1, 2)
    for depth in range(flat.shape[1]):
        for head, coordinates in enumerate((range(4), range(4, 6))):
            outputs = _full_run(network, recorded, depth, list(coordinates), recorded.runs.source["hidden"])
            for v in range(2):
                assert flat[v, depth, head] == pytest.approx(_hits(outputs, bank, v, read), rel=1e-12)
    assert (found.pairs == bank.size).all()
    assert not found.not_finite.any()


@pytest.mark.parametrize("replace", ["zero", "mean", "resample"])
def test_ablations_are_full_runs_with_another_value(grid, replace):
    network, recorded = grid
    base = np.asarray(recorded.runs.base["hidden"])
    circle = host_generator(named_key(0, "sweep resample")).permutation(recorded.bank.size)
    order = np.empty(len(circle), int)
    order[circle] = np.roll(circle, 1)
    value = {"zero": 0 * base, "mean": base.mean(axis=1, keepdims=True), "resample": base[:, order]}[replace]
    found = sweep(network, recorded, None, Sweeping(replace, controls=None))
    assert found.dims == ("layer", "position"), "no variable, no groups"
    p = _softmax(np.asarray(recorded.runs.outputs, np.float64))
    for depth, kl in enumerate(found.values.ravel()):
        q = _softmax(_full_run(network, recorded, depth, range(6), value))
        each = (p * np.log(p / q)).sum(axis=1)
        assert kl == pytest.approx(each.mean(), rel=1e-4)  # logarithms in float32
        reach = found.high.ravel()[depth] - kl
        assert reach == pytest.approx(1.9693 * each.std(ddof=1) / np.sqrt(len(each)), rel=1e-3)  # t of 255 degrees


def test_changes_of_probability_and_of_logits_are_those_of_full_runs(grid):
    network, recorded = grid
    bank, base = recorded.bank, np.asarray(recorded.runs.outputs, np.float64)
    probability, difference = (
        sweep(network, recorded, None, Sweeping(measure=name, controls=None))
        for name in ("probability", "logit_difference")
    )
    rows = np.arange(bank.size)
    margin = lambda outputs, v: outputs[rows, bank.labels[v]] - outputs[rows, bank.factual]
    for depth in range(4):
        outputs = _full_run(network, recorded, depth, range(6), recorded.runs.source["hidden"])
        for v in range(2):
            change = _softmax(outputs)[rows, bank.labels[v]] - _softmax(base)[rows, bank.labels[v]]
            assert probability.values.reshape(2, 4)[v, depth] == pytest.approx(change.mean(), abs=1e-6)
            moved = (margin(outputs, v) - margin(base, v))[bank.active[v]]
            assert difference.values.reshape(2, 4)[v, depth] == pytest.approx(moved.mean(), rel=1e-5)
            assert difference.pairs.reshape(2, 4)[v, depth] == bank.active[v].sum()


def test_divergence_of_bits_is_the_sum_over_bits(adder):
    network, recorded = adder
    found = sweep(network, recorded, None, Sweeping("zero", controls=None))
    share = lambda outputs: 1 / (1 + np.exp(-outputs))
    base = np.asarray(recorded.runs.outputs, np.float64)
    for depth, kl in enumerate(found.values):
        outputs = _full_run(network, recorded, depth, range(6), 0.0)
        p, q = share(base), share(outputs)
        each = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        assert kl == pytest.approx(each.sum(axis=1).mean(), rel=1e-4)  # logarithms in float32


def _moved(patched, base, labels):
    return jnp.abs(patched - base).sum(axis=-1) * labels.active[0]


def test_a_measure_of_ones_own_sees_outputs_and_labels(grid):
    network, recorded = grid
    found = sweep(network, recorded, None, Sweeping(measure=_moved, controls=None))
    outputs = _full_run(network, recorded, 1, range(6), recorded.runs.source["hidden"])
    expected = (np.abs(outputs - recorded.runs.outputs).sum(axis=1) * recorded.bank.active[0]).mean()
    assert found.sel(layer=0, position="last").values == pytest.approx(expected, rel=1e-5)
    assert found.what == "_moved of interchange"
    assert Labels(recorded.bank.labels, recorded.bank.factual, recorded.bank.eligible).active.shape == (2, 256)


def test_controls_are_what_they_say(adder):
    network, recorded = adder
    repeats = Repeats(2, 2)
    found = sweep(network, recorded, 3, Sweeping(controls=repeats))
    bank, outputs = recorded.bank, np.asarray(recorded.runs.outputs)
    np.testing.assert_allclose(found.levels["chance"][:, 0, 0], chance_level(bank))
    assert found.levels["identity"][1, 2, 0] == pytest.approx(_hits(outputs, bank, 1, _bits))
    orders = [shuffled_order(host_generator(named_key(0, f"sweep {index}")), bank) for index in range(2)]
    each = [sweep(network, recorded.shuffled(order), 3, NONE).values for order in orders]
    np.testing.assert_allclose(found.levels["shuffled"], np.mean(each, axis=0))
    frames = random_frames(named_key(0, "sweep random"), (2 * 3,), 6, 3)
    base, source = (np.asarray(states["hidden"])[1] for states in (recorded.runs.base, recorded.runs.source))
    scores = []
    for frame in frames[1::3]:  # draw by draw, every depth
        value = base + (source - base) @ frame @ frame.T
        scores.append(_hits(_full_run(network, recorded, 1, range(6), value), bank, 0, _bits))
    np.testing.assert_allclose(found.levels["random"][0, 1], np.mean(scores))
    assert "random" not in sweep(network, recorded, None, Sweeping(controls=repeats)).levels, "the state itself"
    assert set(sweep(network, recorded, 3, NONE).levels) == {"chance", "identity"}


@pytest.mark.parametrize("measure", ["iia", "logit_difference"])
def test_to_first_order_a_linear_network_is_exact(measure):
    plant = planted(rotate=False)
    options = Sweeping(measure=measure, points=(0.0,), controls=None)
    exact, first = (sweep(plant.network, plant.fit, 2, options, order=order) for order in (None, 1))
    np.testing.assert_allclose(first.values, exact.values, atol=1e-5)
    if measure == "iia":  # logits of places without effect differ by rounding, and are ranked by it
        np.testing.assert_allclose(first.agreement(exact), 1.0)
    assert (first.order, exact.order) == (1, None)
    assert exact.exceeds.any()
    assert not first.exceeds.any(), "an estimate is no measurement"
    assert "an estimate" in first.table()


def test_what_is_not_finite_is_a_miss_counted_and_never_best():
    plant = planted(rotate=False)
    source = np.array(plant.fit.runs.source["hidden"])
    source[0, :7, UNITS[0]] = 3e38  # six times as much is infinite
    runs = dataclasses.replace(plant.fit.runs, source={"hidden": jnp.asarray(source)})
    recorded = dataclasses.replace(plant.fit, runs=runs)
    accuracy = sweep(plant.network, recorded, 1, NONE)
    changes = sweep(plant.network, recorded, 1, Sweeping(measure="logit_difference", controls=None))
    assert accuracy.not_finite[:, 0, UNITS[0]].tolist() == [7, 7]
    assert 0.9 < accuracy.values[0, 0, UNITS[0]] < 1
    assert accuracy.not_finite.sum() == 14
    assert np.isnan(changes.values[:, 0, UNITS[0]]).all()
    assert changes.best()[0]["group"] != str(UNITS[0])
    assert np.isfinite([row["value"] for row in changes.best()]).all()


def test_sites_of_any_kind_have_an_axis_of_their_own(adder):
    network, recorded = adder
    tap = network.taps["hidden"]
    some = unit_sites(tap).take(np.array([4, 10, 11]))
    found, every = sweep(network, recorded, some, NONE), sweep(network, recorded, 1, NONE)
    assert found.dims == ("variable", "site")
    np.testing.assert_array_equal(found.values, every.values.reshape(2, -1)[:, [4, 10, 11]])


def test_progress_is_told_until_all_is_done(adder):
    told = []
    sweep(*adder, 1, Sweeping(controls=Repeats(1, 2)), tell=lambda done, total: told.append((done, total)))
    done = [each for each, _ in told]
    assert done == sorted(done)
    assert set(told[-1]) == {18 * 3} == {total for _, total in told}


def test_a_second_network_compiles_nothing(grid):
    network, recorded = grid
    options = Sweeping(controls=Repeats(1, 1))
    events = []
    listen = lambda event, seconds, **_: events.append(event) if "backend_compile_duration" in event else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for order in (None, 1):
            sweep(network, recorded, 2, options, order=order)
        assert events, "the counter counts"
        other = Network(network.model, jax.tree.map(lambda leaf: -leaf, network.params))
        again = recorded_banks(other)[0]
        events.clear()
        for order in (None, 1):
            sweep(other, again, 2, dataclasses.replace(options, points=(0.25,)), order=order)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not events


def test_a_map_is_read_by_label(grid):
    found = sweep(*grid, 2, NONE)
    assert found.values.shape == (2, 2, 2, 3)
    one = found.sel(layer=1, position="last")
    assert one.dims == ("variable", "group")
    np.testing.assert_array_equal(one.values, found.values[:, 1, 1])
    np.testing.assert_array_equal(one.levels["chance"], found.levels["chance"][:, 1, 1])
    several = found.sel(variable=["q"], group=[2, 0])
    np.testing.assert_array_equal(several.values, found.values[1:][..., [2, 0]])
    assert several.coords["group"] == ("2", "0")
    rows = found.rows()
    assert len(rows) == found.values.size
    assert rows[-1]["value"] == found.values[-1, -1, -1, -1]
    best = found.best()
    assert [row["variable"] for row in best] == ["p", "q"]
    assert [row["value"] for row in best] == found.values.reshape(2, -1).max(axis=1).tolist()
    assert found.table(2).count("\n") == 5
    assert "p" in found.table()


def test_what_is_above_its_controls_is_found_once_for_all_rows(grid, monkeypatch):
    found = sweep(*grid, 2, NONE)
    slow, asked = type(found).exceeds.fget, []
    expected = slow(found)
    monkeypatch.setattr(type(found), "exceeds", property(lambda self: asked.append(1) or slow(self)))
    assert [row["exceeds"] for row in found.rows()] == expected.ravel().tolist()
    assert len(asked) == 1


def test_nothing_is_chosen_on_test_pairs():
    plant = planted(rotate=False)
    found = sweep(plant.network, plant.test, 1, NONE)
    with pytest.raises(ValueError, match="got a map of a test bank to choose from, expected"):
        found.best()


def test_heatmaps_show_every_place_on_one_scale(grid):
    found = sweep(*grid, 2, NONE)
    axes = found.plot()
    assert len(axes) == 6, "two variables and three groups"
    shown = np.asarray(axes[4].images[0].get_array())
    np.testing.assert_array_equal(shown, found.sel(variable="q", group=1).values)
    assert (axes[4].get_ylabel(), axes[4].get_xlabel()) == ("layer", "position")
    assert [label.get_text() for label in axes[4].get_xticklabels()] == ["first", "last"]
    assert "q, group 1" in axes[4].get_title()
    assert "chance" in axes[4].get_title()
    assert {each.images[0].get_clim() for each in axes} == {(0.0, 1.0)}
    again = found.sel(variable="p", group=0).plot(axes[0])
    assert again == [axes[0]]
    matplotlib.pyplot.close("all")


def test_labelled_arrays_hold_all_of_a_map(grid):
    pytest.importorskip("xarray")
    found = sweep(*grid, 2, NONE)
    arrays = found.to_xarray()
    picked = arrays["values"].sel(variable="q", layer="1", position="last").to_numpy()
    np.testing.assert_array_equal(picked, found.values[1, 1, 1])
    assert set(arrays.data_vars) == {"values", "low", "high", "pairs", "not_finite", "chance", "identity"}
    assert arrays.attrs["what"] == "iia of interchange"
