# %% [markdown]
# # Your own network in ten lines
#
# A network written in Flax, Equinox or plain JAX needs no adapter. It is traced, and every value its program computes
# that has a name becomes a place that can be read and replaced. This page trains a network as anyone would, looks for
# the variables of a causal model in it, and does the same again with two other ways to write it. The code that knows
# this library is ten lines.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from abstraction import check_model, judge, listing, plot, record, reduce_network, tap, unit_sites, wrap
from abstraction.interventions.handles import coordinate_mass
from abstraction.tasks import equality

# %% [markdown]
# ## A network, without this library
#
# Is [W = X] = [Y = Z]? Four entities come in side by side, each a vector of four numbers. Nothing here knows that
# somebody will look inside.


# %%
class Layer(nnx.Module):
    def __init__(self, inputs, outputs, rngs):
        self.linear = nnx.Linear(inputs, outputs, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.linear(x))


class Comparer(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(16, 16, rngs) for _ in range(3)])
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


vectors, data = equality.entities(seed=0), equality.balanced_data(seed=1, count=131_072)
model = Comparer(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)


@nnx.jit
def epoch(model, optimizer, rows, labels):
    """Take a step for each batch."""

    def step(carry, batch):
        model, optimizer = carry
        loss = lambda model: optax.softmax_cross_entropy_with_integer_labels(
            model(equality.encode(vectors, batch[0])), batch[1]
        ).mean()
        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return (model, optimizer), value

    return nnx.scan(step)((model, optimizer), (rows, labels))[1]


losses = np.zeros(0)
for seed in range(16):
    order = np.random.default_rng(seed).permutation(len(data["labels"])).reshape(-1, 1024)
    losses = epoch(model, optimizer, data["rows"][order], data["labels"][order])
print(f"loss {losses[-8:].mean():.4f}")

# %% [markdown]
# ## What is there
#
# `listing` names every value that can be a tap: what a module returned, and what a source line computed. Depth says how
# often it occurs: the three layers match one expression.

# %%
inputs = equality.encode(vectors, data["rows"][:8])
print(listing(model, None, inputs))

# %% [markdown]
# ## Ten lines
#
# A tap gets a name, and the place where it is. `check` runs the laws that everything in this library rests on, on this
# network and these inputs: that an edit is heard, that a record changes nothing, that examples do not see one another,
# and that without edits the outputs are those of the network as it was written, to the last bit.

# %%
network = wrap(model, None, inputs, {"hidden": "layers/[0-9]+"}, check=True)
banks = equality.independent_banks(seed=0, fit=3000, calibration=1500, test=1000)


def recorded(network, bank):
    return record(network, lambda setting: equality.encode(vectors, equality.rows_of(setting)), bank, tap="hidden")


def verdict(network):
    evidence, sites = recorded(network, banks.calibration), unit_sites(network.taps["hidden"])
    found = plot(network, recorded(network, banks.fit), sites, evidence=evidence)
    return found.handles, judge(network, found.handles, recorded(network, banks.tests["test"]))["test"]


handles, score = verdict(network)
scores = {"Flax NNX": score}
print(score)

# %% [markdown]
# ```text
# variable      iia      low     high   chance identity   random shuffled  verdict
# wx         0.9650   0.9517   0.9755   0.5150   0.0040   0.6384   0.5620  above its controls
# yz         0.8940   0.8732   0.9124   0.5060   0.0040   0.5184   0.4604  above its controls
# ```
#
# What was chosen on calibration pairs holds on test pairs: where the found units are swapped, the answer changes as the
# causal model says, and the same weights along random directions, or the source of another pair, do not do it. PLOT,
# alignment search and all else take this network as they take those of the library. What the laws say is a value:

# %%
print(check_model(network, inputs))

# %% [markdown]
# ## In Equinox, and as a function
#
# The same weights, written otherwise. An Equinox module computes one example, and is mapped over the batch. In a
# function of one's own `tap` gives a value its name; outside of this library it returns what it was given.

# %%
linears = [*(layer.linear for layer in model.layers), model.head]
weights = [(np.asarray(linear.kernel), np.asarray(linear.bias)) for linear in linears]

drawn = [eqx.nn.Linear(len(kernel), len(bias), key=jax.random.key(0)) for kernel, bias in weights]
filled = lambda linear, kernel, bias: eqx.tree_at(lambda each: (each.weight, each.bias), linear, (kernel.T, bias))
linears = [filled(linear, *arrays) for linear, arrays in zip(drawn, weights, strict=True)]
relu = eqx.nn.Lambda(jax.nn.relu)
equinox = eqx.nn.Sequential([linears[0], relu, linears[1], relu, linears[2], relu, linears[3]])
scores["Equinox"] = verdict(wrap(equinox, None, inputs, {"hidden": "layers/[135]"}, check=True))[1]


def forward(weights, x):
    for kernel, bias in weights[:-1]:
        x = tap(jax.nn.relu(x @ kernel + bias), "hidden")
    return x @ weights[-1][0] + weights[-1][1]


scores["a function"] = verdict(wrap(forward, weights, inputs, ["hidden"], check=True))[1]
for how, score in scores.items():
    print(f"\n{how}\n{score}")

# %% [markdown]
# The three tables agree in every digit: it is one network, and how it was written is none of its properties. `wrap`
# takes Linen modules with their variables, and functions by Haiku's `transform`, alike; scans, `remat` and `jit` inside
# are no obstacle, and the steps of a scan are the depth of its taps.

# %% [markdown]
# ## What is refused
#
# What cannot be is said before anything runs, with what would do. A place that is not there, a batch whose examples see
# one another, a tap by another name: each of these gives numbers that look like any others, if nobody looks.


# %%
def refused(what, call):
    try:
        call()
    except ValueError as error:
        print(f"{what}\n    {error}\n")
    else:
        raise AssertionError(f"{what}: was not refused")


class Normalised(nnx.Module):
    """Norms over the batch: what one example gives depends on the others."""

    def __init__(self, rngs):
        self.norm, self.head = nnx.BatchNorm(16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(x))


mixing = Normalised(nnx.Rngs(0))
refused("a place that is not there", lambda: wrap(model, None, inputs, {"hidden": "layer/[0-9]+"}))
refused("values of several shapes", lambda: wrap(model, None, inputs, {"hidden": "layers/[0-9]+|head"}))
refused("outputs without an axis of examples", lambda: wrap(model, None, inputs, ["head"], read=jnp.sum))
refused("examples that see one another", lambda: wrap(mixing, None, inputs, ["norm"], check=True))
refused("a tap by another name", lambda: network(inputs, record=("hiden",)))

# %% [markdown]
# ```text
# a place that is not there
#     got tap 'hidden' at 'layer/[0-9]+', which is nowhere, expected a place such as ['layers/0', 'layers/2',
#     'layers/1']; `listing` shows all 23
# values of several shapes
#     got tap 'hidden' at 'layers/[0-9]+|head' with values of several shapes {'layers/0': (8, 16), 'layers/1': (8, 16),
#     'layers/2': (8, 16), 'head': (8, 2)}, expected one shape: make a tap of each
# outputs without an axis of examples
#     got outputs of shapes [()] for 8 examples, expected one array that leads with them, [N, C]: `read` turns what the
#     model returns into outputs
# examples that see one another
#     got a model that breaks a law: examples do not see one another (batch statistics, or an axis that is not
#     examples?); differs by 1, expected <= 0.0001
# a tap by another name
#     got a record of ['hiden'], expected tap names among ['hidden']
# ```
#
# ## Smaller
#
# Who reads a unit is found in the program too, so units of a network of one's own can be taken out with no word about
# its layers. What is read otherwise, by a norm over units, say, is refused with the line where that is. The result is a
# network again.

# %%
apart = {f"hidden{layer}": f"layers/{layer}" for layer in range(3)}  # a tap each: a width of its own
KEPT = {"hidden0": 12, "hidden1": 10, "hidden2": 10}
small = reduce_network(wrap(model, None, inputs, apart), equality.encode(vectors, data["rows"][:2000]), KEPT).network
fresh = equality.balanced_data(seed=2, count=4000)
right = {
    name: float((each(equality.encode(vectors, fresh["rows"]))[0].argmax(axis=-1) == fresh["labels"]).mean())
    for name, each in {"whole": network, "reduced": small}.items()
}
print({name: tap.width for name, tap in small.taps.items()}, right)

# %% [markdown]
# ![How much of each unit was found to be WX and YZ, and IIA beside the highest control](your_own_network.png)

# %%
first = scores["Flax NNX"].rows()
for score in scores.values():
    assert score.exceeds.all()
    gaps = [abs(float(row["iia"]) - float(other["iia"])) for row, other in zip(score.rows(), first, strict=True)]
    assert max(gaps) < 0.05, gaps  # the same weights; sums in another order may choose another of two equal candidates
assert right["whole"] > 0.98, right
assert right["reduced"] > 0.9, right

figure, panels = plt.subplots(1, 3, figsize=(8, 2.2), layout="constrained", width_ratios=(2, 2, 1.6))
for axes, name, mass in zip(panels, ("WX", "YZ"), coordinate_mass(handles, 3), strict=False):
    axes.imshow(mass, vmin=0, vmax=2, aspect="auto")
    axes.set(title=f"{name}: weight of each unit", xlabel="unit", ylabel="layers/", yticks=range(3))
figure.colorbar(panels[0].images[0], ax=panels[:2])
middle, low, high = (np.array([row[key] for row in first]) for key in ("iia", "low", "high"))
controls = [max(row[key] for key in ("chance", "identity", "random", "shuffled")) for row in first]
panels[2].errorbar(range(2), middle, yerr=[middle - low, high - middle], fmt="o", capsize=3, label="IIA, 95 %")
panels[2].plot(range(2), controls, "k_", markersize=16, label="highest control")
panels[2].set(xticks=range(2), xticklabels=["WX", "YZ"], xlim=(-0.5, 1.5), ylim=(0.4, 1.02))
panels[2].legend(frameon=False, fontsize=7)
figure.savefig("your_own_network.png")
