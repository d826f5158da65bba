"""The planted MCQA network: it solves the task, and the pointer is in its directions and nowhere else."""

import jax
import numpy as np
import pytest

from abstraction.evaluation import record, tally_handles
from abstraction.evaluation.planted import Plant, planted_network
from abstraction.interventions import Handle, factual_outputs, rotation_basis, state_sites, unit_sites
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import train_candidates
from abstraction.models import Decoder, Network, TokenView, prompts_at
from abstraction.tasks import mcqa
from abstraction.tasks.prompts import WordTokenizer
from abstraction.tasks.symbols import score, symbol_classes

TAP = "block_output"
POINTER, ANSWER = (mcqa.VARIABLES.index(name) for name in ("answer_pointer", "answer"))


@pytest.fixture(name="planted", scope="module")
def _planted():
    return planted_network(0)


@pytest.fixture(name="view", scope="module")
def _view(planted):
    """The planted network, seen at the last token."""
    network = planted[0]
    return Network(TokenView(network.model), network.params)


def recorded_bank(view, tokenizer, bank):
    return record(view, lambda setting: prompts_at(mcqa.encode(setting, tokenizer).tokens), bank, tap=TAP)


@pytest.fixture(name="recorded", scope="module")
def _recorded(planted, view):
    return recorded_bank(view, planted[1], mcqa.make_banks(5, {"test": 300})["test"].bank)


def iia(view, recorded, handles, variable):
    return tally_handles(view, recorded, handles, np.full(len(handles.weight), variable)).iia


def at_pointer_block(plant, directions):
    """Swap what is along these directions, wholly, at the pointer's block."""
    weight = np.ones((1, directions.shape[1]), np.float32)
    return Handle(TAP, weight, rotation_basis(directions[None]), np.array([plant.pointer_block]))


def test_it_solves_the_task_over_the_whole_vocabulary(planted):
    network, tokenizer, _ = planted
    assert isinstance(tokenizer, WordTokenizer)
    setting = mcqa.sample_settings(np.random.default_rng(9), 1000)
    tokens = mcqa.encode(setting, tokenizer).tokens
    logits = factual_outputs(Network(Decoder(network.model.config), network.params), tokens)
    labels = np.stack([setting[name] for name in mcqa.LABELS], axis=1)
    found = score(logits, symbol_classes(tokenizer), tokenizer, mcqa.MODEL.run(setting)["answer"], labels)
    assert found["strict"].mean() >= 0.99


def test_it_solves_base_and_source_of_every_family(recorded, planted):
    assert (np.asarray(recorded.runs.outputs).argmax(axis=1) == recorded.bank.factual).mean() >= 0.99
    assert isinstance(planted[2], Plant)


def test_the_pointer_comes_before_the_answer(planted, view, recorded):
    plant = planted[2]
    swaps = state_sites(view.taps[TAP]).handles()
    pointer, answer = (iia(view, recorded, swaps, variable) for variable in (POINTER, ANSWER))
    assert pointer[plant.pointer_block].min() >= 0.99
    assert answer[plant.symbol_block, 0] >= 0.99
    # Where the letters are the base's, the two variables agree: a third of the pairs.
    assert answer[plant.pointer_block, 0] <= 0.35
    assert pointer[plant.symbol_block, 0] <= 0.51
    assert pointer[: plant.pointer_block, 0].max() <= 0.01


def test_the_planted_directions_are_the_pointer_and_their_complement_is_not(planted, view, recorded):
    plant = planted[2]
    basis = plant.pointer_basis
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-6)
    complement = np.linalg.svd(basis, full_matrices=True)[0][:, 4:].astype(np.float32)
    assert iia(view, recorded, at_pointer_block(plant, basis), POINTER)[0].min() >= 0.99
    without = iia(view, recorded, at_pointer_block(plant, complement), POINTER)[0]
    assert without[0] <= 0.01
    assert without[1] >= 0.99


def test_no_native_coordinate_is_the_pointer(planted, view, recorded):
    sites = unit_sites(view.taps[TAP])
    there = sites.take(sites.depth == planted[2].pointer_block)
    assert iia(view, recorded, there.handles(), POINTER)[:, 0].max() < 0.2


def test_seeds_turn_the_stream_and_leave_the_outputs(planted):
    network, tokenizer, plant = planted
    other, _, turned = planted_network(1)
    tokens = mcqa.encode(mcqa.sample_settings(np.random.default_rng(3), 50), tokenizer).tokens
    assert np.abs(plant.pointer_basis.T @ turned.pointer_basis).max() < 0.6
    # features of the nouns differ too, and reach the outputs through the norms alone
    np.testing.assert_allclose(*(factual_outputs(each, tokens) for each in (network, other)), atol=2e-2, rtol=0)
    jax.tree.map(np.testing.assert_array_equal, network.params, planted_network(0)[0].params)


@pytest.mark.slow
def test_das_finds_the_planted_directions(planted, view, recorded):
    _, tokenizer, plant = planted
    fit, tap = recorded_bank(view, tokenizer, mcqa.make_banks(6, {"fit": 300})["fit"].bank), view.taps[TAP]
    supports = full_supports(tap, [POINTER], [plant.pointer_block])
    candidates = candidate_grid(jax.random.key(0), tap, supports, ranks=(4,), learning_rates=(2e-2,), restarts=3)
    config = SearchConfig(batch_size=60, max_epochs=12, patience=12, cosine=True, sensitive_weight=0.5)
    found = train_candidates(jax.random.key(1), view, fit, candidates, Rotation(), config)
    best = int(np.argmin(found.curve[-1]))
    handle = jax.tree.map(lambda leaf: np.asarray(leaf)[[best]], found.handles)
    assert iia(view, recorded, handle, POINTER).min() >= 0.95
    # Of the four directions, one holds what is the same for every pointer: three matter. 300 pairs leave them blurred
    # by what varies beside them; the cosines of random directions are below .5.
    frame = handle.basis.encoder[0][:, :4]
    overlap = np.linalg.svd(frame.T @ plant.pointer_basis, compute_uv=False)
    assert (overlap[:3] > 0.7).all(), overlap
