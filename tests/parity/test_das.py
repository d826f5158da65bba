"""The alignment search against PyTorch: rotations, the gradient of its loss, and Adam steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.causal import PairBank
from abstraction.evaluation import cross_entropy
from abstraction.interventions import LocalHandle, random_frames, record_pairs, rotation_basis
from abstraction.interventions.patching import patched_outputs
from abstraction.localization import DASConfig, candidate_grid, train_rotations
from abstraction.localization.das import _rank_mask, _rotation
from abstraction.models import MLP

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
from benchmarks.torch_oracle import (  # noqa: E402
    DepthEdit,
    patched_logits,
    record_hidden,
    rotation,
    tensor,
    torch_mlp,
)

pytestmark = pytest.mark.parity

PAIRS, WIDTH = 256, 16
MODEL = MLP(16, WIDTH, 3, 2)
PARAMS = MODEL.init(jax.random.key(1))
NETWORK = torch_mlp(PARAMS)
BASE, SOURCE = np.random.default_rng(0).uniform(-1, 1, (2, PAIRS, 16)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 2, (2, PAIRS)).astype(np.int32)
PARAMETRIZATIONS = ("cayley", "expm", "qr")


@pytest.fixture(name="recording")
def _recording():
    return record_pairs(MODEL, PARAMS, BASE, SOURCE, taps=("hidden",))


def torch_loss(matrix, depth, rank, labels):
    """Mean cross-entropy of the network with the span of the first columns interchanged by a hook."""
    edit = DepthEdit(depth, torch.ones(rank), matrix[:, :rank], matrix[:, :rank].T)
    logits = patched_logits(NETWORK, tensor(BASE), record_hidden(NETWORK, tensor(SOURCE)), [edit])
    return torch.nn.functional.cross_entropy(logits, tensor(labels, torch.int64))


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_rotations_equal_their_formula_in_pytorch(name, rng):
    free = (0.3 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
    start = random_frames(jax.random.key(0), (), WIDTH)
    ours = _rotation(jnp.asarray(free), jnp.asarray(start), name)
    # float32 factorisations
    np.testing.assert_allclose(ours, rotation(tensor(free), tensor(start), name), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize(("depth", "rank"), [(0, 1), (1, 5), (2, 12)])
def test_gradient_of_the_search_loss_equals_autograd(name, depth, rank, rng, recording):
    free = (0.2 * rng.standard_normal((WIDTH, WIDTH))).astype(np.float32)
    start = random_frames(jax.random.key(0), (), WIDTH)

    def loss(free):
        matrix = _rotation(free, jnp.asarray(start), name)
        handle = LocalHandle(jnp.int32(depth), _rank_mask(jnp.int32(rank), WIDTH), rotation_basis(matrix), "hidden")
        return cross_entropy(patched_outputs(MODEL, PARAMS, recording, handle), jnp.asarray(LABELS[0])).mean()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(free))
    leaf = tensor(free).requires_grad_()
    expected = torch_loss(rotation(leaf, tensor(start), name), depth, rank, LABELS[0])
    (expected_gradient,) = torch.autograd.grad(expected, leaf)
    # float32 through a factorisation and its derivative; entries are compared with the largest
    np.testing.assert_allclose(value, expected.detach(), rtol=1e-6)
    scale = float(expected_gradient.abs().max())
    assert scale > 1e-4
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=2e-5 * scale)


@pytest.mark.parametrize(("ranks", "rate", "epochs"), [((1,), 1e-2, 12), ((4, 11), 3e-4, 6)])
def test_full_batch_training_takes_the_steps_of_adam_in_pytorch(ranks, rate, epochs, recording):
    candidates = candidate_grid(MODEL.taps["hidden"], 2, ranks=ranks, learning_rates=(rate,))
    key = jax.random.key(5)
    config = DASConfig(batch_size=PAIRS, max_epochs=epochs, min_epochs=epochs, patience=epochs)
    bank = PairBank({}, {}, np.zeros(PAIRS, np.int32), LABELS, np.ones((2, PAIRS), bool), ("first", "second"), "fit")
    ours = train_rotations(key, MODEL, PARAMS, recording, bank, candidates, tap="hidden", config=config)
    starts = random_frames(jax.random.split(key)[0], candidates.depth.shape, WIDTH)
    for index, start in enumerate(starts):
        depth, rank, variable = (int(getattr(candidates, name)[index]) for name in ("depth", "rank", "variable"))
        curve, projector = torch_training(start, depth, rank, LABELS[variable], epochs, rate)
        np.testing.assert_allclose(ours.curve[:, index], curve, rtol=1e-6)
        # Turns within a subspace change no loss, so Adam takes them as rounding has it, at random. The projector
        # forgets them to first order only: short steps where there are such turns, long ones for a line, without.
        np.testing.assert_allclose(ours.projector[index], projector, rtol=0, atol=3e-5)
        frame = start[:, :rank]
        assert np.abs(projector - frame @ frame.T).max() > 5e-3


def torch_training(start, depth, rank, labels, epochs, rate):
    """Train one rotation with PyTorch's Adam; return its losses and the projector it ends at."""
    free = torch.zeros(WIDTH, WIDTH, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=rate)
    losses = []
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = torch_loss(rotation(free, tensor(start), "cayley"), depth, rank, labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    frame = rotation(free, tensor(start), "cayley")[:, :rank].detach().numpy()
    return losses, frame @ frame.T
