"""The checksum of weights: what changes it, what does not, and its sum written out in Python."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.models import MLP, checksums
from abstraction.models.checksums import params_checksum

WORD = 2**32


@pytest.fixture(params=["on the host", "on the device"])
def _(request, monkeypatch):
    if request.param == "on the device":
        monkeypatch.setattr(checksums, "_LARGE", 0)


pytestmark = pytest.mark.usefixtures("_")


def _params():
    return jax.device_get(MLP(3, 5, 2, 2).init(jax.random.key(0)))


def _changed(change):
    params = _params()
    path, leaf = max(jax.tree_util.tree_leaves_with_path(params), key=lambda each: np.size(each[1]))
    new = change(np.array(leaf))
    return jax.tree_util.tree_map_with_path(lambda at, old: new if at == path else old, params)


def _one(array):
    array.flat[7] = np.nextafter(array.flat[7], 9)
    return array


def _two_signs(array):
    array.flat[:2] *= -1
    return array


CHANGES = {
    "signs": np.negative, "two signs": _two_signs,
    "order": np.flip, "transposed": lambda a: a.T.reshape(a.shape), "one bit": _one, "zeros": np.zeros_like,
    "scale": lambda a: 2 * a, "type": lambda a: a.astype(np.float16), "shape": lambda a: a.reshape(-1),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_weights_have_another_checksum(change):
    assert params_checksum(_changed(change)) != params_checksum(_params())


def test_equal_weights_have_equal_checksums_whoever_holds_them():
    host, device = _params(), jax.tree.map(jnp.asarray, _params())
    assert params_checksum(host) == params_checksum(device) == params_checksum(jax.tree.map(jnp.copy, device))
    assert params_checksum(dict(reversed(host.items()))) == params_checksum(host)


def test_a_path_counts_and_a_random_key_does_not():
    one = np.ones(3, np.float32)
    assert params_checksum({"a": one}) != params_checksum({"b": one})
    assert params_checksum({"a": one, "k": jax.random.key(0)}) == params_checksum({"a": one, "k": jax.random.key(1)})


def test_an_array_of_numpy_that_is_written_to_is_another():
    params = {"a": np.ones(4, np.float32)}
    before = params_checksum(params)
    params["a"][0] = 2
    assert params_checksum(params) != before


def _by_hand(words):
    total = 0
    for place, word in enumerate(words):
        mixed = (word + place * 0x9E3779B1) % WORD
        for factor in (0xC2B2AE3D, 0x27D4EB2F):
            mixed = (mixed ^ (mixed >> 15)) * factor % WORD
        total += mixed ^ (mixed >> 16)
    return total % WORD


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("float32", np.uint32), ("int32", np.uint32), ("float16", np.uint16), ("bfloat16", np.uint16), ("int8", np.uint8)],
)
def test_the_sum_of_an_array_is_that_of_its_words(dtype, words, rng):
    array = np.asarray(jnp.asarray(rng.normal(size=(2, 3, 4)) * 20, dtype))
    assert int(checksums._scattered(array)) == _by_hand(array.reshape(-1).view(words).tolist())


@pytest.mark.parametrize("array", [np.array([True, False]), np.array([1 + 2j, 3 - 4j], np.complex64)], ids=str)
def test_arrays_of_other_kinds_have_one_as_well(array):
    assert params_checksum({"a": array}) == params_checksum({"a": array.copy()}) != params_checksum({"a": array[::-1]})


def test_arrays_that_are_gone_are_forgotten(monkeypatch):
    monkeypatch.setattr(checksums, "_LARGE", 0)
    gc.collect()
    before, array = len(checksums._known), jnp.arange(1000.0)
    assert params_checksum({"a": array}) == params_checksum({"a": array})
    assert len(checksums._known) == before + 1
    del array
    gc.collect()
    assert len(checksums._known) == before
