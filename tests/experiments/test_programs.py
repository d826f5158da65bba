"""Compiled programs: kept between runs, counted, and as many for one seed as for many."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from heqruns import SMALL, command

from experiments.harness import programs
from experiments.harness.programs import counted, keep_programs

SMALL_PAPER = ["--published.das.training.batch-size", "64", "--published.das.training.max-epochs", "2"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(name="home")
def _home(tmp_path, monkeypatch):
    """A home of its own, and JAX as it is where nobody has said anything."""
    names = (
        "jax_compilation_cache_dir",
        "jax_compilation_cache_max_size",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
        "jax_enable_compilation_cache",
    )
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setattr(programs, "user_cache_path", lambda name: tmp_path / name)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_below_the_users_cache_by_processor(home):
    place = keep_programs()
    assert place is not None
    assert place.is_dir()
    assert place.parent == home / "abstraction-jax"
    assert jax.config.jax_compilation_cache_dir == str(place)
    assert keep_programs() == place, "asked twice"


def test_what_jax_was_told_stays(home):
    jax.config.update("jax_compilation_cache_dir", str(home / "mine"))
    assert keep_programs() == home / "mine"
    jax.config.update("jax_enable_compilation_cache", False)
    assert keep_programs() is None


def test_a_place_that_cannot_be_written_is_a_note(home, capsys):
    (home / "abstraction-jax").write_text("a file, not a folder")
    assert keep_programs() is None
    assert "programs are not kept" in capsys.readouterr().err
    assert jax.config.jax_compilation_cache_dir is None


def test_what_a_killed_run_left_half_written_is_taken_away(home):
    """A program without its time of use is torn, or stops all later writing; whole ones stay."""
    place = keep_programs()
    assert place is not None
    for name in ("torn-cache", "lost-atime", "whole-cache", "whole-atime"):
        (place / name).write_bytes(bytes(8))
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_programs() == place
    assert {path.name for path in place.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}


def test_programs_are_counted_once_each():
    function = jax.jit(lambda x: x * 3 + 1.2345)
    values = jnp.arange(5.0)
    with counted() as first:
        function(values)
    with counted() as again:
        function(values)
    assert (first.compiled, again.compiled) == (1, 0)
    assert first.seconds > 0
    assert str(again) == "0 in 0.0 s, 0 of them read from disk"


@pytest.mark.slow
def test_a_seed_needs_few_programs_and_the_next_seed_none_of_its_own(tmp_path):
    """Shapes do not depend on seeds. Measured 46 programs for all methods of a small run."""
    out, small = tmp_path / "run", ("--out", tmp_path / "run", *SMALL, *SMALL_PAPER)
    ended = command("heq", "--seeds", "1", *small)
    assert ended.status == 0, ended.err
    told = [line for line in ended.out.splitlines() if line.startswith("programs ")]
    assert len(told) == 1
    assert int(told[0].split()[1]) <= 90
    with counted() as second:
        ended = command("heq", "--seeds", "1:3", "--resume", *small)
    assert ended.status == 0, ended.err
    assert (out / "metrics.csv").exists()
    assert second.compiled <= 3


@pytest.mark.slow
def test_a_second_process_reads_what_the_first_has_compiled(tmp_path):
    arguments = ["heq", "--seeds", "1", "--methods", "plot-ot", *SMALL]
    ended = [
        subprocess.run(
            [sys.executable, "-m", "experiments", *arguments, "--out", str(tmp_path / str(leg)), *more],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        for leg, more in enumerate(([], [], ["--no-cache"]))
    ]
    counts = [next(line for line in leg.stdout.splitlines() if line.startswith("programs ")).split() for leg in ended]
    compiled, read = ([int(words[place]) for words in counts] for place in (1, 5))
    assert compiled[0] == compiled[1] == compiled[2] > 10
    assert (read[0], read[1], read[2]) == (0, compiled[1], 0)
    assert f"kept in {tmp_path / 'cache'}" in ended[1].stdout
    assert "not kept" in ended[2].stdout
    assert len(ended[1].stderr.splitlines()) < 10, "nothing of the compiler's talk about programs it reads"
