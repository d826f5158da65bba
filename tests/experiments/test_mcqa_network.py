"""The MCQA network that ships: what it knows, where its variables are, and how it is trained."""

import dataclasses
import json

import numpy as np
import pytest

from abstraction.interventions import factual_outputs
from abstraction.models import Decoder, Network
from abstraction.models.decoder_files import FILE
from abstraction.tasks import mcqa
from abstraction.tasks.symbols import score, symbol_classes
from experiments.mcqa.network import (
    LOG,
    RECIPE,
    SHIPPED,
    Recipe,
    Stage,
    embedded_network,
    judge_network,
    retrain,
    training_pairs,
    weights_digest,
)


@pytest.fixture(name="shipped", scope="module")
def _shipped():
    return embedded_network()


@pytest.fixture(scope="module")
def log():
    return json.loads((SHIPPED / LOG).read_text())


def test_it_answers_prompts_it_was_not_trained_on(shipped):
    network, tokenizer = shipped
    setting = mcqa.sample_settings(np.random.default_rng(12345), 1000)
    tokens = mcqa.encode(setting, tokenizer).tokens
    logits = factual_outputs(Network(Decoder(network.model.config), network.params), tokens)
    labels = np.stack([setting[name] for name in mcqa.LABELS], axis=1)
    found = score(logits, symbol_classes(tokenizer), tokenizer, mcqa.MODEL.run(setting)["answer"], labels)
    assert found["strict"].mean() >= 0.99
    assert factual_outputs(network, tokens[:2]).shape == (2, 27)


def test_the_pointer_and_later_the_answer_are_at_the_last_token(shipped):
    network, tokenizer = shipped
    bank = mcqa.make_banks(4321, {"test": 600})["test"].bank
    judged = judge_network(network, tokenizer, bank)
    pointer, answer = (judged[name] for name in mcqa.VARIABLES)
    assert judged["accuracy"] >= 0.99
    assert pointer["sensitive"][RECIPE.pointer_block] >= 0.95
    assert pointer["invariant"][RECIPE.pointer_block] >= 0.95
    assert max(answer["sensitive"][RECIPE.pointer_block + 1 :]) >= 0.95
    # Where the letters are the base's, the two variables agree: a third of the pairs.
    assert answer["sensitive"][RECIPE.pointer_block] <= 0.4
    assert answer["invariant"] == [None] * network.model.config.depth


def test_the_log_is_of_these_weights(shipped, log):
    assert (SHIPPED / FILE).stat().st_size < 2_000_000
    assert log["weights"] == weights_digest(shipped[0].params)
    assert log["recipe"] == json.loads(json.dumps(dataclasses.asdict(RECIPE)))
    assert log["steps"] == len(log["history"]) * RECIPE.steps
    assert log["test"]["accuracy"] >= 0.99
    assert log["test"]["answer_pointer"]["sensitive"][RECIPE.pointer_block] >= 0.95
    assert log["history"][-1]["loss"] < log["history"][0]["loss"]


@pytest.mark.slow
def test_training_lowers_the_loss_and_writes_what_it_says(tmp_path):
    # Twice the same stage, so that one program serves both.
    recipe = Recipe(pairs=64, batch_size=16, stages=(Stage(1.0, 2, 2),) * 2, held_out=24)
    said = []
    retrain(tmp_path, seed=3, progress=said.append, recipe=recipe)
    assert len(said) == 4
    assert said[-1].startswith("network, stage 2, epoch 2: loss ")
    written = json.loads((tmp_path / LOG).read_text())
    assert weights_digest(embedded_network(tmp_path)[0].params) == written["weights"]
    assert [epoch["stage"] for epoch in written["history"]] == [1, 1, 2, 2]
    assert written["history"][-1]["loss"] < written["history"][0]["loss"]


def test_pairs_are_labelled_by_the_causal_model(shipped):
    tokenizer = shipped[1]
    pairs = training_pairs(np.random.default_rng(0), 200, tokenizer)
    base, source = (np.asarray(prompts.tokens) for prompts in (pairs.base, pairs.source))
    # "... {label}. {choice}\n" four times, then "Answer:"; the colour is the fourth word
    options = 30 - 2 - 4 * np.arange(4, 0, -1)
    pointer = lambda tokens: (tokens[:, options + 2] == tokens[:, 3:4]).argmax(axis=1)
    letter = lambda tokens, place: tokens[np.arange(200), options[place]]
    np.testing.assert_array_equal(pairs.base_labels, letter(base, pointer(base)))
    np.testing.assert_array_equal(pairs.source_labels, letter(source, pointer(source)))
    np.testing.assert_array_equal(pairs.swapped_labels, letter(base, pointer(source)))
    moved = (pairs.swapped_labels != pairs.base_labels).mean()
    assert 0.5 < moved < 0.9
