# %% [markdown]
# # Coming from there: attribution and searches
#
# [The page before](coming_from.py) has the interventions of pyvene, TransformerLens and nnsight beside ours. Here are
# the two things that are built on them: attribution patching, and distributed alignment search. As there, what is
# theirs is run by `tests/parity/test_coming_from.py`, with the same weights, and gives the same numbers.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from abstraction import Decoder, Network, Search, TokenView, alignment_search, judge, record
from abstraction.evaluation.planted import planted_network
from abstraction.evaluation.readouts import Classes
from abstraction.interventions import Add, rotation_basis
from abstraction.interventions import building as do
from abstraction.localization import SearchConfig, candidate_grid, full_supports
from abstraction.models import DecoderConfig, prompts_at
from abstraction.tasks import mcqa
from abstraction.tasks.symbols import LETTERS

# %% [markdown]
# A small network in the manner of GPT-2, with weights drawn at random, and five prompts with their sources: as there.

# %%
config = DecoderConfig(
    vocabulary=40, width=32, depth=3, heads=4, kv_heads=4, head_size=8, hidden=128, learned_positions=16, norm="layer",
    norm_epsilon=1e-5, gated=False, activation="gelu_tanh", qkv_bias=True, output_bias=True, mlp_bias=True,
)  # fmt: skip
network = Network(Decoder(config), Decoder(config).init(jax.random.key(0)))
base, source, other = np.random.default_rng(0).integers(0, 40, (3, 5, 8))
layer, position, head, size = 1, 4, 2, 8
taps, at = network.taps, np.full(len(base), position)
run = jax.jit(lambda network, tokens, edits: network(tokens, edits)[0])
cached = jax.jit(lambda network, tokens: network(tokens, record=("block_output", "head_output"))[1])
cache, clean = cached(network, source), cached(network, base)
states = cache["block_output"]

# %% [markdown]
# ## Attribution patching
#
# ```python
# # TransformerLens: attribution
# metric = lambda logits: (logits[:, -1, 0] - logits[:, -1, 1]).mean()
# attribution = torch.zeros(3, base.shape[1], 4)
# for node, effect in attribution_patch(bridge, source, base, metric).node_scores.items():
#     if node.kind == "attn_head_out":
#         attribution[node.layer, node.position, node.head] = effect
# ```
#
# An edit is an argument, so the gradient is `jax.grad` by its array, at every layer, token and unit at once. (`sweep`
# with `order=1` does it for pairs with labels, in chunks, and at points between base and source.)


# %%
def margin(offset):
    outputs, _ = network(base, {"head_output": Add(offset)})
    return (outputs[:, 0] - outputs[:, 1]).mean()


own, theirs = clean["head_output"], cache["head_output"]
slope = jax.jit(jax.grad(margin))(jnp.zeros_like(own))
attribution = (slope * (theirs - own)).reshape(3, *base.shape, 4, size).sum(axis=(1, 4))  # [L, T, heads]


@jax.jit
def exact(where):
    """Take what is masked from the source."""
    outputs, _ = network(base, {"head_output": Add((theirs - own) * where)})
    return (outputs[:, 0] - outputs[:, 1]).mean() - margin(jnp.zeros_like(own))


masks = jnp.repeat(jnp.eye(3 * 8 * 4).reshape(-1, 3, 1, 8, 4), size, axis=-1)  # one head at one token each
measured = jax.lax.map(exact, masks).reshape(3, 8, 4)

# %% [markdown]
# ## Distributed alignment search
#
# ```python
# # pyvene: rotated
# settings = {"layer": layer, "component": "block_output", "low_rank_dimension": 4,
#             "intervention_type": pv.LowRankRotatedSpaceIntervention}
# model = pv.IntervenableModel(settings, gpt2)
# model.disable_model_gradients()
# optimizer = torch.optim.Adam(model.get_trainable_parameters(), lr=1e-2)
# losses = []
# for step in range(20):
#     _, outputs = model({"input_ids": base}, [{"input_ids": source}], {"sources->base": position})
#     loss = torch.nn.functional.cross_entropy(outputs.logits[:, -1], labels)
#     optimizer.zero_grad()
#     loss.backward()
#     optimizer.step()
#     losses.append(loss.item())
# rotated = model({"input_ids": base}, [{"input_ids": source}], {"sources->base": position})[1].logits[:, -1]
# ```
#
# There a rotation is a module of a wrapped network; one layer, one position, one rank and one seed are a training run.
# Here it is the basis of an edit, and a search trains all of them in one program, on pairs that a causal model labels,
# chooses on other pairs, and is judged on third ones beside its controls.

# %%
turned = np.linalg.qr(np.random.default_rng(2).standard_normal((32, 4)))[0].astype(np.float32)
edit = do.interchange(
    taps["block_output"], do.taken(states, depth=layer, at=at), depth=layer, at=at, basis=rotation_basis(turned)
)
rotated = run(network, base, edit)

planted, tokenizer, plant = planted_network(seed=0)  # it answers multiple choice, with a pointer we know
banks = {role: each.bank for role, each in mcqa.make_banks(0, {"fit": 120, "calibration": 90, "test": 210}).items()}
assert isinstance(planted.model, Decoder)
answering = Network(TokenView(planted.model), planted.params)
encode = lambda setting: prompts_at(mcqa.encode(setting, tokenizer).tokens)
pairs = {
    role: record(answering, encode, bank, tap="block_output", readout=Classes(len(LETTERS)))
    for role, bank in banks.items()
}
tap = answering.taps["block_output"]
grid = candidate_grid(jax.random.key(1), tap, full_supports(tap, (0, 1)), ranks=(4,), learning_rates=(2e-2,))
search = Search(config=SearchConfig(batch_size=60, max_epochs=40, patience=10))
found = alignment_search(jax.random.key(0), answering, pairs["fit"], grid, search, evidence=pairs["calibration"])
score = judge(answering, found.handles, pairs["test"])["test"]
print([(setting["depth"], setting["rank"]) for setting in found.choice.settings])
print(score)

# %% [markdown]
# ```text
# [(1, 4), (1, 4)]
# variable            iia      low     high   chance identity   random shuffled  verdict
# answer_pointer   1.0000   0.9613   1.0000   0.0750   0.5000   0.5000   0.2757  above its controls
# answer           0.2476   0.1908   0.3117   0.0571   0.0000   0.0000   0.0581  above its controls
# ```
#
# Of all layers the pointer is found after block 1, where it was put, in four directions. The answer is one of 26
# letters, which four directions do not hold: its score says so.
#
# ![Attribution patching of every head and token beside what patching it does](coming_from_searches.png)

# %%
assert score.exceeds[0], "the pointer is in four directions after block 1"

figure, axes = plt.subplots(figsize=(4, 3), layout="constrained")
for block in range(3):
    axes.plot(np.ravel(measured[block]), np.ravel(attribution[block]), "o", ms=4, label=f"layer {block}")
axes.axline((0, 0), slope=1, color="0.7", lw=1, zorder=0)
axes.set(xlabel="measured: change of the margin", ylabel="to first order")
axes.legend(frameon=False)
figure.savefig("coming_from_searches.png")
