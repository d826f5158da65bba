"""Patched outputs, effect signatures and interchange accuracy against PyTorch hooks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import PairBank
from abstraction.evaluation import record, tally_handles
from abstraction.interventions import Handle, group_sites, pca_basis, rotation_basis, state_sites, unit_sites
from abstraction.interventions.bases import random_frames
from abstraction.interventions.handles import stack_handles, take_handle
from abstraction.interventions.patching import patched_outputs, run_pairs
from abstraction.localization import Signature
from abstraction.localization.signatures import site_signatures
from abstraction.models import MLP, Network

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
from benchmarks.torch_oracle import (  # noqa: E402
    depth_edits,
    looped_logits,
    patched_logits,
    prob_delta,
    record_hidden,
    tensor,
    torch_mlp,
)

pytestmark = pytest.mark.parity

PAIRS, WIDTH, DEPTH = 300, 16, 3
MODEL = MLP(16, WIDTH, DEPTH, 2)
OURS = Network(MODEL, MODEL.init(jax.random.key(1)))
NETWORK = torch_mlp(OURS.params)
BASE, SOURCE = np.random.default_rng(0).uniform(-1, 1, (2, PAIRS, 16)).astype(np.float32)
TAP = "hidden"
# float32 products summed in another order; strengths up to 8 extrapolate and cancel
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(name="runs")
def _runs():
    return run_pairs(OURS, BASE, SOURCE, taps=(TAP,))


def hook_logits(handle):
    states = record_hidden(NETWORK, tensor(SOURCE))
    return patched_logits(NETWORK, tensor(BASE), states, depth_edits(handle))


def single(bank, site):
    return take_handle(jax.tree.map(jnp.asarray, bank.handles()), site)


def frames(features, *shape):
    return random_frames(jax.random.key(features), shape, WIDTH, features)


def whitened():
    return pca_basis(jax.random.normal(jax.random.key(2), (50, WIDTH)), rank=5, whitened=True)


UNIT = np.linspace(0.1, 1, WIDTH, dtype=np.float32)
HANDLES = {
    "one coordinate": Handle(TAP, np.eye(DEPTH * WIDTH, dtype=np.float32)[20].reshape(DEPTH, WIDTH)),
    "several depths": Handle(TAP, np.random.default_rng(2).uniform(0, 1, (DEPTH, WIDTH)).astype(np.float32)),
    "strength 8": Handle(TAP, np.float32(8 * np.random.default_rng(3).dirichlet(np.ones(WIDTH), DEPTH))),
    "negative strength": Handle(TAP, np.array([[-0.5], [0], [1.5]], np.float32) * UNIT),
    "rotations at every depth": Handle(
        TAP,
        np.random.default_rng(4).uniform(0, 2, (DEPTH, WIDTH)).astype(np.float32),
        rotation_basis(frames(WIDTH, DEPTH)),
    ),
    "subspaces at every depth": Handle(TAP, np.full((DEPTH, 3), 1.5, np.float32), rotation_basis(frames(3, DEPTH))),
    "local coordinates": Handle(TAP, UNIT, depth=np.array(1)),
    "local rotation": Handle(TAP, 2 * UNIT, rotation_basis(frames(WIDTH)), np.array(0)),
    "local subspace": Handle(TAP, np.ones(4, np.float32), rotation_basis(frames(4)), np.array(2)),
    "local whitened components": Handle(TAP, UNIT[:5], whitened(), np.array(1)),
}


@pytest.mark.parametrize("name", HANDLES)
def test_patched_outputs_equal_hooks(name, runs):
    handle = HANDLES[name]
    ours = np.asarray(patched_outputs(OURS, runs, handle))
    np.testing.assert_allclose(ours, hook_logits(handle), **CLOSE)
    # the handle changes the output, so that agreement says something
    assert np.abs(ours - np.asarray(runs.outputs)).max() > 0.01


@pytest.mark.parametrize(
    "sites", [unit_sites, lambda tap: group_sites(tap, 5), state_sites], ids=["unit", "group", "state"]
)
def test_site_signatures_equal_the_loop_over_sites_and_batches(sites, runs):
    bank = sites(MODEL.taps[TAP])
    base, source = tensor(BASE), tensor(SOURCE)
    loop = [
        prob_delta(looped_logits(NETWORK, base, source, depth_edits(single(bank, site))), NETWORK(base))
        for site in range(bank.size)
    ]
    ours = site_signatures(OURS, runs, bank)
    # differences of probabilities near .5: the rounding error of float32 is absolute
    np.testing.assert_allclose(ours, torch.stack(loop), rtol=0, atol=1e-6)
    assert np.abs(np.asarray(ours)).max() > 0.01


def _margin(logits):
    return logits[:, 1] - logits[:, 0]


def _kl(patched, base):
    divergence = torch.nn.functional.kl_div(
        base.log_softmax(-1), patched.log_softmax(-1), reduction="none", log_target=True
    )
    return 1 - torch.exp(-divergence.sum(-1))


TORCH_EFFECTS = {
    "logit_delta": lambda patched, base: (patched - base).T.flatten(),
    "margin_delta": lambda patched, base: _margin(patched) - _margin(base),
    "transition_margin": lambda patched, base: torch.cat(
        [(_margin(patched) - _margin(base)).relu(), (_margin(base) - _margin(patched)).relu()]
    ),
    "kl": _kl,
    "tv": lambda patched, base: (patched.softmax(-1) - base.softmax(-1)).abs().sum(-1) / 2,
}


@pytest.mark.parametrize("mode", TORCH_EFFECTS)
def test_every_signature_mode_equals_its_formula_in_pytorch(mode, runs):
    bank = state_sites(MODEL.taps[TAP])
    base = NETWORK(tensor(BASE))
    expected = [TORCH_EFFECTS[mode](hook_logits(single(bank, site)), base) for site in range(bank.size)]
    # differences of logits and probabilities of order one, in float32
    np.testing.assert_allclose(
        site_signatures(OURS, runs, bank, Signature(mode)), torch.stack(expected), rtol=0, atol=2e-6
    )


def test_interchange_accuracy_and_loss_equal_the_loop_over_handles(rng):
    labels = rng.integers(0, 2, (2, PAIRS)).astype(np.int32)
    factual = rng.integers(0, 2, PAIRS).astype(np.int32)
    eligible = rng.random((2, PAIRS)) < 0.7
    bank = PairBank({"x": BASE}, {"x": SOURCE}, factual, labels, eligible, ("first", "second"), "calibration")
    handles = [Handle(TAP, weight) for weight in rng.uniform(0, 1.5, (6, DEPTH, WIDTH)).astype(np.float32)]
    variable = np.array([0, 1, 0, 1, 1, 0])
    recorded = record(OURS, lambda setting: setting["x"], bank, tap=TAP)
    tally = tally_handles(OURS, recorded, stack_handles(handles), variable)
    for index, (handle, v) in enumerate(zip(handles, variable, strict=True)):
        logits, target = hook_logits(handle), tensor(labels[v], torch.int64)
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none").numpy()
        hit = (logits.argmax(-1) == target).numpy()
        for half, mask in enumerate((labels[v] != factual, labels[v] == factual)):
            counted = mask & eligible[v]
            assert tally.pairs[index, half] == counted.sum() > 0
            assert tally.hits[index, half] == hit[counted].sum()
            # a float32 sum over a hundred pairs
            np.testing.assert_allclose(tally.loss[index, half], loss[counted].sum(), rtol=1e-5)
