"""What is written, run by PyTorch: decoders by transformers, chains of layers by `torch.nn.Sequential`."""

from collections import OrderedDict
from dataclasses import replace

import jax
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn

from abstraction.models import Activation, Decoder, Dense, Network, Sequential
from abstraction.models.decoder_unrolled import unrolled_decoder
from abstraction.models.hub_export import export_decoder
from abstraction.models.layers import BatchNorm, Convolution, Flatten, MaxPool
from abstraction.models.torch_layouts import params_to_torch
from abstraction.reduction import METHODS, compile_plan
from abstraction.reduction.blocks import block_budgets, fold_blocks, rank_blocks, unrolled_network
from abstraction.reduction.text import text_statistics

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
tokenizers = pytest.importorskip("tokenizers", reason="transformers brings it: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="it reads what is written: pip install -e '.[parity]'")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("reduced", [False, True], ids=["dense", "reduced"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same_logits(family, reduced, side, tmp_path, rng):
    config = FAMILIES[family]
    if family == "gemma2":  # transformers wants a whole number: query_scale ** -2
        config = replace(config, query_scale=24**-0.5)
    decoder = Decoder(config)
    model, params = decoder, drawn(decoder)
    if reduced:
        model, params = unrolled_decoder(decoder, params)
        tap = "mlp_product" if decoder.config.gated else "mlp_hidden"
        for block in range(3):
            if family != "gemma2":
                model, params = model.with_biases(params, f"{tap}{block}")
                down = params[f"block{block}"]["down"]
                down["bias"] = down["bias"] + 0.1 * (block + 1)
            model, params = model.narrowed(params, f"{tap}{block}", np.arange(block, block + 7))
    export_decoder(Network(model, params), tmp_path)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    tokens = rng.integers(23, size=(4, 8), dtype=np.int32)
    short = np.arange(8) >= np.array([8, 5, 6, 3])[:, None]
    there = ~short if side == "right" else short
    there[0] = True
    tokens = np.where(there, tokens, -1).astype(np.int32)
    places = np.maximum(np.cumsum(there, axis=1) - 1, 0)
    with torch.no_grad():
        theirs = net(
            torch.tensor(np.maximum(tokens, 0)).long(), attention_mask=torch.tensor(there).long(),
            position_ids=torch.tensor(places),
        ).logits.numpy()  # fmt: skip
    for row in range(4):
        for end in np.flatnonzero(there[row]):  # logits are of the last token: each position as an end of its prompt
            cut = np.full((1, 8), -1, np.int32)
            cut[0, : end + 1] = tokens[row, : end + 1]
            ours = np.asarray(_run(model, params, cut))[0]
            np.testing.assert_allclose(ours, theirs[row, end], rtol=1e-4, atol=1e-4)


_run = jax.jit(lambda model, params, tokens: model.apply(params, tokens)[0], static_argnums=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["mlp", "heads"])
def test_transformers_reads_what_blocks_were_reduced_to(part, dtype, tmp_path, rng):
    """A Llama reduced to equal shares by statistics of text: means folded into `mlp_bias`, heads that went."""
    dense = Network(Decoder(FAMILIES["llama"]), drawn(Decoder(FAMILIES["llama"])))
    text = text_statistics(dense, rng.integers(23, size=(40, 7), dtype=np.int32), jax.random.key(0), batch_size=20)
    unrolled = unrolled_network(dense)
    ranked = list(rank_blocks(unrolled, text, part, METHODS["cmr-closed"], share=0.75))
    plan = fold_blocks(ranked, block_budgets(ranked, 0.75, "uniform"))
    small = compile_plan(unrolled, plan)
    assert {len(shape.groups) for shape in small.model.blocks} == {3 if part == "heads" else 4}
    if dtype == "bfloat16":  # rounded after it was reduced; transformers computes with what is left in float32
        rounded = jax.tree.map(lambda leaf: leaf.astype(dtype), small.params)
        half = replace(small.model, decoder=Decoder(replace(small.model.decoder.config, dtype=dtype)))
        export_decoder(Network(half, rounded), tmp_path, made_from=dense)
        assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
        small = Network(small.model, jax.tree.map(lambda leaf: leaf.astype("float32"), rounded))
    else:
        export_decoder(small, tmp_path, made_from=dense)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (net.config.model_type, net.config.mlp_bias) == (("llama", True) if part == "mlp" else ("seed_oss", False))
    tokens = rng.integers(23, size=(6, 9), dtype=np.int32)
    with torch.no_grad():
        theirs = net(torch.tensor(tokens).long()).logits[:, -1].numpy()
    np.testing.assert_allclose(np.asarray(small(tokens)[0]), theirs, rtol=1e-4, atol=1e-4)
    assert np.abs(theirs - np.asarray(dense(tokens)[0])).max() > 1e-2  # it was reduced


def test_a_tokenizer_that_is_copied_is_loaded_beside_the_network(tmp_path):
    words = {"<unk>": 0, "one": 1, "two": 2}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(tmp_path / "words")
    decoder = Decoder(FAMILIES["llama"])
    export_decoder(Network(decoder, drawn(decoder)), tmp_path / "net", tokenizer=tmp_path / "words")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "net")
    assert tokenizer("two one three")["input_ids"][:3] == [2, 1, 0]


def test_a_chain_of_layers_is_the_same_in_torch(rng):
    layers = (
        Convolution("conv", 3), BatchNorm("norm"), Activation("relu"), MaxPool("pool"), Flatten("flat"),
        Dense("dense", 5), Activation("more"), Dense("head", 2),
    )  # fmt: skip
    model = Sequential((8, 8, 2), layers)
    params = jax.tree.map(
        lambda leaf: leaf + 0.3 * np.abs(rng.standard_normal(leaf.shape)).astype(np.float32),
        model.init(jax.random.key(0)),
    )
    nn = torch.nn
    net = nn.Sequential(OrderedDict(
        conv=nn.Conv2d(2, 3, 3), norm=nn.BatchNorm2d(3), relu=nn.ReLU(), pool=nn.MaxPool2d(2), flat=nn.Flatten(),
        dense=nn.Linear(27, 5), more=nn.ReLU(), head=nn.Linear(5, 2),
    )).eval()  # fmt: skip
    state = {name: torch.tensor(leaf) for name, leaf in params_to_torch(Network(model, params)).items()}
    missing = net.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not set(missing.missing_keys) - {"norm.num_batches_tracked"}
    inputs = rng.standard_normal((6, 8, 8, 2)).astype(np.float32)
    with torch.no_grad():
        theirs = net(torch.tensor(inputs.transpose(0, 3, 1, 2).copy())).numpy()
    ours = np.asarray(model.apply(params, inputs)[0])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6 * np.abs(theirs).max())
