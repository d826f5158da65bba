"""PLOT and distributed alignment search: find where a causal variable lives.

`pipeline` reads like the paper; the other files are its steps.
"""

from abstraction.localization.calibration import Choice, Selection
from abstraction.localization.cutting import CutMenu
from abstraction.localization.das import Boundless, Rotation
from abstraction.localization.effects import Effects, measure_effects
from abstraction.localization.maps import Sweep
from abstraction.localization.masks import Mask, Weights
from abstraction.localization.pipeline import (
    AlignmentSearch,
    Localization,
    Recipe,
    Search,
    alignment_search,
    localize,
    plot,
)
from abstraction.localization.progressive import VARIANTS, Variant, coarse_stage, fine_stage
from abstraction.localization.rules import (
    BruteForce,
    Cosine,
    GromovWasserstein,
    Nearest,
    ReferenceTransport,
    Rule,
    Transport,
)
from abstraction.localization.screening import Screened, screen_sites
from abstraction.localization.searching import SearchConfig
from abstraction.localization.signatures import Signature
from abstraction.localization.supports import candidate_grid, full_supports
from abstraction.localization.sweeping import Sweeping, sweep

__all__ = [
    "VARIANTS",
    "AlignmentSearch",
    "Boundless",
    "BruteForce",
    "Choice",
    "Cosine",
    "CutMenu",
    "Effects",
    "GromovWasserstein",
    "Localization",
    "Mask",
    "Nearest",
    "Recipe",
    "ReferenceTransport",
    "Rotation",
    "Rule",
    "Screened",
    "Search",
    "SearchConfig",
    "Selection",
    "Signature",
    "Sweep",
    "Sweeping",
    "Transport",
    "Variant",
    "Weights",
    "alignment_search",
    "candidate_grid",
    "coarse_stage",
    "fine_stage",
    "full_supports",
    "localize",
    "measure_effects",
    "plot",
    "screen_sites",
    "sweep",
]
