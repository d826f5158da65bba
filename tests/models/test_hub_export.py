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
