"""The high-level side: causal models and counterfactual pair banks."""

from abstraction.causal.pairs import PairBank, concatenate_banks, label_pairs
from abstraction.causal.sampling import Quota, changes, changes_exactly, sample_bank, unchanged
from abstraction.causal.scm import CausalModel, causal_model

__all__ = [
    "CausalModel",
    "PairBank",
    "Quota",
    "causal_model",
    "changes",
    "changes_exactly",
    "concatenate_banks",
    "label_pairs",
    "sample_bank",
    "unchanged",
]
