"""GGUF files as transformers reads them, and the language model of the package index."""

import jax
import numpy as np
import pytest
from gguf_networks import SIZE, VOCABULARY, tensors, write
from hooked_decoders import padded, torch, transformers

from abstraction.models import load_decoder
from abstraction.models.packaged import smollm2
from abstraction.tasks.prompts import load_tokenizer

pytestmark = pytest.mark.parity

GEMMA = {"attention.sliding_window": 4096, "attn_logit_softcapping": None, "final_logit_softcapping": None}
TEXTS = (
    "Then, Mary and John went to the store. John gave a drink to", "  two  spaces\n\nand lines\t tab",
    "naïve café — “quotes” 12345 6.78", "日本語 テスト 🙂🙃", "<|im_start|>user\nHi<|im_end|>",
    "def f(x):\n    return x**2  # c", "don't I'LL we're", " ", "",
)  # fmt: skip


@jax.jit
def _logits(network, tokens):
    run = network.model.run(network.params, tokens, {}, ("final_input",))
    stream, parameters = run.recorded["final_input"][0], network.model.network(network.params)
    return network.model.read(parameters, stream.reshape(-1, stream.shape[-1])).reshape(*stream.shape[:2], -1)


def _theirs(net, tokens):
    mask = torch.as_tensor(tokens >= 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        ids = torch.as_tensor(np.maximum(tokens, 0)).long()
        return net(input_ids=ids, attention_mask=mask, position_ids=positions).logits.numpy()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_a_file_is_the_network_that_transformers_reads(kind, tmp_path, rng):
    path = write(tmp_path / "one.gguf", kind, tensors(kind, rng), changes=GEMMA if kind.startswith("gemma") else {})
    network = load_decoder(path)
    more = {"head_dim": SIZE} if kind == "qwen3" else {}  # which transformers does not take from such a file
    net = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32, **more
    ).eval()
    if kind.startswith("gemma"):  # which transformers does not take from a file but from its defaults
        for block in net.model.layers:
            block.self_attn.scaling = SIZE**-0.5
    for side in ("left", "right"):
        tokens = padded(rng, VOCABULARY, [5, 9, 6], side)
        there = tokens >= 0
        found, wanted = np.asarray(_logits(network, tokens))[there], _theirs(net, tokens)[there]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


@pytest.fixture(name="smollm2", scope="module")
def _smollm2():
    try:
        return smollm2()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_packaged_model_is_the_one_that_transformers_reads(smollm2, side):
    """Logits of order 30: transformers itself is 1e-4 from its own float64 on such prompts, and so are we."""
    network, tokenizer = load_decoder(smollm2), load_tokenizer(smollm2)
    net = transformers.AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    ids = [tokenizer.encode(text)[0] for text in TEXTS[:4]]
    longest = max(map(len, ids))
    pad = lambda row: [-1] * (longest - len(row)) + row if side == "left" else row + [-1] * (longest - len(row))
    tokens = np.array([pad(row) for row in ids])
    there = tokens >= 0
    found, wanted = np.asarray(_logits(network, tokens))[there], _theirs(net.eval(), tokens)[there]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-4)
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.slow
def test_tokens_of_the_packaged_model_are_those_of_transformers(smollm2):
    ours = load_tokenizer(smollm2)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    for text in TEXTS:
        ids, _ = ours.encode(text)
        assert ids == list(theirs(text)["input_ids"]), text
        assert ours.decode(ids) == text
