"""Files of what was found: the same comes back, and only for the network it belongs to."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from planted import MENU, planted
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from abstraction.artifacts import description, load, save
from abstraction.artifacts.descriptions import described, model_of
from abstraction.causal.pairs import digest
from abstraction.files import read_arrays, write_arrays
from abstraction.interventions import Handle, rotation_basis, unit_sites
from abstraction.interventions.bases import random_frames
from abstraction.localization import Recipe, plot
from abstraction.models import (
    GRU,
    MLP,
    Activation,
    Decoder,
    DecoderConfig,
    Dense,
    Network,
    PlaceView,
    Sequential,
    TokenView,
)
from abstraction.models.decoder_unrolled import unrolled_decoder
from abstraction.models.network import params_digest


@pytest.fixture(scope="module", name="plant")
def _plant():
    return planted(rotate=False)


@pytest.fixture(scope="module", name="found")
def _found(plant):
    sites = unit_sites(plant.network.taps["hidden"])
    return plot(plant.network, plant.fit, sites, Recipe(menu=MENU, controls=None), evidence=plant.calibration)


def _same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, twin in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(leaf, twin)


def _handles():
    basis = rotation_basis(random_frames(jax.random.key(0), (2,), 6, 3))
    yield "native, all depths", Handle("hidden", np.ones((2, 1, 6), np.float32))
    yield "in a basis, at one depth", Handle("hidden", np.ones((2, 3), np.float32), basis, np.array([0, 0]))
    yield "single", Handle("hidden", np.ones(6, np.float32), None, np.array(0))


@pytest.mark.parametrize(("name", "handle"), [*_handles()], ids=lambda value: value if isinstance(value, str) else "")
def test_a_handle_comes_back(tmp_path, plant, name, handle):
    save(handle, tmp_path / "one", network=plant.network)
    _same(load(tmp_path / "one", plant.network), handle)


def test_a_choice_comes_back_with_its_evidence(tmp_path, plant, found):
    save(found.choice, tmp_path / "choice", network=plant.network, data=plant.calibration)
    again = load(tmp_path / "choice", plant.network)
    _same(again.handles, found.choice.handles)
    _same(again.tally, found.choice.tally)
    assert again.variables == found.choice.variables
    assert list(again.settings) == list(found.choice.settings)
    np.testing.assert_array_equal(again.scores, found.choice.scores)
    about = description(tmp_path / "choice")
    assert about["kind"] == "choice 1"
    assert about["data"] == digest(plant.calibration.bank)
    assert {"jax", "numpy"} <= set(about["versions"])


def test_plans_and_banks_come_back(tmp_path, plant, found):
    save(found.plans, tmp_path / "plans")
    again = load(tmp_path / "plans")
    assert again.axes == found.plans.axes
    _same(again.coupling, jax.device_get(found.plans.coupling))
    save(plant.test.bank, tmp_path / "bank")
    assert digest(load(tmp_path / "bank")) == digest(plant.test.bank)


SMALL = DecoderConfig(vocabulary=11, width=8, depth=2, heads=2, kv_heads=1, head_size=4, hidden=16)
MODELS = {
    "mlp": MLP(4, 6, 2, 3),
    "one layer": MLP(4, 6, 1, 3),
    "gru": GRU(2, 5, 3),
    "sequential": Sequential((4,), (Dense("a", 5), Activation("h"), Dense("b", 2, use_bias=False))),
    "decoder": Decoder(SMALL, answers=((1, 2), (3,)), rest=True),
    "view": TokenView(Decoder(SMALL), window=2),
    "places": TokenView(Decoder(SMALL), window=2, positions=("subject", "last")),
    "any model's places": PlaceView(Decoder(SMALL), ("subject", "last"), ("value", "block_output")),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_network_comes_back(tmp_path, name):
    network = Network(MODELS[name], jax.device_get(MODELS[name].init(jax.random.key(0))))
    save(network, tmp_path / name)
    again = load(tmp_path / name)
    assert again.model == network.model
    _same(again.params, network.params)
    assert model_of(json.loads(json.dumps(described(network.model)))) == network.model


def test_a_decoder_of_blocks_comes_back(tmp_path):
    decoder = Decoder(SMALL)
    blocks = Network(*unrolled_decoder(decoder, decoder.init(jax.random.key(0))))
    save(blocks, tmp_path / "blocks")
    assert load(tmp_path / "blocks").model == blocks.model


def test_a_reduced_network_knows_what_it_was_made_from(tmp_path):
    config = DecoderConfig(vocabulary=7, width=4, depth=2, heads=2, kv_heads=1, head_size=2, hidden=5)
    decoder = Decoder(config)
    dense = Network(*unrolled_decoder(decoder, decoder.init(jax.random.key(0))))
    model, params = dense.model.narrowed(dense.params, "mlp_product1", np.array([0, 3]))
    save(Network(model, params), tmp_path / "small", network=dense)
    again = load(tmp_path / "small", dense)
    assert [shape.hidden for shape in again.model.blocks] == [5, 2]
    _same(again.params, params)
    other = Network(dense.model, decoder.init(jax.random.key(1)))
    with pytest.raises(ValueError, match=r"got a network made from weights .*, expected"):
        load(tmp_path / "small", Network(dense.model, unrolled_decoder(decoder, other.params)[1]))


def test_another_network_is_refused(tmp_path, plant, found):
    save(found.choice, tmp_path / "choice", network=plant.network)
    other = dataclasses.replace(plant.network, params=plant.network.model.init(jax.random.key(9)))
    with pytest.raises(ValueError, match="got a choice of a network with weights"):
        load(tmp_path / "choice", other)
    with pytest.raises(ValueError, match="without its network"):
        load(tmp_path / "choice")
    with pytest.raises(ValueError, match="without its network"):
        save(found.choice, tmp_path / "choice")


def test_an_edited_file_is_refused(tmp_path, plant):
    path = tmp_path / "handle"
    save(Handle("hidden", np.ones((1, 6), np.float32)), path, network=plant.network)
    with safe_open(path, framework="numpy") as file:
        header = file.metadata()
    arrays = load_file(path)
    arrays["weight"][0, 0] = 2.0
    save_file(arrays, path, header)
    with pytest.raises(ValueError, match="another checksum"):
        load(path, plant.network)


def test_what_is_no_file_of_ours_is_refused(tmp_path, plant, unchecked):
    (tmp_path / "text").write_text("nothing")
    save_file({"a": np.ones(2)}, tmp_path / "foreign")
    for name in ("text", "foreign"):
        with pytest.raises(ValueError, match="got an unreadable file"):
            load(tmp_path / name, plant.network)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got a int to save"):
        save(3, tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "text"]


def test_a_handle_that_does_not_fit_is_not_written(tmp_path, plant):
    wrong = {
        "tap": Handle("other", np.ones((1, 6), np.float32)),
        "width": Handle("hidden", np.ones((1, 5), np.float32)),
        "depth": Handle("hidden", np.ones(6, np.float32), None, np.array(1)),
    }
    for handle in wrong.values():
        with pytest.raises(ValueError, match="got"):
            save(handle, tmp_path / "x", network=plant.network)
    assert not list(tmp_path.iterdir())


def test_a_handle_that_does_not_fit_is_not_read_either(tmp_path, plant):
    save(Handle("hidden", np.ones((1, 6), np.float32)), tmp_path / "handle", network=plant.network)
    arrays, about = read_arrays(tmp_path / "handle", "handle 1")
    write_arrays(tmp_path / "wide", "handle 1", arrays | {"weight": np.ones((1, 7), np.float32)}, about)
    with pytest.raises(ValueError, match=r"got handle weights of shape \(1, 7\) .*expected"):
        load(tmp_path / "wide", plant.network)


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("abstraction.files.os.replace", fail)
    with pytest.raises(OSError, match="no space left"):
        write_arrays(tmp_path / "x", "handle 1", {"weight": np.ones(2)}, {})
    assert not list(tmp_path.iterdir())


def test_the_identity_of_weights_is_where_they_are_and_of_what_kind():
    one, two = np.arange(4.0), np.arange(4.0) + 1
    digests = [
        params_digest(params)
        for params in (
            {"a": one, "b": two},
            {"a": two, "b": one},
            {"a": one, "c": two},
            {"a": one.astype(np.float32), "b": two},
            {"a": one.reshape(2, 2), "b": two},
        )
    ]
    assert len(set(digests)) == 5
    assert params_digest({"b": two, "a": jax.numpy.asarray(one, np.float32)}) == digests[3]
