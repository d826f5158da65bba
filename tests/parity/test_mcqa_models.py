"""The MCQA experiment on a network and a tokenizer as transformers write them: the shipped one, in their format."""

import dataclasses
import json

import numpy as np
import pytest

from abstraction.models import DecoderConfig
from abstraction.tasks import mcqa as task
from experiments.mcqa.network import embedded_network
from experiments.mcqa.options import Mcqa, McqaBanks, NetworkOptions
from experiments.mcqa.subject import load_shape, load_subject, make_questions

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="the format is theirs: pip install -e '.[parity]'")
tokenizers = pytest.importorskip("tokenizers", reason="the format is theirs: pip install -e '.[hub]'")

pytestmark = pytest.mark.parity

CONFIG = Mcqa(banks=McqaBanks(fit=48, calibration=48, test=48))


def save_tokenizer(folder, words):
    """Write a word-level tokenizer that splits as ours does."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="A")
    )
    pattern = tokenizers.Regex(r"\w+|\n|[^\w\s]")
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, "removed", invert=True)
    backend.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """Write the shipped decoder as a Llama; its embedding scale goes into the embeddings."""
    folder = tmp_path_factory.mktemp("llama")
    network, tokenizer = embedded_network()
    params = network.params
    shape: DecoderConfig = network.model.config
    config = transformers.LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.hidden, num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_size,
        vocab_size=shape.vocabulary, rope_theta=shape.rope_theta, rms_norm_eps=shape.norm_epsilon,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    net = transformers.LlamaForCausalLM(config)
    blocks = params["blocks"]
    tensors = {
        "model.embed_tokens.weight": np.asarray(params["embedding"]) * shape.embedding_scale,
        "model.norm.weight": params["final_norm"]["scale"],
        "lm_head.weight": params["unembedding"],
    }
    linear = {"query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj"}
    linear |= {"output": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    norms = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    for block in range(shape.depth):
        for ours, theirs in linear.items():
            tensors[f"model.layers.{block}.{theirs}.weight"] = np.asarray(blocks[ours]["kernel"][block]).T
        for ours, theirs in norms.items():
            tensors[f"model.layers.{block}.{theirs}.weight"] = blocks[ours]["scale"][block]
    net.load_state_dict({name: torch.tensor(np.array(value)) for name, value in tensors.items()})
    net.save_pretrained(folder)
    save_tokenizer(folder, tokenizer.words)
    return folder


def test_a_model_folder_answers_as_the_shipped_network_does(folder):
    own, theirs = load_subject(NetworkOptions()), load_subject(NetworkOptions(model=str(folder)))
    setting = task.sample_settings(np.random.default_rng(0), 64)
    prompts = [task.encode(setting, subject.tokenizer).tokens for subject in (own, theirs)]
    np.testing.assert_array_equal(*prompts)
    outputs = [s.network(p)[0] for s, p in zip((own, theirs), prompts, strict=True)]
    # float32: a scale in front of or inside the embedding
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-3)
    assert theirs.decoder.answers == own.decoder.answers
    assert make_questions(CONFIG.banks, theirs, 0).accuracy == make_questions(CONFIG.banks, own, 0).accuracy
    assert load_shape(dataclasses.replace(CONFIG, network=NetworkOptions(model=str(folder)))).tokens == 30


def test_a_network_that_never_answers_is_refused(folder, tmp_path):
    config = transformers.LlamaConfig.from_pretrained(folder)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, task.vocabulary())
    subject = load_subject(NetworkOptions(model=str(tmp_path)))
    with pytest.raises(ValueError, match="pairs"):
        make_questions(CONFIG.banks, subject, 0)


def test_letters_without_tokens_of_their_own_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    words = [word if word != "Q" else "lost" for word in task.vocabulary()]
    save_tokenizer(tmp_path, words)
    with pytest.raises(ValueError, match="Q"):
        load_subject(NetworkOptions(model=str(tmp_path)))


def test_an_unknown_architecture_is_refused_by_name(folder, tmp_path):
    fields = json.loads((folder / "config.json").read_text()) | {"model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    with pytest.raises(ValueError, match="mamba"):
        load_subject(NetworkOptions(model=str(tmp_path)))
