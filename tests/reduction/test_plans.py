"""Plans: what they refuse, how they read, and that a file gives back what was saved or says what is wrong with it."""

import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from abstraction.models import Activation, Dense, Network, Sequential
from abstraction.reduction.compiling import compile_plan
from abstraction.reduction.folding import affine_fold, constant_fold
from abstraction.reduction.plans import load_plan, reduction_plan

MODEL = Sequential((4,), (Dense("a", 3), Activation("x"), Dense("b", 3), Activation("y"), Dense("head", 2)))
PARAMS = MODEL.init(jax.random.key(0))
FOLDS = (affine_fold("x", [0, 2], [1], [0.5], [[2.0, -1]]), constant_fold("y", 3, [0, 2], [1.0, 0.0]))


def _plan():
    scores = (None, np.array([0.1, 3.0, 0.2]))
    return reduction_plan(Network(MODEL, PARAMS), FOLDS, scores=scores, risks=(0.25, None), notes=({"rule": "obs"}, {}))


def test_a_plan_comes_back_from_its_file(tmp_path):
    plan = _plan()
    plan.save(tmp_path / "plan.safetensors")
    assert os.listdir(tmp_path) == ["plan.safetensors"]
    back = load_plan(tmp_path / "plan.safetensors")
    assert jax.tree.structure(back.folds) == jax.tree.structure(plan.folds)
    for leaf, twin in zip(jax.tree.leaves(back.folds), jax.tree.leaves(plan.folds), strict=True):
        np.testing.assert_array_equal(leaf, twin)
        assert leaf.dtype == twin.dtype
    assert (back.risks, back.notes, back.obstacles) == (plan.risks, plan.notes, plan.obstacles)
    assert back.scores[0] is None
    np.testing.assert_array_equal(back.scores[1], plan.scores[1])
    one, other = (compile_plan(Network(MODEL, PARAMS), each).params for each in (plan, back))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_plan_without_folds_comes_back(tmp_path):
    reduction_plan(Network(MODEL, PARAMS), []).save(tmp_path / "plan")
    assert load_plan(tmp_path / "plan").folds == ()


def test_transposed_coefficients_come_back(tmp_path):
    wide = np.arange(6.0).reshape(3, 2).T
    model = Sequential((4,), (Dense("a", 5), Dense("head", 2)))
    plan = reduction_plan(
        Network(model, model.init(jax.random.key(0))), [affine_fold("a", [0, 1, 2], [3, 4], [0.0, 1], wide)]
    )
    plan.save(tmp_path / "plan")
    np.testing.assert_array_equal(load_plan(tmp_path / "plan").folds[0].coefficients, wide)


def test_saving_over_a_plan_replaces_it_whole(tmp_path):
    reduction_plan(Network(MODEL, PARAMS), []).save(tmp_path / "plan")
    _plan().save(tmp_path / "plan")
    assert len(load_plan(tmp_path / "plan").folds) == 2


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    _plan().save(tmp_path / "plan")
    before = (tmp_path / "plan").read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        reduction_plan(Network(MODEL, PARAMS), []).save(tmp_path / "plan")
    assert (tmp_path / "plan").read_bytes() == before
    assert os.listdir(tmp_path) == ["plan"]


def _saved(tmp_path):
    _plan().save(tmp_path / "plan")
    return load_file(tmp_path / "plan"), [
        {"tap": "x", "risk": None, "notes": {}, "obstacle": ""},
        {"tap": "y", "risk": None, "notes": {}, "obstacle": ""},
    ]


def _write(path, arrays, about, form="abstraction plan 1"):
    save_file(arrays, path, {"format": form, "folds": json.dumps(about)})


def test_the_forged_files_below_are_plans_but_for_their_faults(tmp_path):
    arrays, about = _saved(tmp_path)
    _write(tmp_path / "forged", arrays, about)
    assert len(load_plan(tmp_path / "forged").folds) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda arrays, about: arrays.pop("0.kept"), "0.kept"),
        (lambda arrays, about: arrays.update({"2.kept": arrays["0.kept"]}), r"unknown arrays \['2.kept'\]"),
        (lambda arrays, about: arrays.update({"0.kept": arrays["0.kept"][::-1].copy()}), "expected a sorted list"),
        (lambda arrays, about: arrays.update({"0.intercept": np.array([np.nan])}), "not finite"),
        (lambda arrays, about: about.pop(), "unknown arrays"),
        (lambda arrays, about: about[0].pop("risk"), "risk"),
    ],
)
def test_a_plan_with_a_fault_is_refused_by_name(tmp_path, fault, message):
    arrays, about = _saved(tmp_path)
    fault(arrays, about)
    _write(tmp_path / "forged", arrays, about)
    with pytest.raises(ValueError, match=f"cannot read a plan from .*forged.*{message}"):
        load_plan(tmp_path / "forged")


def test_files_that_are_no_plans_are_refused(tmp_path):
    arrays, about = _saved(tmp_path)
    _write(tmp_path / "foreign", arrays, about, form="something else")
    with pytest.raises(ValueError, match="format 'something else', expected 'abstraction plan 1'"):
        load_plan(tmp_path / "foreign")
    whole = (tmp_path / "plan").read_bytes()
    for name, content in {"short": whole[:-8], "text": b"a plan", "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read a plan from .*{name}"):
            load_plan(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_plan(tmp_path / "missing")


def test_a_plan_prints_as_a_table():
    inexact = (affine_fold("a", [0, 2], [1], [0.5], [[2.0, -1]]), FOLDS[1])
    lines = str(reduction_plan(Network(MODEL, PARAMS), inexact, risks=(0.25, None))).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["tap", "a", "y"]
    assert "2 of 3  affine maps  1 <- +2 x 0, 1 <- -1 x 2  0.25" in lines[1]
    assert lines[1].endswith("patch only: an affine map of kept units does not pass Activation 'x'")
    assert "1 of 3  constants" in lines[2]
    assert lines[2].endswith("exact")


@pytest.mark.parametrize(
    ("folds", "records", "message"),
    [
        (FOLDS[::-1], {}, r"got folds at \['y', 'x'\], expected one per tap, in the order \['x', 'y'\]"),
        (FOLDS[:1] * 2, {}, "expected one per tap"),
        ((constant_fold("x", 4, [0], [0.0]),), {}, "got a fold of 4 units at 'x', expected one of 3"),
        (FOLDS, {"risks": (0.1,)}, r"got \{'risks': 1\} records for 2 folds"),
        (FOLDS, {"scores": (np.zeros(2), None)}, "expected one per unit"),
        (FOLDS, {"notes": ({"array": np.zeros(2)}, {})}, "expected what JSON can hold"),
    ],
)
def test_plans_that_do_not_fit_the_network_are_refused(folds, records, message):
    with pytest.raises(ValueError, match=message):
        reduction_plan(Network(MODEL, PARAMS), folds, **records)
