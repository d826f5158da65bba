"""Read/write handles in closed form: where a variable is read off a state, and where it is written, by regression.

On factual runs with states h [N, D], values z [N] of the variable and values x [N, Q] of other known variables,

    write   u = the coefficient of z in the least-squares fit  h ~ 1 + z + x
    read    v = (S + ridge I)^-1 c,  S = cov(h), c = cov(h, z);   scaled so that v . u = 1

and the interchange moves the state along u by what v reads: h <- h + strength u (v . (h_s - h)). No intervention is
run and nothing is trained; ridge and strength are chosen on calibration pairs like any other setting.

The covariates matter: what moves with the variable without being it must be among them, or u writes that too.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from abstraction.checks import places, positive, whole
from abstraction.interventions import Basis, Handle
from abstraction.localization.supports import Support, feature_support
from abstraction.models import Tap

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
STRENGTHS = tuple(round(0.5 + 0.1 * step, 1) for step in range(12))
_UNREADABLE = 1e-9


class ReadWrite(NamedTuple):
    """Candidate handles of one variable at one depth.

    Attributes:
      handles: one rank-1 handle per ridge and strength.
      settings: ridge, strength, depth and the norms of u and v of each, for `calibrate_candidates`.
      write: u, `[D]`.
      read: v per ridge, `[R, D]`.
    """

    handles: Handle
    settings: list[dict[str, Any]]
    write: Float[np.ndarray, " D"]
    read: Float[np.ndarray, "R D"]


def readwrite_handles(
    states: Float[np.ndarray, "N D"],
    variable: Shaped[np.ndarray, " N"],
    covariates: Shaped[np.ndarray, "N Q"],
    *,
    depth: int,
    tap: str,
    ridges: Sequence[float] = RIDGES,
    strengths: Sequence[float] = STRENGTHS,
) -> ReadWrite:
    """Fit the read and write directions of one variable.

    Args:
      states: activations of factual runs at one depth.
      variable: the variable's value in each run.
      covariates: values of other variables that the state may hold, Q of them, possibly none.
      depth: where the states are from.
      tap: the tap they are from.
      ridges: in units of the states' mean variance per coordinate.
      strengths: how far to move; 1 takes the source's reading.

    Raises:
      ValueError: sizes differ, a number is not finite, a ridge or strength is not positive, the variable is constant or
        a combination of the covariates, or the states do not move with it.
    """
    _check_values(states, variable, covariates)
    positive("ridges", ridges)
    positive("strengths", strengths)
    whole("depth", depth, 0)
    states, values = np.asarray(states, np.float64), np.asarray(variable, np.float64)
    write = _write_direction(states, values, np.asarray(covariates, np.float64))
    read = np.stack([_read_direction(states, values, write, ridge) for ridge in ridges])
    pairs = [(index, strength) for index in range(len(ridges)) for strength in strengths]
    chosen = np.array([index for index, _ in pairs])
    handles = Handle(
        tap,
        np.array([[strength] for _, strength in pairs], np.float32),
        Basis(
            encoder=read[chosen][:, :, None].astype(np.float32),
            decoder=np.broadcast_to(write, (len(pairs), 1, len(write))).astype(np.float32),
            mean=np.zeros((len(pairs), len(write)), np.float32),
        ),
        np.full(len(pairs), depth, np.int32),
    )
    norms = {"write_norm": float(np.linalg.norm(write))}
    settings = [
        {"depth": depth, "ridge": ridges[i], "strength": s, "read_norm": float(np.linalg.norm(read[i])), **norms}
        for i, s in pairs
    ]
    return ReadWrite(handles, settings, write, read)


def readwrite_start(tap: Tap, variable: int, found: ReadWrite, *, ridge: int | None = None) -> Support:
    """Let a search start from fitted directions: its first feature reads along v and writes along u.

    The other features complete them to the whole space: they read what writing along u does not change.

    Args:
      tap: the tap.
      variable: which variable.
      found: the directions.
      ridge: index of the ridge to take, by default the middle one.

    Raises:
      ValueError: there is no such ridge, or the directions are of another tap.
    """
    if (found.handles.tap, found.write.shape) != (tap.name, (tap.width,)):
        raise ValueError(
            f"got directions {found.write.shape} of tap {found.handles.tap!r}, expected ({tap.width},) of {tap.name!r}"
        )
    if ridge is not None:
        places("ridge", ridge, len(found.read))
    read = found.read[len(found.read) // 2 if ridge is None else ridge]
    _, _, directions = np.linalg.svd(found.write[None])
    encoder = np.concatenate([read[:, None], directions[1:].T], axis=1)
    depth = int(np.asarray(found.handles.depth)[0])
    decoder = np.linalg.inv(encoder)
    basis = Basis(encoder.astype(np.float32), decoder.astype(np.float32), np.zeros(tap.width, np.float32))
    return feature_support(tap, variable, depth, basis, range(tap.width), "readwrite", turn=False)


def _check_values(states: np.ndarray, variable: np.ndarray, covariates: np.ndarray) -> None:
    if not len(states) == len(variable) == len(covariates):
        raise ValueError(
            f"got {len(states)} states, {len(variable)} values and {len(covariates)} rows of covariates, "
            "expected one of each per run"
        )
    for name, values in (("states", states), ("variable", variable), ("covariates", covariates)):
        numbers = np.asarray(values)
        if numbers.dtype.kind not in "biuf" or not np.isfinite(numbers).all():
            raise ValueError(f"got {name} of type {numbers.dtype} or not finite, expected finite numbers")
    if [np.ndim(values) for values in (states, variable, covariates)] != [2, 1, 2] or not np.size(states):
        raise ValueError(
            f"got states {np.shape(states)}, variable {np.shape(variable)} and covariates {np.shape(covariates)}, "
            "expected [N, D], [N] and [N, Q]"
        )


def _write_direction(
    states: Float[np.ndarray, "N D"], values: Float[np.ndarray, " N"], covariates: Float[np.ndarray, "N Q"]
) -> Float[np.ndarray, " D"]:
    """Return the coefficient of the variable: by Frisch and Waugh, regress on what the covariates do not explain."""
    others = np.concatenate([np.ones((len(values), 1)), covariates], axis=1)
    own = values - others @ np.linalg.lstsq(others, values, rcond=None)[0]
    power = own @ own
    if power <= 1e-9 * max(values @ values, 1e-30):
        raise ValueError("got a variable that is constant or a combination of the covariates, expected one that varies")
    return own @ states / power


def _read_direction(
    states: Float[np.ndarray, "N D"], values: Float[np.ndarray, " N"], write: Float[np.ndarray, " D"], ridge: float
) -> Float[np.ndarray, " D"]:
    centered = states - states.mean(axis=0)
    covariance = centered.T @ centered / len(states)
    scale = max(np.trace(covariance) / len(covariance), 1e-30)
    read = np.linalg.solve(covariance + ridge * scale * np.eye(len(covariance)), centered.T @ (values - values.mean()))
    overlap = read @ write
    if abs(overlap) <= _UNREADABLE * np.linalg.norm(read) * np.linalg.norm(write):
        raise ValueError("got states that do not move with the variable, expected some along which it can be read")
    return read / overlap


def stack_candidates(found: Sequence[ReadWrite]) -> tuple[Handle, Int[np.ndarray, " C"], list[dict[str, Any]]]:
    """Join the candidates of several variables: handles, the variable of each, and their settings.

    Raises:
      ValueError: there are none, or they are of different taps.
    """
    if len(kinds := {(one.handles.tap, *one.write.shape) for one in found}) != 1:
        raise ValueError(f"got candidates of taps and widths {sorted(kinds)}, expected at least one, all of one tap")
    bases = [one.handles.basis for one in found if one.handles.basis is not None]
    join = lambda arrays: np.concatenate([np.asarray(array) for array in arrays])
    handles = Handle(
        found[0].handles.tap,
        join(one.handles.weight for one in found),
        Basis(*(join(getattr(basis, name) for basis in bases) for name in ("encoder", "decoder", "mean"))),
        join(one.handles.depth for one in found),
    )
    owner = np.repeat(np.arange(len(found), dtype=np.int32), [len(one.settings) for one in found])
    return handles, owner, [settings for one in found for settings in one.settings]
