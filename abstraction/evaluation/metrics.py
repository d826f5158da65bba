"""Accuracy of a factual classifier."""

import numpy as np
from jaxtyping import Int


def accuracy(predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """Return the fraction of predictions that equal the label."""
    return float(np.mean(np.asarray(predictions) == np.asarray(labels)))


def balanced_accuracy(predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """Return the mean over classes present in `labels` of the accuracy within the class.

    Where labels are unbalanced (98 to 2 in hierarchical equality) a constant prediction has high accuracy and a
    balanced accuracy of one over the number of classes.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    return float(np.mean([np.mean(predictions[labels == label] == label) for label in np.unique(labels)]))
