"""Edits of taps that occur once."""

import jax


def once(edit):
    """Give every leaf of an edit the depth axis of a tap that occurs once."""
    return jax.tree.map(lambda leaf: leaf[None], edit)


def parts(network):
    """Return the two halves of a network."""
    return network.model, network.params
