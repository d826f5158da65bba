"""Folders that are written: read back they are the same network, dense or reduced, and know what they came from."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn

from abstraction.models import MLP, Decoder, Network, load_decoder
from abstraction.models.decoder_unrolled import stacked_decoder, unrolled_decoder
from abstraction.models.hub_export import export_decoder, require_made_from


def _network(family):
    config = (FAMILIES | LATER)[family]
    decoder = Decoder(replace(config, query_scale=24**-0.5) if family == "gemma2" else config)
    return Network(decoder, drawn(decoder))


def _reduced(family, kept=5, biases=True):
    dense = _network(family)
    model, params = unrolled_decoder(dense.model, dense.params)
    units = "mlp_product" if model.decoder.config.gated else "mlp_hidden"
    for block in range(3):
        if biases:
            model, params = model.with_biases(params, f"{units}{block}")
        model, params = model.narrowed(params, f"{units}{block}", np.arange(kept + (kept == 6) * block))
    return dense, Network(model, params)


LATER = {
    "mistral": replace(FAMILIES["llama"], rope_scaling=None, window=3, windowed=(True,) * 3),
    "qwen3": replace(FAMILIES["llama"], query_key_norms=True, qkv_bias=True, output_bias=True),
}


@pytest.mark.parametrize("family", [*FAMILIES, *LATER])
def test_what_is_written_is_read_back_bit_for_bit(family, tmp_path):
    network = _network(family)
    export_decoder(network, tmp_path)
    again = load_decoder(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family
    assert replace(again.model.config, query_scale=None) == replace(network.model.config, query_scale=None)
    assert again.model.config.score_scale == pytest.approx(network.model.config.score_scale, rel=1e-12)
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_reduced_network_is_read_back_as_its_stacked_form(family, tmp_path):
    dense, network = _reduced(family)
    export_decoder(network, tmp_path, made_from=dense)
    again = load_decoder(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == ("gpt2" if family == "gpt2" else "llama")
    decoder, params = stacked_decoder(network.model, network.params)
    assert again.model.config.hidden == decoder.config.hidden == 5
    for name, arrays in again.params["blocks"].items():
        for part, leaf in arrays.items():
            np.testing.assert_array_equal(leaf, params["blocks"][name].get(part, np.zeros(leaf.shape)))
    require_made_from(tmp_path, dense)
    with pytest.raises(ValueError, match="made from a network"):
        require_made_from(tmp_path, network)


def test_what_no_family_carries_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="no family carries"):
        export_decoder(_reduced("gemma2")[1], tmp_path)
    with pytest.raises(ValueError, match=r"expected one shape.*artifacts\.save"):
        export_decoder(_reduced("llama", kept=6)[1], tmp_path)
    mlp = MLP(3, 4, 2, 2)
    with pytest.raises(ValueError, match="expected a Decoder"):
        export_decoder(Network(mlp, mlp.init(jax.random.key(0))), tmp_path)
    with pytest.raises(ValueError, match="tokenizer folder"):
        export_decoder(_network("llama"), tmp_path, tokenizer=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_scale_that_transformers_cannot_say_is_refused(tmp_path):
    decoder = Decoder(FAMILIES["gemma2"])
    with pytest.raises(ValueError, match="query_scale"):
        export_decoder(Network(decoder, drawn(decoder)), tmp_path)


def test_a_folder_that_holds_a_network_is_left_alone(tmp_path):
    export_decoder(_network("llama"), tmp_path)
    with pytest.raises(ValueError, match="without a network"):
        export_decoder(_network("qwen2"), tmp_path)


def _without(network, heads):
    """Remove heads block by block."""
    model, params, size = network.model, network.params, network.model.decoder.config.head_size
    for block, kept in enumerate(heads):
        units = (np.array(kept)[:, None] * size + np.arange(size)).ravel()
        model, params = model.with_biases(params, f"head_output{block}")
        params[f"block{block}"]["output"]["bias"] += 0.1 * (block + 1)
        model, params = model.narrowed(params, f"head_output{block}", units)
    return Network(model, params)


@pytest.mark.parametrize(
    ("heads", "kv_heads"),
    [
        pytest.param(((0, 1), (2, 3), (0, 1)), 1, marks=pytest.mark.slow),
        (((0, 2), (1, 3), (1, 2)), 2),
        (((0, 1, 2), (1, 2, 3), (0, 1, 3)), 3),  # 2 and 1 readers: the first head stands twice
        (((0, 1), (0, 2), (2, 3)), 2),
    ],
)
def test_removed_heads_are_the_same_function_in_a_folder(heads, kv_heads, tmp_path, rng):
    dense = _network("llama")
    network = _without(Network(*unrolled_decoder(dense.model, dense.params)), heads)
    export_decoder(network, tmp_path, made_from=dense)
    again = load_decoder(tmp_path)
    config = again.model.config
    assert (config.heads, config.kv_heads, config.head_size) == (len(heads[0]), kv_heads, 4)
    # transformers takes no Llama of 3 heads and width 16.
    family = json.loads((tmp_path / "config.json").read_text())["model_type"]
    assert family == ("llama" if len(heads[0]) == 2 else "seed_oss")
    tokens = rng.integers(23, size=(5, 7), dtype=np.int32)
    np.testing.assert_allclose(again(tokens)[0], network(tokens)[0], rtol=1e-5, atol=1e-5)  # other order of sums


def test_blocks_with_unequal_numbers_of_heads_are_refused(tmp_path):
    dense = _network("llama")
    network = _without(Network(*unrolled_decoder(dense.model, dense.params)), ((0, 1), (2,), (0, 1)))
    with pytest.raises(ValueError, match="expected one shape"):
        export_decoder(network, tmp_path)


def test_gpt2_cannot_say_fewer_heads(tmp_path):
    dense = _network("gpt2")
    network = _without(Network(*unrolled_decoder(dense.model, dense.params)), ((0, 1),) * 3)
    with pytest.raises(ValueError, match="no family carries"):
        export_decoder(network, tmp_path)


def test_bfloat16_is_written_and_read_back_bit_for_bit(tmp_path):
    decoder = Decoder(replace(FAMILIES["llama"], dtype="bfloat16"))
    network = Network(decoder, drawn(decoder))
    export_decoder(network, tmp_path)
    again = load_decoder(tmp_path)
    assert again.model.config.dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(again.params["blocks"]["down"])} == {"bfloat16"}
    jax.tree.map(np.testing.assert_array_equal, again.params, network.params)


def test_the_files_of_a_tokenizer_are_copied_and_no_others(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "config.json", "model.safetensors"):
        (source / name).write_text(name)
    export_decoder(_network("llama"), target, tokenizer=source)
    assert {path.name for path in target.iterdir()} == {
        "tokenizer.json", "tokenizer_config.json", "merges.txt", "config.json", "model.safetensors"
    }  # fmt: skip
    assert (target / "tokenizer.json").read_text() == "tokenizer.json"
    assert json.loads((target / "config.json").read_text())["model_type"] == "llama"
