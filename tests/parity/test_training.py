"""Row P24: two hundred steps of DAS in batches, beside PyTorch's.

    the same start, batches and map:          the same losses and projector R R^T, step after step
    the same start and batches, other maps:   the same projector at the end, where the subspace is planted

Maps of free numbers to orthonormal columns differ, so that only what they span can be compared.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import noticed

from abstraction.causal import PairBank
from abstraction.evaluation import record
from abstraction.localization import Rotation, SearchConfig, candidate_grid, full_supports, searching
from abstraction.localization.searching import train_candidates
from abstraction.models import MLP, Network

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
from benchmarks.torch_oracle import DepthEdit, patched_logits, record_hidden, tensor, torch_mlp  # noqa: E402

pytestmark = pytest.mark.parity

PAIRS, BATCH, EPOCHS, WIDTH, DEPTH = 128, 32, 50, 6, 1
STEPS = EPOCHS * (PAIRS // BATCH)
RATE = 2e-2
MODEL = MLP(5, WIDTH, 2, 3, "tanh")


def problem():
    """A random network whose labels are its own answers when a planted direction is swapped."""
    rng = np.random.default_rng(23)
    params = jax.tree.map(lambda leaf: 2 * leaf, MODEL.init(jax.random.key(5)))
    network = torch_mlp(params, "tanh")
    base, source = rng.standard_normal((2, PAIRS, 5)).astype(np.float32) * 2
    # What moves the outputs most.
    planted = np.linalg.svd(np.asarray(params["head"]["kernel"]))[0][:, :1]
    states = record_hidden(network, tensor(source))
    edit = DepthEdit(DEPTH, torch.ones(1), tensor(planted), tensor(planted.T))
    labels = patched_logits(network, tensor(base), states, [edit]).argmax(-1).numpy().astype(np.int32)
    factual = network(tensor(base)).argmax(-1).numpy().astype(np.int32)
    return Network(MODEL, params), network, base, source, labels, factual, planted


def ours(name, found):
    network, _, base, source, labels, factual, _ = found
    bank = PairBank({"x": base}, {"x": source}, factual, labels[None], np.ones((1, PAIRS), bool), ("z",), "fit")
    fit, tap = record(network, lambda setting: setting["x"], bank, tap="hidden"), MODEL.taps["hidden"]
    support = full_supports(tap, [0], [DEPTH])[0]
    candidates = candidate_grid(jax.random.key(0), tap, [support], ranks=(1,), learning_rates=(RATE,))
    config = SearchConfig(batch_size=BATCH, max_epochs=EPOCHS, min_epochs=EPOCHS, patience=EPOCHS)
    searched = train_candidates(KEY, network, fit, candidates, Rotation(name), config)
    basis = searched.handles.basis
    return np.asarray(searched.curve)[:, 0], basis.encoder[0] @ basis.decoder[0], candidates.start[0]


KEY = jax.random.key(9)


def theirs(name, start, found):
    """Train with PyTorch's Adam on the same batches: losses of epochs and the projector at the end."""
    _, network, base, source, labels, *_ = found
    start = tensor(start)
    if name == "orthogonal":
        layer = torch.nn.Linear(1, WIDTH, bias=False)
        torch.nn.utils.parametrizations.orthogonal(layer)
        layer.weight = start
        free, frame = list(layer.parameters()), lambda: layer.weight
    else:
        moves = torch.zeros(start.shape, requires_grad=True)
        free, frame = [moves], lambda: _cayley(start, moves)
    # Cayley's free matrix stands for both halves of a skew one, which both would take steps.
    optimizer = torch.optim.Adam(free, lr=RATE * (1 if name == "orthogonal" else 2))
    losses = []
    for epoch in range(EPOCHS):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(KEY, epoch), PAIRS))
        mean = []
        for rows in order.reshape(-1, BATCH):
            optimizer.zero_grad()
            matrix = frame()
            edit = DepthEdit(DEPTH, torch.ones(1), matrix, matrix.T)
            logits = patched_logits(network, tensor(base[rows]), record_hidden(network, tensor(source[rows])), [edit])
            loss = torch.nn.functional.cross_entropy(logits, tensor(labels[rows], torch.int64))
            loss.backward()
            optimizer.step()
            mean.append(loss.item())
        losses.append(np.mean(mean))
    matrix = frame().detach().numpy()
    return np.array(losses), matrix @ matrix.T


def _cayley(start, free):
    free, identity = free - start @ (start.T @ free), torch.eye(WIDTH)
    skew = start @ free.T - free @ start.T
    return torch.linalg.solve(identity + skew, identity - skew) @ start


def check_training():
    """P24."""
    found = problem()
    labels, factual, planted = found[4:]
    assert (labels != factual).mean() > 0.1, "the planted swap moves nothing"
    curve, projector, start = ours("cayley", found)
    assert np.abs(projector - start @ start.T).max() > 0.1, "nothing is trained"
    same, wanted = theirs("cayley", start, found)
    assert len(curve) * (PAIRS // BATCH) == STEPS == 200
    # Rounding of float32 grows with the steps of Adam, which divides by the size of gradients.
    np.testing.assert_allclose(curve, same, rtol=2e-4)
    np.testing.assert_allclose(projector, wanted, rtol=0, atol=5e-4)
    other, spanned = theirs("orthogonal", start, found)
    assert other[-1] < 0.8 * other[0]
    # Two maps at a finite rate, in batches: both hover about one minimum.
    np.testing.assert_allclose(projector, spanned, rtol=0, atol=0.1)
    np.testing.assert_allclose(ours("qr", found)[1], spanned, rtol=0, atol=0.1)
    # Of hard labels the best direction is near the planted one, not it.
    assert (planted.T @ projector @ planted).item() > max(0.8, (planted.T @ start).item() ** 2)


def test_two_hundred_steps_of_das_are_those_of_pytorch():
    check_training()


PICK = searching.take_pairs
FAULTS = {
    "always the first batch": (searching, "take_pairs", lambda runs, rows: PICK(runs, jnp.arange(len(rows)))),
    "half the rate": (Rotation, "rates", property(lambda self: {"frame": 1.0})),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_row_notices_what_is_broken(fault):
    with noticed(*FAULTS[fault]):
        check_training()
