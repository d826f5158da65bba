"""Decisions that adaptive sampling is tried on."""

from typing import NamedTuple

from abstraction.evaluation.certification import CERTIFIED, REFUTED


class Case(NamedTuple):
    """A decision that adaptive sampling is tried on.

    Attributes:
      method: how the network was reduced.
      keep: share of the units kept.
      probability: p.
      fidelity: the threshold.
      verdict: what is to be shown.
    """

    method: str
    keep: float
    probability: float
    fidelity: float
    verdict: int


ADAPTIVE_CASES = {
    "certify": Case("vbp", 0.25, 0.1, 0.9, CERTIFIED),
    "refute": Case("cip-affine", 0.5, 0.5, 0.7, REFUTED),
}
"""The published ones, of 128 and 256 units: a borderline certification and an exclusion."""
