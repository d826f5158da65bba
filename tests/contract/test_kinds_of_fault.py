"""One small input of every kind of fault the first release had: each is refused by name, or has its oracle's value.

The oracles are NumPy. The kinds are wider than these rows; the tables of refusals beside this file hold more of each.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hub_fields import TINY
from oracles import sinkhorn
from refusals import Refusal, check_refusal

from abstraction.causal import causal_model, label_pairs
from abstraction.causal.pairs import shared_pairs
from abstraction.evaluation import record, tally_handles
from abstraction.evaluation.certification import compare_risks
from abstraction.evaluation.recording import check_recorded
from abstraction.interventions import Handle, Set, state_sites, unit_sites
from abstraction.interventions.patching import Runs, handle_outputs, reorder_sources, run_pairs, take_pairs
from abstraction.localization import Recipe, Signature
from abstraction.localization.calibration import calibrate_candidates
from abstraction.localization.couplings import nearest_coupling, relative_epsilons, sinkhorn_couplings
from abstraction.localization.signatures import abstract_signatures
from abstraction.localization.supports import candidate_grid, coordinate_support, full_supports
from abstraction.models import (
    GRU,
    MLP,
    Activation,
    Decoder,
    DecoderConfig,
    Dense,
    Network,
    Sequential,
    at_positions,
    load_decoder,
)
from abstraction.models.hub_files import INDEX, WEIGHTS
from abstraction.reduction import METHODS, Calibration, reduce_network
from abstraction.reduction.folding import affine_fold, fold_params

pytestmark = pytest.mark.usefixtures("unchecked")

XOR = causal_model(("a", "b"), "y", m=lambda a, b: a ^ b, y=lambda m: m)
MODEL = MLP(2, 8, 2, 2)
NETWORK = Network(MODEL, MODEL.init(jax.random.key(0)))
A, B, C, D = np.random.default_rng(0).integers(0, 2, (4, 24))
BASE, SOURCE = {"a": A, "b": B}, {"a": C, "b": D}
STATES = state_sites(MODEL.taps["hidden"])


def _encode(setting):
    return np.stack([setting["a"], setting["b"]], 1).astype(np.float32)


def _bank(causal=XOR, role="fit", base=BASE, source=SOURCE):
    return label_pairs(causal, base, source, variables=("m",), role=role)


def _refused(call, match):
    check_refusal(Refusal("", call, match))


# A folder with two sets of weights, of which programs read different ones.


def test_two_sets_of_weights_are_not_chosen_from(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY["llama"]))
    (tmp_path / WEIGHTS).write_bytes(b"one")
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(b"other")
    (tmp_path / INDEX).write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    _refused(lambda: load_decoder(tmp_path), f"both {WEIGHTS} and {INDEX}")


# A result in a narrower type than it was computed in.


def test_a_fold_out_of_the_range_of_its_weights_is_refused():
    chain = Sequential((6,), (Dense("fc1", 8), Activation("h"), Dense("out", 3)))
    first = {"kernel": np.ones((6, 8), np.float16), "bias": np.zeros(8, np.float16)}
    fold = affine_fold("h", list(range(7)), [7], [0.0], [[1.0] * 7])

    def folded(size, kind):
        last = {"kernel": np.full((8, 3), size, kind), "bias": np.zeros(3, kind)}
        return fold_params(Network(chain, {"fc1": first, "out": last}), fold).params["out"]["kernel"]

    _refused(lambda: folded(60_000, np.float16), "as large as 120000, expected at most 65504")
    np.testing.assert_array_equal(folded(60_000, np.float32)[:7], np.full((7, 3), 120_000.0))
    np.testing.assert_array_equal(folded(30_000, np.float16)[:7], np.full((7, 3), 60_000.0))


# A tap without depth.

CHAIN = Sequential((12,), (Dense("fc1", 6), Activation("h1"), Dense("fc2", 5), Activation("h2"), Dense("fc3", 3)))


def test_a_tap_without_depth_has_one():
    tap = CHAIN.taps["h1"]
    assert tap.depth == 1
    sites = unit_sites(tap)
    np.testing.assert_array_equal(sites.weights(), np.eye(6))
    np.testing.assert_array_equal(sites.depth, np.zeros(6))
    supports = full_supports(tap, range(2))
    assert [(support.variable, support.depth, support.size) for support in supports] == [(0, 0, 6), (1, 0, 6)]
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(1,))
    np.testing.assert_array_equal(candidates.variable, [0, 1])
    assert coordinate_support(tap, 0, 0, [0, 1], "x").size == 2
    _refused(lambda: coordinate_support(tap, 0, 1, [0, 1], "x"), r"depths at tap 'h1' \[1\]")


def test_rows_of_a_tap_without_depth_are_pairs():
    network = Network(CHAIN, CHAIN.init(jax.random.key(0)))
    base, source = np.random.default_rng(1).standard_normal((2, 4, 12)).astype(np.float32)
    runs = run_pairs(network, base, source, taps=("h1",))
    states = np.asarray(runs.source["h1"])
    assert states.shape == (1, 4, 6)
    taken, shuffled = take_pairs(runs, np.array([3, 1])), reorder_sources(runs, np.array([1, 0, 3, 2]))
    np.testing.assert_array_equal(taken.inputs, base[[3, 1]])
    np.testing.assert_array_equal(taken.source["h1"], states[:, [3, 1]])
    np.testing.assert_array_equal(shuffled.source["h1"], states[:, [1, 0, 3, 2]])
    np.testing.assert_array_equal(shuffled.base["h1"], runs.base["h1"])


# A tap that was forgotten, or is another than the recorded one.


def test_a_handle_names_its_tap():
    recorded = record(NETWORK, _encode, _bank(), tap="hidden")
    with pytest.raises(TypeError, match="tap"):
        Handle(weight=np.ones((1, 2, 8), np.float32))
    other = Handle("preactivation", np.ones((1, 2, 8), np.float32))
    _refused(
        lambda: handle_outputs(NETWORK, recorded.runs, other), "tap 'preactivation', expected a recorded tap: .*hid"
    )
    _refused(lambda: tally_handles(NETWORK, recorded, other, np.zeros(1, int)), "'preactivation', expected a recorded")


# A GRU is reduced by the library, or refused by name.

GRU_NETWORK = Network(GRU(2, 6, 3), GRU(2, 6, 3).init(jax.random.key(0)))
BITS = np.random.default_rng(0).integers(0, 2, (64, 3, 2)).astype(np.float32)


@pytest.mark.parametrize("name", [pytest.param("cmr", marks=pytest.mark.slow), "cmr-closed", "obs-affine"])
def test_a_gru_is_reduced(name):
    small = reduce_network(GRU_NETWORK, Calibration(BITS), {"hidden": 3}, METHODS[name])
    assert small.network.taps["hidden"].width == 3
    (fold,) = small.plan.folds
    np.testing.assert_array_equal(fold.intercept, 0)
    assert np.isfinite(np.asarray(small.network(BITS)[0])).all()


def test_a_gru_has_no_constants():
    _refused(lambda: reduce_network(GRU_NETWORK, BITS, {"hidden": 3}, METHODS["vbp"]), "constant|zero|origin")
    patched = reduce_network(GRU_NETWORK, BITS, {"hidden": 3}, METHODS["vbp"], backend="patch")
    assert np.isfinite(np.asarray(patched.network(BITS, patched.edits)[0])).all()


# Runs of other pairs than the bank's.


def test_a_recorded_bank_is_one_value():
    """Nothing takes runs and pairs apart: a bank of the same size cannot slip in beside the runs of another."""
    first, second = _bank(), _bank(base=SOURCE, source=BASE)
    one, two = (record(NETWORK, _encode, bank, tap="hidden") for bank in (first, second))
    assert not np.array_equal(one.bank.labels, two.bank.labels)
    for recorded, bank in ((one, first), (two, second)):
        np.testing.assert_array_equal(recorded.bank.labels, bank.labels)
        np.testing.assert_array_equal(recorded.runs.inputs, _encode(bank.base))
    found = tally_handles(NETWORK, one, STATES.handles(), np.zeros(2, int))
    outputs = np.asarray(handle_outputs(NETWORK, one.runs, STATES.handles())).argmax(axis=-1)
    np.testing.assert_array_equal(found.hits.sum(axis=1), (outputs == first.labels[0]).sum(axis=1))


FEWER = {name: column[:10] for name, column in BASE.items()}
THIRDS = causal_model(("a", "b"), "y", m=lambda a, b: a + b, y=lambda m: m)


@pytest.mark.parametrize(
    ("bank", "match"),
    [
        (_bank(base=FEWER, source=FEWER), r"beside a bank of 10 pairs, expected one for each"),
        (_bank(THIRDS), "label 2 at .*, expected classes 0 to 1"),
        (dataclasses.replace(_bank(), base=FEWER), "labels, eligibility and inputs of shapes"),
    ],
    ids=["of another size", "of other labels", "taken apart"],
)
@pytest.mark.parametrize(
    "run",
    [
        lambda recorded: check_recorded(recorded, NETWORK),
        lambda recorded: tally_handles(NETWORK, recorded, STATES.handles(), 0),
    ],
)
def test_a_foreign_bank_is_refused_where_it_can_be_told(run, bank, match):
    recorded = dataclasses.replace(record(NETWORK, _encode, _bank(), tap="hidden"), bank=bank)
    _refused(lambda: run(recorded), match)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Signature("logit_deltas"), "signature mode 'logit_deltas', expected one of"),
        (lambda: Recipe(signature={"mode": "logit_delta"}), "signature {'mode': 'logit_delta'}, expected Signature"),
        (lambda: Recipe(selection="epsilon"), "selection 'epsilon', expected Selection"),
    ],
    ids=["a word", "a dict", "an axis"],
)
def test_an_option_is_refused_when_it_is_built(build, match):
    _refused(build, match)


# Positions outside of a prompt.

DECODER = Decoder(DecoderConfig(vocabulary=11, width=8, depth=2, heads=2, kv_heads=1, head_size=4, hidden=16))
PARAMS = DECODER.init(jax.random.key(0))
TOKENS = np.array([[-1, 1, 2, 3]], np.int32)


def _edited(position):
    edit = at_positions(Set(jnp.full((2, 1, 8), 3.0)), np.array([position]), depth=2)
    return DECODER.apply(PARAMS, TOKENS, {"block_output": edit})[0]


def _state(position):
    at = None if position is None else np.array([position])
    return np.asarray(DECODER.run(PARAMS, TOKENS, record=("block_output",), at=at).recorded["block_output"])


@pytest.mark.parametrize("position", [0, 4, 99])
@pytest.mark.parametrize("run", [_edited, _state], ids=["edit", "record"])
def test_a_position_outside_of_its_prompt_is_refused(run, position):
    _refused(lambda: run(position), f"position {position} in prompt 0, expected one of its tokens, 1 to 3")


def test_a_position_inside_of_its_prompt_is_its_token():
    for position in (1, 2, 3):
        np.testing.assert_array_equal(_state(position), _state(None)[:, :, position])
    assert not np.array_equal(_edited(3), DECODER.apply(PARAMS, TOKENS)[0])


def test_no_position_is_neither_edited_nor_the_last_token():
    np.testing.assert_array_equal(_edited(-1), DECODER.apply(PARAMS, TOKENS)[0])
    assert np.isnan(_state(-1)).all()


# Labels that no output stands for.


def test_labels_from_1_on_are_refused_where_bank_and_network_meet():
    ones = _bank(causal_model(("a", "b"), "y", m=lambda a, b: a ^ b, y=lambda m: m + 1))
    _refused(lambda: record(NETWORK, _encode, ones, tap="hidden"), "label 2 at .*, expected classes 0 to 1")
    _refused(lambda: abstract_signatures(ones, 2), "labels 1 to 2 .*, expected integers of 0 to 1")


# A score over nothing.


def test_a_score_over_no_pair_is_undefined_and_chooses_nothing():
    bank = _bank(role="calibration")
    empty = dataclasses.replace(bank, eligible=np.zeros_like(bank.eligible))
    recorded = record(NETWORK, _encode, empty, tap="hidden")
    weight = np.stack([np.full(8, np.nan), np.ones(8)]).astype(np.float32)
    handles = Handle("hidden", weight, None, np.zeros(2, np.int32))
    tally = tally_handles(NETWORK, recorded, handles, np.zeros(2, int))
    np.testing.assert_array_equal(tally.pairs, 0)
    for value in (tally.iia, tally.combined, tally.mean_loss, *tally.interval()):
        assert np.isnan(value).all()
    settings = [{"h": "NaN"}, {"h": "swap"}]
    choose = lambda pairs: calibrate_candidates(NETWORK, pairs, handles, np.zeros(2, int), settings, cost=np.ones(2))
    _refused(lambda: choose(recorded), r"without an eligible pair of \['m'\]")
    choice = choose(record(NETWORK, _encode, bank, tap="hidden"))
    assert choice.settings == ({"h": "swap"},)
    assert choice.not_finite.tolist() == [1]


# One row for all.


def test_one_source_for_all_is_refused():
    copy = causal_model(("a", "b"), "y", m=lambda a: a, y=lambda m, b: m ^ b)
    base, one = {"a": np.arange(8) % 2, "b": np.arange(8) // 4}, {"a": np.ones(1, int), "b": np.ones(1, int)}
    _refused(lambda: _bank(copy, base=base, source=one), "one row per pair")
    _refused(lambda: run_pairs(NETWORK, _encode(base), _encode(one), taps=("hidden",)), "8 base and 1 source")
    _refused(lambda: compare_risks(np.ones(10), np.zeros(1), 0.05), "the same trials of both")
    runs: Runs = run_pairs(NETWORK, _encode(base), _encode(base), taps=("hidden",))
    _refused(lambda: take_pairs(runs, np.arange(9)), r"rows \[8\], expected whole numbers from 0 to 7")


# Values of the causal model in another type.

SUM_BASE, SUM_SOURCE = (
    {"a": np.array(a), "b": np.array(b)} for a, b in (([0, 1, 1], [0, 1, 2]), ([1, 0, 2], [1, 1, 1]))
)


@pytest.mark.parametrize("function", [lambda m: m / 4, lambda m: m * 3_000_000_000], ids=["a share", "a large number"])
def test_labels_are_what_the_causal_model_says(function):
    causal = causal_model(("a", "b"), "y", m=lambda a, b: a + b, y=function)
    bank = _bank(causal, base=SUM_BASE, source=SUM_SOURCE)
    factual, label = (function(side["a"] + side["b"]) for side in (SUM_BASE, SUM_SOURCE))
    np.testing.assert_array_equal(bank.factual, factual)
    np.testing.assert_array_equal(bank.labels, [label])
    np.testing.assert_array_equal(bank.active, [factual != label])
    _refused(lambda: record(NETWORK, _encode, bank, tap="hidden"), "got label .*, expected classes 0 to 1")


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_labels_that_are_no_numbers_are_refused():
    causal = causal_model(("a", "b"), "y", m=lambda a, b: a + b, y=lambda m: m / 0)
    _refused(
        lambda: _bank(causal, base=SUM_BASE, source=SUM_SOURCE), "got (nan|inf) as the factual output .* at pair 0"
    )


def test_pairs_are_compared_exactly():
    causal = causal_model(("a",), "y", y=lambda a: (a > 0.5) * 1)
    made = lambda values: label_pairs(causal, {"a": values}, {"a": values}, variables=("y",), role="fit")
    one, other = made(np.array([0.2, 0.7])), made(np.array([0.3, 0.9]))
    assert shared_pairs(one, other) == 0
    assert shared_pairs(one, made(np.array([0.7, 0.3]))) == 1


# Costs that are not finite, or that float32 cannot square.

COST = np.random.RandomState(0).rand(3, 7).astype(np.float32)
SCOPE = np.ones((1, 7), bool)
FORBIDDEN, BROKEN = COST.copy(), COST.copy()
FORBIDDEN[0, 0], BROKEN[0, 0] = np.inf, np.nan


def test_a_forbidden_pair_is_no_part_of_the_spread():
    epsilons = relative_epsilons(FORBIDDEN, SCOPE, [0.1])
    right = 0.1 * FORBIDDEN[np.isfinite(FORBIDDEN)].astype(float).std()
    np.testing.assert_allclose(epsilons, [[right]], rtol=1e-6)
    plan = np.asarray(sinkhorn_couplings(FORBIDDEN, epsilons, iterations=500).plan)[0, 0]
    # The solver is float32 in the log domain, the oracle float64: couplings agree to a few 1e-5.
    np.testing.assert_allclose(plan, sinkhorn(FORBIDDEN.astype(float), right), atol=1e-5)
    assert plan[0, 0] == 0


def test_tiny_costs_have_the_plan_of_the_rescaled_problem():
    tiny = COST * np.float32(1e-25)
    plan = np.asarray(sinkhorn_couplings(tiny, relative_epsilons(tiny, SCOPE, [0.1]), iterations=500).plan)[0, 0]
    np.testing.assert_allclose(plan, sinkhorn(COST.astype(float), 0.1 * COST.astype(float).std()), atol=1e-5)


def test_a_cost_that_is_no_number_is_refused():
    for call in (
        lambda: relative_epsilons(BROKEN, SCOPE, [0.1]),
        lambda: sinkhorn_couplings(BROKEN, np.array([[0.1]])),
        lambda: nearest_coupling(BROKEN),
    ):
        _refused(call, r"got cost nan at \[0, 0\]")
    assert np.asarray(nearest_coupling(COST).plan).argmax(axis=1).tolist() == COST.argmin(axis=1).tolist()
