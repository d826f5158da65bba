"""Closed-form read/write handles: what regression says, a plant they must find, and the given adders."""

from pathlib import Path

import numpy as np
import pytest
from planted import planted

from abstraction.evaluation import Bits, record
from abstraction.evaluation.judging import judge_alone
from abstraction.localization.calibration import calibrate_candidates
from abstraction.localization.readwrite import readwrite_handles, stack_candidates
from abstraction.models import GRU, Network
from abstraction.tasks import addition

DATA = Path(__file__).parents[3] / "shared" / "data"


def _oblique(rng, noise=0.0, rows=400):
    """Make states h = z u + x w + noise; z and x correlate."""
    z = rng.integers(0, 2, rows).astype(float)
    x = np.where(rng.uniform(size=rows) < 0.7, z, 1 - z)
    u, w = rng.standard_normal((2, 5))
    return z[:, None] * u + x[:, None] * w + noise * rng.standard_normal((rows, 5)), z, x[:, None], u, w


def _fit(states, z, x, **options):
    return readwrite_handles(states.astype(np.float64), z, x, depth=0, tap="hidden", **options)


def test_the_write_direction_is_the_regression_coefficient(rng):
    states, z, x, *_ = _oblique(rng, noise=0.5)
    found = _fit(states, z, x)
    design = np.stack([np.ones(len(z)), z, x[:, 0]], axis=1)
    np.testing.assert_allclose(found.write, np.linalg.lstsq(design, states, rcond=None)[0][1], rtol=1e-8)


def test_without_the_covariate_its_direction_is_written_too(rng):
    states, z, x, u, w = _oblique(rng)
    np.testing.assert_allclose(_fit(states, z, x).write, u, atol=1e-8)
    share = np.linalg.lstsq(np.stack([np.ones(len(z)), z], axis=1), x[:, 0], rcond=None)[0][1]
    np.testing.assert_allclose(_fit(states, z, np.zeros((len(z), 0))).write, u + share * w, atol=1e-8)


def test_reading_is_scaled_to_writing_and_ignores_the_covariate(rng):
    states, z, x, _, w = _oblique(rng)
    found = _fit(states, z, x, ridges=(1e-8,))
    np.testing.assert_allclose(found.read @ found.write, 1.0, rtol=1e-9)
    assert abs(found.read[0] @ w) < 1e-4  # the ridge is not zero
    basis = found.handles.basis
    np.testing.assert_allclose(basis.decoder @ basis.encoder, 1.0, rtol=1e-5)


def test_planted_variables_are_found_without_training():
    plant = planted(rotate=True)
    states = np.asarray(plant.fit.runs.base["hidden"][0], np.float64)
    values = [plant.fit.bank.base["a"], plant.fit.bank.base["b"]]
    found = [
        readwrite_handles(states, values[v], np.asarray(values[1 - v])[:, None], depth=0, tap="hidden")
        for v in range(2)
    ]
    handles, owner, settings = stack_candidates(found)
    cost = np.zeros(len(owner))
    choice = calibrate_candidates(plant.network, plant.calibration, handles, owner, settings, cost=cost)
    assert judge_alone(plant.network, choice.handles, {"t": plant.test})["t"].combined.min() > 0.99


@pytest.mark.parametrize(("seed", "least"), [(0, 0.985), (1, 0.94), (2, 0.985)])
def test_carries_of_given_adders_are_found_without_training(seed, least):
    """Measured .9940, .9527 and .9918; the covariates are the earlier carries and the bits emitted so far."""
    path = DATA / f"binary_addition_gru_h16_seed{seed}.npz"
    if not path.exists():
        pytest.skip("the trained adders are not beside this checkout")
    model = GRU(2, 16, 4)
    network, banks = Network(model, model.params_from_torch(np.load(path))), addition.structured_banks(seed)
    recorded = lambda bank: record(network, addition.encode, bank, tap="hidden", readout=Bits())
    every = len(banks.families)
    states = np.asarray(recorded(banks.fit).runs.base["hidden"][:, ::every], np.float64)
    values = addition.adder().run({name: column[::every] for name, column in banks.fit.base.items()})
    found = [
        readwrite_handles(
            states[i - 1],
            np.asarray(values[f"c{i}"]),
            np.stack([values[name] for name in (*(f"s{t}" for t in range(i)), *(f"c{t}" for t in range(1, i)))], -1),
            depth=i - 1,
            tap="hidden",
        )
        for i in (1, 2, 3)
    ]
    handles, owner, settings = stack_candidates(found)
    evidence, cost = recorded(banks.calibration), np.zeros(len(owner))
    choice = calibrate_candidates(network, evidence, handles, owner, settings, cost=cost)
    tested = judge_alone(network, choice.handles, {"test": recorded(banks.test)})["test"]
    assert tested.combined.mean() > least


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, z, x: (h, z[:7], x, {}), "got 400 states, 7 values"),
        (lambda h, z, x: (h, np.ones(400), x, {}), "constant or a combination"),
        (lambda h, z, x: (h, x[:, 0], x, {}), "constant or a combination"),
        (lambda h, z, x: (np.zeros_like(h), z, x, {}), "do not move with the variable"),
        (lambda h, z, x: (h, z, x, {"ridges": (0.0,)}), r"got ridges \[0.0\]"),
        (lambda h, z, x: (h, z, x, {"strengths": ()}), r"strengths \[\]"),
    ],
)
def test_what_cannot_be_fitted_is_refused(rng, unchecked, change, message):
    states, z, x, *_ = _oblique(rng)
    *arrays, options = change(states, z, x)
    with pytest.raises(ValueError, match=message):
        _fit(*arrays, **options)
