"""Behaviour broken on purpose: a check that cannot fail is none."""

from contextlib import contextmanager

import jax


@contextmanager
def broken(place, name, wrong):
    """Put a wrong function in the place of the right one; what was compiled before, or meanwhile, is forgotten.

    Compiled as quickly as can be: what is wrong is wrong without optimizations too. The parity tests, whose rows are
    broken here, run with them.
    """
    right = getattr(place, name)
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", True)
    setattr(place, name, wrong)
    try:
        yield
    finally:
        setattr(place, name, right)
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
