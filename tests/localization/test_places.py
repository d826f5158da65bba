"""Tokens and layers, then heads, then coordinates, then a search: coarse to fine in a network whose plant is known."""

import dataclasses

import jax
import numpy as np
import pytest

from abstraction.evaluation import Repeats, record
from abstraction.evaluation.planted import HEAD, planted_network
from abstraction.interventions import Handle, group_sites, unit_sites
from abstraction.interventions.handles import handle_depths
from abstraction.interventions.sites import sites_within
from abstraction.localization import (
    VARIANTS,
    Search,
    SearchConfig,
    alignment_search,
    candidate_grid,
    coarse_stage,
    fine_stage,
)
from abstraction.localization.cutting import CutMenu
from abstraction.localization.guiding import selected_supports
from abstraction.localization.rules import Transport
from abstraction.localization.signatures import Signature
from abstraction.models import Network, Tap, TokenView, prompts_at
from abstraction.models.token_views import window_of
from abstraction.tasks import mcqa
from abstraction.tasks.prompts import encode_prompts, span_positions

RULE = Transport("joint", (0.1, 0.3), taus=(0.5,))
OURS = dataclasses.replace(VARIANTS["ours"], coarse=RULE, fine=RULE, menu=CutMenu((1, 2, 4), (1.0,)))
SIGNATURE = Signature("prob_delta")
OPTIONS = mcqa.OPTIONS


class Subject:
    """The planted network at three tokens: the last label, the last choice, and the last token."""

    def __init__(self):
        network, self.tokenizer, self.plant = planted_network(0)
        text, spans = mcqa.LEXICON.prompt(0, 0, *range(OPTIONS), *range(OPTIONS))
        encoded = encode_prompts(self.tokenizer, [text])
        at = lambda slot: int(span_positions(encoded, [spans[slot]])[0])
        # every word is one token: all prompts agree
        self.positions = {"label": at(mcqa.LABELS[-1]), "choice": at(mcqa.CHOICES[-1])}
        self.positions["last"] = encoded.tokens.shape[1] - 1
        banks = mcqa.make_banks(5, {"fit": 60, "calibration": 60})
        self.banks = {name: bank.bank for name, bank in banks.items()}
        window = window_of(self.encode(self.banks["fit"].base))
        self.network = Network(TokenView(network.model, window, positions=tuple(self.positions)), network.params)

    def encode(self, setting):
        tokens = mcqa.encode(setting, self.tokenizer).tokens
        return prompts_at(tokens, {name: np.full(len(tokens), at) for name, at in self.positions.items()})

    def recorded(self, tap):
        return {name: record(self.network, self.encode, bank, tap=tap) for name, bank in self.banks.items()}


@pytest.fixture(scope="module", name="subject")
def _subject():
    return Subject()


def _coarse(subject, tap):
    banks = subject.recorded(tap)
    found = coarse_stage(subject.network, banks["fit"], OURS, SIGNATURE, evidence=banks["calibration"])
    depths = handle_depths(found.choice.handles)
    return banks, depths, [subject.network.taps[tap].place(depth) for depth in depths.tolist()], found


def test_stage_a_finds_layer_and_token_in_the_residual_stream(subject):
    *_, places, found = _coarse(subject, "block_output")
    assert found.effects.sites.size == 3 * 3
    plant = subject.plant
    assert places == [
        {"layer": str(plant.pointer_block), "position": "last"},
        {"layer": str(plant.symbol_block), "position": "last"},
    ]
    assert found.choice.tally.combined.tolist() == [1.0, 1.0]


def test_places_then_heads_then_coordinates_then_a_search(subject):
    banks, depths, places, _ = _coarse(subject, "head_output")
    assert [place["position"] for place in places] == ["last", "last"]
    assert [int(place["layer"]) for place in places] == [subject.plant.pointer_block, subject.plant.symbol_block]
    tap = subject.network.taps["head_output"]

    def fine(menus):
        return fine_stage(subject.network, banks["fit"], menus, depths, OURS, SIGNATURE, evidence=banks["calibration"])

    heads = fine({"heads": group_sites(tap, HEAD)})
    moved = np.asarray(heads.choice.handles.weight)[[0, 1], depths].reshape(2, -1, HEAD)
    # the first head of either block writes it, and the other one nothing
    assert (moved[:, 0] > 0.5).all()
    assert heads.choice.tally.combined.tolist() == [1.0, 1.0]
    groups = sites_within(group_sites(tap, OPTIONS), heads.choice.handles)
    assert groups.size < group_sites(tap, OPTIONS).size
    found = fine({"groups": groups})
    # the pointer is one-hot in the first coordinates of that head
    weight = np.asarray(found.choice.handles.weight)[0, depths[0]]
    assert np.abs(weight[:OPTIONS]).min() >= np.abs(weight).max() - 1e-6
    assert found.choice.tally.combined[0] == 1.0


@pytest.mark.slow
def test_a_search_within_what_was_found_at_a_place_finds_the_pointer(subject):
    banks, tap = subject.recorded("head_output"), subject.network.taps["head_output"]
    depths = [tap.depth - 4, tap.depth - 1]  # the last token of the last two blocks
    menus = {"groups": group_sites(tap, OPTIONS)}
    found = fine_stage(subject.network, banks["fit"], menus, depths, OURS, SIGNATURE, evidence=banks["calibration"])
    supports = selected_supports(tap, found)
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(OPTIONS - 1,), learning_rates=(5e-2,))
    search = Search(config=SearchConfig(batch_size=60, max_epochs=30, patience=30), controls=Repeats(2, 2))
    searched = alignment_search(
        jax.random.key(1), subject.network, banks["fit"], candidates, search, evidence=banks["calibration"]
    )
    assert handle_depths(searched.handles).tolist() == depths
    # differences of a choice out of four span three directions
    assert searched.choice.tally.combined[0] > 0.95


def test_sites_within_handles_are_those_whose_every_coordinate_moves():
    tap = Tap("hidden", 6, 2)
    weight = np.zeros((2, 2, 6), np.float32)
    weight[0, 0, :3], weight[1, 1, 4:] = 1.0, -0.5
    handles = Handle("hidden", weight)
    pairs = sites_within(group_sites(tap, 2), handles)
    assert list(zip(pairs.depth.tolist(), pairs.index.tolist(), strict=True)) == [(0, [0, 1]), (1, [4, 5])]
    units = sites_within(unit_sites(tap), handles)
    assert list(zip(units.depth.tolist(), units.index[:, 0].tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (1, 4), (1, 5)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="got 2 sites, none within what the handles move"):
        sites_within(group_sites(tap, 6), handles)
    with pytest.raises(ValueError, match="got handles of tap 'other'"):
        sites_within(units, Handle("other", weight))
