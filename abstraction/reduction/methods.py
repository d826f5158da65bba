"""How units are chosen, replaced and refitted, as one value; the presets.

`cmr` is the default: exact elimination under a mixture of interchange strengths, affine folds fitted for that mixture,
and the reader of the reduced tap refitted to the dense outputs under the same interventions. `cmr-closed` leaves the
refit out: closed forms only. `cip-const` and `cip-affine` are the authors' code, exactly: label cross-entropy, each
unit solved alone, all applied at once, which collapses and says so.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from abstraction.checks import number, one_of, whole
from abstraction.reduction.discrepancies import DISCREPANCIES
from abstraction.reduction.moments import Curvature, check_law
from abstraction.reduction.refitting import MIXTURE, RefitKind
from abstraction.reduction.scores import Criterion

Selector = Criterion | Literal["elimination", "greedy-constants"]
Folding = Literal["affine", "constant", "zero", "curvature-constant", "joint-constant"]
Parents = Literal["forward", "partial", "correlation", "authors"]


@dataclass(frozen=True)
class Method:
    """A way to reduce a tap; checked when it is built.

    Where a reader starts from zero, a recurrent state, affine maps are fitted through the origin, and `zero` is the one
    constant that can be compiled.

    Attributes:
      about: one line for people.
      selector: which units go: `elimination` (exact, affine), `greedy-constants`, or a criterion's lowest scores.
      discrepancy: D, by name; its curvature weighs errors.
      folding: affine maps of kept units, means, zeros, each unit's best constant, or the set's jointly best constants.
      parents: kept units that an affine map may use, or None for all.
      parent_rule: how parents are chosen; `authors` also weighs examples by curvature and takes an absolute ridge.
      law: interchange strengths the fold is fitted for.
      ridge: relative to the variances.
      refit: what is refitted to the dense outputs afterwards.
      curvature: how second derivatives are found.
      relative_flat: compare a unit's curvature with the other units', not with 1e-10.
    """

    about: str
    selector: Selector = "elimination"
    discrepancy: str = "logit"
    folding: Folding = "affine"
    parents: int | None = None
    parent_rule: Parents = "forward"
    law: tuple[float, ...] = MIXTURE
    ridge: float = 1e-4
    refit: RefitKind | None = None
    curvature: Curvature = "ggn"
    relative_flat: bool = True

    def __post_init__(self) -> None:
        one_of("selector", self.selector, [word for part in get_args(Selector) for word in get_args(part)])
        one_of("discrepancy", self.discrepancy, sorted(DISCREPANCIES))
        one_of("folding", self.folding, get_args(Folding))
        one_of("parent rule", self.parent_rule, get_args(Parents))
        one_of("refit", self.refit, (None, *get_args(RefitKind)))
        one_of("curvature", self.curvature, get_args(Curvature))
        if self.parents is not None:
            whole("parents", self.parents)
        if not isinstance(self.law, tuple):
            raise ValueError(f"got law {self.law!r}, expected a tuple of probabilities")
        check_law(self.law)
        number("ridge", self.ridge)
        if self.curvature == "fisher" and self.discrepancy not in ("kl", "ce"):
            raise ValueError(f"got curvature 'fisher' for {self.discrepancy!r}, expected a softmax: 'kl' or 'ce'")


_OBSERVED = (0.0,)
_CLOSED = Method("exact elimination and affine folds under interventions; closed forms only")
_CIP = Method(
    "the authors' code: label loss, each unit's best constant alone; collapses",
    selector="curvature",
    discrepancy="ce",
    folding="curvature-constant",
    law=_OBSERVED,
    relative_flat=False,
)


def _constants(about: str, selector: Selector, **options: object) -> Method:
    return Method(about, selector, **{"folding": "constant", "law": _OBSERVED, **options})  # pyright: ignore[reportArgumentType]


def _zeros(about: str, selector: Selector) -> Method:
    return dataclasses.replace(_constants(about, selector), folding="zero")


METHODS: dict[str, Method] = {
    "cmr": dataclasses.replace(_CLOSED, about="cmr-closed, and its reader refitted under interventions", refit="head"),
    "cmr-closed": _CLOSED,
    "cmr-kl": dataclasses.replace(_CLOSED, about="cmr-closed, errors weighed by the curvature of KL", discrepancy="kl"),
    "obs-affine": dataclasses.replace(_CLOSED, about="exact elimination, affine folds, observed only", law=_OBSERVED),
    "kl-const": _constants(
        "curvature of KL, each unit's best constant alone", "curvature", discrepancy="kl", folding="curvature-constant"
    ),
    "logit-const": _constants("logit distortion of each unit alone, means", "curvature"),
    "joint-const": _constants("exact greedy elimination with means", "greedy-constants"),
    "cip-const": _CIP,
    "cip-affine": dataclasses.replace(
        _CIP,
        about="the authors' code: units chosen by cip-const, 8 parents by correlation",
        folding="affine",
        parents=8,
        parent_rule="authors",
    ),
    "vbp": _constants("variance, means (arXiv 2507.12988)", "variance"),
    "vbp-bias": _constants("vbp, and the bias refitted", "variance", refit="bias"),
    "vbp-affine": dataclasses.replace(_constants("variance, affine folds", "variance"), folding="affine"),
    "magnitude": _constants("norm of outgoing weights, means", "magnitude"),
    "taylor": _constants("first-order effect on the label loss, means", "taylor"),
    "wanda": _constants("outgoing weights times activation (arXiv 2306.11695, summed per unit), means", "wanda"),
    "obd": _constants("optimal brain damage, curvature of KL at a zero constant; means", "obd", discrepancy="kl"),
    "random": _constants("a random order, means", "random"),
    "vbp-zero": _zeros("mean square, zeros", "variance"),
    "flap": _constants("fluctuation times outgoing weights, means as bias (arXiv 2312.11983)", "flap"),
    "magnitude-zero": _zeros("norm of outgoing weights, zeros", "magnitude"),
    "wanda-zero": _zeros("outgoing weights times activation, zeros", "wanda"),
    "flap-zero": _zeros("mean square times outgoing weights, zeros", "flap"),
    "random-zero": _zeros("a random order, zeros", "random"),
}
"""Presets by name; `dataclasses.replace` makes others."""


def method_named(name: str) -> Method:
    """Look a preset up.

    Raises:
      ValueError: there is none of this name.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"got method {name!r}, expected one of {', '.join(METHODS)}")
    return METHODS[name]
