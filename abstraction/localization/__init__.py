"""PLOT and distributed alignment search: find where a causal variable lives.

`pipeline` reads like the paper; the other files are its steps.
"""

from abstraction.localization.calibration import (
    Choice,
    CutMenu,
    Evidence,
    Grid,
    calibrate,
    calibrate_candidates,
    gather_evidence,
    record_bank,
)
from abstraction.localization.couplings import Coupling
from abstraction.localization.das import Candidates, DASConfig, Rotations, candidate_grid, train_rotations
from abstraction.localization.pipeline import Localization, SubspaceSearch, localize, plot, search_subspaces
from abstraction.localization.rules import (
    BruteForce,
    Cosine,
    GromovWasserstein,
    Nearest,
    Plans,
    ReferenceTransport,
    Rule,
    Scope,
    Transport,
    single_site_scores,
)
from abstraction.localization.signatures import (
    CostMetric,
    Effects,
    SignatureMode,
    abstract_signatures,
    measure_effects,
    site_signatures,
    transport_cost,
)

__all__ = [
    "BruteForce",
    "Candidates",
    "Choice",
    "Cosine",
    "CostMetric",
    "Coupling",
    "CutMenu",
    "DASConfig",
    "Effects",
    "Evidence",
    "Grid",
    "GromovWasserstein",
    "Localization",
    "Nearest",
    "Plans",
    "ReferenceTransport",
    "Rotations",
    "Rule",
    "Scope",
    "SignatureMode",
    "SubspaceSearch",
    "Transport",
    "abstract_signatures",
    "calibrate",
    "calibrate_candidates",
    "candidate_grid",
    "gather_evidence",
    "localize",
    "measure_effects",
    "plot",
    "record_bank",
    "search_subspaces",
    "single_site_scores",
    "site_signatures",
    "train_rotations",
    "transport_cost",
]
