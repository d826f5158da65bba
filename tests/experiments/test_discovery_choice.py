"""Discovery in the decoder of multiple choice: what a reduction may see, and laws at full width."""

import dataclasses

import jax
import numpy as np
import pytest

from abstraction.tasks import mcqa
from experiments.discovery import choice as discovery_choice
from experiments.discovery.options import HIDDEN, Discovery, Units
from experiments.equality.options import DasOptions
from experiments.mcqa.options import McqaBanks, NetworkOptions
from experiments.mcqa.subject import load_subject, make_questions

SEED = 3
SEARCH = dataclasses.replace(Discovery().choice_das.training, max_epochs=2)
TINY = Discovery(
    choice=Units((HIDDEN, 16), ("vbp",), 40, 100, 64),
    choice_banks=McqaBanks(fit=96, calibration=48, test=96),
    choice_das=DasOptions((8,), (2e-2,), training=SEARCH),
)


@pytest.fixture(name="subject", scope="module")
def _subject():
    return load_subject(NetworkOptions())


@pytest.fixture(name="questions", scope="module")
def _questions(subject):
    return make_questions(TINY.choice_banks, subject, SEED)


def test_the_options_know_the_networks_width(subject):
    assert subject.decoder.config.hidden == HIDDEN


def test_a_reduction_sees_no_test_prompt_and_is_measured_on_none_it_saw(subject, questions):
    plain = discovery_choice.choice_prompts(TINY, SEED, subject, questions)
    assert (len(plain.calibration), len(plain.evaluation), len(plain.answers)) == (40, 100, 100)
    settings = mcqa.sample_settings(np.random.default_rng(SEED + 2901), 40)
    test = questions.banks["test"]
    planted = dataclasses.replace(test.bank, source={name: values[4:10] for name, values in settings.items()})
    banks = {**questions.banks, "test": test._replace(bank=planted)}
    found = discovery_choice.choice_prompts(TINY, SEED, subject, questions._replace(banks=banks))
    np.testing.assert_array_equal(found.calibration, np.delete(plain.calibration, slice(4, 10), axis=0))


def test_apart_compares_whole_prompts():
    rows = np.array([[1, 2], [3, 4], [1, 4]])
    assert discovery_choice.apart(rows, rows[1:2], np.array([[1, 2]])).tolist() == [False, False, True]


@pytest.mark.slow
def test_a_decoder_reduced_to_its_full_width_is_the_dense_network(subject, questions):
    samples = discovery_choice.choice_prompts(TINY, SEED, subject, questions)
    key = jax.random.key(0)
    dense = next(discovery_choice.choice_networks(TINY, SEED, subject, samples, key))
    whole = discovery_choice.reduced_decoder(TINY, SEED, subject, samples, "vbp", HIDDEN, key)
    assert whole.model == subject.decoder
    assert whole.known["", "fidelity"] == 1.0
    for name in ("accuracy", "parameters", "multiply_adds"):
        assert whole.known["", name] == dense.known["", name]
    jax.tree.map(np.testing.assert_array_equal, whole.params, subject.network.params)


@pytest.mark.slow
def test_a_carried_handle_is_the_dense_networks(subject, questions):
    """In the dense network itself it scores what it scored when it was found."""
    samples = discovery_choice.choice_prompts(TINY, SEED, subject, questions)
    network = next(discovery_choice.choice_networks(TINY, SEED, subject, samples, jax.random.key(0)))
    bench = discovery_choice.choice_bench(TINY, network, subject, questions)
    choice = discovery_choice.choice_found(bench, TINY, jax.random.key(2), lambda text: None)["das"].choice
    outcome = discovery_choice.carried(bench, choice)
    assert outcome.choice.tally.hits.tolist() == choice.tally.hits.tolist()
    assert outcome.details["kept_share"] == [1.0, 1.0]
