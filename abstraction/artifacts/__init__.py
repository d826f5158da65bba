"""Files of what was found: handles, choices, couplings, pair banks, networks."""

from abstraction.artifacts.saving import description, load, save

__all__ = [
    "description",
    "load",
    "save",
]
