"""Optimisation and checkpoints."""

from abstraction.training.checkpoints import Checkpoints
from abstraction.training.loop import Fit, Plateau, Stop, TrainState, fit, start_plateau, update_plateau

__all__ = ["Checkpoints", "Fit", "Plateau", "Stop", "TrainState", "fit", "start_plateau", "update_plateau"]
