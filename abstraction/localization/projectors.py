"""The geometry of a trained handle: the map M = E diag(w) G that it applies to a difference of states.

E [D, k] and G [k, D] are thin, so everything about M is in their triangular factors, k x k: with E = Q R and
G^T = P T, ||M|| = ||R diag(w) T^T||. Nothing of size D x D is made, and nothing decomposed that is larger than k.
"""

import numpy as np
from jaxtyping import Float

from abstraction.interventions import Handle


def geometry(handles: Handle) -> dict[str, Float[np.ndarray, " C"]]:
    """Describe the map M = E diag(w) G that each handle applies to a difference of states.

    A swap of an orthogonal subspace has ||M|| = 1; an oblique one reads and writes along different directions, and
    ||M|| = |u| |v| for a single pair of them. A large norm amplifies what lies off the states it was trained on.
    Native coordinates are read and written as they are, so there ||M|| is the largest weight.

    Returns:
      `width` the sum of the weights, `projector_norm` ||M|| in the spectral norm, `read_norm` and `write_norm` the
      spectral norms of the features in use, `condition` of the read directions, each `[C]`.

    Raises:
      ValueError: handles of several depths.
    """
    weight = np.asarray(handles.weight, np.float64)
    if weight.ndim != 2:
        raise ValueError(f"got handles of weights {weight.shape}, expected handles at one depth each: weights [C, K]")
    used = np.abs(weight) > 0
    some = used.any(axis=-1).astype(float)
    if handles.basis is None:
        largest = np.nan_to_num(np.abs(weight)).max(axis=-1)
        norms = {"projector_norm": largest, "read_norm": some, "write_norm": some, "condition": some}
        return {"width": weight.sum(axis=-1), **norms}
    read, write = (
        np.nan_to_num(np.asarray(array, np.float64) * used[:, None, :])
        for array in (handles.basis.encoder, np.asarray(handles.basis.decoder).mT)
    )
    # NumPy's stacked `qr` gives the factor itself, an array, in this mode.
    read, write = (np.asarray(np.linalg.qr(matrix, mode="r")) for matrix in (read, write))
    spectrum = lambda matrices: np.linalg.svd(matrices, compute_uv=False)
    values = spectrum(read)
    last = np.clip(used.sum(axis=-1), 1, values.shape[1])[:, None] - 1
    smallest = np.take_along_axis(values, last, axis=1)[:, 0]
    return {
        "width": weight.sum(axis=-1),
        "projector_norm": spectrum(np.nan_to_num(read * weight[:, None, :]) @ write.mT)[:, 0],
        "read_norm": values[:, 0],
        "write_norm": spectrum(write)[:, 0],
        "condition": values[:, 0] / np.maximum(smallest, 1e-30),
    }
