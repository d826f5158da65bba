"""Rivals of the sweep over heads: all of them, and ours, patch the same thing, at every site of a small GPT-2."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")
pytest.importorskip("transformers", reason="the networks are its: pip install -e '.[parity]'")

from benchmarks import sweeps  # noqa: E402
from benchmarks.library_sweeps import LIBRARIES, lens_screen  # noqa: E402
from benchmarks.torch_sweeps import (  # noqa: E402
    autograd_screen,
    head_outputs,
    hooked_sweep,
    keep,
    last_inputs,
    margin,
    suffix_sweep,
)

pytestmark = pytest.mark.parity

# float32, other orders of summation through 3 blocks: margins near 1 agree to a few units in the seventh digit.
CLOSE = {"rtol": 0, "atol": 3e-6}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", name="problem")
def _problem():
    return sweeps.draw(sweeps.Setting(layers=3, width=24, heads=4, pairs=5, tokens=6))


@pytest.fixture(scope="module", name="states")
def _states(problem):
    with torch.no_grad():
        return head_outputs(problem.network, problem.tensors()[1])


@pytest.fixture(scope="module", name="margins")
def _margins(problem, states):
    """Patch every site by hooks, one after another."""
    return hooked_sweep(problem.network, problem.tensors()[0], states, problem.sites())


def _factual(problem):
    with torch.no_grad():
        return margin(problem.network(**last_inputs(problem.tensors()[0])).logits).item()


def test_sites_matter_where_the_last_token_reads_them_and_nowhere_else(problem, margins):
    layer, position, _ = problem.sites().T
    unread = (layer == 2) & (position < 5)
    moved = np.abs(margins - _factual(problem))
    assert moved[unread].max() == 0
    assert np.median(moved[~unread]) > 1e-3


def test_what_follows_from_a_site_is_all_that_changes(problem, margins):
    kept = keep(problem.network, *problem.tensors())
    np.testing.assert_allclose(suffix_sweep(problem.network, kept, problem.sites()), margins, **CLOSE)
    shuffled = np.random.default_rng(0).permutation(len(margins))
    some = suffix_sweep(problem.network, kept, problem.sites()[shuffled][:7])
    np.testing.assert_allclose(some, margins[shuffled][:7], **CLOSE)


def test_our_sweep_is_that_of_hooks(problem, margins):
    np.testing.assert_allclose(sweeps.ours(problem, problem.views(problem.sites()), problem.sites()), margins, **CLOSE)


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_patch_what_hooks_patch(problem, margins, name):
    library = LIBRARIES[name]
    if not library.installed:
        pytest.skip(f"{name} is not installed: pip install -e '.[benchmarks]'")
    chosen = np.arange(0, len(margins), 7)
    swept = library.make(problem.network, *problem.tensors())(problem.sites()[chosen])
    np.testing.assert_allclose(swept, margins[chosen], **CLOSE)


def test_the_screen_is_the_derivative_of_the_sweep(problem, states):
    base = problem.tensors()[0]
    screen = autograd_screen(problem.network, base, states).ravel()
    sites, step = problem.sites(), 0.03
    with torch.no_grad():
        own = head_outputs(problem.network, base)
    ahead, behind = (
        hooked_sweep(problem.network, base, [b + by * (s - b) for s, b in zip(states, own, strict=True)], sites)
        for by in (step, -step)
    )
    # A central difference: float32 margins over twice the step, and the third derivative times its square.
    np.testing.assert_allclose((ahead - behind) / (2 * step), screen, rtol=0, atol=1e-4)
    assert np.abs(screen).max() > 1e-2


def test_screens_agree(problem, states):
    base, source = problem.tensors()
    expected = autograd_screen(problem.network, base, states)
    np.testing.assert_allclose(sweeps.our_screen(problem, problem.record()), expected, **CLOSE)
    if LIBRARIES["TransformerLens"].installed:
        np.testing.assert_allclose(lens_screen(problem.network, base, source)(), expected, **CLOSE)


def test_positions_that_are_timed_are_as_late_as_all_on_average():
    for tokens in (8, 16, 32, 64):
        setting = sweeps.Setting(layers=16, width=4, heads=16, pairs=1, tokens=tokens)
        problem = sweeps.Problem(setting, None, None, None, None)
        every, part = problem.sites(), sweeps.mirrored(problem, problem.sites())
        assert len(part) * tokens == len(every) * sweeps.PLACES
        assert part[:, 1].mean() == every[:, 1].mean()


def test_sites_without_an_effect_are_not_timed():
    with pytest.raises(RuntimeError, match="expected sites that matter"):
        sweeps.require_effects(np.full(4, 0.3))
    sweeps.require_effects(np.array([0.3, 0.4]))
