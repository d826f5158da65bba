"""The published network: golden values of the authors' code, and what this library must reach on it.

Checkpoint of the CIF repository; calibration on test images 0 to 1999 with true labels, evaluation on the other 8000,
interchanges by a fixed arithmetic rule. Needs ../shared, and is skipped where it is absent.
"""

from pathlib import Path

import numpy as np
import pytest

from abstraction.evaluation import bernoulli_trials, interchanged_outputs
from abstraction.evaluation.interchange import Trials, bounded_losses, view
from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction import METHODS, Calibration, reduce_network
from abstraction.reduction.pipeline import replace_units
from abstraction.reduction.ranking import rank_units
from abstraction.reduction.scores import constant_risk
from abstraction.tasks.mnist import calibration_rows, load_mnist

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.skipif(
        not (SHARED / "mnist_mlp_seed0.npz").exists(), reason="needs MNIST and the published network in ../shared/data"
    ),
    pytest.mark.filterwarnings("ignore:.*unstable.*"),
]
MODEL = Sequential(
    (784,),
    (
        Dense("fc1", 512), Activation("hidden1"), Dense("fc2", 512), Activation("hidden2"), Dense("fc_out", 10),
    ),
)  # fmt: skip
SPLIT = 2000
# keep, method: sum and first five of the kept units, norm of W, first of b, accuracy, agreement, IIA at .1 and .5
GOLDEN = {
    (256, "cip-const"): (66754, (0, 6, 7, 9, 12), 3.0679, -15.221, 0.10288, 0.10075, 0.10107, 0.10254),
    (256, "cip-affine"): (66754, (0, 6, 7, 9, 12), 5.5573, 0.2391, 0.98100, 0.99388, 0.98755, 0.56494),
    (256, "vbp"): (66528, (1, 2, 4, 6, 8), 3.4122, -0.6398, 0.98025, 0.99500, 0.99341, 0.66528),
    (64, "cip-const"): (16649, (17, 26, 44, 62, 64), 1.6027, -13.129, 0.10288, 0.10075, 0.10107, 0.10132),
    (64, "cip-affine"): (16649, (17, 26, 44, 62, 64), 7.5678, -1.3939, 0.95613, 0.95963, 0.91602, 0.48169),
    (64, "vbp"): (17553, (4, 14, 15, 19, 34), 1.9516, -4.5783, 0.66025, 0.66475, 0.61987, 0.36108),
}


@pytest.fixture(scope="module", name="data")
def _data():
    return load_mnist(SHARED / "mnist")


@pytest.fixture(scope="module", name="params")
def _params():
    with np.load(SHARED / "mnist_mlp_seed0.npz") as arrays:
        return MODEL.params_from_torch(dict(arrays))


def _rule(examples: int, keep: int, p: float) -> Trials:
    """Draw the interchanges of the golden values: arithmetic in 32-bit words, no generator."""
    t = np.arange(4096, dtype=np.uint64)
    base = (2 * t) % examples
    source = (base + 1 + (7919 * t) % (examples - 1)) % examples
    u = np.arange(keep, dtype=np.uint64)
    word = (2654435761 * t[:, None] + 40503 * 65537 * u[None, :] + 12345) % 2**32
    word = (1664525 * word + 1013904223) % 2**32
    return Trials(base.astype(np.int32), source.astype(np.int32), word < np.floor(p * 2**32))


def test_moments_and_scores_of_the_authors_code(data, params):
    images, labels = data.test_images[:SPLIT], data.test_labels[:SPLIT]
    ranking = rank_units(Network(MODEL, params), Calibration(images, labels), "hidden2", METHODS["cip-const"])
    statistics = ranking.statistics
    risk = constant_risk(statistics, relative=False)
    known = {
        "h": (SPLIT * np.sum(statistics.kappa_kappa), 41.702),
        "g": (SPLIT * np.sum(statistics.gradient_kappa), 12.9405),
        "score": (risk.score.sum(), -0.70163),
        "variance": (statistics.variance.sum(), 1466.829),
        "lowest constant": (risk.constant.min(), -37.786),
        "highest constant": (risk.constant.max(), 24.692),
    }
    for name, (value, golden) in known.items():
        assert value == pytest.approx(golden, rel=1e-3), name  # the golden values are float32 sums
    assert not risk.flat.any()
    outputs, recorded = MODEL.apply(params, data.test_images, record=("hidden2",))
    assert np.asarray(recorded["hidden2"][0], np.float64).sum() == pytest.approx(5386943.5, rel=1e-6)
    right = np.asarray(outputs).argmax(1) == data.test_labels
    assert (right.mean(), right[SPLIT:].mean()) == pytest.approx((0.9818, 0.98375), abs=1e-9)


@pytest.mark.parametrize(("keep", "name"), GOLDEN, ids=lambda value: str(value))
def test_presets_of_the_authors_code_do_what_it_does(keep, name, data, params):
    images, labels = data.test_images[:SPLIT], data.test_labels[:SPLIT]
    reduction = replace_units(
        rank_units(Network(MODEL, params), Calibration(images, labels), "hidden2", METHODS[name]), keep
    )
    total, first, norm, bias, accuracy, agreement, *fidelity = GOLDEN[keep, name]
    kept = np.asarray(reduction.plan.folds[0].kept)
    assert kept.sum() == total
    assert tuple(kept[:5]) == first
    # the golden values are float32 sums
    assert np.linalg.norm(reduction.network.params["fc_out"]["kernel"]) == pytest.approx(norm, rel=1e-3)
    assert float(reduction.network.params["fc_out"]["bias"][0]) == pytest.approx(bias, rel=1e-3, abs=2e-4)
    held, answers = data.test_images[SPLIT:], data.test_labels[SPLIT:]
    dense, smaller = (np.asarray(model.apply(weights, held)[0]).argmax(1) for model, weights in (
        (MODEL, params), (reduction.network.model, reduction.network.params),
    ))  # fmt: skip
    # one image in 8000, two trials in 4096, for ties of float32 logits
    assert (smaller == answers).mean() == pytest.approx(accuracy, abs=1.3e-4)
    assert (smaller == dense).mean() == pytest.approx(agreement, abs=1.3e-4)
    for p, golden in zip((0.1, 0.5), fidelity, strict=True):
        trials = _rule(len(held), keep, p)
        compared = (
            interchanged_outputs(each, held, trials)
            for each in (view(Network(MODEL, params), "hidden2", kept), reduction.view("hidden2"))
        )
        iia = 1 - bounded_losses(*map(np.asarray, compared))["zero_one"].mean()
        assert iia == pytest.approx(golden, abs=2.1 / 4096)


def test_the_authors_constants_collapse_and_say_so(data, params):
    rows = calibration_rows(60000, SPLIT, seed=0)
    calibration = Calibration(data.train_images[rows], data.train_labels[rows])
    ranking = rank_units(Network(MODEL, params), calibration, "hidden2", METHODS["cip-const"])
    with pytest.warns(UserWarning, match="together they add up and the network collapses"):
        reduction = replace_units(ranking, 384)
    outputs = reduction.network.model.apply(reduction.network.params, data.test_images)[0]
    assert (np.asarray(outputs).argmax(1) == data.test_labels).mean() < 0.2


@pytest.mark.parametrize(
    ("name", "keep", "accuracy", "iia"),
    [
        pytest.param("cmr", 128, 0.980, 0.988, marks=pytest.mark.slow), ("cmr", 64, 0.977, 0.978),
        pytest.param("cmr", 32, 0.972, 0.952, marks=pytest.mark.slow), ("cmr", 16, 0.953, 0.890),
        ("obs-affine", 64, 0.975, 0.970), pytest.param("obs-affine", 32, 0.970, 0.940, marks=pytest.mark.slow),
        pytest.param("kl-const", 256, 0.975, 0.980, marks=pytest.mark.slow),
        pytest.param("vbp-bias", 128, 0.970, 0.960, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_methods_reach_their_bars_on_the_authors_split(name, keep, accuracy, iia, data, params):
    rows = calibration_rows(60000, SPLIT, seed=0)
    calibration = Calibration(data.train_images[rows])
    reduction = replace_units(rank_units(Network(MODEL, params), calibration, "hidden2", METHODS[name]), keep)
    outputs = np.asarray(reduction.network.model.apply(reduction.network.params, data.test_images)[0])
    assert (outputs.argmax(1) == data.test_labels).mean() >= accuracy
    trials = bernoulli_trials(np.random.default_rng(42), examples=10_000, units=keep, probability=0.1, trials=50_000)
    kept = np.asarray(reduction.plan.folds[0].kept)
    compared = (
        interchanged_outputs(each, data.test_images, trials)
        for each in (view(Network(MODEL, params), "hidden2", kept), reduction.view("hidden2"))
    )
    assert 1 - bounded_losses(*map(np.asarray, compared))["zero_one"].mean() >= iia


@pytest.mark.parametrize(("keep", "accuracy"), [pytest.param(128, 0.977, marks=pytest.mark.slow), (64, 0.962)])
def test_both_layers_in_one_call_reach_their_bar(keep, accuracy, data, params):
    calibration = Calibration(data.train_images[calibration_rows(60000, SPLIT, seed=0)])
    reduction = reduce_network(Network(MODEL, params), calibration, {"hidden1": keep, "hidden2": keep})
    outputs = np.asarray(reduction.network.model.apply(reduction.network.params, data.test_images)[0])
    assert (outputs.argmax(1) == data.test_labels).mean() >= accuracy
