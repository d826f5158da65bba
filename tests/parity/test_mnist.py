"""PyTorch's permutation and the usual scaling of MNIST, bit by bit."""

import numpy as np
import pytest

from abstraction.tasks.mnist import load_mnist, torch_randperm

torch = pytest.importorskip("torch", reason="PyTorch is the oracle: pip install -e '.[parity]'")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**31 + 5, 2**32 - 1, 2**32 + 7])
@pytest.mark.parametrize("count", [1, 2, 9, 623, 624, 625, 1297, 60_000])
def test_permutations_equal_pytorchs(count, seed):
    expected = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(torch_randperm(count, seed), expected.numpy())


def test_the_global_seed_gives_the_same_permutation():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.randperm(60_000)[:2_000]
    np.testing.assert_array_equal(torch_randperm(60_000, 0)[:2_000], expected.numpy())


def test_every_pixel_is_scaled_as_in_pytorch(tmp_path):
    sizes = {"train-images-idx3-ubyte": (256, 1, 1), "train-labels-idx1-ubyte": (256,)}
    sizes |= {name.replace("train", "t10k"): shape for name, shape in sizes.items()}
    for name, shape in sizes.items():
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        (tmp_path / name).write_bytes(header + bytes(range(256)))
    expected = torch.arange(256, dtype=torch.uint8).to(torch.float32).div(255).sub(0.1307).div(0.3081)
    np.testing.assert_array_equal(load_mnist(tmp_path, checksums=None).train_images[:, 0], expected.numpy())
