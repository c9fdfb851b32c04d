"""The loss and the scores that training reports, for plain and for soft labels.

A network with two outputs (network.with_votes_output) gives rows of 14 probabilities, and its targets for TRAIN have 14
columns: seven shares of the label, seven of FER+'s votes. Scores are those of the labels.
"""

from fer_utils.classes import CLASSES

import keras
from keras import ops


def is_soft(labels) -> bool:
    """Whether labels are shares (n, 7) or (n, 14), as from mixup and label smoothing, and not indices into CLASSES."""
    return len(labels.shape) == 2 and labels.shape[-1] in (len(CLASSES), 2 * len(CLASSES))


def likeliest(labels):
    """Labels as indices into CLASSES; for soft labels the class with the largest share."""
    return ops.argmax(of_labels(labels), axis=-1) if is_soft(labels) else labels


def of_labels(rows):
    """The seven columns of the labels, of rows with 7 or 14."""
    # Rows of 7 stay the output of softmax itself: Keras then computes the loss from the scores before it.
    return rows if rows.shape[-1] == len(CLASSES) else rows[..., : len(CLASSES)]


def cross_entropy(y_true, y_pred):
    """The specification's loss, and for soft labels its generalisation. Only TRAIN has soft labels.

    With 14 columns, the sum of both outputs' losses, from probabilities clipped at Keras' epsilon. The weight of a row of votes
    is the sum of its shares: 0 if a picture has no votes.
    """
    if not is_soft(y_true):
        return keras.losses.sparse_categorical_crossentropy(y_true, of_labels(y_pred))
    loss = keras.losses.categorical_crossentropy(of_labels(y_true), of_labels(y_pred))
    if y_true.shape[-1] == len(CLASSES):
        return loss
    return loss + keras.losses.categorical_crossentropy(y_true[:, len(CLASSES) :], y_pred[:, len(CLASSES) :])


@keras.saving.register_keras_serializable("fer_utils")
class Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """The share of images whose likeliest class is the label, or the largest share of a soft label."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(likeliest(y_true), of_labels(y_pred), sample_weight)


@keras.saving.register_keras_serializable("fer_utils")
class MacroScores(keras.metrics.Metric):
    """Macro precision, recall and F1 over all batches of an epoch, from one confusion matrix.

    As scikit-learn's `average="macro", zero_division=0`: the mean over the seven classes, where a class without predictions
    or without images counts as 0. A soft label counts as the class with the largest share, a row of weight 0 is left out.
    """

    def __init__(self, name: str = "macro", **kwargs):
        super().__init__(name=name, **kwargs)
        self.counts = self.add_weight((len(CLASSES), len(CLASSES)), "zeros", dtype="float32", name="counts")

    def update_state(self, y_true, y_pred, sample_weight=None):
        true = ops.one_hot(ops.cast(ops.reshape(likeliest(y_true), (-1,)), "int32"), len(CLASSES), dtype="float32")
        if sample_weight is not None:  # rows that fill up a batch have the weight 0
            true *= ops.expand_dims(ops.cast(ops.reshape(sample_weight, (-1,)) > 0, "float32"), 1)
        predicted = ops.one_hot(ops.argmax(of_labels(y_pred), axis=-1), len(CLASSES), dtype="float32")
        self.counts.assign_add(ops.matmul(ops.transpose(true), predicted))

    def result(self):
        hits = ops.diagonal(self.counts)
        precision = ops.divide_no_nan(hits, ops.sum(self.counts, axis=0))
        recall = ops.divide_no_nan(hits, ops.sum(self.counts, axis=1))
        f1 = ops.divide_no_nan(2 * precision * recall, precision + recall)
        return {"macro_precision": ops.mean(precision), "macro_recall": ops.mean(recall), "macro_f1": ops.mean(f1)}
