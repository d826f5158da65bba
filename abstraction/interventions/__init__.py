"""Interventions as data: edits, bases, sites, handles, and patching with them."""

from abstraction.interventions.bases import Basis, pca_basis, random_frames, rotation_basis
from abstraction.interventions.edits import Add, InOrder, Interchange, Scale, Set
from abstraction.interventions.patching import (
    Recording,
    factual_outputs,
    handle_chunk,
    map_handles,
    patched_outputs,
    record_pairs,
    reorder_sources,
    resume_chunk,
    stack_handles,
    take_handle,
    take_pairs,
)
from abstraction.interventions.sites import (
    AnyHandle,
    Handle,
    LocalHandle,
    SiteBank,
    coordinate_sites,
    group_sites,
    state_sites,
    unit_sites,
)

__all__ = [
    "Add",
    "AnyHandle",
    "Basis",
    "Handle",
    "InOrder",
    "Interchange",
    "LocalHandle",
    "Recording",
    "Scale",
    "Set",
    "SiteBank",
    "coordinate_sites",
    "factual_outputs",
    "group_sites",
    "handle_chunk",
    "map_handles",
    "patched_outputs",
    "pca_basis",
    "random_frames",
    "record_pairs",
    "reorder_sources",
    "resume_chunk",
    "rotation_basis",
    "stack_handles",
    "state_sites",
    "take_handle",
    "take_pairs",
    "unit_sites",
]
