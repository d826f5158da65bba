"""Interventions as data: edits, bases, sites, handles, and patching with them.

    from abstraction.interventions import building as do      # a call per intervention: do.zero(tap), ...

Features that are not linear are in `featurizers` and `autoencoders`, weights that are learned in `gates`, edges in
`paths`, sources of sources in `sources`.
"""

from abstraction.interventions.bases import Basis, pca_basis, rotation_basis
from abstraction.interventions.edits import Add, InOrder, Interchange, Scale, Set, Substitute
from abstraction.interventions.handles import Handle
from abstraction.interventions.patching import factual_outputs
from abstraction.interventions.sites import SiteBank, coordinate_sites, group_sites, span_sites, state_sites, unit_sites

__all__ = [
    "Add",
    "Basis",
    "Handle",
    "InOrder",
    "Interchange",
    "Scale",
    "Set",
    "SiteBank",
    "Substitute",
    "coordinate_sites",
    "factual_outputs",
    "group_sites",
    "pca_basis",
    "rotation_basis",
    "span_sites",
    "state_sites",
    "unit_sites",
]
