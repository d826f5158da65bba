"""The page for who comes from pyvene, TransformerLens or nnsight: their snippets, as they stand, give its numbers."""

import copy
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
pytest.importorskip("transformers", reason="the networks are its: pip install -e '.[parity]'")

from abstraction.models import load_decoder  # noqa: E402
from benchmarks.library_sweeps import LIBRARIES, lens  # noqa: E402
from benchmarks.torch_sweeps import gpt2  # noqa: E402

pytestmark = pytest.mark.parity

FOLDER = Path(__file__).parent.parent.parent / "docs" / "tutorials"
TEXTS = [(FOLDER / name).read_text(encoding="utf-8") for name in ("coming_from.py", "coming_from_searches.py")]
OURS = "network = Network(Decoder(config), Decoder(config).init(jax.random.key(0)))"
DAS = "planted, tokenizer, plant = planted_network(seed=0)"
TOLERANCE = 2e-5  # float32, other orders of summation through 3 blocks; logits are near 1
SNIPPET = re.compile(r"```python\n(# (\w+): ([\w, ]+)\n.*?)```", flags=re.DOTALL)
SNIPPETS = [found.groups() for text in TEXTS for found in SNIPPET.finditer(re.sub(r"(?m)^# ?", "", text))]


@pytest.fixture(scope="module", name="network")
def _network():
    return gpt2(vocabulary=40, width=32, depth=3, heads=4, tokens=16)


@pytest.fixture(scope="module", name="page")
def _page(network, tmp_path_factory):
    """Run the pages, the second up to its search, on the weights that the others have."""
    folder = tmp_path_factory.mktemp("gpt2")
    network.save_pretrained(folder)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.chdir(folder)  # where the figure goes
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {"load_decoder": load_decoder}
    for text in TEXTS:
        assert text.count(OURS) == 1
        exec(text.split(DAS)[0].replace(OURS, f"network = load_decoder({str(folder)!r})"), namespace)
    monkeypatch.undo()
    return namespace


@pytest.mark.parametrize(("code", "library", "names"), SNIPPETS, ids=[f"{s[1]} {s[2]}" for s in SNIPPETS])
def test_their_snippets_give_our_numbers(network, page, code, library, names, tmp_path):
    if not LIBRARIES[library].installed:
        pytest.skip(f"{library} is not installed: pip install -e '.[benchmarks]'")
    given = {name: page[name] for name in ("layer", "position", "head", "size")}
    given |= {name: torch.as_tensor(page[name]) for name in ("base", "source", "other", "steer")}
    given |= {"torch": torch, "partial": partial, "gpt2": copy.deepcopy(network), "labels": given["source"][:, -1]}
    given |= _library(library, network)
    file = tmp_path / "snippet.py"  # nnsight reads the source of what it traces
    file.write_text(code, encoding="utf-8")
    exec(compile(code, str(file), "exec"), given)
    if names == "rotated":
        assert given["losses"][-1] < given["losses"][0]
        page = page | {"rotated": _rotated(page, given["model"])}
    for name in names.split(", "):
        found = given[name].detach().numpy()
        np.testing.assert_allclose(found, page[name], rtol=0, atol=TOLERANCE)


def test_edits_of_the_page_matter(page):
    plain = np.asarray(page["network"](page["base"])[0])
    edited = ("patched", "patched_head", "zeroed", "ablated", "two_sources", "direct", "rotated")
    assert min(np.abs(page[name] - plain).max() for name in edited) > 1e-2
    assert {name for _, _, names in SNIPPETS for name in names.split(", ")} > set(edited)


def _library(library, network):
    """Import what a snippet takes for granted."""
    if library == "pyvene":
        return {"pv": pytest.importorskip("pyvene")}
    bridge = lens(network)
    if library == "TransformerLens":
        from transformer_lens.tools.analysis import attribution_patch

        return {"bridge": bridge, "attribution_patch": attribution_patch}
    from nnsight import NNsight
    from nnsight.modeling.transformers import TransformersModel

    return {"NNsight": NNsight, "TransformersModel": TransformersModel, "tokenizer": bridge.tokenizer}


def _rotated(page, model):
    """Take our edit with the rotation that was trained there."""
    (intervention,) = model.interventions.values()
    turned = intervention.rotate_layer.weight.detach().numpy()
    assert turned.shape == (32, 4)
    tap, at, layer = page["taps"]["block_output"], page["at"], page["layer"]
    states = page["do"].taken(page["states"], depth=layer, at=at)
    edit = page["do"].interchange(tap, states, depth=layer, at=at, basis=page["rotation_basis"](turned))
    return page["network"](page["base"], edit)[0]
