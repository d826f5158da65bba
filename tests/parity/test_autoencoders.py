"""Row P12: latents of a sparse autoencoder, edited in networks of transformers, at the logits of all positions.

The oracle writes autoencoder, error term and edit in PyTorch, in float64, in a hook:

    z = phi((h - [b_dec]) W_enc + b_enc),  e = h - (z W_dec + b_dec),  h <- z' W_dec + b_dec + e
"""

import jax.numpy as jnp
import numpy as np
import pytest
from broken import noticed
from gentle_decoders import every_logit, gentle, recorded
from hooked_decoders import hook_run, torch

from abstraction.interventions import building as do
from abstraction.interventions.autoencoders import SparseAutoencoder, autoencoder
from abstraction.interventions.featurizers import InFeatures

pytestmark = pytest.mark.parity

N, T, K, TOP, DEPTH = 4, 7, 40, 6, 1
# float32 in two orders of summation; logits are of order 1
CLOSE = {"rtol": 0, "atol": 1e-5}
MOVED = 1e-3
ROWS, AT, FROM = np.arange(N), np.array([6, 2, 5, 3]), np.array([4, 6, 1, 3])
"""Which position of a base is edited, and which one of its source is taken."""
UNITS = list(range(0, K, 2))
CASES = {
    "jump_relu in gpt2": ("gpt2", "jump_relu", False),
    "jump_relu, centered, in llama": ("llama", "jump_relu", True),
    "relu in gpt2": ("gpt2", "relu", True),
    "top_k in llama": ("llama", "top_k", False),
}


def _arrays(width):
    """Draw an autoencoder that reconstructs badly; some of its thresholds are below 0."""
    rng = np.random.default_rng(5)
    arrays = {
        "W_enc": rng.standard_normal((width, K)) / width**0.5, "b_enc": 0.3 * rng.standard_normal(K),
        "W_dec": rng.standard_normal((K, width)) / K**0.5, "b_dec": rng.standard_normal(width),
        "threshold": rng.uniform(-0.5, 1, K),
    }  # fmt: skip
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _latents(arrays, kind, centered, states):
    """Encode in float64, and return how far the next latent is from going on or off too."""
    w, b, offset, threshold = (torch.tensor(arrays[n]).double() for n in ("W_enc", "b_enc", "b_dec", "threshold"))
    read = states.double() - offset if centered else states.double()
    values = read @ w + b
    if kind == "top_k":
        ordered = values.sort(dim=-1, descending=True).values
        least = ordered[..., TOP - 1 : TOP]
        return values.relu() * (values >= least), (ordered[..., TOP - 1] - ordered[..., TOP]).min()
    limit = threshold if kind == "jump_relu" else torch.zeros(K).double()
    return values.relu() * (values > limit), (values - limit).abs().min()


def _hook(arrays, phi, centered, weight, taken):
    """Return what a hook does to a residual stream: move some latents towards those taken, and keep the error."""
    decode = lambda z: z @ torch.tensor(arrays["W_dec"]).double() + torch.tensor(arrays["b_dec"]).double()

    def edit(value):
        h = value[ROWS, AT].double()
        z, _ = _latents(arrays, phi, centered, h)
        error = h - decode(z)
        assert error.abs().max() > 0.5
        changed = z.clone()
        changed[:, UNITS] = (1 - weight) * z[:, UNITS] + weight * taken[:, UNITS]
        value[ROWS, AT] = (decode(changed) + error).float()
        return value

    return edit


def check_latents(case):
    kind, phi, centered = CASES[case]
    net, ours = gentle(kind)
    tap = ours.taps["block_output"]
    arrays = _arrays(tap.width)
    features = autoencoder(arrays, phi, top=TOP if phi == "top_k" else None, centered=centered)
    base, source = np.random.default_rng(11).integers(net.config.vocab_size, size=(2, N, T))
    (clean, seen), (_, theirs) = (hook_run(net, kind, tokens) for tokens in (base, source))
    states = torch.tensor(theirs["block_output", DEPTH][ROWS, FROM])
    taken, gap = _latents(arrays, phi, centered, states)
    z, own_gap = _latents(arrays, phi, centered, torch.tensor(seen["block_output", DEPTH][ROWS, AT]))
    assert min(gap, own_gap) > 1e-5, "a latent that rounding switches"
    assert 0 < (z > 0).double().mean() < 1
    given = do.taken(recorded(ours, source)["block_output"], depth=DEPTH, at=FROM)

    def run(weight, at=AT):
        edits = do.interchange(tap, given, weight=weight, depth=DEPTH, units=UNITS, at=at, basis=features)
        return np.asarray(every_logit(ours, base, edits))

    for weight in (1.0, 0.5):
        edit = _hook(arrays, phi, centered, weight, taken)
        wanted = hook_run(net, kind, base, {("block_output", DEPTH): edit})[0]
        assert (np.abs(wanted - clean).max(axis=(1, 2)) > MOVED).all(), "the intervention moves nothing"
        np.testing.assert_allclose(run(weight), wanted, **CLOSE)
    # An edit of no latent is the run without one, to the bit: one program, told to act nowhere.
    np.testing.assert_array_equal(run(0.0), run(1.0, np.full(N, -1)))


@pytest.mark.parametrize("case", CASES)
def test_latents_are_those_of_pytorch_and_what_they_do_not_say_stays(case):
    check_latents(case)


ENCODE = SparseAutoencoder.encode


def _no_error_term(self, activation):
    return self.features.decode(self.edit(self.features.encode(activation)))


def _no_threshold(self, activation):
    """Encode by ReLU, whatever the kind."""
    return jnp.maximum((activation - self.decoder_bias * self.centered) @ self.encoder + self.encoder_bias, 0)


def _never_centered(self, activation):
    return ENCODE(self, activation + self.decoder_bias if self.centered else activation)


MUTANTS = {
    "the error is dropped": ("jump_relu in gpt2", InFeatures, "__call__", _no_error_term),
    "latents below the threshold": ("jump_relu in gpt2", SparseAutoencoder, "encode", _no_threshold),
    "more than k latents": ("top_k in llama", SparseAutoencoder, "encode", _no_threshold),
    "not centered": ("jump_relu, centered, in llama", SparseAutoencoder, "encode", _never_centered),
}


@pytest.mark.parametrize("fault", MUTANTS)
def test_the_row_notices_what_is_broken(fault):
    case, place, name, wrong = MUTANTS[fault]
    with noticed(place, name, wrong):
        check_latents(case)
