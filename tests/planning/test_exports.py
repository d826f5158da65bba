"""Every heavy driver is lowered for NVIDIA GPUs and for TPUs: nothing in it needs a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES

from abstraction.explaining import Case, Searches, shape
from abstraction.models import MLP, Decoder, TokenView
from abstraction.planning import TARGETS, Program, placed_on, target_devices
from benchmarks.drivers import cases, prompts

CHUNK = 3
DAS = (Searches("DAS", 4, 2, 2, batch=4),)
TINY = Case("MLP", MLP(3, 8, 2, 2), lambda count: shape((count, 3)), "hidden", 12, 36, DAS)
VIEW = TokenView(Decoder(FAMILIES["gemma2"]), window=2)
DECODER = Case("decoder", VIEW, prompts(5), "block_output", 12, 36, DAS)
EVERY = [(case, index) for case in (TINY, DECODER) for index in range(6)]
NAMES = ("record", "site_signatures", "sweep", "tally_handles", "tally_handles", "train_candidates")


@pytest.mark.usefixtures("unchecked")  # arguments are shapes
@pytest.mark.parametrize(("case", "index"), EVERY, ids=lambda each: getattr(each, "name", each))
def test_drivers_are_exported_for_accelerators(case, index):
    driver = case.drivers()[index]
    assert driver.name == NAMES[index]
    program = driver.at(CHUNK)
    exported = jax.export.export(program.function, platforms=("cuda", "tpu"))(*program.arguments, **program.options)
    assert exported.platforms == ("cuda", "tpu")
    assert all(out.dtype != np.float64 for out in exported.out_avals)


def test_cases_name_every_driver_once():
    assert [case.name for case in cases()] == ["equality", "addition", "mcqa, Gemma-2-2B", "mcqa, Gemma-2-9B"]


def test_leaves_are_placed_where_they_are_told():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"a": np.ones((2, 3), np.float32), "b": jax.ShapeDtypeStruct((4,), jnp.bfloat16), "key": jax.random.key(0)}
    found = placed_on(tree, device)
    assert {name: (leaf.shape, leaf.sharding) for name, leaf in found.items()} == {
        "a": ((2, 3), device), "b": ((4,), device), "key": ((), device),
    }  # fmt: skip
    rows = placed_on(tree, lambda path, leaf: device if path[0].key == "a" else None)
    assert [rows[name].sharding for name in ("a", "b")] == [device, None]


def test_a_target_that_is_none_or_cannot_be_compiled_for_is_refused():
    with pytest.raises(ValueError, match="got target 'abacus', expected one of"):
        target_devices("abacus")
    with pytest.raises(ValueError, match="got 3 devices of H100, expected one of"):
        target_devices("h100", 3)
    assert all(target.memory > 2**33 for target in TARGETS.values())
    assert Program(jax.jit(jnp.sin), (np.ones(3, np.float32),), {})().shape == (3,)
