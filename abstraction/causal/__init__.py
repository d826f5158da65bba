"""The high-level side: causal models and counterfactual pair banks."""

from abstraction.causal.pairs import (
    PairBank,
    Quota,
    Role,
    changes,
    changes_any,
    changes_exactly,
    changes_none,
    concatenate_banks,
    label_pairs,
    restrict,
    sample_bank,
    select_variables,
    shared_pairs,
    shuffle_labels,
    unchanged,
)
from abstraction.causal.scm import CausalModel, Mechanism, causal_model

__all__ = [
    "CausalModel",
    "Mechanism",
    "PairBank",
    "Quota",
    "Role",
    "causal_model",
    "changes",
    "changes_any",
    "changes_exactly",
    "changes_none",
    "concatenate_banks",
    "label_pairs",
    "restrict",
    "sample_bank",
    "select_variables",
    "shared_pairs",
    "shuffle_labels",
    "unchanged",
]
