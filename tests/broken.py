"""Behaviour broken on purpose: a check that cannot fail is none."""

from contextlib import contextmanager

import jax
import pytest


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


@contextmanager
def noticed(place, name, wrong):
    """Break a behaviour, and expect what is checked meanwhile to fail, for a better reason than that nothing moves."""
    with broken(place, name, wrong), pytest.raises(AssertionError) as failure:
        yield
    assert "moves nothing" not in str(failure.value), failure.value
