"""What is refused of files: configurations, indices, weights and folders from strangers, by name of file and field.

Each is refused before anything of the size it claims is made.
"""

import json
import os
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from hub_fields import TINY
from refusals import Refusal, check_refusal
from safetensors.numpy import load_file, save_file

from abstraction.models import MLP, Decoder, Network, load_decoder, read_decoder, save_decoder
from abstraction.models.decoder_files import FILE, parameter_shapes
from abstraction.models.hub_configs import config_from_hub
from abstraction.models.hub_files import INDEX, WEIGHTS
from abstraction.models.weights import load_config

GPT2, LLAMA, GEMMA = (TINY[kind] for kind in ("gpt2", "llama", "gemma2"))
SCALING = LLAMA["rope_scaling"]
STRETCHED = lambda **changes: {"rope_scaling": SCALING | changes}

FIELDS = {
    "a billion layers": ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, expected 1 to 2"),
    "a billion layers of GPT-2": ("gpt2", {"n_layer": 10**9}, "n_layer 1000000000, expected 1 to 2"),
    "a billion windows": ("gemma2", {"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
    "no layers": ("llama", {"num_hidden_layers": 0}, "num_hidden_layers 0"),
    "layers below 0": ("llama", {"num_hidden_layers": -2}, "num_hidden_layers -2"),
    "layers that are a word": ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers '2'"),
    "layers that are a flag": ("llama", {"num_hidden_layers": True}, "num_hidden_layers True"),
    "layers that are null": ("llama", {"num_hidden_layers": None}, "num_hidden_layers None"),
    "no heads": ("llama", {"num_attention_heads": 0}, "num_attention_heads 0"),
    "no heads of GPT-2": ("gpt2", {"n_head": 0}, "n_head 0"),
    "heads that do not divide": ("gpt2", {"n_head": 3}, "3 heads"),
    "no key-value heads": ("llama", {"num_key_value_heads": 0}, "num_key_value_heads 0"),
    "key-value heads that do not divide": ("llama", {"num_key_value_heads": 3}, "kv_heads 3"),
    "a head of no width": ("gemma2", {"head_dim": 0}, "head_dim 0"),
    "an odd head": ("gemma2", {"head_dim": 5}, "head_size 5"),
    "a width of a float": ("llama", {"hidden_size": 8.0}, "hidden_size 8.0"),
    "a width that is a list": ("llama", {"hidden_size": [8]}, "hidden_size"),
    "a vocabulary beyond 32 bits": ("llama", {"vocab_size": 10**30}, "vocab_size"),
    "a table beyond 32 bits": ("gpt2", {"n_positions": 2**31}, "n_positions"),
    "a large vocabulary": ("llama", {"vocab_size": 2**30}, "embed_tokens.weight"),
    "an epsilon that is a word": ("llama", {"rms_norm_eps": "tiny"}, "rms_norm_eps 'tiny'"),
    "an epsilon that is no number": ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps nan"),
    "an infinite epsilon": ("gpt2", {"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon inf"),
    "an epsilon below 0": ("llama", {"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    "an epsilon of 0": ("gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon 0"),
    "a theta of 0": ("llama", {"rope_theta": 0}, "rope_theta 0"),
    "a theta below 0": ("llama", {"rope_theta": -1e4}, "rope_theta -10000"),
    "a theta that is a flag": ("llama", {"rope_theta": True}, "rope_theta True"),
    "a theta inside of 0": ("qwen2", {"rope_theta": 1e6, "rope_scaling": {"rope_theta": 0}}, "rope_theta 0"),
    "a factor of 0": ("llama", STRETCHED(factor=0), "factor 0"),
    "a factor below 0": ("llama", STRETCHED(factor=-8.0), "factor -8"),
    "a factor that is a word": ("llama", STRETCHED(factor="8"), "factor '8'"),
    "factors turned round": ("llama", STRETCHED(low_freq_factor=5.0), "low below high"),
    "a context of none": ("llama", STRETCHED(original_max_position_embeddings=0), "original_max_position_embeddings"),
    "a type that is a list": ("llama", STRETCHED(rope_type=["llama3"]), "rope scaling"),
    "a scaling that is a list": ("llama", {"rope_scaling": [8.0]}, "rope_scaling"),
    "a scaling that is a word": ("llama", {"rope_scaling": "llama3"}, "rope_scaling 'llama3'"),
    "half turned by a flag": ("qwen2", {"rope_scaling": {"partial_rotary_factor": True}}, "partial_rotary_factor"),
    "tied by a word": ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings 'yes'"),
    "tied by a number": ("gpt2", {"tie_word_embeddings": 1}, "tie_word_embeddings 1"),
    "biased by a word": ("llama", {"attention_bias": "false"}, "attention_bias 'false'"),
    "a bias of null": ("llama", {"mlp_bias": None}, "mlp_bias None"),
    "scaled by a number": ("gpt2", {"scale_attn_weights": 0}, "scale_attn_weights 0"),
    "crossed by 0": ("gpt2", {"add_cross_attention": 0}, "add_cross_attention 0"),
    "an activation in a list": ("llama", {"hidden_act": ["silu"]}, "hidden_act"),
    "a cap of 0": ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping 0"),
    "a cap that is a word": ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping '30'"),
    "a query scale of 0": ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar 0"),
    "a window below 0": ("gemma2", {"sliding_window": -1}, "sliding_window -1"),
    "layer types in a word": ("gemma2", {"layer_types": "ab"}, "layer_types 'ab'"),
    "layer types of lists": ("gemma2", {"layer_types": [[], []]}, "layer_types"),
    "a dtype in a list": ("llama", {"torch_dtype": ["float32"]}, "dtype"),
    "a kind in a list": ("llama", {"model_type": ["llama"]}, "model_type"),
    "an unknown field": ("llama", {"sparsity": 1}, "sparsity"),
}


def _tensors(kind):
    """Write a tiny network as transformers does, by reading where our own parameters would come from."""
    from abstraction.models.hub_tables import TABLES

    config = config_from_hub(TINY[kind])
    rng, tensors = np.random.default_rng(0), {}
    for path, leaf in parameter_shapes(Decoder(config)).items():
        origin = TABLES[kind][path]
        shape = list(leaf.shape[path.startswith("blocks/") :])
        shape[-1] *= len(origin.fused) or 1  # of equal widths in these
        for block in range(config.depth if "{}" in origin.name else 1):
            shaped = shape[::-1] if origin.transposed else shape
            tensors[origin.name.format(block)] = rng.standard_normal(shaped).astype(np.float32)
    return tensors


def _write(folder, kind="llama", tensors=None, **fields):
    (folder / "config.json").write_text(json.dumps(TINY[kind] | fields))
    save_file(_tensors(kind) if tensors is None else tensors, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(("kind", "fields", "match"), FIELDS.values(), ids=FIELDS)
def test_a_field_that_says_no_network_is_refused_by_file_and_name(kind, fields, match, tmp_path, unchecked):
    load_decoder(_write(tmp_path, kind))
    call = lambda: load_decoder(_write(tmp_path, kind, **fields))
    check_refusal(Refusal("field", call, match))
    if "embed_tokens" not in match:
        check_refusal(Refusal("field", call, str(tmp_path / "config.json")))


def test_without_weights_a_configuration_is_bounded_all_the_same(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GEMMA | {"num_hidden_layers": 10**9}))
    check_refusal(Refusal("layers", lambda: load_config(tmp_path), "num_hidden_layers 1000000000, expected 1 to 10000"))


def test_private_fields_say_nothing(tmp_path):
    private = {"_model_name_or_path": "a", "_attn_implementation_autoset": True, "_anything": {"x": [1]}}
    assert config_from_hub(LLAMA | private) == config_from_hub(LLAMA)


TEXTS = {
    "nothing": b"",
    "half an object": b'{"model_type": "llama"',
    "a list": b"[1, 2]",
    "a word": b'"llama"',
    "null": b"null",
    "nested a hundred thousand times": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_a_file_that_is_no_object_is_refused_by_name(name, content, tmp_path):
    _write(tmp_path)
    (tmp_path / name).write_bytes(content)
    check_refusal(Refusal("text", lambda: load_decoder(tmp_path), str(tmp_path / name)))


SHARDS = {
    "outside": "../elsewhere/model.safetensors",
    "above": "..",
    "absolute": "/etc/passwd",
    "deeper": "sub/model.safetensors",
    "backwards": "..\\model.safetensors",
    "of another kind": "model.bin",
    "a number": 3,
    "null": None,
    "a list": ["model.safetensors"],
    "empty": "",
}


@pytest.mark.parametrize("shard", SHARDS.values(), ids=SHARDS)
def test_a_shard_is_a_file_beside_its_index(shard, tmp_path):
    (_write(tmp_path) / WEIGHTS).rename(tmp_path / "model-1.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": shard}}))
    check_refusal(Refusal("shard", lambda: load_decoder(tmp_path), "with a shard"))


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "model.safetensors"}])
def test_an_index_of_nothing_is_refused(content, tmp_path):
    (_write(tmp_path) / INDEX).write_text(json.dumps(content))
    check_refusal(Refusal("index", lambda: load_decoder(tmp_path), INDEX))


def test_no_link_leaves_the_folder_but_to_the_blobs_of_the_hubs_cache(tmp_path):
    for name in ("there", "repository/snapshots/abc", "repository/blobs"):
        (tmp_path / name).mkdir(parents=True)
    inside, snapshot = _write(tmp_path / "there"), _write(tmp_path / "repository" / "snapshots" / "abc")
    (inside / WEIGHTS).rename(tmp_path / "secret")
    (inside / WEIGHTS).symlink_to(tmp_path / "secret")
    check_refusal(Refusal("link", lambda: load_decoder(inside), "a link to"))
    (snapshot / WEIGHTS).rename(tmp_path / "repository" / "blobs" / "0f")
    (snapshot / WEIGHTS).symlink_to("../../blobs/0f")
    load_decoder(snapshot)


def test_two_sets_of_weights_are_refused_and_one_set_of_both_names_is_read(tmp_path):
    _write(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"norm.weight": WEIGHTS}}))
    load_decoder(tmp_path)
    save_file(_tensors("llama"), tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"norm.weight": "model-00001-of-00001.safetensors"}}))
    check_refusal(Refusal("two", lambda: load_decoder(tmp_path), f"both {WEIGHTS} and {INDEX}"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"])
def test_weights_that_are_no_numbers_are_refused_by_tensor(name, value, tmp_path):
    tensors = _tensors("llama")
    tensors[name][1, 2] = value
    check_refusal(Refusal("weight", lambda: load_decoder(_write(tmp_path, tensors=tensors)), name))


def test_weights_that_overflow_are_refused(tmp_path):
    tensors = _tensors("llama")
    tensors["norm.weight"] = np.full(8, 1e300)
    check_refusal(Refusal("weight", lambda: load_decoder(_write(tmp_path, tensors=tensors)), "norm.weight"))


WEIGHTLESS = {
    "nothing": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(bytes(range(256))),
    "a header of 8 EiB": lambda path: path.write_bytes(struct.pack("<Q", 2**63) + b"{}"),
    "half of it": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "all but a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "missing": lambda path: path.unlink(),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", WEIGHTLESS.values(), ids=WEIGHTLESS)
def test_weights_that_are_not_whole_are_refused_by_file(damage, tmp_path):
    damage(_write(tmp_path) / WEIGHTS)
    check_refusal(Refusal("weights", lambda: load_decoder(tmp_path), WEIGHTS))


OWN = {
    "a billion blocks": ("config", {"depth": 10**9}),
    "blocks that are a word": ("config", {"depth": "2"}),
    "a width that is a flag": ("config", {"width": True}),
    "an epsilon that is no number": ("config", {"norm_epsilon": float("nan")}),
    "a switch that is a word": ("config", {"tied": "yes"}),
    "a scaling that is a list": ("config", {"rope_scaling": [1]}),
    "windows that are a number": ("config", {"windowed": 3}),
    "an answer that is a word": ("answers", [["a"]]),
    "an answer past the vocabulary": ("answers", [[10]]),
    "answers that are a number": ("answers", 3),
    "a rest that is a word": ("rest", "no"),
}


@pytest.fixture(name="own")
def _own(tmp_path) -> Path:
    decoder = Decoder(config_from_hub(GPT2))
    save_decoder(Network(decoder, decoder.init(jax.random.key(0))), tmp_path)
    return tmp_path / FILE


def _rewrite(path, about, arrays=None):
    header = {"format": "abstraction decoder 1", "decoder": about if isinstance(about, str) else json.dumps(about)}
    save_file(load_file(path) if arrays is None else arrays, path, header)


@pytest.mark.parametrize(("name", "value"), OWN.values(), ids=OWN)
def test_our_own_file_is_refused_where_its_header_says_no_network(name, value, own):
    about = {"config": asdict(config_from_hub(GPT2)), "answers": [], "rest": False}
    about[name] = about[name] | value if isinstance(value, dict) else value
    _rewrite(own, about)
    check_refusal(Refusal("header", lambda: read_decoder(own.parent), str(own)))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000], ids=lambda text: text[:3])
def test_our_own_file_is_refused_where_its_header_is_none(text, own):
    _rewrite(own, text)
    check_refusal(Refusal("header", lambda: read_decoder(own.parent), str(own)))


def test_our_own_file_keeps_finite_weights_alone(own):
    about = {"config": asdict(config_from_hub(GPT2)), "answers": [], "rest": False}
    arrays = load_file(own)
    arrays["blocks/up/kernel"][0, 0, 0] = np.nan
    _rewrite(own, about, arrays)
    check_refusal(Refusal("weights", lambda: read_decoder(own.parent), "blocks/up/kernel"))
    decoder = Decoder(config_from_hub(GPT2))
    broken = jax.tree.map(lambda leaf: leaf * np.inf, decoder.init(jax.random.key(0)))
    check_refusal(Refusal("weights", lambda: save_decoder(Network(decoder, broken), own.parent), "not finite"))


def test_a_network_that_is_no_decoder_is_not_saved_as_one(tmp_path):
    network = Network(MLP(2, 3, 1, 2), MLP(2, 3, 1, 2).init(jax.random.key(0)))
    check_refusal(Refusal("network", lambda: save_decoder(network, tmp_path), "network of MLP"))


def test_a_folder_that_cannot_be_read_or_written_is_named(tmp_path):
    with pytest.raises(OSError, match=FILE):
        read_decoder(tmp_path)
    (tmp_path / FILE).mkdir()
    with pytest.raises(OSError, match=FILE):
        read_decoder(tmp_path)
    (tmp_path / "file").write_text("")
    decoder = Decoder(config_from_hub(GPT2))
    with pytest.raises(OSError, match="file"):
        save_decoder(Network(decoder, decoder.init(jax.random.key(0))), tmp_path / "file")


HUB = {
    "gated": ("GatedRepoError", "gated: accept its terms"),
    "missing": ("RepositoryNotFoundError", "no such repository"),
    "without that revision": ("RevisionNotFoundError", "no such revision"),
    "not reached": ("LocalEntryNotFoundError", "go online, or give a folder"),
    "offline": ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
    "of a full disk": ("OSError", "No space left"),
}


@pytest.mark.parametrize(("kind", "match"), HUB.values(), ids=HUB)
def test_a_hub_that_gives_nothing_ends_in_one_line_that_says_what_to_do(kind, match, monkeypatch):
    error = OSError if kind == "OSError" else type(kind, (OSError,), {})
    hub = ModuleType("huggingface_hub")

    def snapshot_download(*_, **__):
        raise error("No space left\nRequest ID: 1")

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    for load in (load_decoder, load_config):
        with pytest.raises(OSError, match=rf"cannot download 'someone/net' .*{match}") as caught:
            load("someone/net")
        assert "\n" not in str(caught.value)


def test_a_download_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'abstraction-jax\[hub\]'"):
        load_decoder("someone/net")


SOURCES = [
    Refusal("a number", lambda: load_decoder(3), "source 3"),
    Refusal("nothing", lambda: load_decoder(None), "source None"),
    Refusal("an empty name", lambda: load_decoder(""), "source ''"),
    Refusal("a path that is not there", lambda: load_decoder(Path("no/such/folder")), "no folder"),
    Refusal("a name with three parts", lambda: load_decoder("a/b/c"), "no folder"),
    Refusal("a revision of a folder", lambda: load_decoder(os.curdir, revision="main"), "revision 'main'"),
    Refusal("a folder of nothing", lambda: load_decoder(os.curdir), "without config.json"),
    Refusal("a configuration that is a list", lambda: config_from_hub([]), "type list"),
]


@pytest.mark.parametrize("row", SOURCES, ids=lambda row: row.name)
def test_a_source_that_is_no_network_is_refused(row, unchecked):
    check_refusal(row)
