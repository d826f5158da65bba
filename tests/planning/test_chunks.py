"""Chunks: the largest that pays and fits, by what the compiler says of its program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from planted import planted

from abstraction.evaluation.iia import tally_handles
from abstraction.interventions import unit_sites
from abstraction.interventions.patching import map_handles, run_pairs
from abstraction.localization import (
    Rotation,
    SearchConfig,
    Sweeping,
    candidate_grid,
    full_supports,
    measure_effects,
    sweep,
)
from abstraction.localization.searching import train_candidates
from abstraction.planning import MEMORY, Program, device_memory, fitting_chunk, footprint, room_in


@partial(jax.jit, static_argnames=("chunk",))
def _products(weights, rows, scales, chunk):
    one = lambda scale: jnp.tanh(jnp.tanh(scale * rows @ weights) @ weights).sum()
    return map_handles(one, scales, chunk=chunk)


WEIGHTS, ROWS, SCALES = np.ones((256, 256), np.float32), np.ones((64, 256), np.float32), np.ones(96, np.float32)
ONE = ROWS.nbytes


def _at(chunk):
    return Program(_products, (WEIGHTS, ROWS, SCALES), {"chunk": chunk})


def _total(chunk):
    found = footprint(_at(chunk))
    assert found is not None
    return found.total


def _memory(room):
    """Return the memory of which so much is room_in."""
    return int(np.ceil(room / room_in(10**6) * 10**6)) + 1


@pytest.mark.parametrize("most", [1, 3, 8, 20])
def test_the_chunk_is_about_the_largest_that_fits(most):
    room = _total(most)
    chunk = fitting_chunk(_at, 96, ONE, memory=_memory(room))
    assert _total(chunk) <= _memory(room) * 0.75
    assert chunk >= most // 2, "a line through two programs should come close"


def test_what_pays_is_taken_where_it_fits():
    assert fitting_chunk(_at, 8, ONE, memory=10**9) == 8
    assert fitting_chunk(_at, 8, ONE, memory=_memory(_total(8))) == 8


def test_a_small_run_is_not_looked_at():
    def at(chunk):
        raise AssertionError("looked at")

    assert fitting_chunk(at, 8, ONE, memory=_memory(8 * 8 * 8 * ONE)) == 8


def test_sizes_are_those_that_are_possible():
    allowed = lambda bound: max(size for size in (1, 4, 16) if size <= bound)
    assert fitting_chunk(_at, 96, ONE, allowed=allowed, memory=_memory(_total(8))) in (1, 4)


def test_one_that_does_not_fit_is_refused_with_numbers():
    with pytest.raises(ValueError, match=r"got a program that holds .* GB for one at a time .* expected it to fit"):
        fitting_chunk(_at, 8, ONE, memory=ONE)


def test_a_program_that_was_looked_at_is_not_compiled_again():
    program = Program(_products, (jnp.ones((8, 8)), jnp.ones((2, 8)), np.ones(4, np.float32)), {"chunk": 2})
    with compilations() as looked:
        footprint(program)
        footprint(program)
    with compilations() as called:
        program()
    assert len(looked) == 1
    assert len(called) == 0


def test_memory_is_told_asked_or_read(monkeypatch):
    monkeypatch.delenv(MEMORY, raising=False)
    asked = device_memory()
    assert asked is None or asked > 2**24
    monkeypatch.setenv(MEMORY, "1000")
    assert device_memory() == 1000
    for wrong in ("", "0", "1e9", "-3"):
        monkeypatch.setenv(MEMORY, wrong)
        with pytest.raises(ValueError, match="whole number of bytes"):
            device_memory()


PLANT = planted(rotate=False)
LITTLE = {
    "site_signatures": 90_000,
    "sites": 1_000_000,
    "tally_block": 1_000_000,
    "train": 66_000,
    "run_pairs": 50_000,
}
"""Bytes of memory that hold a part of a driver's chunk."""


def _effects():
    return {"cost": measure_effects(PLANT.network, PLANT.fit, unit_sites(PLANT.tap)).cost}


def _sweep():
    found = sweep(PLANT.network, PLANT.fit, 1, Sweeping(controls=None))
    return {"values": found.values, "low": found.low}


def _tally():
    sites = unit_sites(PLANT.tap)
    found = tally_handles(PLANT.network, PLANT.fit, sites.handles(), np.arange(sites.size) % 2)
    return {"hits": found.hits, "loss": found.loss}


def _search():
    supports = full_supports(PLANT.tap, range(2))
    candidates = candidate_grid(jax.random.key(0), PLANT.tap, supports, ranks=(1, 2), learning_rates=(1e-2,))
    config = SearchConfig(max_epochs=2, batch_size=64)
    found = train_candidates(jax.random.key(1), PLANT.network, PLANT.fit, candidates, Rotation(), config)
    return {"frames": jax.tree.leaves(found.handles.basis)[0], "curve": found.curve}


def _record():
    inputs = np.asarray(PLANT.fit.runs.inputs)
    runs = run_pairs(PLANT.network, inputs, inputs[::-1], taps=(PLANT.fit.tap,))
    return {"outputs": runs.outputs, **runs.base, "source": runs.source[PLANT.fit.tap]}


@pytest.mark.parametrize(
    ("driver", "program"),
    [
        (_effects, "site_signatures"),
        (_sweep, "sites"),
        (_tally, "tally_block"),
        (_search, "train"),
        (_record, "run_pairs"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
@pytest.mark.usefixtures("unchecked")  # JAX rebuilds arguments with placeholders when it says what a program takes
def test_no_number_depends_on_the_memory_there_is(driver, program, monkeypatch):
    seen = []

    def told(program):
        seen.append((program.name, footprint(program)))
        return seen[-1][1]

    monkeypatch.setattr("abstraction.planning.chunks.footprint", told)
    monkeypatch.setenv(MEMORY, str(10**12))
    plenty = driver()
    assert not seen, "a run this small is not looked at"
    monkeypatch.setenv(MEMORY, str(LITTLE[program]))
    little = driver()
    assert len(seen) > 1
    assert {name for name, _ in seen} == {program}
    assert seen[-1][1].total <= room_in(LITTLE[program]) < seen[0][1].total
    for name, values in plenty.items():
        # Sums over a chunk are taken in another order.
        np.testing.assert_allclose(little[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
