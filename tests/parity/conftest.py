"""What all comparisons with PyTorch share."""

import pytest

try:
    import torch
except ImportError:  # then these tests are skipped
    torch = None


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small only wait for a second thread, on a busy machine seven times as long as they run."""
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
