"""Checkpoints come back bit by bit, or not at all."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstraction.models import MLP
from abstraction.training.checkpoints import Checkpoints


def _tree(width=4):
    params = MLP(3, width, 2, 2).init(jax.random.key(0))
    return {"params": params, "optimizer": optax.adam(1e-3).init(params), "epoch": np.int32(7)}


def test_a_tree_round_trips_with_its_structure(tmp_path):
    tree = _tree()
    Checkpoints(tmp_path).save(7, tree)
    restored = Checkpoints(tmp_path).restore(jax.tree.map(jnp.zeros_like, tree))
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_the_newest_is_restored_and_only_as_many_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in range(4):
        checkpoints.save(step, {"a": np.full(2, step)})
    assert checkpoints.latest == 3
    assert sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()) == [2, 3]
    np.testing.assert_array_equal(checkpoints.restore({"a": np.zeros(2, int)})["a"], [3, 3])


def test_an_empty_folder_gives_back_what_was_asked_for(tmp_path):
    tree = _tree()
    assert Checkpoints(tmp_path).restore(tree) is tree
    assert Checkpoints(tmp_path).latest is None


def test_a_checkpoint_of_another_shape_is_refused_by_name(tmp_path):
    Checkpoints(tmp_path).save(1, _tree(width=4))
    with pytest.raises(ValueError, match=r"'stem'.*got \(4,\), expected \(5,\)"):
        Checkpoints(tmp_path).restore(_tree(width=5))


def test_a_checkpoint_of_another_tree_is_refused_by_name(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": np.zeros(2)})
    with pytest.raises(ValueError, match=r"\['b'\]: got nothing, expected \(2,\)"):
        Checkpoints(tmp_path).restore({"a": np.zeros(2), "b": np.zeros(2)})


def test_a_damaged_checkpoint_is_an_error_and_stays_there(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": np.arange(1000.0)})
    before = sorted(tmp_path.rglob("*"))
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot restore checkpoint 1"):
        Checkpoints(tmp_path).restore({"a": np.zeros(1000)})
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": np.arange(3.0)})
    half = tmp_path / "2.orbax-checkpoint-tmp-17"
    shutil.copytree(tmp_path / "1", half)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest == 1
    assert not half.exists()
    checkpoints.save(2, {"a": np.ones(3)})
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore({"a": np.zeros(3)})["a"], np.ones(3))


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np; from abstraction.training.checkpoints import Checkpoints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "checkpoints = Checkpoints(sys.argv[1]); checkpoints.save(1, {'a': np.ones(3)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: checkpoints.save(2, {'a': np.random.default_rng(0).normal(size=100_000)})\n"
        "except OSError as error: print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.stdout.startswith(f"cannot write checkpoint 2 in {tmp_path}"), ended
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    np.testing.assert_array_equal(Checkpoints(tmp_path).restore({"a": np.zeros(3)})["a"], np.ones(3))


def test_orbax_is_imported_where_it_saves():
    code = "import abstraction.training, sys; sys.exit('orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
