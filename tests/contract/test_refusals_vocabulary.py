"""Bad inputs of builders, features, paths, chains and generation: refused by name, before anything is compiled."""

import jax
import numpy as np
import pytest
from decoder_families import FAMILIES, drawn
from refusals import Refusal, check_refusal
from safetensors.numpy import save_file

from abstraction.interventions import Basis
from abstraction.interventions import building as do
from abstraction.interventions.autoencoders import autoencoder, read_autoencoder
from abstraction.interventions.featurizers import invertible
from abstraction.interventions.gates import boundary_gate, sigmoid_gate
from abstraction.interventions.paths import path_outputs
from abstraction.interventions.sources import Link, chained_outputs
from abstraction.models import MLP, Decoder, Network, Tap
from abstraction.models.generation import Sampling, generate

L, N, T, D = 3, 4, 5, 6
TAP = Tap("stream", D, L)
STATES = np.random.default_rng(0).standard_normal((L, N, T, D)).astype(np.float32)
NAN = np.where(np.arange(D) == 2, np.nan, 1.0)
KEY = jax.random.key(0)
EYE = Basis(*(np.tile(np.eye(D, dtype=np.float32), (L, 1, 1)),) * 2, np.zeros((L, D), np.float32))
SLANTED = np.tile(np.ones((D, 1), np.float32), (L, 1, 1))
ONE = Basis(SLANTED, SLANTED.mT / D, np.zeros((L, D), np.float32))
MODEL = MLP(2, 4, 3, 2)
NETWORK = Network(MODEL, MODEL.init(KEY))
INPUTS = np.ones((5, 2), np.float32)
SENDERS = do.zero(MODEL.taps["hidden"], depth=0)
ALL = np.ones((3, 1), bool)
DECODER = Decoder(FAMILIES["gpt2"])
GPT = Network(DECODER, drawn(DECODER))
PROMPTS = np.array([[-1, 1, 2], [3, 4, 5]])
SAE = {"W_enc": np.ones((D, 8)), "b_enc": np.ones(8), "W_dec": np.ones((8, D)), "b_dec": np.ones(D)}

PLACES = [
    ("depth 3", lambda: do.zero(TAP, depth=3), r"depths of tap 'stream' \[3\], expected some of 0 to 2"),
    ("depth -1", lambda: do.zero(TAP, depth=-1), r"\[-1\]"),
    ("half a depth", lambda: do.zero(TAP, depth=0.5), "expected a list of integers"),
    ("a depth twice", lambda: do.zero(TAP, depth=[1, 1]), "each once"),
    ("no depth", lambda: do.zero(TAP, depth=[]), r"number of depths \[0\]"),
    ("a mask of depths", lambda: do.zero(TAP, depth=[True, False, True]), "list of integers"),
    ("unit 6", lambda: do.add(TAP, 1.0, units=[6]), r"units of tap 'stream' \[6\], expected some of 0 to 5"),
    ("no unit", lambda: do.scale(TAP, 1.0, units=[]), r"number of units \[0\]"),
    ("a unit twice", lambda: do.clamp(TAP, 0, 1, units=[2, 2]), "each once"),
    ("position -2", lambda: do.zero(TAP, at=np.array([0, -2])), "position -2"),
    ("a position twice", lambda: do.zero(TAP, at=np.array([[1, 1]])), "each token at most once"),
    ("half positions", lambda: do.zero(TAP, at=np.array([0.5])), "expected integers"),
    ("a matrix as basis", lambda: do.zero(TAP, basis=np.eye(D)), "expected a Basis or another FeatureMap"),
    (
        "a basis of two depths",
        lambda: do.zero(TAP, basis=jax.tree.map(lambda x: x[:2], EYE)),
        "leading depth axis of 3",
    ),
    ("feature 1 of 1", lambda: do.zero(TAP, units=[1], basis=ONE), r"\[1\], expected some of 0 to 0"),
]

VALUES = [
    ("a value of NaN", lambda: do.constant(TAP, NAN), "value with 1 values of 6 not finite"),
    ("an infinite value", lambda: do.constant(TAP, np.inf), "not finite"),
    (
        "a short value",
        lambda: do.constant(TAP, np.ones(4)),
        r"value of shape \(4,\) at tap 'stream', expected a number",
    ),
    ("values of two depths", lambda: do.constant(TAP, np.ones((2, D))), r"expected a number, \[6\] or \[3, ..., 6\]"),
    ("words", lambda: do.add(TAP, np.array(["a"])), "vector of type"),
    ("a target of NaN", lambda: do.lerp(TAP, NAN, 0.5), "target with"),
    ("a weight of NaN", lambda: do.lerp(TAP, 1.0, np.nan), "weight with"),
    ("a factor of NaN", lambda: do.scale(TAP, np.nan), "factor with"),
    ("a bound of NaN", lambda: do.clamp(TAP, NAN, 2.0), "low .*nan"),
    ("bounds the wrong way", lambda: do.clamp(TAP, 1.0, np.zeros(D)), "low 1.0 above high"),
    ("a seed as key", lambda: do.noise(TAP, 0, 1.0), "expected one typed key"),
    ("a deviation of NaN", lambda: do.noise(TAP, KEY, np.nan), "deviation with"),
    (
        "sources of two depths",
        lambda: do.interchange(TAP, STATES[:2]),
        r"source of shape \(2, 4, 5, 6\).*\[3, N, ..., 6\]",
    ),
    ("sources of another width", lambda: do.interchange(TAP, STATES[..., :4]), "for tap 'stream', expected"),
    ("one source of one depth", lambda: do.interchange(TAP, STATES[0, 0, 0], depth=1), r"expected \[N, ..., 6\]"),
    ("states of another width", lambda: do.mean(TAP, STATES[..., :4]), r"states of shape .*expected \[3, N, ..., 6\]"),
    ("states of NaN", lambda: do.mean(TAP, STATES * np.nan), "states with"),
    ("nothing present", lambda: do.mean(TAP, STATES, present=np.zeros((N, T), bool)), "one or more true"),
    ("present as numbers", lambda: do.mean(TAP, STATES, present=np.ones((N, T))), "expected truth values"),
    ("depth 3 of a source", lambda: do.taken(STATES, depth=3), "depth 3 of a source, expected 0 to 2"),
    ("position 5 of 5", lambda: do.taken(STATES, at=np.array([0, 1, 2, 5])), "position 5 in prompt 3"),
    ("positions of states without", lambda: do.taken(STATES[:, :, 0], at=np.zeros(N, int)), r"expected \[L, N, T, D\]"),
    ("temperature 0", lambda: sigmoid_gate(np.ones(3), 0.0), "temperature 0.0, expected a positive"),
    ("temperature NaN", lambda: boundary_gate(1.0, 3, np.nan), "temperature nan"),
    ("no features", lambda: boundary_gate(1.0, 0, 1.0), "features 0, expected at least 1"),
    ("a word as compat", lambda: boundary_gate(1.0, 3, 1.0, compat="no"), "expected True or False"),
]

ROTATED = {"units": [0], "basis": EYE}
TOGETHER = [
    (
        "two sets",
        lambda: do.together(do.zero(TAP), do.constant(TAP, 1.0, units=[3])),
        "Set and Set, at depth 0, coord.* 3",
    ),
    (
        "a set and an interchange",
        lambda: do.together(do.zero(TAP, depth=1, units=[2]), do.interchange(TAP, STATES, units=[1, 2])),
        "two writes of tap 'stream', Set and Interchange, at depth 1, coordinate 2",
    ),
    ("a set and a clamp", lambda: do.together(do.zero(TAP, units=[0]), do.clamp(TAP, 0, 1)), "Set and Clamp"),
    ("a set and a scale", lambda: do.together(do.zero(TAP, units=[0]), do.scale(TAP, 2.0)), "Set and Scale"),
    (
        "one position",
        lambda: do.together(
            do.zero(TAP, at=np.array([0, 1, 2, -1])), do.constant(TAP, 1.0, at=np.array([1, 2, 2, -1]))
        ),
        "at depth 0, example 2",
    ),
    ("a feature and its unit", lambda: do.together(do.zero(TAP, **ROTATED), do.zero(TAP, units=[0])), "at depth 0"),
    (
        "a feature that is read of all units",
        lambda: do.together(do.interchange(TAP, STATES, basis=ONE), do.zero(TAP, depth=2, units=[4])),
        "Interchange and Set, at depth 2",
    ),
    (
        "two features that overlap",
        lambda: do.together(do.interchange(TAP, STATES, basis=ONE), do.interchange(TAP, STATES, **ROTATED)),
        "Interchange and Interchange",
    ),
    (
        "a renormalised addition",
        lambda: do.together(do.renormalised(do.add(TAP, 1.0, units=[0])), do.zero(TAP, units=[1])),
        "and Set",
    ),
    ("an edit without its tap", lambda: do.together(do.zero(TAP)["stream"]), "expected edits by tap"),
]


def _turned(params, values):
    return values[..., ::-1] * params


def _invertible(back=_turned, sample=STATES[0, 0], **options):
    return invertible(_turned, back, np.float32(2.0), sample=sample, **options)


FEATURES = [
    ("functions that are not inverse", _invertible, "from inverse on the sample"),
    ("no function", lambda: _invertible(back=3), "backward 3, expected Callable"),
    ("a sample of NaN", lambda: _invertible(sample=STATES[0, 0] * np.nan), "sample with"),
    ("a sample of one vector", lambda: _invertible(sample=STATES[0, 0, 0]), r"expected \[N, D\]"),
    ("a kind that is none", lambda: autoencoder(SAE, "gated"), "kind 'gated', expected one of"),
    ("no decoder", lambda: autoencoder({"W_enc": SAE["W_enc"]}, "relu"), "expected one of .*'b_enc'"),
    ("no threshold", lambda: autoencoder(SAE, "jump_relu"), "'threshold'"),
    (
        "a decoder the other way",
        lambda: autoencoder({**SAE, "W_dec": np.ones((D, 8))}, "relu"),
        r"W_dec of shape \(6, 8\)",
    ),
    (
        "biases of fewer",
        lambda: autoencoder({**SAE, "b_enc": np.ones(7)}, "relu"),
        r"b_enc of shape \(7,\), expected \(8,\)",
    ),
    ("weights of NaN", lambda: autoencoder({**SAE, "b_dec": NAN}, "relu"), "b_dec with"),
    ("a vector as encoder", lambda: autoencoder({**SAE, "W_enc": np.ones(8)}, "relu"), r"expected \[D, K\]"),
    ("top of another kind", lambda: autoencoder(SAE, "relu", top=2), "expected a number for 'top_k'"),
    ("no top", lambda: autoencoder(SAE, "top_k"), "expected a number for 'top_k'"),
    ("top 9 of 8", lambda: autoencoder(SAE, "top_k", top=9), "top 9, expected 1 to 8"),
    ("a word as centered", lambda: autoencoder(SAE, "relu", centered="no"), "expected True or False"),
    ("a pickle", lambda: read_autoencoder("sae.pt", "relu"), "suffix '.pt', expected one of"),
]


def _paths(senders=SENDERS, receivers=None, **options):
    receivers = {"logits": np.ones((1, 1), bool)} if receivers is None else receivers
    return path_outputs(NETWORK, INPUTS, senders, receivers, **{"frozen": ("preactivation",), **options})


PATHS = [
    ("no sender", lambda: _paths({}), "expected some of each"),
    ("no receiver", lambda: _paths(receivers={}), "expected some of each"),
    ("an unknown sender", lambda: _paths({"hiden": SENDERS["hidden"]}), r"edit of \['hiden'\]"),
    ("an unknown receiver", lambda: _paths(receivers={"hiden": ALL}), r"record of \['hiden'\]"),
    ("an unknown frozen tap", lambda: _paths(frozen=("head_output",)), r"record of \['head_output'\]"),
    ("a receiver that is frozen", lambda: _paths(receivers={"preactivation": ALL}), "that are frozen"),
    ("places of two depths", lambda: _paths(receivers={"hidden": ALL[:2]}), r"shape \(2, 1\) in tap 'hidden'"),
    ("places as numbers", lambda: _paths(receivers={"hidden": np.ones((3, 1))}), "expected truth values"),
    ("places nowhere", lambda: _paths(receivers={"hidden": ~ALL}), "some true"),
    ("a base run of other taps", lambda: _paths(base={"inputs": INPUTS}), r"expected one with \['preactivation'\]"),
    ("no source in a chain", lambda: chained_outputs(NETWORK, [], INPUTS), "0 sources"),
    (
        "a link that records nothing",
        lambda: chained_outputs(NETWORK, [Link(INPUTS, (), dict)], INPUTS),
        "tap to record",
    ),
]


def _made(prompts=PROMPTS, steps=3, network=GPT, **options):
    return generate(network, prompts, steps, **options)


BLOCKS = DECODER.taps["block_output"]
GENERATION = [
    ("a network that is no decoder", lambda: _made(network=NETWORK), "MLP, expected one of Decoder"),
    (
        "answer symbols",
        lambda: _made(network=Network(Decoder(FAMILIES["gpt2"], answers=((1,), (2,))), GPT.params)),
        "expected one of the whole vocabulary",
    ),
    ("no steps", lambda: _made(steps=0), "steps 0, expected at least 1"),
    ("half a step", lambda: _made(steps=1.5), "steps 1.5"),
    ("padding on the right", lambda: _made(PROMPTS[:, ::-1]), "prompt 0 padded on the right"),
    ("a token that is none", lambda: _made(PROMPTS + 30), "expected ids from 0 to 22"),
    ("too many tokens", lambda: _made(steps=11), "3 tokens and 11 steps, expected at most 12 positions"),
    ("an unknown tap", lambda: _made(step_edits={"stream": do.zero(BLOCKS)["block_output"]}), r"\['stream'\]"),
    (
        "a position of padding",
        lambda: _made(prompt_edits=do.zero(BLOCKS, at=np.array([0, 0]))),
        "position 0 in prompt 0",
    ),
    ("pass 0", lambda: _made(passes=[0]), r"passes \[0\].*1 to 2; 0 is the prompt"),
    ("pass 3 of 3", lambda: _made(passes=[3]), r"passes \[3\]"),
    ("passes by a mask", lambda: _made(passes=[True, False]), r"passes \[True, False\]"),
    ("a temperature without a key", lambda: _made(sampling=Sampling(1.0)), "expected a key"),
    ("a key without a temperature", lambda: _made(sampling=Sampling(key=KEY)), "temperature 0"),
    ("a seed", lambda: _made(sampling=Sampling(1.0, 3)), "expected one typed key"),
    ("a temperature below 0", lambda: _made(sampling=Sampling(-1.0, KEY)), "temperature -1.0"),
    ("a stop that is no token", lambda: _made(sampling=Sampling(stop=(23,))), r"stop tokens \[23\]"),
    ("logits as a word", lambda: _made(sampling=Sampling(logits="yes")), "expected True or False"),
]

ROWS = [Refusal(*row) for row in (*PLACES, *VALUES, *TOGETHER, *FEATURES, *PATHS, *GENERATION)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.usefixtures("unchecked")
def test_bad_inputs_are_refused(row):
    check_refusal(row)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_a_damaged_autoencoder_is_refused(tmp_path, suffix):
    path = tmp_path / f"sae{suffix}"
    save_file({name: np.asarray(array, np.float32) for name, array in SAE.items()}, path)
    if suffix == ".npz":
        np.savez(path, **SAE)
    path.write_bytes(path.read_bytes()[:100])
    check_refusal(Refusal("damaged", lambda: read_autoencoder(path, "relu"), "unusable file"))
    with pytest.raises(FileNotFoundError, match=r"none\."):
        read_autoencoder(tmp_path / f"none{suffix}", "relu")
