"""Any JAX model as a network with taps: naming, a program's equations, running them with edits."""

from abstraction.models.any_model.candidates import Candidate, Listing, listing
from abstraction.models.any_model.program import tap
from abstraction.models.any_model.wrapped import At, WrappedModel, wrap

__all__ = ["At", "Candidate", "Listing", "WrappedModel", "listing", "tap", "wrap"]
