"""Every driver on eight virtual devices: what one device gives, for an eighth of its arithmetic on each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from abstraction.models import MLP, Decoder, DecoderConfig, Network, TokenView, on_mesh
from abstraction.sharding import AXES, check_share, device_mesh, mesh_of, over, shared_rows

ROOT = Path(__file__).parent.parent.parent
DRIVERS = ("record", "signatures", "sweep", "tally", "search", "statistics", "trials")
OF_REDUCTION = ("hessian", "taylor", "risk", "effects", "outputs", "refit")
OF_TEXT = ("text:language", "scores:language")
OF_DECODERS = tuple(f"{driver}:decoder" for driver in DRIVERS[:5])
CONFIG = DecoderConfig(vocabulary=10, width=8, depth=1, heads=2, kv_heads=1, head_size=4, hidden=6)


def _shared(mesh, drivers):
    """Run drivers in a process that has eight devices; this one has had its own for long."""
    # A compiler that optimises little computes more than it counts for one device, and the other way round.
    settings = {"XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "drivers.py"), mesh, *drivers]
    run = subprocess.run(command, env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not run.returncode, run.stderr[-2000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [each["driver"] for each in found] == list(drivers)
    for each in found:
        assert each["difference"] < 1e-6, each
        assert each["share"] <= 1 / 7, each


def test_devices_share_pairs_and_sites():
    _shared("pairs=4,candidates=2", ("signatures",))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["pairs=8", "candidates=8", "pairs=2,candidates=4"])
def test_devices_share_every_driver(mesh):
    _shared(mesh, DRIVERS)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["pairs=8", "pairs=2,candidates=4"])
def test_devices_share_what_else_a_reduction_runs(mesh):
    _shared(mesh, OF_REDUCTION)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["pairs=8", "pairs=4,model=2", "pairs=2,model=4"])
def test_devices_share_the_drivers_of_a_decoder_and_its_heads(mesh):
    _shared(mesh, OF_DECODERS)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["pairs=8", "pairs=4,candidates=2"])
def test_devices_share_a_text(mesh):
    _shared(mesh, OF_TEXT)


def test_a_mesh_is_found_on_the_weights_and_nowhere_else():
    network, mesh = Network(MLP(2, 4, 1, 2), MLP(2, 4, 1, 2).init(jax.random.key(0))), device_mesh()
    assert mesh_of(network.params) is None
    assert mesh_of(on_mesh(network, mesh).params) == mesh
    assert mesh_of({"a": np.ones(2)}) is None


def test_without_a_mesh_arrays_stay_as_they_are():
    rows = np.arange(3)
    assert over(None, "pairs", rows) is rows
    assert shared_rows(None, 3) == 3


def test_shapes_are_put_on_a_mesh_without_weights():
    decoder, mesh = Decoder(CONFIG), device_mesh()
    shapes = jax.eval_shape(decoder.init, jax.random.key(0))
    assert mesh_of(on_mesh(Network(decoder, shapes), mesh).params) == mesh


@pytest.mark.parametrize("axis", AXES)
def test_a_mesh_of_more_devices_than_there_are_is_refused(axis):
    count = len(jax.devices())
    with pytest.raises(ValueError, match=rf"{axis}={count + 1}.*, {count + 1} devices, expected at most {count}"):
        device_mesh(**{axis: count + 1})
    with pytest.raises(ValueError, match=f"devices along '{axis}'"):
        device_mesh(**{axis: 0})


class _Pretended:
    """A device that is there only to be counted."""

    platform = "cpu"


def _pretended(**sizes):
    return device_mesh(**sizes, devices=[_Pretended() for _ in range(8)])  # pyright: ignore[reportArgumentType]


def test_pairs_that_devices_cannot_share_equally_are_refused():
    with pytest.raises(ValueError, match="got 30 pairs, expected a multiple of 4, the devices of 'pairs'"):
        check_share("pairs", 30, _pretended(pairs=4, candidates=2))


def test_only_decoders_whose_heads_divide_are_split():
    mesh = _pretended(model=4)
    with pytest.raises(ValueError, match="got model=4 for a MLP, expected 1"):
        on_mesh(Network(MLP(2, 4, 1, 2), {}), mesh)
    for model in (Decoder(CONFIG), TokenView(Decoder(CONFIG))):
        with pytest.raises(ValueError, match="got model=4 for 2 heads and 6 units, expected a divisor of both"):
            on_mesh(Network(model, {}), mesh)


def test_a_mesh_of_other_axes_is_refused():
    other = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    with pytest.raises(ValueError, match="expected a mesh with axes"):
        on_mesh(Network(MLP(2, 4, 1, 2), {}), other)
