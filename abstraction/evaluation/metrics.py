"""Accuracy of a factual classifier."""

import numpy as np
from jaxtyping import Int


def accuracy(predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """Return the fraction of predictions that equal the label.

    Raises:
      ValueError: there are none, or not one prediction for each label.
    """
    predictions, labels = _paired(predictions, labels)
    return float(np.mean(predictions == labels))


def balanced_accuracy(predictions: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> float:
    """Return the mean over classes present in `labels` of the accuracy within the class.

    Where labels are unbalanced (98 to 2 in hierarchical equality) a constant prediction has high accuracy and a
    balanced accuracy of one over the number of classes.

    Raises:
      ValueError: there are none, or not one prediction for each label.
    """
    predictions, labels = _paired(predictions, labels)
    return float(np.mean([np.mean(predictions[labels == label] == label) for label in np.unique(labels)]))


def _paired(predictions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or predictions.ndim != 1 or not len(labels):
        raise ValueError(
            f"got predictions of shape {predictions.shape} for labels of shape {labels.shape}, expected one prediction "
            "for each label, and at least one"
        )
    for what, values in (("predictions", predictions), ("labels", labels)):
        # A label that is not a number equals nothing, and would be a class without members.
        if values.dtype.kind not in "biu":
            raise ValueError(f"got {what} of type {values.dtype}, expected integers")
    return predictions, labels
