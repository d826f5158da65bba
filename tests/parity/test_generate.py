"""Row P21: greedy generation with edits, by transformers' own `generate` with hooks, with and without its cache.

Edits act in the prompt only, in one pass only, or in all. Hooks that run the whole text again for every token edit each
column as the pass did that was first to run it.
"""

import numpy as np
import pytest
from broken import noticed
from gentle_decoders import gentle, recorded
from hooked_decoders import T as TOKENS
from hooked_decoders import hook_run, hooked, padded, torch

from abstraction.interventions import building as do
from abstraction.models import decoder, generation
from abstraction.models.generation import Sampling, generate
from abstraction.models.taps import NO_EDITS

pytestmark = pytest.mark.parity

LENGTHS, STEPS = (9, 5, 7, 6), 4
N = len(LENGTHS)
ADDED, TAKEN = (("block_input", 2), ("key", 1)), ("head_output", 3)
"""Where a vector is added, and where units are moved from the base through a source to twice as far."""
AT = TOKENS - 1 - np.array([0, 1, 3, 0])
"""The one token of each prompt that is edited."""
# float32 in two orders of summation, over tokens that are kept; logits are of order 1
CLOSE = {"rtol": 0, "atol": 1e-5}
MOVED = 1e-3
KINDS = ("gpt2", "llama", "gemma2")
WHEN = {"prompt": (True, ()), "pass 2": (False, (2,)), "passes after it": (False, (1, 2, 3)), "all": (True, (1, 2, 3))}


class _Columns:
    """Edit the columns of a text that are to be edited, in a run of all of them or of those not run yet."""

    def __init__(self, change, marked, cache):
        self.change, self.marked, self.cache, self.done = change, marked, cache, 0

    def __call__(self, value):
        for column in range(value.shape[1]):
            for n in range(N):
                if self.marked[n, self.done + column]:
                    value[n, column] = self.change(n, value[n, column])
        self.done += value.shape[1] if self.cache else 0
        return value


def _theirs(net, kind, prompts, changes, marked, cache):
    edits = {place: _Columns(change, marked, cache) for place, change in changes.items()}
    mask = torch.tensor((prompts >= 0).astype(int))
    with hooked(net, kind, edits):
        made = net.generate(
            torch.tensor(np.maximum(prompts, 0)), attention_mask=mask, do_sample=False, max_new_tokens=STEPS,
            use_cache=cache, output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
    assert not cache or all(edit.done == TOKENS + STEPS - 1 for edit in edits.values()), "not one token at a time"
    return made.sequences[:, TOKENS:].numpy(), torch.stack(made.logits, dim=1).numpy()


def _hooks_of(vectors, states, units):
    """Return what hooks do to the state of one token of example n, by place."""

    def swapped(n, state):
        state[units] = 2 * torch.tensor(states[n])[units] - state[units]
        return state

    add = lambda vector: lambda n, state: state + torch.tensor(vector)
    return {place: add(vectors[place[0]]) for place in ADDED} | {TAKEN: swapped}


def _edits(ours, vectors, given, units, at):
    several = [do.add(ours.taps[name], vectors[name], depth=level, at=at) for name, level in ADDED]
    tap, depth = TAKEN
    return do.together(do.interchange(ours.taps[tap], given, weight=2.0, depth=depth, units=units, at=at), *several)


def check_generation(kind, when):
    net, ours = gentle(kind)
    in_prompt, passes = WHEN[when]
    rng = np.random.default_rng(20)
    prompts, source = (padded(rng, net.config.vocab_size, LENGTHS, "left") for _ in range(2))
    vectors = {tap: (3 * rng.standard_normal(ours.taps[tap].width)).astype(np.float32) for tap, _ in ADDED}
    units = list(range(0, ours.taps[TAKEN[0]].width, 2))
    changes = _hooks_of(vectors, hook_run(net, kind, source)[1][TAKEN][:, -1], units)
    marked = np.zeros((N, TOKENS + STEPS), bool)
    marked[np.arange(N), AT] = in_prompt
    marked[:, [TOKENS + index - 1 for index in passes]] = True
    plain = _theirs(net, kind, prompts, {}, marked, True)
    tokens, logits = _theirs(net, kind, prompts, changes, marked, True)
    first = 0 if in_prompt else passes[0]
    assert (np.abs(logits - plain[1])[:, first].max(axis=-1) > MOVED).all(), "the intervention moves nothing"
    assert (tokens != plain[0]).any(), "the intervention moves nothing"

    last = np.asarray(recorded(ours, source)[TAKEN[0]])[TAKEN[1], :, -1]
    steps = _edits(ours, vectors, last[:, None], units, None)
    prompt = _edits(ours, vectors, last, units, AT if in_prompt else np.full(N, -1))
    how = {"passes": passes, "sampling": Sampling(logits=True)}
    made = generate(ours, prompts, STEPS, prompt_edits=prompt, step_edits=steps, **how)
    for texts, values in ((tokens, logits), _theirs(net, kind, prompts, changes, marked, False)):
        np.testing.assert_array_equal(made.tokens, texts)
        np.testing.assert_allclose(made.logits, values, **CLOSE)


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_that_of_transformers_with_hooks(kind, when):
    check_generation(kind, when)


PLACED, RUN = generation._placed, decoder.Decoder.run


def _kept_unedited(self, params, inputs, edits=NO_EDITS, *args, **options):
    run = RUN(self, params, inputs, edits, *args, **options)
    return run._replace(past=RUN(self, params, inputs, NO_EDITS, *args, **options).past)


def _one_on(model, filled, at):
    place = PLACED(model, filled, at)
    return place._replace(positions=place.positions + 1)


MUTANTS = {
    "every pass is edited": ("prompt", generation, "_when", lambda edits, active: edits),
    "no pass is edited": ("pass 2", generation, "_when", lambda edits, active: NO_EDITS),
    "keys are kept as they were": ("prompt", decoder.Decoder, "run", _kept_unedited),
    "one position on": ("all", generation, "_placed", _one_on),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_the_row_notices_what_is_broken(fault):
    when, place, name, wrong = MUTANTS[fault]
    with noticed(place, name, wrong):
        check_generation("gpt2", when)
