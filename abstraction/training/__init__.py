"""Optimisation and checkpoints."""

from abstraction.training.loop import Schedule, Stop, Trained, Watch, fit

__all__ = [
    "Schedule",
    "Stop",
    "Trained",
    "Watch",
    "fit",
]
