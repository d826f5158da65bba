"""Generation against keys and values is that of whole runs, token by token, whatever is edited and in which pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn, padded

from abstraction.interventions import Add, InOrder, Scale
from abstraction.interventions import building as do
from abstraction.models import Decoder, Network, at_positions
from abstraction.models.generation import Sampling, generate

N, T, SHORTEST, STEPS, L = 4, 5, 3, 4, 3
# Sums in another order, through 3 blocks; logits are of order 1.
LOGITS = Sampling(logits=True)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=FAMILIES, name="network")
def _network(request):
    decoder = Decoder(FAMILIES[request.param])
    return Network(decoder, drawn(decoder))


def _prompts():
    return padded(np.random.default_rng(3), N, T, SHORTEST)


def _vectors(network, seed=0, size=1.5):
    draw = np.random.default_rng(seed).standard_normal
    taps = network.taps
    return {name: size * draw((taps[name].depth, taps[name].width)).astype(np.float32) for name in EDITED}


EDITED = ("block_output", "key", "mlp_hidden", "final_input")


def _adding(vectors, where=None):
    edits = {name: Add(vector) for name, vector in vectors.items()}
    if where is None:
        return edits
    placed = {name: at_positions(edit, where, depth=L) for name, edit in edits.items() if name != "final_input"}
    return placed


_whole = jax.jit(lambda network, tokens, edits: network(tokens, edits)[0])


def _uncached(network, prompts, prompt_vectors, step_vectors, passes):
    """Run everything again for each token; a fresh vector is added at the columns of the passes that are edited."""
    # What is not there yet is padding, so that all runs are one program.
    tokens, logits, offsets = np.pad(prompts, ((0, 0), (0, STEPS)), constant_values=-1), [], {}
    for name in EDITED:
        offset = np.zeros((len(step_vectors[name]), 1, T + STEPS, step_vectors[name].shape[1]), np.float32)
        offset[:, :, :T] = prompt_vectors[name][:, None, None]
        for edited in passes:
            offset[:, :, T + edited - 1] = step_vectors[name][:, None]
        offsets[name] = Add(offset)
    for index in range(STEPS):
        logits.append(np.asarray(_whole(network, tokens, offsets)))
        tokens[:, T + index] = logits[-1].argmax(axis=1)
    return tokens[:, T:], np.stack(logits, axis=1)


PASSES = {"prompt only": [], "one pass": [2], "every pass": [1, 2, 3]}


@pytest.mark.parametrize("passes", PASSES.values(), ids=PASSES)
def test_cached_generation_is_that_of_whole_runs(network, passes):
    """P21: ragged prompts, edits of four taps in the prompt and in some passes after it."""
    first, later = _vectors(network, 0), _vectors(network, 1)
    tokens, logits = _uncached(network, _prompts(), first, later, passes)
    made = generate(
        network,
        _prompts(),
        STEPS,
        prompt_edits=_adding(first),
        step_edits=_adding(later),
        passes=passes,
        sampling=LOGITS,
    )
    np.testing.assert_array_equal(made.tokens, tokens)
    np.testing.assert_allclose(made.logits, logits, **CLOSE)


def test_the_edits_of_the_passes_are_felt(network):
    """Else the law above would hold of edits that do nothing."""
    first, later = _vectors(network, 0), _vectors(network, 1)
    steps = _adding(later)
    run = lambda edits, passes: np.asarray(
        generate(
            network, _prompts(), STEPS, prompt_edits=edits, step_edits=steps, passes=passes, sampling=LOGITS
        ).logits
    )
    none = _adding({name: np.zeros_like(vector) for name, vector in first.items()})
    plain, prompt, second = run(none, []), run(_adding(first), []), run(none, [2])
    assert np.abs(plain - prompt)[:, 0].max() > 0.1
    np.testing.assert_array_equal(plain[:, :2], second[:, :2])
    assert np.abs(plain - second)[:, 2].max() > 0.1


def test_a_prompt_is_edited_at_positions():
    network = Network(Decoder(FAMILIES["gemma2"]), drawn(Decoder(FAMILIES["gemma2"])))
    prompts, vectors = _prompts(), _vectors(network)
    where = np.array([T - 1, T - 2, -1, T - 3])
    edits = _adding(vectors, where)
    made = generate(network, prompts, 2, prompt_edits=edits, sampling=LOGITS)
    tokens = np.pad(prompts, ((0, 0), (0, 1)), constant_values=-1)
    first = np.asarray(_whole(network, tokens, edits))
    np.testing.assert_allclose(made.logits[:, 0], first, **CLOSE)
    # The second pass sees keys and values as edited: run both tokens again with the same edits.
    tokens[:, T] = first.argmax(axis=1)
    np.testing.assert_allclose(made.logits[:, 1], _whole(network, tokens, edits), **CLOSE)


def test_other_values_compile_nothing():
    network = Network(Decoder(FAMILIES["llama"]), drawn(Decoder(FAMILIES["llama"])))
    traces = []

    @jax.tree_util.register_pytree_node_class
    class Counted:
        def __init__(self, offset):
            self.offset = offset

        def __call__(self, activation):
            traces.append(1)
            return activation + self.offset

        def tree_flatten(self):
            return (self.offset,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    run = lambda value, passes, seed: generate(
        network,
        _prompts(),
        STEPS,
        step_edits={"mlp_output": Counted(np.full((L, 1), value, np.float32))},
        passes=passes,
        sampling=Sampling(1.0 + value, jax.random.key(seed)),
    )
    run(0.0, [1], 0)
    seen = len(traces)
    run(1.0, None, 1)
    assert len(traces) == seen


def test_a_prompt_that_has_stopped_gives_no_more():
    network = Network(Decoder(FAMILIES["qwen2"]), drawn(Decoder(FAMILIES["qwen2"])))
    free = np.asarray(generate(network, _prompts(), STEPS).tokens)
    stop = int(free[0, 1])
    stopped = np.asarray(generate(network, _prompts(), STEPS, sampling=Sampling(stop=(stop,))).tokens)
    for row, whole in zip(stopped, free, strict=True):
        found = np.flatnonzero(whole == stop)
        end = found[0] + 1 if len(found) else STEPS
        np.testing.assert_array_equal(row[:end], whole[:end])
        assert (row[end:] == -1).all()
    assert (stopped[0] == -1).any()


@pytest.mark.slow
def test_tokens_are_drawn_by_the_softmax_of_the_logits():
    network = Network(Decoder(FAMILIES["llama"]), drawn(Decoder(FAMILIES["llama"])))
    prompts = np.repeat(_prompts()[:1, -3:], 4000, axis=0)
    made = generate(network, prompts, 1, sampling=Sampling(0.7, jax.random.key(0), logits=True))
    wanted = np.asarray(jax.nn.softmax(made.logits[0, 0] / 0.7))
    shares = np.bincount(np.asarray(made.tokens)[:, 0], minlength=23) / 4000
    # Five standard deviations of a share of 4,000 draws.
    assert (np.abs(shares - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / 4000) + 1e-3).all()
    run = lambda temperature, seed: (
        generate(network, _prompts(), STEPS, sampling=Sampling(temperature, jax.random.key(seed))).tokens
    )
    np.testing.assert_array_equal(run(1.0, 1), run(1.0, 1))
    assert (run(1.0, 1) != run(1.0, 2)).any()
    np.testing.assert_array_equal(run(1e-4, 2), generate(network, _prompts(), STEPS).tokens)


def test_edits_in_order_are_edits_of_a_pass():
    network = Network(Decoder(FAMILIES["gpt2"]), drawn(Decoder(FAMILIES["gpt2"])))
    edit = InOrder((Add(np.ones((L, 1), np.float32)), Scale(np.full((L, 1), 0.5, np.float32))))
    one = generate(network, _prompts(), 3, step_edits={"mlp_output": edit}, sampling=LOGITS).logits
    other = generate(network, _prompts(), 3, sampling=LOGITS).logits
    np.testing.assert_array_equal(one[:, 0], other[:, 0])
    assert jnp.abs(one - other)[:, 1:].max() > 1e-2


@pytest.mark.parametrize("wrong", [2, "2", np.int32(2), np.array(2), None], ids=repr)
def test_one_pass_or_stop_token_that_is_no_list_is_refused(network, wrong, unchecked):
    if wrong is not None:
        with pytest.raises(ValueError, match=r"got passes .*, expected several, as in"):
            generate(network, _prompts(), STEPS, passes=wrong)
    with pytest.raises(ValueError, match=r"got stop tokens .*, expected several, as in"):
        generate(network, _prompts(), STEPS, sampling=Sampling(stop=wrong))


def test_passes_and_stop_tokens_may_be_ranges_and_arrays(network):
    generate(network, _prompts(), STEPS, passes=range(1, 3), sampling=Sampling(stop=[]))
    generate(network, _prompts(), STEPS, passes=np.array([1, 2]), sampling=Sampling(stop=[3]))


def test_an_edit_of_a_step_at_a_position_that_no_step_has_is_refused(network):
    prompts = np.array([[-1, 3, 4], [5, 6, 7]], np.int32)
    far = do.zero(network.taps["mlp_output"], at=np.array([2, 2]))
    with pytest.raises(ValueError, match="position 2"):
        generate(network, prompts, 3, step_edits=far)
