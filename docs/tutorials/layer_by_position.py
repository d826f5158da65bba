# %% [markdown]
# # A layer by position map
#
# Where in a transformer is a variable, in which layer and at which token? One call swaps the state at every layer and
# every named token between a base and its source, and reads the answer: a map. Another does it head by head. Beside
# every number stand its controls, and a map to first order, from gradients, says how far it can be trusted.
#
# So that it is known what the maps must show, the network was made by hand.

# %%
import matplotlib.pyplot as plt
import numpy as np

from abstraction import Decoder, Network, TokenView, judge, record, sweep
from abstraction.evaluation.planted import HEAD, planted_network
from abstraction.evaluation.readouts import Classes
from abstraction.interventions import group_sites
from abstraction.localization import Sweeping
from abstraction.models import prompts_at
from abstraction.models.token_views import window_of
from abstraction.tasks import mcqa
from abstraction.tasks.prompts import last_positions, span_positions
from abstraction.tasks.symbols import LETTERS

# %% [markdown]
# ## A network whose answer is known
#
#     The pen is red. What color is the pen?
#     A. blue
#     B. red
#     C. gray
#     D. black
#     Answer:
#
# Two variables: the pointer (the second choice is the red one) and the answer (its letter, B). Three blocks of
# attention were set by hand. Block 0 brings the colour to the last token. Block 1 finds it among the choices there, and
# writes the pointer. Block 2 looks at the letter that the pointer points at, and copies it.

# %%
planted, tokenizer, plant = planted_network(seed=0)
banks = {role: each.bank for role, each in mcqa.make_banks(0, {"calibration": 90, "test": 210}).items()}
TOKENS = ("color", "subject", "right choice", "its letter", "last")


def named_prompts(setting):
    """Tokenise prompts, and say at which token of each stands what has a name."""
    encoded = mcqa.encode(setting, tokenizer)
    rows = zip(*(setting[name] for name in mcqa.INPUTS), strict=True)
    spans = [mcqa.LEXICON.prompt(*map(int, row))[1] for row in rows]  # by slot of the template
    right = np.asarray(mcqa.MODEL.run(setting)["answer_pointer"])
    slots = [("color", "subject", f"choice{choice}", f"label{choice}") for choice in right]
    named = zip(*([span[slot] for slot in four] for span, four in zip(spans, slots, strict=True)), strict=True)
    places = [*(span_positions(encoded, each) for each in named), last_positions(encoded)]
    return prompts_at(encoded.tokens, dict(zip(TOKENS, places, strict=True)))


example = {name: values[:1] for name, values in banks["calibration"].base.items()}
print(mcqa.render(example)[0])
print(dict(zip(TOKENS, named_prompts(example).position[0].tolist(), strict=True)))

# %% [markdown]
# ```text
# The candle is blue. What color is the candle?
# C. beige
# U. black
# E. gray
# D. blue
# Answer:
# {'color': 3, 'subject': 9, 'right choice': 26, 'its letter': 24, 'last': 29}
# ```
#
# ## The map
#
# A view shows a network at named tokens. Base and source each have their own: the state at the letter of the *source's*
# right choice goes to the letter of the *base's* right choice, wherever these stand. With P names a tap of L layers has
# L P places, and `sweep` lays them out. Of each prompt the keys and values before the first named token are kept, and
# what comes before an edit is not run again.

# %%
sides = [side for bank in banks.values() for side in (bank.base, bank.source)]
window = window_of(*map(named_prompts, sides))
assert isinstance(planted.model, Decoder)
network = Network(TokenView(planted.model, window, positions=TOKENS), planted.params)
letters = Classes(len(LETTERS))


def recorded(role, tap):
    return record(network, named_prompts, banks[role], tap=tap, readout=letters)


residual = recorded("calibration", "block_output")
found = sweep(network, residual)
print(found.table(3))

# %% [markdown]
# ```text
# iia of interchange
# variable       layer position         value       low      high    chance  identity  shuffled  verdict
# answer_pointer 0     right choice    1.0000    0.9123    1.0000    0.1000    0.5000    0.1917  above its controls
# answer_pointer 1     last            1.0000    0.9123    1.0000    0.1000    0.5000    0.2833  above its controls
# answer_pointer 0     color           0.5000    0.4421    0.5298    0.1000    0.5000    0.5000  not above its controls
# answer         2     last            1.0000    0.9598    1.0000    0.0889    0.0000    0.0444  above its controls
# answer         1     its letter      0.8444    0.7528    0.9123    0.0889    0.0000    0.0444  above its controls
# answer         0     its letter      0.8222    0.7274    0.8948    0.0889    0.0000    0.0444  above its controls
# ```
#
# IIA is the mean of two shares: of pairs whose answer must change, and of pairs whose answer must not, those that do as
# the causal model says. Leaving everything as it is scores .5 for the pointer, which a third of the pairs must not
# change, and 0 for the answer, which all must. Read along the layers, the map is the story of the network:
#
# - The pointer is after block 0 at the right choice (the state of a token holds its position, and so *which* choice it
#   is), after block 1 at the last token. After block 2 it is nowhere: it has been used.
# - The answer is at its letter until block 2 reads that, and then at the last token.
# - The colour and the noun of the question do nothing, as they must: base and source share them.
#
# ## Head by head
#
# What a block writes is the sum of its heads. The same call with groups as wide as a head makes a map with one more
# axis. There is a further control now: as many random directions of the same tap as a head has.

# %%
heads = sweep(network, recorded("calibration", "head_output"), HEAD, Sweeping(group="head"))
print(heads.sel(position="last").table(1))

# %% [markdown]
# ```text
# iia of interchange
# variable       layer head     value       low      high    chance  identity    random  shuffled  verdict
# answer_pointer 1     0       1.0000    0.9123    1.0000    0.1000    0.5000    0.7944    0.2833  above its controls
# answer         2     0       1.0000    0.9598    1.0000    0.0889    0.0000    0.4111    0.0444  above its controls
# ```
#
# The pointer comes out of head 0 of block 1, the answer out of head 0 of block 2: these were set by hand, and the
# others write nothing of the kind.
#
# ## One place, on pairs it was not chosen by
#
# The best of many places is too good on the pairs that made it best. `best` takes it from the map of a calibration
# bank, and refuses one of a test bank; `judge` says what it is worth on test pairs. It is a head that is judged here:
# random directions that are as many as a whole state has *are* the whole state, and no control.

# %%
best = heads.best()
tap = network.taps["head_output"]
places = [int(row["layer"]) * len(TOKENS) + TOKENS.index(row["position"]) for row in best]
sites = group_sites(tap, HEAD).take(np.array([2 * at + int(row["head"]) for at, row in zip(places, best, strict=True)]))
score = judge(network, sites.handles(), recorded("test", "head_output"))["test"]
print([(row["variable"], row["layer"], row["position"], row["head"]) for row in best])
print(score)

# %% [markdown]
# ```text
# [('answer_pointer', '1', 'last', '0'), ('answer', '2', 'last', '0')]
# variable            iia      low     high   chance identity   random shuffled  verdict
# answer_pointer   1.0000   0.9613   1.0000   0.0857   0.5000   0.7416   0.2471  above its controls
# answer           1.0000   0.9826   1.0000   0.0667   0.0000   0.4619   0.0305  above its controls
# ```
#
# ## To first order, and how far to trust it
#
# A gradient gives all places at once: what a small step towards the source changes, times the whole way. That is
# attribution patching, the cheap screen of a large network: a forward run and a backward run per output, however many
# places there are. `order=1` makes the same map of it. Here is the catch. At the base an attention that has found its
# token is saturated: a small step leaves it there, the gradient is 0, and the pointer is invisible. Half way between
# base and source it is not.

# %%
firsts = {
    "at the base": sweep(network, residual, None, Sweeping(points=(0.0,)), order=1),
    "half way": sweep(network, residual, None, Sweeping(points=(0.5,)), order=1),
}
for where, first in firsts.items():
    agreement = dict(zip(banks["test"].variables, found.agreement(first).round(3).tolist(), strict=True))
    pointer = first.sel(variable="answer_pointer", layer=1, position="last").values
    print(f"{where}: rank agreement {agreement}, the pointer's place {pointer:.3f}")

# %% [markdown]
# ```text
# at the base: rank agreement {'answer_pointer': 0.828, 'answer': 0.828}, the pointer's place 0.500
# half way: rank agreement {'answer_pointer': 0.995, 'answer': 0.995}, the pointer's place 1.000
# ```
#
# A rank agreement of .8 looks well, and misses the one place that matters. So a screen is compared with what was
# measured, on a few places at least, before it is believed.
#
# ![Maps of both variables: over tokens, over heads at the last token, and to first order](layer_by_position.png)

# %%
variables = ("answer_pointer", "answer")
for variable, layer in zip(variables, (plant.pointer_block, plant.symbol_block), strict=True):
    assert found.sel(variable=variable, layer=layer, position="last").values > 0.95, variable
    assert heads.sel(variable=variable, layer=layer, position="last", head=0).values > 0.95, variable
    assert heads.sel(variable=variable, layer=layer, position="last", head=1).values < 0.6, variable
assert score.exceeds.all()
missed, seen = (first.sel(variable="answer_pointer", layer=1, position="last").values for first in firsts.values())
assert missed < 0.6 < seen, (missed, seen)

figure, panels = plt.subplots(2, 4, figsize=(13, 5), layout="constrained", width_ratios=(5, 3, 5, 5))
for row, variable in zip(panels, variables, strict=True):
    maps = {"measured": found, "heads, last token": heads.sel(position="last")} | firsts
    for axes, (title, each) in zip(row, maps.items(), strict=True):
        each.sel(variable=variable).plot(axes)
        axes.set_title(f"{variable}: {title}", fontsize=8)
        axes.tick_params(axis="x", rotation=30)
figure.savefig("layer_by_position.png")
