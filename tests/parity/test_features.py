"""Rows P7 to P11: features of a state, by formulas in PyTorch and by pyvene's own interventions where it is there.

P7 subspaces and partitions   P8 low-rank DAS   P9 boundless   P10 masks   P11 standardised principal components
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from broken import noticed

from abstraction.interventions import Basis, Interchange, pca_basis, rotation_basis
from abstraction.interventions.bases import random_frames
from abstraction.localization import Boundless, Mask, candidate_grid, full_supports
from abstraction.models import Tap

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
try:
    import pyvene as pv
except ImportError:
    pv = None

pytestmark = pytest.mark.parity

N, D, K = 6, 8, 3
BASE, SOURCE = np.random.default_rng(0).standard_normal((2, N, D)).astype(np.float32)
TAP = Tap("hidden", D)
PARTITION = [[0, 2], [2, 5], [5, D]]
"""Half-open ranges of features, as pyvene has them."""
# products of float32 matrices with entries of order 1
CLOSE = {"rtol": 0, "atol": 2e-6}


def frame(columns=D):
    return random_frames(jax.random.key(columns), (), D, columns)


def ours(weight, basis=None, base=BASE, source=SOURCE):
    return np.asarray(Interchange(jnp.asarray(source), jnp.asarray(weight, jnp.float32), basis)(jnp.asarray(base)))


def moved(got, base=BASE):
    assert (np.abs(np.asarray(got) - base).max(axis=-1) > 1e-2).all(), "the intervention moves nothing"


def _set_frame(layer, matrix):
    """Give one of pyvene's parametrised layers an orthonormal matrix."""
    layer.weight = torch.tensor(matrix)


def by_loops(columns, chosen, base=BASE, source=SOURCE):
    """Swap chosen features example by example, feature by feature; the rest of the state is put back."""
    columns = columns.astype(np.float64)
    out = []
    for b, s in zip(base.astype(np.float64), source.astype(np.float64), strict=True):
        read, other = columns.T @ b, columns.T @ s
        rest = b - columns @ read
        for k in chosen:
            read[k] = other[k]
        out.append(rest + columns @ read)
    return np.stack(out)


SPACES = {"coordinates": None, "rotation": D, "low rank": 5}


def check_partition(space, part):
    """P7: part k of a partition is its features, one by one."""
    columns = SPACES[space]
    matrix = np.eye(D, dtype=np.float32) if columns is None else frame(columns)
    first, last = PARTITION[part][0], min(PARTITION[part][1], matrix.shape[1])
    chosen = range(first, last)
    spot = np.arange(matrix.shape[1])
    basis = None if columns is None else rotation_basis(matrix)
    got = ours((spot >= first) & (spot < last), basis)
    if chosen:
        moved(got)
    np.testing.assert_allclose(got, by_loops(matrix, chosen), **CLOSE)
    np.testing.assert_allclose(got, ours(np.isin(spot, list(chosen)), basis), rtol=0, atol=0)
    if pv is not None and chosen:
        np.testing.assert_allclose(got, _pyvene_partition(space, matrix, part), **CLOSE)


def _pyvene_partition(space, matrix, part):
    options = {"embed_dim": D, "subspace_partition": [[a, min(b, matrix.shape[1])] for a, b in PARTITION]}
    if space == "coordinates":
        theirs = pv.VanillaIntervention(**options)
    elif space == "rotation":
        theirs = pv.RotatedSpaceIntervention(**options)
        _set_frame(theirs.rotate_layer, matrix)
    else:
        theirs = pv.LowRankRotatedSpaceIntervention(low_rank_dimension=matrix.shape[1], **options)
        _set_frame(theirs.rotate_layer, matrix)
    with torch.no_grad():
        args = [torch.tensor(states) for states in (BASE, SOURCE)]
        # pyvene wants an axis of positions for a swap, and none for its low-rank formula.
        if space != "low rank":
            args = [states[:, None] for states in args]
        return theirs(*args, subspaces=[[part]] * N).numpy().reshape(N, D)


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("space", SPACES)
def test_a_part_of_a_partition_is_its_features_one_by_one(space, part):
    if space == "low rank" and part == 2:
        pytest.skip("a frame of 5 has no third part")
    check_partition(space, part)


def check_low_rank():
    """P8: h + R R^T (s - h): the swap of the full rotation's first columns; what is orthogonal to R stays."""
    full = frame()
    part = full[:, :K]
    got = ours(np.ones(K), rotation_basis(part))
    moved(got)
    r, h, s = (torch.tensor(array) for array in (part, BASE, SOURCE))
    np.testing.assert_allclose(got, h + (s @ r - h @ r) @ r.T, **CLOSE)
    np.testing.assert_allclose(got, ours(np.arange(D) < K, rotation_basis(full)), **CLOSE)
    rest = full[:, K:]
    np.testing.assert_allclose(got @ rest, BASE @ rest, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got @ part, SOURCE @ part, **CLOSE)
    if pv is not None:
        theirs = pv.LowRankRotatedSpaceIntervention(embed_dim=D, low_rank_dimension=K)
        _set_frame(theirs.rotate_layer, part)
        np.testing.assert_allclose(got, theirs(h, s).detach(), **CLOSE)


def test_low_rank_swaps_a_subspace_and_leaves_its_complement():
    check_low_rank()


def _candidate(rank=D):
    candidates = candidate_grid(jax.random.key(0), TAP, full_supports(TAP, [0]), ranks=(rank,))
    return candidates.take(0)


def _boundary(boundary, temperature):
    """Return our weights and basis at a boundary, whose temperature does not fall."""
    search = Boundless(temperatures=(temperature, temperature))
    free = {"frame": jnp.zeros((D, D)), "boundary": jnp.float32(boundary)}
    return search.features(free, _candidate(), jnp.zeros(()))


def check_boundless():
    """P9: weights sigmoid((b k - j - 1/2) / T), at T -> 0 a prefix of which the first is whole; then the cut is it."""
    for boundary, temperature in ((0.5, 1.0), (0.3, 0.4), (0.9, 50.0)):
        weight, basis = _boundary(boundary, temperature)
        spots = torch.arange(D, dtype=torch.float64)
        wanted = torch.sigmoid((boundary * D - spots - 0.5) / temperature)
        np.testing.assert_allclose(weight, wanted, rtol=1e-5)
        got = ours(weight, basis)
        moved(got)
        r, h, s = (torch.tensor(np.asarray(array), dtype=torch.float64) for array in (basis.encoder, BASE, SOURCE))
        np.testing.assert_allclose(got, h + (wanted * (s @ r - h @ r)) @ r.T, **CLOSE)
    hard, _ = _boundary(0.5, 1e-3)
    np.testing.assert_allclose(hard, np.arange(D) < D // 2, rtol=0, atol=1e-6)
    cut, _ = Boundless().final({"frame": jnp.zeros((D, D)), "boundary": jnp.float32(0.5)}, _candidate())
    np.testing.assert_array_equal(cut, np.arange(D) < D // 2)


def test_a_learned_width_is_a_row_of_sigmoids_and_at_last_a_prefix():
    check_boundless()


@pytest.mark.skipif(pv is None, reason="pyvene is the oracle: pip install -e '.[parity]'")
def test_the_boundary_of_pyvene_halves_the_first_feature_and_ours_does_not():
    """P9: given pyvene's weights ours does what it does; as T -> 0 only features at the ends differ from our own."""
    theirs = pv.BoundlessRotatedSpaceIntervention(embed_dim=D)
    matrix = frame()
    _set_frame(theirs.rotate_layer, matrix)
    spots = np.arange(D)
    for temperature in (50.0, 2.0, 1e-3):
        theirs.set_temperature(torch.tensor(temperature))
        lower, upper = (1 / (1 + np.exp(-np.clip(x / temperature, -80, 80))) for x in (spots, 0.5 * D - spots))
        got = ours(lower * upper, rotation_basis(matrix))
        moved(got)
        np.testing.assert_allclose(got, theirs(torch.tensor(BASE), torch.tensor(SOURCE)).detach(), **CLOSE)
    np.testing.assert_allclose(lower * upper, [0.5, 1, 1, 1, 0.5, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(_boundary(0.5, 1e-3)[0], [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-6)


SCORES = np.random.default_rng(2).standard_normal(D).astype(np.float32)


def check_mask():
    """P10: soft sigmoid(a / T) while it trains, and at the end the features of a positive score, whole."""
    free, candidate = {"score": jnp.asarray(SCORES)}, _candidate()
    search = Mask(temperatures=(1.0, 0.01))
    for progress in (0.0, 0.3, 1.0):
        temperature = 0.01**progress
        soft, basis = search.features(free, candidate, jnp.float32(progress))
        wanted = torch.sigmoid(torch.tensor(SCORES) / temperature)
        # a power and a division in float32, multiplied by scores over T
        np.testing.assert_allclose(soft, wanted, rtol=1e-4)
        got = ours(soft, basis)
        moved(got)
        np.testing.assert_allclose(
            got, (1 - wanted) * torch.tensor(BASE) + wanted * torch.tensor(SOURCE), rtol=0, atol=2e-5
        )
        if pv is not None:
            theirs = pv.SigmoidMaskIntervention(embed_dim=D)
            theirs.mask.data = torch.tensor(SCORES)
            theirs.set_temperature(torch.tensor(temperature))
            with torch.no_grad():
                np.testing.assert_allclose(got, theirs(torch.tensor(BASE), torch.tensor(SOURCE)), rtol=0, atol=2e-5)
    hard, basis = search.final(free, candidate)
    np.testing.assert_array_equal(hard, torch.sigmoid(torch.tensor(SCORES)) > 0.5)
    got = ours(hard, basis)
    moved(got)
    np.testing.assert_array_equal(got, np.where(SCORES > 0, SOURCE, BASE))


def test_a_mask_is_soft_while_it_trains_and_whole_at_the_end():
    check_mask()


STATES = (np.random.default_rng(4).standard_normal((60, D)) * np.linspace(0.3, 4, D) + 2).astype(np.float32)


def check_components():
    """P11: standardised principal components, swapped, as pyvene's formula has it; all of them are a full swap."""
    mean, spread = STATES.mean(axis=0), STATES.std(axis=0)
    whitened = pca_basis((STATES - mean) / spread)
    # Standardising is a change of units: features read (h - mean) / spread, and are written back times spread.
    basis = Basis(whitened.encoder / spread[:, None], whitened.decoder * spread, mean)
    c, m, sd = (torch.tensor(array) for array in (np.asarray(whitened.decoder), mean, spread))
    h, s = ((torch.tensor(states) - m) / sd @ c.T for states in (BASE, SOURCE))
    for kept in (1, K, D):
        got = ours(np.arange(D) < kept, basis)
        moved(got)
        mixed = torch.cat([s[:, :kept], h[:, kept:]], dim=1)
        np.testing.assert_allclose(got, mixed @ c * sd + m, rtol=0, atol=1e-5)
    # the exact inverse at k = D, up to products of float32 numbers up to 10
    np.testing.assert_allclose(got, SOURCE, rtol=0, atol=1e-5)
    for centred in (True, False):
        plain = pca_basis(STATES, centered=centred)
        np.testing.assert_allclose(
            plain.encode(jnp.asarray(BASE)) @ plain.decoder + plain.mean, BASE, rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(ours(np.ones(D), plain), SOURCE, rtol=0, atol=1e-5)
        part = ours(np.ones(K), pca_basis(STATES, rank=K, centered=centred, whitened=True))
        np.testing.assert_allclose(part, by_loops(np.asarray(plain.encoder), range(K)), rtol=0, atol=1e-5)


def test_principal_components_are_swapped_in_their_units_and_all_of_them_are_the_state():
    check_components()


def _whole(self, activation):
    return RIGHT(Interchange(self.source, jnp.ones_like(jnp.asarray(self.weight)), self.basis), activation)


def _without_rest(self, activation):
    if self.basis is None:
        return RIGHT(self, activation)
    read = self.basis.encode(activation)
    return self.basis.decode(read + self.weight * (self.basis.encode(self.source) - read))


RIGHT = Interchange.__call__
SOFT, GATE = Mask._soft, Boundless.features
MUTANTS = {
    "P7 coordinates": (lambda: check_partition("coordinates", 1), Interchange, "__call__", _whole),
    "P7 rotation": (lambda: check_partition("rotation", 1), Interchange, "__call__", _whole),
    "P7 low rank": (lambda: check_partition("low rank", 1), Interchange, "__call__", _whole),
    "P8 the rest is lost": (check_low_rank, Interchange, "__call__", _without_rest),
    "P8 written to itself": (check_low_rank, Basis, "decode", lambda self, z: 2 * z @ self.decoder),
    "P9 a hard gate": (
        check_boundless, Boundless, "features",
        lambda self, *args: ((GATE(self, *args)[0] > 0.5) * 1.0, GATE(self, *args)[1]),
    ),
    "P9 never cut": (
        check_boundless, Boundless, "final", lambda self, *args: (jnp.ones(D), GATE(self, *args, jnp.zeros(()))[1]),
    ),
    "P10 soft at the end": (
        check_mask, Mask, "final", lambda self, free, one: (SOFT(self, free, one, jnp.float32(0)), one.basis),
    ),
    "P10 no temperature": (
        check_mask, Mask, "_soft", lambda self, free, one, progress: SOFT(self, free, one, 0 * progress),
    ),
    "P11 the mean is written too": (
        check_components, Basis, "decode", lambda self, z: z @ self.decoder + self.mean,
    ),
    "P11 of full rank": (check_components, Interchange, "__call__", _without_rest),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_row_notices_what_is_broken(mutant):
    check, place, name, wrong = MUTANTS[mutant]
    with noticed(place, name, wrong):
        check()
