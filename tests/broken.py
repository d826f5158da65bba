"""Behaviour broken on purpose: a check that cannot fail is none."""

from contextlib import contextmanager

import jax


@contextmanager
def broken(place, name, wrong):
    """Put a wrong function in the place of the right one; what was compiled before, or meanwhile, is forgotten."""
    right = getattr(place, name)
    jax.clear_caches()
    setattr(place, name, wrong)
    try:
        yield
    finally:
        setattr(place, name, right)
        jax.clear_caches()
