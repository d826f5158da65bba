# %% [markdown]
# # Coming from pyvene, TransformerLens or nnsight
#
# What is written there as a hook is an argument here. This page has the usual interventions four times: as pyvene
# 0.1.8, TransformerLens 4 and nnsight 0.8 write them, for a GPT-2 of Hugging Face, and as this library does. Ours is
# run here. Theirs are run by `tests/parity/test_coming_from.py`, with the same weights, and give the same numbers.
#
# | there | here |
# |---|---|
# | a hook, a trace, a wrapped copy of the model | an *edit*, a value: an argument of the run |
# | a module's name and a layer: `blocks.3.hook_z` | a *tap*, `"head_output"`, and a depth, 3: an index into an array |
# | a list of positions for the batch | a position for each prompt, `[N]` or `[N, P]`, checked against its padding |
# | one run for each site | all sites, strengths and sources in one compiled program: `jax.vmap` over edits, `sweep` |
# | logits `[N, T, V]` | outputs `[N, C]`, after the last token: what is asked is asked there |
# | attention masks, padding as a token | padding is -1 |

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from abstraction import Decoder, Network
from abstraction.interventions import building as do
from abstraction.interventions.paths import path_outputs
from abstraction.models import DecoderConfig
from abstraction.models.generation import generate

# %% [markdown]
# A small network in the manner of GPT-2, with weights drawn at random. `load_decoder("gpt2")` takes its place, or a
# folder of any GPT-2, Llama, Qwen2 or Gemma-2. Five prompts of eight tokens are bases, others are their sources.

# %%
config = DecoderConfig(
    vocabulary=40, width=32, depth=3, heads=4, kv_heads=4, head_size=8, hidden=128, learned_positions=16, norm="layer",
    norm_epsilon=1e-5, gated=False, activation="gelu_tanh", qkv_bias=True, output_bias=True, mlp_bias=True,
)  # fmt: skip
network = Network(Decoder(config), Decoder(config).init(jax.random.key(0)))
base, source, other = np.random.default_rng(0).integers(0, 40, (3, 5, 8))
layer, position, head, size = 1, 4, 2, 8
taps, at, units = network.taps, np.full(len(base), position), range(head * size, (head + 1) * size)

# %% [markdown]
# ## The state of a source, at a layer and a position
#
# ```python
# # pyvene: patched
# settings = {"layer": layer, "component": "block_output", "intervention_type": pv.VanillaIntervention}
# model = pv.IntervenableModel(settings, gpt2)
# _, outputs = model({"input_ids": base}, [{"input_ids": source}], {"sources->base": position})
# patched = outputs.logits[:, -1]
# ```
#
# ```python
# # TransformerLens: patched
# name = f"blocks.{layer}.hook_resid_post"
# _, cache = bridge.run_with_cache(source)
#
# def take(value, hook):
#     value[:, position] = cache[name][:, position]
#     return value
#
# patched = bridge.run_with_hooks(base, fwd_hooks=[(name, take)])[:, -1]
# ```
#
# ```python
# # nnsight: patched
# model = NNsight(gpt2)
# with model.trace(source):
#     state = model.transformer.h[layer].output.save()
# with model.trace(base):
#     model.transformer.h[layer].output[:, position] = state[:, position]
#     patched = model.output.logits[:, -1].save()
# ```
#
# A cache of activations is what a run records; that of a tap leads with its depth. (In transformers 5 a block returns
# its state, in earlier ones a tuple: an `output[0]` that was right then is the first prompt now.)

# %%
run = jax.jit(lambda network, tokens, edits: network(tokens, edits)[0])  # any edits: a program for each kind of them
cached = jax.jit(lambda network, tokens: network(tokens, record=("block_output", "head_output", "mlp_output"))[1])

cache, clean = cached(network, source), cached(network, base)
print({name: each.shape for name, each in cache.items()})  # [L, N, T, D]
states = cache["block_output"]
edit = do.interchange(taps["block_output"], do.taken(states, depth=layer, at=at), depth=layer, at=at)
patched = run(network, base, edit)

# %% [markdown]
# ## One head
#
# ```python
# # pyvene: patched_head
# settings = {"layer": layer, "component": "head_attention_value_output", "unit": "h.pos",
#             "intervention_type": pv.VanillaIntervention}
# model = pv.IntervenableModel(settings, gpt2)
# place = [[[[head]] * len(base), [[position]] * len(base)]]
# _, outputs = model({"input_ids": base}, [{"input_ids": source}], {"sources->base": (place, place)})
# patched_head = outputs.logits[:, -1]
# ```
#
# ```python
# # TransformerLens: patched_head
# name = f"blocks.{layer}.attn.hook_z"
# _, cache = bridge.run_with_cache(source)
#
# def take(z, hook):
#     z[:, position, head] = cache[name][:, position, head]
#     return z
#
# patched_head = bridge.run_with_hooks(base, fwd_hooks=[(name, take)])[:, -1]
# ```
#
# ```python
# # nnsight: patched_head
# model, units = NNsight(gpt2), slice(head * size, (head + 1) * size)
# with model.trace(source):
#     z = model.transformer.h[layer].attn.c_proj.input.save()
# with model.trace(base):
#     model.transformer.h[layer].attn.c_proj.input[:, position, units] = z[:, position, units]
#     patched_head = model.output.logits[:, -1].save()
# ```
#
# A head is some of the units of `head_output`. Which ones, at which layer, from which source: all are numbers, and
# other numbers never compile again.

# %%
from_head = do.taken(cache["head_output"], depth=layer, at=at)
edit = do.interchange(taps["head_output"], from_head, depth=layer, units=units, at=at)
patched_head = run(network, base, edit)

# %% [markdown]
# ## Ablations, to zero and to a mean
#
# ```python
# # pyvene: zeroed, ablated
# settings = {"layer": layer, "component": "mlp_output"}
# model = pv.IntervenableModel({**settings, "intervention_type": pv.ZeroIntervention}, gpt2)
# zeroed = model({"input_ids": base}, unit_locations={"base": position})[1].logits[:, -1]
#
# # `max_number_of_units` has to be the number of positions: with fewer, a part of the width is collected
# tokens = base.shape[1]
# collecting = {**settings, "max_number_of_units": tokens, "intervention_type": pv.CollectIntervention}
# model = pv.IntervenableModel(collecting, gpt2)
# (_, collected), _ = model({"input_ids": base}, unit_locations={"base": [[list(range(tokens))] * len(base)]})
# mean = collected[0].flatten(0, 1).mean(0)
# constant = {**settings, "intervention_type": pv.VanillaIntervention, "source_representation": mean}
# model = pv.IntervenableModel(constant, gpt2)
# ablated = model({"input_ids": base}, unit_locations={"base": position})[1].logits[:, -1]
# ```
#
# ```python
# # TransformerLens: zeroed, ablated
# name = f"blocks.{layer}.hook_mlp_out"
# _, cache = bridge.run_with_cache(base)
#
# def write(value, hook, constant):
#     value[:, position] = constant
#     return value
#
# run = lambda constant: bridge.run_with_hooks(base, fwd_hooks=[(name, partial(write, constant=constant))])[:, -1]
# zeroed, ablated = run(0.0), run(cache[name].mean((0, 1)))
# ```
#
# ```python
# # nnsight: zeroed, ablated
# model = NNsight(gpt2)
# with model.trace(base):
#     mean = model.transformer.h[layer].mlp.output.mean((0, 1)).save()
# with model.trace(base):
#     model.transformer.h[layer].mlp.output[:, position] = 0
#     zeroed = model.output.logits[:, -1].save()
# with model.trace(base):
#     model.transformer.h[layer].mlp.output[:, position] = mean
#     ablated = model.output.logits[:, -1].save()
# ```

# %%
zeroed = run(network, base, do.zero(taps["mlp_output"], depth=layer, at=at))
ablated = run(network, base, do.mean(taps["mlp_output"], clean["mlp_output"], depth=layer, at=at))

# %% [markdown]
# ## Several sources
#
# ```python
# # pyvene: two_sources
# first = {"layer": 0, "component": "block_output", "intervention_type": pv.VanillaIntervention}
# second = {"layer": 2, "component": "mlp_output", "intervention_type": pv.VanillaIntervention}
# model = pv.IntervenableModel([first, second], gpt2)
# places = [[[2]] * len(base), [[position]] * len(base)]
# sources = [{"input_ids": source}, {"input_ids": other}]
# two_sources = model({"input_ids": base}, sources, {"sources->base": (places, places)})[1].logits[:, -1]
# ```
#
# ```python
# # TransformerLens: two_sources
# def take(value, hook, state, at):  # a hook's own name may be another than the one it was asked for by
#     value[:, at] = state[:, at]
#     return value
#
# first, second = "blocks.0.hook_resid_post", "blocks.2.hook_mlp_out"
# states = bridge.run_with_cache(source)[1][first], bridge.run_with_cache(other)[1][second]
# hooks = [(first, partial(take, state=states[0], at=2)), (second, partial(take, state=states[1], at=position))]
# two_sources = bridge.run_with_hooks(base, fwd_hooks=hooks)[:, -1]
# ```
#
# ```python
# # nnsight: two_sources
# model = NNsight(gpt2)
# with model.trace(source):
#     state = model.transformer.h[0].output.save()
# with model.trace(other):
#     wrote = model.transformer.h[2].mlp.output.save()
# with model.trace(base):
#     model.transformer.h[0].output[:, 2] = state[:, 2]
#     model.transformer.h[2].mlp.output[:, position] = wrote[:, position]
#     two_sources = model.output.logits[:, -1].save()
# ```
#
# `together` refuses edits that write the same place: an order that was not meant is no result.

# %%
third, wrote = np.full(len(base), 2), cached(network, other)["mlp_output"]
edits = do.together(
    do.interchange(taps["block_output"], do.taken(states, depth=0, at=third), depth=0, at=third),
    do.interchange(taps["mlp_output"], do.taken(wrote, depth=2, at=at), depth=2, at=at),
)
two_sources = run(network, base, edits)
try:
    do.together(edits, do.zero(taps["mlp_output"], depth=2))
except ValueError as error:
    print(error)

# %% [markdown]
# ## A path: what a head does to the logits by itself
#
# Every other head and MLP keeps its base value. TransformerLens has hooks for it, the others the like of them:
#
# ```python
# # TransformerLens: direct
# sender, receiver = "blocks.0.attn.hook_z", "blocks.2.hook_resid_post"
# frozen = [f"blocks.{block}.{part}" for block in range(3) for part in ("attn.hook_z", "hook_mlp_out")]
# (_, clean), (_, cache), received = bridge.run_with_cache(base), bridge.run_with_cache(source), []
#
# def freeze(value, hook, name):
#     value[:] = clean[name]
#     if name == sender:
#         value[:, -1, head] = cache[name][:, -1, head]
#     return value
#
# def keep(value, hook):
#     received.append(value.clone())
#
# bridge.run_with_hooks(base, fwd_hooks=[*((name, partial(freeze, name=name)) for name in frozen), (receiver, keep)])
# direct = bridge.run_with_hooks(base, fwd_hooks=[(receiver, lambda value, hook: received[0])])[:, -1]
# ```

# %%
last = np.full(len(base), base.shape[1] - 1)
from_head = do.taken(cache["head_output"], depth=0, at=last)
sender = do.interchange(taps["head_output"], from_head, depth=0, units=units, at=last)
direct = jax.jit(path_outputs)(network, base, sender, {"final_input": jnp.ones((1, 1), bool)})

# %% [markdown]
# ## Generation with a steering vector
#
# ```python
# # pyvene: generated
# settings = {"layer": layer, "component": "block_output", "intervention_type": pv.AdditionIntervention,
#             "source_representation": steer}
# model = pv.IntervenableModel(settings, gpt2)
# ids = {"input_ids": base}
# _, tokens = model.generate(ids, unit_locations=None, intervene_on_prompt=True, max_new_tokens=4, do_sample=False)
# generated = tokens[:, base.shape[1] :]
# ```
#
# ```python
# # TransformerLens: generated
# with bridge.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", lambda value, hook: value + steer)]):
#     tokens = bridge.generate(base, max_new_tokens=4, do_sample=False, stop_at_eos=False, verbose=False)
# generated = tokens[:, base.shape[1] :]
# ```
#
# ```python
# # nnsight: generated
# model = TransformersModel(gpt2, task="text-generation", tokenizer=tokenizer)
# with model.generate(base, max_new_tokens=4, do_sample=False) as tracer:
#     for step in tracer.iter[:4]:
#         model.transformer.h[layer].output[:] = model.transformer.h[layer].output + steer
#     tokens = tracer.result.save()
# generated = tokens[:, base.shape[1] :]
# ```
#
# Which passes are edited is said: the prompt and the steps are two arguments.

# %%
steer = 3 * np.random.default_rng(1).standard_normal(32).astype(np.float32)
steered = do.add(taps["block_output"], steer, depth=layer)
generated = generate(network, base, 4, prompt_edits=steered, step_edits=steered).tokens
print(generated.tolist())

# %% [markdown]
# [The next page](coming_from_searches.py) has attribution patching and alignment search.
#
# ## What is different in meaning
#
# - **Positions** are indices into the padded prompts, one for each prompt, and checked: a pad, or a token that is not
#   there, is refused. Negative ones do not count from the end; -1 is *no* position.
# - **Batches**: an edit sees all prompts, `[N, T, D]`. There is no broadcasting from one source to all bases: a source
#   for each base, or an error.
# - **Depth** is an axis and not a name. Every array of an edit leads with it; builders put it there. What the layer is,
#   is a value, so that one program serves all layers.
# - **Order**: edits of one run act where their taps are, and each sees what earlier ones have done. Two of one place
#   have no order until `InOrder` gives them one.
# - **No hooks**: nothing is registered, so nothing is left behind. A run without edits is the plain network, exactly.
# - **Weights** are as they were trained: no norm is folded, nothing is centred.
#
# ![How far each intervention of this page moves the logits of each prompt](coming_from.png)

# %%
plain = np.asarray(run(network, base, {}))
edited = {
    "state": patched, "head": patched_head, "zero": zeroed, "mean": ablated, "two sources": two_sources, "path": direct
}  # fmt: skip
figure, axes = plt.subplots(figsize=(4, 2.5), layout="constrained")
for row, logits in enumerate(edited.values()):
    axes.plot(np.abs(logits - plain).max(axis=1), np.full(len(base), row), "o", ms=4, color="0.2")
axes.set_yticks(range(len(edited)), list(edited))
axes.set(xlabel="largest change of a logit, a dot per prompt", xlim=(0, None))
axes.invert_yaxis()
figure.savefig("coming_from.png")
