"""Reading the hub's folders: which tensor goes where, and what is refused. No PyTorch."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hub_fields import TINY
from safetensors.numpy import save_file

from abstraction.models import on_mesh
from abstraction.models.weights import load_decoder
from abstraction.sharding import device_mesh, mesh_of


def _shapes(kind):
    """Spell out what transformers stores for the tiny networks."""
    if kind == "gpt2":
        block = {
            "ln_1.weight": (8,), "ln_1.bias": (8,), "ln_2.weight": (8,), "ln_2.bias": (8,),
            "attn.c_attn.weight": (8, 24), "attn.c_attn.bias": (24,), "attn.c_proj.weight": (8, 8),
            "attn.c_proj.bias": (8,), "mlp.c_fc.weight": (8, 12), "mlp.c_fc.bias": (12,),
            "mlp.c_proj.weight": (12, 8), "mlp.c_proj.bias": (8,),
        }  # fmt: skip
        whole = {"wte.weight": (10, 8), "wpe.weight": (6, 8), "ln_f.weight": (8,), "ln_f.bias": (8,)}
        return {f"transformer.{name}": shape for name, shape in whole.items()} | {
            f"transformer.h.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()
        }
    size = 6 if kind == "gemma2" else 2
    block = {
        "input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,),
        "self_attn.q_proj.weight": (4 * size, 8), "self_attn.k_proj.weight": (2 * size, 8),
        "self_attn.v_proj.weight": (2 * size, 8), "self_attn.o_proj.weight": (8, 4 * size),
        "mlp.gate_proj.weight": (12, 8), "mlp.up_proj.weight": (12, 8), "mlp.down_proj.weight": (8, 12),
    }  # fmt: skip
    if kind == "qwen2":
        block |= {"self_attn.q_proj.bias": (8,), "self_attn.k_proj.bias": (4,), "self_attn.v_proj.bias": (4,)}
    if kind == "gemma2":
        block |= {"pre_feedforward_layernorm.weight": (8,), "post_feedforward_layernorm.weight": (8,)}
    shapes = {"model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,)}
    shapes |= {f"model.layers.{layer}.{name}": shape for layer in range(2) for name, shape in block.items()}
    return shapes | ({"lm_head.weight": (10, 8)} if kind == "llama" else {})


def _tensors(kind, rng):
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in _shapes(kind).items()}


def _write(folder, kind, tensors, **fields):
    (folder / "config.json").write_text(json.dumps(TINY[kind] | fields))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", TINY)
def test_every_parameter_is_found_and_fits(kind, tmp_path, rng):
    loaded = load_decoder(_write(tmp_path, kind, _tensors(kind, rng)))
    decoder, params = loaded.model, loaded.params
    kinds = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert kinds(params) == kinds(decoder.init(jax.random.key(0)))
    assert np.isfinite(jax.jit(decoder.apply)(params, np.array([[1, 2, 3, -1], [4, 5, 6, 7]]))[0]).all()


def test_weights_are_read_onto_a_mesh(tmp_path, rng):
    folder, mesh = _write(tmp_path, "llama", _tensors("llama", rng)), device_mesh()
    plain, shared = load_decoder(folder), load_decoder(folder, mesh=mesh)
    where = lambda network: jax.tree.map(lambda leaf: leaf.sharding, network.params)
    assert mesh_of(shared.params) == mesh
    assert where(shared) == where(on_mesh(plain, mesh))
    jax.tree.map(np.testing.assert_array_equal, shared.params, plain.params)
    with pytest.raises(ValueError, match="expected a mesh with axes"):
        load_decoder(folder, mesh=jax.make_mesh((1,), ("rows",)))


def test_linear_maps_are_turned_and_stacked(tmp_path, rng):
    tensors = _tensors("llama", rng)
    blocks = load_decoder(_write(tmp_path, "llama", tensors)).params["blocks"]
    for ours, theirs in {"query": "self_attn.q_proj", "output": "self_attn.o_proj", "down": "mlp.down_proj"}.items():
        for layer in range(2):
            stored = tensors[f"model.layers.{layer}.{theirs}.weight"]
            np.testing.assert_array_equal(blocks[ours]["kernel"][layer], stored.T)


def test_fused_maps_are_split_in_three_and_not_turned(tmp_path, rng):
    tensors = _tensors("gpt2", rng)
    blocks = load_decoder(_write(tmp_path, "gpt2", tensors)).params["blocks"]
    for part, name in enumerate(("query", "key", "value")):
        third = slice(8 * part, 8 * part + 8)
        stored = tensors["transformer.h.1.attn.c_attn.weight"][:, third]
        np.testing.assert_array_equal(blocks[name]["kernel"][1], stored)
        np.testing.assert_array_equal(blocks[name]["bias"][1], tensors["transformer.h.1.attn.c_attn.bias"][third])


def test_answers_reach_the_decoder(tmp_path, rng):
    folder = _write(tmp_path, "qwen2", _tensors("qwen2", rng))
    loaded = load_decoder(folder, answers=[[1], [2, 3]], rest=True)
    decoder, params = loaded.model, loaded.params
    assert jax.eval_shape(decoder.apply, params, np.array([[1, 2]]))[0].shape == (1, 3)
    with pytest.raises(ValueError, match="tokens from 0 to 9"):
        load_decoder(folder, answers=[[10]])


def _same(params, other):
    jax.tree.map(np.testing.assert_array_equal, params, other)


@pytest.mark.parametrize("kind", TINY)
def test_names_with_and_without_prefix_are_the_same(kind, tmp_path, rng):
    tensors = _tensors(kind, rng)
    params = load_decoder(_write(tmp_path, kind, tensors)).params
    bare = {name.removeprefix("model.").removeprefix("transformer."): array for name, array in tensors.items()}
    _same(load_decoder(_write(tmp_path, kind, bare)).params, params)


def test_shards_are_the_same_as_one_file(tmp_path, rng):
    tensors = _tensors("gemma2", rng)
    params = load_decoder(_write(tmp_path, "gemma2", tensors)).params
    (tmp_path / "model.safetensors").unlink()
    names = list(tensors)
    shards = {f"model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _same(load_decoder(tmp_path).params, params)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"without .*model-00002-of-00002"):
        load_decoder(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path, rng):
    tensors = _tensors("llama", rng)
    tensors["norm.weight"] = tensors["model.norm.weight"]
    with pytest.raises(ValueError, match="expected one of them"):
        load_decoder(_write(tmp_path, "llama", tensors))


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32], ids=lambda kind: kind.__name__)
def test_stored_values_are_cast_to_the_dtype_asked_for(stored, tmp_path, rng):
    tensors = {name: array.astype(stored) for name, array in _tensors("llama", rng).items()}
    folder = _write(tmp_path, "llama", tensors, torch_dtype=np.dtype(stored).name)
    for dtype in ("float32", "bfloat16"):
        loaded = load_decoder(folder, dtype=dtype)
        decoder, params = loaded.model, loaded.params
        assert decoder.config.dtype == dtype
        head = tensors["lm_head.weight"].astype(jnp.dtype(dtype))
        assert params["unembedding"].dtype == head.dtype
        np.testing.assert_array_equal(params["unembedding"], head)
    if stored is np.float16:
        with pytest.raises(ValueError, match="float16"):
            load_decoder(folder)
    else:
        assert load_decoder(folder).params["unembedding"].dtype == stored


def test_without_dtype_in_the_configuration_weights_are_float32(tmp_path, rng):
    params = load_decoder(_write(tmp_path, "gpt2", _tensors("gpt2", rng))).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


BROKEN = {
    "missing": ("llama", {"model.layers.1.mlp.up_proj.weight": None}, r"up_proj.weight: got nothing, expected .12, 8"),
    "extra": ("qwen2", {"model.layers.2.mlp.up_proj.weight": (12, 8)}, r"layers.2.mlp.*got .12, 8., expected nothing"),
    "renamed": (
        "gemma2",
        {"model.norm.weight": None, "model.final.weight": (8,)},
        "final.weight: got .8., expected nothing; norm.weight: got nothing",
    ),
    "turned": ("qwen2", {"model.layers.0.mlp.up_proj.weight": (8, 12)}, r"got \[8, 12\], expected \[12, 8\]"),
    "fused": ("gpt2", {"transformer.h.0.attn.c_attn.weight": (8, 16)}, r"got \[8, 16\], expected \[8, 24\]"),
    "vocabulary": ("gemma2", {"model.embed_tokens.weight": (11, 8)}, r"got \[11, 8\], expected \[10, 8\]"),
    "bias": ("llama", {"model.layers.0.self_attn.q_proj.bias": (8,)}, "q_proj.bias: got .8., expected nothing"),
    "untied": ("llama", {"lm_head.weight": None}, r"lm_head.weight: got nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_tensors_that_do_not_fit_are_refused_by_name(case, tmp_path, rng):
    kind, changes, message = case
    tensors = _tensors(kind, rng) | {
        name: None if shape is None else np.zeros(shape, np.float32) for name, shape in changes.items()
    }
    with pytest.raises(ValueError, match=message):
        load_decoder(_write(tmp_path, kind, {name: value for name, value in tensors.items() if value is not None}))


def test_known_buffers_are_ignored(tmp_path, rng):
    tensors = _tensors("gpt2", rng) | {"transformer.h.0.attn.bias": np.ones((1, 1, 6, 6), bool)}
    tensors["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    load_decoder(_write(tmp_path, "gpt2", tensors))
    tensors = _tensors("llama", rng) | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(1, np.float32)}
    load_decoder(_write(tmp_path, "llama", tensors))


def test_a_tied_head_must_be_the_embedding(tmp_path, rng):
    tensors = _tensors("gemma2", rng)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    load_decoder(_write(tmp_path, "gemma2", tensors))
    tensors["lm_head.weight"][3, 2] += 1
    with pytest.raises(ValueError, match="not the embedding"):
        load_decoder(_write(tmp_path, "gemma2", tensors))


def test_integers_are_refused(tmp_path, rng):
    tensors = _tensors("llama", rng)
    tensors["model.norm.weight"] = np.ones(8, np.int8)
    with pytest.raises(ValueError, match=r"norm\.weight of type I8"):
        load_decoder(_write(tmp_path, "llama", tensors))


def test_folders_that_hold_no_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"without config\.json"):
        load_decoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY["gpt2"]))
    with pytest.raises(ValueError, match=r"without .'model\.safetensors'"):
        load_decoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"cannot read .*model\.safetensors"):
        load_decoder(tmp_path)
    for source in (tmp_path / "absent", str(tmp_path / "absent"), "./absent", "a/b/c", ""):
        with pytest.raises(ValueError, match=r"is no folder|got source ''"):
            load_decoder(source)
    with pytest.raises(ValueError, match="revision"):
        load_decoder(tmp_path, revision="main")


def test_other_names_are_downloaded_from_the_hub(tmp_path, rng, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="pip install -e '.[hub]'")
    folder, calls = _write(tmp_path, "gpt2", _tensors("gpt2", rng)), []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **options: calls.append((args, options)) or str(folder))
    _same(load_decoder("someone/net-2.5", revision="abc").params, load_decoder(folder).params)
    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json"]
    assert calls == [(("someone/net-2.5",), {"revision": "abc", "allow_patterns": patterns})]
