"""The geometry of a trained handle: the map M = E diag(w) G that it applies to a difference of states."""

import numpy as np
from jaxtyping import Float

from abstraction.interventions import Handle


def geometry(handles: Handle) -> dict[str, Float[np.ndarray, " C"]]:
    """Describe the map M = E diag(w) G that each handle applies to a difference of states.

    A swap of an orthogonal subspace has ||M|| = 1; an oblique one reads and writes along different directions, and
    ||M|| = |u| |v| for a single pair of them. A large norm amplifies what lies off the states it was trained on.

    Returns:
      `width` the sum of the weights, `projector_norm` ||M|| in the spectral norm, `read_norm` and `write_norm` the
      spectral norms of the features in use, `condition` of the read directions, each `[C]`.

    Raises:
      ValueError: native handles, or handles of several depths.
    """
    if handles.basis is None or np.ndim(handles.weight) != 2:
        raise ValueError(
            f"got handles {'without' if handles.basis is None else 'with'} a basis and weights of shape "
            f"{np.shape(handles.weight)}, expected trained features at one depth each: weights [C, K]"
        )
    weight, encoder, decoder = (
        np.asarray(array, np.float64) for array in (handles.weight, handles.basis.encoder, handles.basis.decoder)
    )
    used = (np.abs(weight) > 0)[:, None, :]
    spectrum = lambda matrices: np.linalg.svd(np.nan_to_num(matrices), compute_uv=False)
    read = spectrum(encoder * used)
    count = np.maximum(used.sum(axis=(1, 2)), 1)
    smallest = np.take_along_axis(read, np.minimum(count, read.shape[1])[:, None] - 1, axis=1)[:, 0]
    return {
        "width": weight.sum(axis=-1),
        "projector_norm": spectrum((encoder * weight[:, None, :]) @ decoder)[:, 0],
        "read_norm": read[:, 0],
        "write_norm": spectrum(decoder * used.mT)[:, 0],
        "condition": read[:, 0] / np.maximum(smallest, 1e-30),
    }
