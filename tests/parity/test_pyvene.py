"""Forty-two interventions as pyvene itself runs them, compared at the logits of all positions.

Component x type x positions; each row is executed by `pyvene.IntervenableModel` on a network of transformers and by us
with the same weights. Where pyvene is wrong raw hooks are the oracle, and the row says what is wrong.
"""

from importlib.metadata import version
from types import SimpleNamespace
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from broken import broken
from gentle_decoders import at, every_logit, gentle, recorded, table_edits
from hooked_decoders import hook_run, replacing, torch

from abstraction.interventions.edits import Interchange
from abstraction.models.positions import AtPositions

pv = pytest.importorskip("pyvene", reason="pyvene is the oracle: pip install -e '.[parity]'")

pytestmark = pytest.mark.parity

N, T, P, DEPTH = 4, 7, 2, 1
ROWS = np.arange(N)
# float32 in two orders of summation; logits are of order 1
CLOSE = {"rtol": 0, "atol": 1e-5}
MOVED = 1e-3
"""An effect that counts: a hundred times what is within tolerance."""

TAPS = {
    "block_input": "block_input", "block_output": "block_output", "mlp_input": "mlp_input",
    "mlp_activation": "mlp_hidden", "mlp_output": "mlp_output", "attention_input": "attention_input",
    "attention_value_output": "head_output", "attention_output": "attention_output", "query_output": "query",
    "key_output": "key", "value_output": "value",
}  # fmt: skip
POSITIONS = {
    "one": (np.full((N, 1), 3), np.full((N, 1), 3)),
    "two": (np.tile([2, 4], (N, 1)), np.tile([2, 4], (N, 1))),
    "unequal": (np.tile([1, 5], (N, 1)), np.tile([4, 2], (N, 1))),
    "each": (np.array([[2], [3], [1], [5]]), np.array([[4], [0], [6], [2]])),
}
"""Base and source positions of each example."""


class Row(NamedTuple):
    kind: str
    component: str
    type: str
    positions: str


def _table():
    names = list(POSITIONS)
    rows = []
    for kind in ("gpt2", "llama"):
        for index, component in enumerate(TAPS):
            rows.append(Row(kind, component, "vanilla", names[(index + (kind == "llama")) % 4]))
        heads = zip(("query", "key", "value", "attention_value"), ("one", "two", "unequal", "each"), strict=True)
        rows += [Row(kind, f"head_{part}_output", "heads", positions) for part, positions in heads]
    rows += [
        Row("gpt2", "mlp_output", "zero", "two"),
        Row("llama", "attention_value_output", "constant", "each"),
        Row("qwen2", "block_output", "add", "unequal"),
        Row("gpt2", "block_input", "subtract", "two"),
        Row("qwen2", "mlp_output", "coordinates", "unequal"),
        Row("llama", "block_output", "partition", "each"),
        Row("gpt2", "block_output", "rotated", "one"),
        Row("llama", "mlp_activation", "low rank", "each"),
        Row("qwen2", "attention_output", "low rank, partition", "one"),
        Row("qwen2", "block_output", "boundless", "each"),
        Row("llama", "value_output", "mask", "two"),
        Row("gpt2", "mlp_activation", "components", "each"),
    ]
    return {" ".join(row): row for row in rows}


TABLE = _table()


def network(kind):
    return gentle(kind, head_dim=8) if kind == "llama" else gentle(kind)


def prompts(kind):
    draw = np.random.default_rng(5).integers
    return draw(network(kind)[0].config.vocab_size, size=(2, N, T))


def _orthonormal(layer):
    return layer.weight.detach().numpy()


def _turned(kind, width, rng):
    """Make pyvene's intervention in a basis; return it, its subspaces, and what it does: weights, encoder, decoder."""
    torch.manual_seed(1)
    if kind in ("low rank", "low rank, partition"):
        parted = kind != "low rank"
        options = {"subspace_partition": [[0, 2], [2, 5]]} if parted else {}
        theirs = pv.LowRankRotatedSpaceIntervention(embed_dim=width, low_rank_dimension=5, **options)
        frame = _orthonormal(theirs.rotate_layer)
        return theirs, [[[1]] * N] if parted else None, (np.arange(5) >= 2 * parted, frame, frame.T)
    if kind == "components":
        values = rng.standard_normal((2 * width, width)) @ rng.standard_normal((width, width))
        mean, spread = values.mean(axis=0), values.std(axis=0)
        directions = np.linalg.svd((values - mean) / spread, full_matrices=False)[2]
        pca = SimpleNamespace(components_=directions)
        theirs = pv.PCARotatedSpaceIntervention(pca=pca, pca_mean=mean, pca_std=spread, embed_dim=width)
        theirs.set_interchange_dim(3)
        return theirs, None, (np.arange(width) < 3, directions.T / spread[:, None], directions * spread)
    if kind == "boundless":
        theirs = pv.BoundlessRotatedSpaceIntervention(embed_dim=width)
        theirs.set_temperature(torch.tensor(2.0))
        spots = np.arange(width)
        weight = 1 / (1 + np.exp(-spots / 2.0)) / (1 + np.exp(-(0.5 * width - spots) / 2.0))
    else:
        theirs = pv.RotatedSpaceIntervention(embed_dim=width)
        theirs.set_interchange_dim(4)
        weight = np.arange(width) < 4
    frame = _orthonormal(theirs.rotate_layer)
    return theirs, None, (weight, frame, frame.T)


def _change(row, width, source, rng):
    """Return pyvene's intervention, its subspaces, and what we do, for all but heads."""
    ones = np.ones(width)
    if row.type == "vanilla":
        return pv.VanillaIntervention(embed_dim=width), None, {"source": source, "weight": ones}
    if row.type == "zero":
        return pv.ZeroIntervention(embed_dim=width), None, {"kept": ones}
    if row.type == "constant":
        value = rng.standard_normal(width).astype(np.float32)
        theirs = pv.VanillaIntervention(embed_dim=width, source_representation=torch.tensor(value))
        return theirs, None, {"kept": ones, "value": value}
    if row.type in ("add", "subtract"):
        theirs = pv.AdditionIntervention if row.type == "add" else pv.SubtractionIntervention
        return theirs(embed_dim=width), None, {"offset": source if row.type == "add" else -source}
    if row.type == "coordinates":
        chosen = [1, 4, 5, width - 1]
        weight = np.isin(np.arange(width), chosen)
        return pv.VanillaIntervention(embed_dim=width), [[chosen] * N], {"source": source, "weight": weight}
    if row.type == "partition":
        theirs = pv.VanillaIntervention(embed_dim=width, subspace_partition=[[0, 6], [6, 17], [17, width]])
        weight = (np.arange(width) >= 6) & (np.arange(width) < 17)
        return theirs, [[[1]] * N], {"source": source, "weight": weight}
    if row.type == "mask":
        theirs = pv.SigmoidMaskIntervention(embed_dim=width)
        score = rng.standard_normal(width).astype(np.float32)
        theirs.mask.data = torch.tensor(score)
        theirs.set_temperature(torch.tensor(0.5))
        return theirs, None, {"source": source, "weight": 1 / (1 + np.exp(-score / 0.5))}
    theirs, subspaces, (weight, encoder, decoder) = _turned(row.type, width, rng)
    return theirs, subspaces, {"source": source, "features": weight, "encoder": encoder, "decoder": decoder}


def run_row(row, net, ours):
    """Run a row both ways: their clean and patched logits, and ours."""
    rng = np.random.default_rng(7)
    base, source = prompts(row.kind)
    where, whence = POSITIONS[row.positions]
    tap = TAPS[row.component.removeprefix("head_")]
    width = ours.taps[tap].width
    values = at(recorded(ours, source)[tap][DEPTH], whence)
    locations = tuple([side.tolist()] for side in (whence, where))
    if row.type == "heads":
        size = ours.model.config.head_size
        heads = np.stack([ROWS % (width // size), (ROWS + 1) % (width // size)], axis=1)
        theirs, subspaces, unit = pv.VanillaIntervention(embed_dim=size), None, "h.pos"
        weight = (np.arange(width) // size == heads[..., None]).any(axis=1)
        ours_does = {"source": values, "weight": weight[:, None]}
        locations = tuple([[heads.tolist(), side.tolist()]] for side in (whence, where))
    else:
        (theirs, subspaces, ours_does), unit = _change(row, width, values, rng), "pos"
    setting = {"layer": DEPTH, "component": row.component, "unit": unit, "intervention": theirs}
    model = pv.IntervenableModel(pv.IntervenableConfig([setting]), model=net)
    inputs = [{"input_ids": torch.tensor(tokens)} for tokens in (base, source)]
    sources = [None] if theirs.is_source_constant else inputs[1:]
    with torch.no_grad():
        clean = net(**inputs[0]).logits.numpy()
        _, out = model(inputs[0], sources, {"sources->base": locations}, subspaces=subspaces)
    edits = table_edits(ours, N, P, {tap: (DEPTH, where, ours_does)})
    return clean, out.logits.numpy(), np.asarray(every_logit(ours, base, edits))


def check_row(name):
    """Compare one row at the logits of all positions, after seeing that something moved, and nothing before it."""
    row = TABLE[name]
    net, ours = network(row.kind)
    clean, wanted, got = run_row(row, net, ours)
    first = POSITIONS[row.positions][0].min(axis=1)
    moved = np.abs(wanted - clean).max(axis=-1)
    assert (moved.max(axis=1) > MOVED).all(), (name, moved)
    assert not moved[np.arange(T) < first[:, None]].any(), (name, moved)
    np.testing.assert_allclose(got, wanted, **CLOSE, err_msg=name)


def test_the_table_has_forty_two_rows():
    assert len(TABLE) == 42
    assert {row.component for row in TABLE.values()} >= set(TAPS)


@pytest.mark.parametrize("name", TABLE)
def test_an_intervention_is_that_of_pyvene_at_every_position(name):
    check_row(name)


# What pyvene 0.1.8 gets wrong, by name: kind, component, and why its result is no oracle.
WRONG = {
    "decoupled queries": ("llama", "query_output", "swaps D of the H E features: its map says hidden_size"),
    "decoupled heads' output": ("llama", "attention_value_output", "swaps D of the H E features"),
    "gemma's queries": ("gemma2", "query_output", "swaps D of the H E features"),
    "gemma's heads' output": ("gemma2", "attention_value_output", "swaps D of the H E features"),
    "a head of qwen2": ("qwen2", "head_query_output", "asks the configuration for a head_dim that it has not"),
}


def _theirs(net, component, base, source, where, heads):
    unit = "h.pos" if heads else "pos"
    setting = {"layer": DEPTH, "component": component, "unit": unit, "intervention_type": pv.VanillaIntervention}
    model = pv.IntervenableModel(pv.IntervenableConfig([setting]), model=net)
    place = [[[[1]] * N, where.tolist()]] if heads else [where.tolist()]
    inputs = [{"input_ids": torch.tensor(tokens)} for tokens in (base, source)]
    with torch.no_grad():
        return model(inputs[0], inputs[1:], {"sources->base": (place, place)})[1].logits.numpy()


@pytest.mark.parametrize("name", WRONG)
def test_where_pyvene_is_wrong_hooks_are_the_oracle(name):
    kind, component, why = WRONG[name]
    heads = component.startswith("head_")
    (net, ours), tap = gentle(kind), TAPS[component.removeprefix("head_")]
    draw = np.random.default_rng(5).integers
    base, source = draw(net.config.vocab_size, size=(2, N, T))
    where = POSITIONS["two"][0]
    values = at(recorded(ours, source)[tap][DEPTH], where)
    size, width = ours.model.config.head_size, ours.taps[tap].width
    units = [list(range(size, 2 * size) if heads else range(width))] * N
    clean, (_, seen) = hook_run(net, kind, base)[0], hook_run(net, kind, source)
    edit = replacing(where, at(seen[tap, DEPTH], where), units)
    wanted, _ = hook_run(net, kind, base, {(tap, DEPTH): edit})
    assert (np.abs(wanted - clean).max(axis=(1, 2)) > MOVED).all()
    weight = np.isin(np.arange(width), units[0])
    edits = table_edits(ours, N, P, {tap: (DEPTH, where, {"source": values, "weight": weight})})
    np.testing.assert_allclose(every_logit(ours, base, edits), wanted, **CLOSE)
    if version("pyvene") == "0.1.8" and "asks" in why:
        with pytest.raises(AttributeError, match="head_dim"):
            _theirs(net, component, base, source, where, heads)
    elif version("pyvene") == "0.1.8":
        assert np.abs(_theirs(net, component, base, source, where, heads) - wanted).max() > MOVED, why


def _reversed(self, activation):
    return TRUE_INTERCHANGE(Interchange(self.source[::-1], self.weight, self.basis), activation)


def _beside(self, activation):
    return TRUE_POSITIONS(AtPositions(self.edit, jnp.where(self.positions < 0, -1, self.positions + 1)), activation)


TRUE_INTERCHANGE, TRUE_POSITIONS = Interchange.__call__, AtPositions.__call__
MUTANTS = {
    "sources of another example": ("gpt2 block_output vanilla two", Interchange, _reversed),
    "in a basis too": ("llama mlp_activation low rank each", Interchange, _reversed),
    "the token after": ("llama value_output vanilla each", AtPositions, _beside),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_row_notices_what_is_broken(mutant):
    name, place, wrong = MUTANTS[mutant]
    with broken(place, "__call__", wrong), pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_row(name)
