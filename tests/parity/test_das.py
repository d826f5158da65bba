"""The alignment search against PyTorch: rotations and oblique maps, the gradient of its loss, and Adam steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import PairBank
from abstraction.evaluation import CLASSES, record
from abstraction.interventions import Handle
from abstraction.interventions.patching import patched_outputs, run_pairs
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports
from abstraction.localization.searching import train_candidates
from abstraction.models import MLP, Network

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
from benchmarks.torch_oracle import (  # noqa: E402
    DepthEdit,
    patched_logits,
    record_hidden,
    tensor,
    torch_mlp,
)

pytestmark = pytest.mark.parity

PAIRS, WIDTH = 256, 16
MODEL = MLP(16, WIDTH, 3, 2)
OURS = Network(MODEL, MODEL.init(jax.random.key(1)))
NETWORK = torch_mlp(OURS.params)
BASE, SOURCE = np.random.default_rng(0).uniform(-1, 1, (2, PAIRS, 16)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 2, (2, PAIRS)).astype(np.int32)
PARAMETRIZATIONS = ("cayley", "expm", "qr", "oblique")


@pytest.fixture(name="runs")
def _runs():
    return run_pairs(OURS, BASE, SOURCE, taps=("hidden",))


def starts(**options):
    tap = MODEL.taps["hidden"]
    return candidate_grid(jax.random.key(0), tap, full_supports(tap, range(2)), **options)


def torch_basis(start, free, name):
    """Move a start by free matrices, by the definitions in whole D x D matrices: an encoder and its decoder."""
    if name == "oblique":
        encoder, other = start + free[0], (start + free[1]).T
        return encoder, torch.linalg.solve(other @ encoder, other)
    (free,) = free
    if name == "qr":
        factor, triangle = torch.linalg.qr(start + free)
        encoder = factor * torch.sign(torch.diagonal(triangle))
    else:
        free, identity = free - start @ (start.T @ free), torch.eye(len(start), dtype=start.dtype)
        skew = start @ free.T - free @ start.T
        turn = torch.matrix_exp(-skew) if name == "expm" else torch.linalg.solve(identity + skew, identity - skew)
        encoder = turn @ start
    return encoder, encoder.T


def torch_loss(basis, depth, labels):
    """Mean cross-entropy of the network with the features interchanged by a hook."""
    encoder, decoder = basis
    edit = DepthEdit(depth, torch.ones(len(decoder)), encoder, decoder)
    logits = patched_logits(NETWORK, tensor(BASE), record_hidden(NETWORK, tensor(SOURCE)), [edit])
    return torch.nn.functional.cross_entropy(logits, tensor(labels, torch.int64))


def frees(name, rng, rank, size):
    """Draw what a parametrization lets free."""
    return {key: (size * rng.standard_normal((WIDTH, rank))).astype(np.float32) for key in Rotation(name).rates}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("rank", [1, 3, WIDTH])
def test_bases_equal_their_formula_in_pytorch(name, rank, rng):
    free, candidate = frees(name, rng, rank, 0.1), starts(ranks=(rank,)).take(0)
    _, ours = Rotation(name).final(jax.tree.map(jnp.asarray, free), candidate)
    theirs = torch_basis(tensor(candidate.start), [tensor(array) for array in free.values()], name)
    # float32 factorisations
    np.testing.assert_allclose(ours.encoder, theirs[0], rtol=0, atol=5e-6)
    np.testing.assert_allclose(ours.decoder, theirs[1], rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize(("depth", "rank"), [(0, 1), (1, 5), (2, 12)])
def test_gradient_of_the_search_loss_equals_autograd(name, depth, rank, rng, runs):
    free, candidates = frees(name, rng, rank, 0.05), starts(ranks=(rank,))
    candidate = candidates.take(int(np.flatnonzero(np.asarray(candidates.depth) == depth)[0]))

    def loss(free):
        weight, basis = Rotation(name).features(free, candidate, jnp.zeros(()))
        handle = Handle("hidden", weight, basis, candidate.depth)
        return CLASSES.loss(patched_outputs(OURS, runs, handle), jnp.asarray(LABELS[0])).mean()

    value, gradients = jax.value_and_grad(loss)(jax.tree.map(jnp.asarray, free))
    leaves = [tensor(array).requires_grad_() for array in free.values()]
    expected = torch_loss(torch_basis(tensor(candidate.start), leaves, name), depth, LABELS[0])
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    for key, wanted in zip(free, torch.autograd.grad(expected, leaves), strict=True):
        # float32 through a factorisation and its derivative; entries are compared with the largest
        scale = float(wanted.abs().max())
        assert scale > 1e-4
        np.testing.assert_allclose(gradients[key], wanted, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(
    ("name", "ranks", "rate", "epochs", "moved"),
    [("cayley", (1,), 1e-2, 12, 5e-3), ("cayley", (4, 11), 3e-4, 6, 5e-3), ("oblique", (1, 4), 3e-4, 6, 1e-3)],
)
def test_full_batch_training_takes_the_steps_of_adam_in_pytorch(name, ranks, rate, epochs, moved):
    candidates = starts(ranks=ranks, learning_rates=(rate,))
    config = SearchConfig(batch_size=PAIRS, max_epochs=epochs, min_epochs=epochs, patience=epochs)
    factual, eligible = np.zeros(PAIRS, np.int32), np.ones((2, PAIRS), bool)
    bank = PairBank({"x": BASE}, {"x": SOURCE}, factual, LABELS, eligible, ("first", "second"), "fit")
    fit = record(OURS, lambda setting: setting["x"], bank, tap="hidden")
    ours = train_candidates(jax.random.key(5), OURS, fit, candidates, Rotation(name), config)
    basis, weight = ours.handles.basis, np.asarray(ours.handles.weight)
    projectors = (np.asarray(basis.encoder) * weight[:, None, :]) @ np.asarray(basis.decoder)
    for index, start in enumerate(candidates.start):
        depth, rank, variable = (int(getattr(candidates, column)[index]) for column in ("depth", "rank", "variable"))
        curve, projector = torch_training(name, start[:, :rank], depth, LABELS[variable], epochs, rate)
        np.testing.assert_allclose(ours.curve[:, index], curve, rtol=1e-6)
        # Turns within a subspace change no loss, so Adam takes them as rounding has it, at random. The projector
        # forgets them to first order only: short steps where there are such turns, long ones for a line, without.
        # An oblique map has more of them, a line included: scales, and what is read or written beside the features.
        np.testing.assert_allclose(projectors[index], projector, rtol=0, atol=3e-5)
        assert np.abs(projector - start @ start.T).max() > moved


def torch_training(name, start, depth, labels, epochs, rate):
    """Train one candidate with PyTorch's Adam; return its losses and the projector it ends at."""
    rates = Rotation(name).rates
    free = [torch.zeros(start.shape, requires_grad=True) for _ in rates]
    groups = [{"params": [leaf], "lr": rate * factor} for leaf, factor in zip(free, rates.values(), strict=True)]
    optimizer, start = torch.optim.Adam(groups), tensor(start)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = torch_loss(torch_basis(start, free, name), depth, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    encoder, decoder = (matrix.detach().numpy() for matrix in torch_basis(start, free, name))
    return losses, encoder @ decoder
