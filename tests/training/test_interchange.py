"""Interchange intervention training: the loss, against a run with an edit, and what it does to a network."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abstraction.evaluation import CLASSES
from abstraction.interventions import Interchange
from abstraction.models import MLP, Decoder, DecoderConfig, TokenView, at_positions, prompts_at
from abstraction.training import Schedule, fit
from abstraction.training.interchange import InterchangeLoss, LabelledPairs

CONFIG = DecoderConfig(vocabulary=7, width=8, depth=3, heads=2, kv_heads=1, head_size=4, hidden=12)
DECODER = Decoder(CONFIG)


def _pairs(generator, count=5):
    base, source = (prompts_at(generator.integers(0, 7, (count, 4))) for _ in range(2))
    return LabelledPairs(base, source, *generator.integers(0, 7, (3, count)))


def _cross_entropy(outputs, labels):
    return CLASSES.loss(outputs, jnp.asarray(labels)).mean()


@pytest.mark.parametrize("depth", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_the_loss_and_its_gradient_are_those_of_runs_with_an_edit(rng, depth):
    params, pairs = DECODER.init(jax.random.key(0)), _pairs(rng)
    last = np.full(5, 3)

    def by_hand(params):
        base, source = pairs.base.tokens, pairs.source.tokens
        source_outputs, recorded = DECODER.apply(params, source, record=("block_output",))
        states = recorded["block_output"][:, :, -1]
        weight = np.zeros((3, 1, 8), np.float32)
        weight[depth] = 1.0
        edits = {"block_output": at_positions(Interchange(states, weight), last, depth=3)}
        swapped = _cross_entropy(DECODER.apply(params, base, edits)[0], pairs.swapped_labels)
        factual = _cross_entropy(DECODER.apply(params, base)[0], pairs.base_labels)
        return (factual + _cross_entropy(source_outputs, pairs.source_labels)) / 2 + 0.7 * swapped

    loss = InterchangeLoss(TokenView(DECODER, first=depth), "block_output", depth, CLASSES.loss)
    found = jax.jit(jax.value_and_grad(loss))(params, pairs, np.array(0.7, np.float32))
    # float32, sums in another order
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6),
        found,
        jax.jit(jax.value_and_grad(by_hand))(params),
    )


def test_an_interchange_with_itself_doubles_the_loss(rng):
    pairs = _pairs(rng)
    same = LabelledPairs(pairs.base, pairs.base, *[pairs.base_labels] * 3)
    params = DECODER.init(jax.random.key(0))
    loss = InterchangeLoss(TokenView(DECODER), "block_output", 1, CLASSES.loss)
    task, both = (jax.jit(loss)(params, same, np.array(weight, np.float32)) for weight in (0, 1))
    np.testing.assert_allclose(both, 2 * task, rtol=1e-6)


def test_fit_takes_the_loss_down(rng):
    # A hidden layer is all that the rest of an MLP sees, so that a swap of it has the source's label.
    base, source = rng.standard_normal((2, 512, 2)).astype(np.float32)
    labels = [(values[:, 0] > 0).astype(np.int32) for values in (base, source, source)]
    model = MLP(2, 8, 2, 2)
    loss = InterchangeLoss(model, "hidden", 0, CLASSES.loss)
    pairs = LabelledPairs(base, source, *labels)
    start, context = model.init(jax.random.key(0)), np.array(1, np.float32)
    trained = fit(jax.random.key(1), loss, start, optax.adam(1e-2), pairs, Schedule(64, 20), context=context)
    assert trained.history[-1]["loss"] < 0.2 < trained.history[0]["loss"]


@pytest.mark.parametrize(
    ("tap", "depth", "message"),
    [
        ("logits", 0, "got tap 'logits', expected one that the model resumes from: "),
        ("block_output", 3, "got depth 3 of 'block_output', expected 0 to 2"),
        ("block_output", -1, "got depth -1"),
    ],
)
def test_a_place_that_is_not_there_is_refused(rng, tap, depth, message):
    params, pairs = DECODER.init(jax.random.key(0)), _pairs(rng)
    with pytest.raises(ValueError, match=message):
        InterchangeLoss(TokenView(DECODER), tap, depth, CLASSES.loss)(params, pairs, np.array(1, np.float32))
