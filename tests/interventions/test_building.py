"""One call per intervention: against NumPy, at every depth, unit and position and nowhere else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstraction.interventions import Basis
from abstraction.interventions import building as do
from abstraction.interventions.bases import random_frames
from abstraction.interventions.gates import boundary_gate, hard_gate, sigmoid_gate
from abstraction.models import Tap
from abstraction.models.taps import at_depth

L, N, T, D = 3, 4, 5, 6
TAP = Tap("stream", D, L)
BASE, SOURCE = np.random.default_rng(0).standard_normal((2, L, N, T, D)).astype(np.float32)
VECTOR = np.random.default_rng(1).standard_normal(D).astype(np.float32)
PER_DEPTH = np.random.default_rng(2).standard_normal((L, D)).astype(np.float32)
WHERE = np.array([[0, 4], [3, -1], [1, 2], [-1, -1]])
# float32 products against float64
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def apply(edits, base=BASE):
    """Run an edit at each depth, on its own."""
    return np.stack([np.asarray(at_depth(edits, depth)["stream"](jnp.asarray(base[depth]))) for depth in range(L)])


def there(depths=None, units=None, where=None):
    """Loop over depths, examples, positions and units: where an edit acts."""
    mask = np.zeros((L, N, T, D), bool)
    for depth in range(L) if depths is None else depths:
        for n in range(N):
            for t in range(T):
                if where is None or t in where[n]:
                    for unit in range(D) if units is None else units:
                        mask[depth, n, t, unit] = True
    return mask


def only(value, *places, **named):
    return np.where(there(*places, **named), value, BASE)


FORMULAS = {
    "zero": (do.zero, (), np.zeros_like(BASE)),
    "constant": (do.constant, (VECTOR,), np.broadcast_to(VECTOR, BASE.shape)),
    "number": (do.constant, (2.5,), np.full_like(BASE, 2.5)),
    "lerp": (do.lerp, (VECTOR, 0.25), 0.75 * BASE + 0.25 * VECTOR),
    "add": (do.add, (VECTOR,), BASE + VECTOR),
    "subtract": (do.subtract, (VECTOR,), BASE - VECTOR),
    "scale": (do.scale, (-3.0,), -3 * BASE),
    "clamp": (do.clamp, (-0.5, 0.25), np.clip(BASE, -0.5, 0.25)),
    "clamp below": (do.clamp, (VECTOR, np.inf), np.maximum(BASE, VECTOR)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_an_edit_is_its_formula(name):
    build, values, wanted = FORMULAS[name]
    np.testing.assert_allclose(apply(build(TAP, *values)), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FORMULAS)
def test_an_edit_acts_where_it_is_told_to_and_nowhere_else(name):
    build, values, wanted = FORMULAS[name]
    for depth, depths in ((1, [1]), ([0, 2], [0, 2]), (None, None)):
        for units in (None, [0, 3]):
            for where in (None, WHERE):
                edits = build(TAP, *values, depth=depth, units=units, at=where)
                mask = there(depths, units, where)
                got = apply(edits)
                np.testing.assert_allclose(got, np.where(mask, wanted, BASE), rtol=1e-6, atol=1e-7)
                np.testing.assert_array_equal(got[~mask], BASE[~mask])


def test_values_are_the_same_at_all_depths_or_lead_with_them():
    np.testing.assert_array_equal(
        apply(do.constant(TAP, PER_DEPTH)), np.broadcast_to(PER_DEPTH[:, None, None], BASE.shape)
    )
    at_one = do.constant(TAP, SOURCE[2], depth=2)
    np.testing.assert_array_equal(apply(at_one), np.concatenate([BASE[:2], SOURCE[2:]]))
    np.testing.assert_array_equal(apply(do.constant(TAP, SOURCE)), SOURCE)


def test_a_mean_is_that_of_what_counts():
    present = np.arange(T) >= np.array([0, 2, 4, 1])[:, None]
    for mask in (None, present):
        counted = np.ones((N, T), bool) if mask is None else mask
        wanted = [[np.mean([SOURCE[d, n, t, u] for n in range(N) for t in range(T) if counted[n, t]], dtype=np.float64)
                   for u in range(D)] for d in range(L)]  # fmt: skip
        got = apply(do.mean(TAP, SOURCE, present=mask))
        np.testing.assert_allclose(got, np.broadcast_to(np.array(wanted)[:, None, None], BASE.shape), rtol=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.3, np.linspace(0, 2, D, dtype=np.float32)], ids=["1", "0.3", "each"])
def test_an_interchange_is_its_formula_everywhere(weight):
    moved = (1 - weight) * BASE + weight * SOURCE
    for depth, depths in ((2, [2]), ([0, 1], [0, 1]), (None, None)):
        source = SOURCE[2] if depth == 2 else SOURCE
        for units in (None, [1, 5]):
            got = apply(do.interchange(TAP, source, weight=weight, depth=depth, units=units))
            np.testing.assert_allclose(got, only(moved, depths, units), rtol=1e-6, atol=1e-7)
            picked = do.taken(SOURCE, depth=2 if depth == 2 else None, at=WHERE)
            got = apply(do.interchange(TAP, picked, weight=weight, depth=depth, units=units, at=WHERE))
            np.testing.assert_allclose(got, only(moved, depths, units, WHERE), rtol=1e-6, atol=1e-7)


def test_a_source_may_be_of_another_depth_and_position():
    """P19."""
    here, from_there = np.array([0, 1, 2, -1]), np.array([4, 0, 3, 2])
    edits = do.interchange(TAP, do.taken(SOURCE, depth=0, at=from_there), depth=2, at=here)
    wanted = BASE.copy()
    for n in range(N):
        if here[n] >= 0:
            wanted[2, n, here[n]] = SOURCE[0, n, from_there[n]]
    np.testing.assert_array_equal(apply(edits), wanted)


def test_no_source_is_no_edit():
    """P17."""
    assert do.interchange(TAP, None, depth=1) == {}


@pytest.mark.parametrize("oblique", [False, True], ids=["rotation", "oblique"])
@pytest.mark.parametrize("depth", [1, None])
def test_features_of_a_basis_are_edited_and_the_rest_stays(oblique, depth):
    """P6, P7: features 0 and 2 of four, against the formula in float64."""
    encoder = random_frames(jax.random.key(0), (L,), D, 4)
    decoder = np.linalg.pinv(encoder) if oblique else encoder.mT
    encoder = encoder @ np.diag([1.0, 2.0, 1.0, 3.0]).astype(np.float32) if oblique else encoder
    decoder = np.linalg.inv(np.diag([1.0, 2.0, 1.0, 3.0])) @ decoder if oblique else decoder
    middle = PER_DEPTH * 0.1
    basis = Basis(encoder, decoder.astype(np.float32), middle)
    given = jax.tree.map(lambda leaf: leaf[1], basis) if depth == 1 else basis
    units, levels = [0, 2], [1] if depth == 1 else range(L)
    changes = {
        "zero": (do.zero(TAP, depth=depth, units=units, basis=given), lambda z, s: 0 * z),
        "add": (do.add(TAP, 2.0, depth=depth, units=units, basis=given), lambda z, s: z + 2),
        "clamp": (do.clamp(TAP, -0.1, 0.2, depth=depth, units=units, basis=given), lambda z, s: np.clip(z, -0.1, 0.2)),
        "interchange": (
            do.interchange(TAP, SOURCE if depth is None else SOURCE[1], depth=depth, units=units, basis=given),
            lambda z, s: s,
        ),
    }
    for name, (edits, change) in changes.items():
        wanted = BASE.astype(np.float64)
        for level in levels:
            read = lambda h, level=level: (h.astype(np.float64) - middle[level]) @ encoder[level]
            z, s = read(BASE[level]), read(SOURCE[level])
            moved = z.copy()
            moved[..., units] = change(z, s)[..., units]
            wanted[level] += (moved - z) @ decoder[level]
        np.testing.assert_allclose(apply(edits), wanted, **CLOSE, err_msg=name)


def test_noise_is_gaussian_seeded_and_independent():
    base = np.zeros((L, 40, 30, D), np.float32)
    run = lambda key, deviation=1.0: apply(do.noise(TAP, jax.random.key(key), deviation), base)
    one, flat = run(0), run(0).reshape(L, -1)
    np.testing.assert_array_equal(one, run(0))
    np.testing.assert_allclose(run(0, 2.5), 2.5 * one, rtol=1e-6)
    # Five standard errors of moments of 7,200 draws, and of correlations between halves of them.
    assert np.abs(flat.mean(axis=1)).max() < 5 / np.sqrt(7200)
    assert np.abs(flat.std(axis=1) - 1).max() < 5 / np.sqrt(2 * 7200)
    pairs = [(flat[0], flat[1]), (one[0, ::2], one[0, 1::2]), (one[0, :, ::2], one[0, :, 1::2]), (run(1)[0], one[0])]
    for first, second in pairs:
        assert abs(np.mean(first * second)) < 5 / np.sqrt(first.size)
    scaled = apply(do.noise(TAP, jax.random.key(0), np.arange(D, dtype=np.float32)), base)
    np.testing.assert_allclose(scaled, one * np.arange(D), rtol=1e-6)


def test_the_noise_of_an_example_is_not_redrawn_by_more_examples():
    edits = do.noise(TAP, jax.random.key(0), 1.0)
    np.testing.assert_array_equal(apply(edits)[:, :2], apply(edits, BASE[:, :2]))


def test_a_renormalised_edit_keeps_norms_and_the_edits_direction():
    for edits in (do.add(TAP, VECTOR), do.add(TAP, VECTOR, at=WHERE), do.scale(TAP, PER_DEPTH, depth=[1])):
        edited, got = apply(edits).astype(np.float64), apply(do.renormalised(edits))
        norm = lambda h: np.sqrt((h.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(got, edited * norm(BASE) / norm(edited), **CLOSE)
        untouched = (edited == BASE).all(axis=-1)
        np.testing.assert_array_equal(got[untouched], BASE[untouched])
    # 1e-30 squared is no float32.
    small = BASE * np.float32(1e-30)
    np.testing.assert_array_equal(apply(do.renormalised(do.scale(TAP, 1.0)), small), small)
    np.testing.assert_array_equal(apply(do.renormalised(do.zero(TAP))), 0 * BASE)
    np.testing.assert_array_equal(apply(do.renormalised(do.add(TAP, 1.0)), 0 * BASE), 0 * BASE)


def test_gradients_of_a_renormalised_edit_are_numbers_at_zero():
    edit = do.renormalised(do.add(TAP, VECTOR))["stream"]
    total = lambda base: at_depth({"stream": edit}, 0)["stream"](base).sum()
    assert np.isfinite(jax.grad(total)(jnp.zeros((N, D)))).all()


def test_a_boundary_gate_is_its_formula_and_hard_when_cold():
    """P9."""
    for high, low, temperature in ((4.0, 1.0, 0.7), (2.5, 0.0, 50.0), (6.0, 3.0, 0.1)):
        k = np.arange(D)
        wanted = 1 / (1 + np.exp(-(k + 0.5 - low) / temperature)) / (1 + np.exp(-(high - k - 0.5) / temperature))
        np.testing.assert_allclose(boundary_gate(high, D, temperature, low=low), wanted, rtol=1e-5)
    np.testing.assert_allclose(boundary_gate(4, D, 1e-3, low=1), [0, 1, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(boundary_gate(4, D, 1e-3), [1, 1, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(boundary_gate(4, D, 1e-3, low=0), [1, 1, 1, 1, 0, 0], atol=1e-6)


def test_a_compatible_boundary_gate_has_the_halves_of_its_origin():
    """P9: base 3..14, the source 12 more, T = 50: a mask of about .257 everywhere; and 1/2 at index 0 when cold."""
    base = np.arange(3.0, 15.0, dtype=np.float32).reshape(2, 6)
    i = np.arange(6)
    wanted = 1 / (1 + np.exp(-i / 50)) / (1 + np.exp(-(6 - i) / 50))
    gate = boundary_gate(6, 6, 50.0, compat=True)
    np.testing.assert_allclose(gate, wanted, rtol=1e-6)
    tap = Tap("x", 6)
    edits = do.interchange(tap, base[None] + 12, weight=gate)
    np.testing.assert_allclose(at_depth(edits, 0)["x"](jnp.asarray(base)), base + 12 * wanted, rtol=1e-6)
    assert np.abs(wanted - 0.257).max() < 1e-2
    np.testing.assert_allclose(boundary_gate(4, 6, 1e-3, compat=True), [0.5, 1, 1, 1, 0.5, 0], atol=1e-6)


def test_a_sigmoid_gate_is_soft_and_then_hard():
    """P10."""
    scores = np.array([-2.0, -1e-3, 0.0, 1e-3, 3.0], np.float32)
    np.testing.assert_allclose(sigmoid_gate(scores, 0.5), 1 / (1 + np.exp(-scores / 0.5)), rtol=1e-6)
    np.testing.assert_array_equal(hard_gate(scores), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(hard_gate(scores), np.asarray(sigmoid_gate(scores, 1e-2)) > 0.5)


def test_gradients_through_an_interchange_are_those_of_its_formula():
    """P20: of scores, boundary, source and rotation, against differences in float64."""
    frame = random_frames(jax.random.key(3), (), D, 4)

    def loss(values, np=jnp):
        scores, high, source, encoder = values
        k = np.arange(4) + 0.5
        weight = 1 / (1 + np.exp(-scores / 0.5)) / (1 + np.exp(-(high - k) / 0.5))
        moved = BASE[1, :, 0] + ((source - BASE[1, :, 0]) @ encoder * weight) @ encoder.T
        return (moved**3).sum()

    def ours(values):
        scores, high, source, encoder = values
        weight = sigmoid_gate(scores, 0.5) * boundary_gate(high, 4, 0.5)
        basis = Basis(encoder, encoder.T, jnp.zeros(D))
        edits = do.interchange(TAP, source, weight=weight, depth=1, basis=basis)
        return (at_depth(edits, 1)["stream"](jnp.asarray(BASE[1, :, 0])) ** 3).sum()

    values = [np.linspace(-1, 1, 4), np.float64(2.2), SOURCE[1, :, 0].astype(np.float64), frame.astype(np.float64)]
    gradients = jax.grad(ours)([jnp.asarray(value, jnp.float32) for value in values])
    for index, gradient in enumerate(gradients):
        flat = np.ravel(values[index])
        for spot in range(0, flat.size, 3):
            ends = []
            for step in (1e-5, -1e-5):
                moved = flat.copy()
                moved[spot] += step
                ends.append(loss([*values[:index], moved.reshape(np.shape(values[index])), *values[index + 1 :]], np))
            # float32 sums of cubes against float64
            np.testing.assert_allclose(np.ravel(gradient)[spot], (ends[0] - ends[1]) / 2e-5, rtol=1e-3, atol=1e-3)


def test_builders_build_inside_a_program():
    built = jax.jit(lambda vector, base: at_depth(do.add(TAP, vector, depth=1, units=[0]), 1)["stream"](base))
    np.testing.assert_allclose(
        built(VECTOR, BASE[1]), np.where(np.arange(D) == 0, BASE[1] + VECTOR, BASE[1]), rtol=1e-6
    )


SQUARE = 4
"""As many positions as examples: rows of `[N, K]` could be either."""
PER_EXAMPLE = {
    "constant": lambda value, **where: do.constant(TAP, value, **where),
    "lerp": lambda value, **where: do.lerp(TAP, 0.5, value, **where),
    "add": lambda value, **where: do.add(TAP, value, **where),
    "scale": lambda value, **where: do.scale(TAP, value, **where),
    "clamp": lambda value, **where: do.clamp(TAP, value, value + 1, **where),
    "interchange": lambda value, **where: do.interchange(TAP, SOURCE[1, :, :SQUARE], weight=value, **where),
}


@pytest.mark.parametrize("positions", [SQUARE, T, 1])
@pytest.mark.parametrize("name", PER_EXAMPLE)
def test_a_value_per_example_is_the_examples_and_not_the_positions(name, positions):
    values = np.random.default_rng(5).standard_normal((N, D)).astype(np.float32)
    source = SOURCE[1, :, :positions]
    build = PER_EXAMPLE[name] if name != "interchange" else (
        lambda value, **where: do.interchange(TAP, source[: len(value)] if len(value) == N else source[row : row + 1],
                                              weight=value, **where))  # fmt: skip
    base = jnp.asarray(BASE[1, :, :positions])
    row = 0
    together = at_depth(build(values, depth=1), 1)["stream"](base)
    for row in range(N):
        alone = at_depth(build(values[row : row + 1], depth=1), 1)["stream"](base[row : row + 1])
        np.testing.assert_array_equal(together[row : row + 1], alone)


def test_a_value_per_example_and_depth_at_positions_is_the_examples():
    values, where = (
        np.random.default_rng(6).standard_normal((L, N, D)).astype(np.float32),
        np.tile([0, 2, 3, 4], (4, 1)),
    )
    changed = apply(do.constant(TAP, values, at=where))
    expected = BASE.copy()
    for n in range(N):
        expected[:, n, where[n]] = values[:, n, None]
    np.testing.assert_array_equal(changed, expected)


def test_values_that_are_no_row_per_example_are_refused_where_there_are_positions():
    edit = at_depth(do.add(TAP, np.ones((T, D), np.float32), depth=1), 1)["stream"]
    with pytest.raises(ValueError, match=r"got values of shape \(5, 6\) .* \(4, 5, 6\), expected .* a row per example"):
        edit(jnp.asarray(BASE[1]))
