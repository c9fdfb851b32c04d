from fer_utils.training import loop, network

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score

TRAIN_COUNTS = np.array([500, 20, 500, 900, 600, 600, 400])


@pytest.fixture(scope="module")
def model(faces):
    """The small network for 32 px, which gives the faces every class, and whose last layer prefers those with many pictures."""
    keras.utils.set_random_seed(0)
    model = network.build(32, "none", network.SMALL)
    last, scores = model.get_layer(network.HEAD_LAYERS[-1]), np.log(loop.predict(model, faces))
    scale, shares = 1 / scores.std(axis=0).max(), np.log(TRAIN_COUNTS / TRAIN_COUNTS.sum())
    last.set_weights([scale * last.kernel.numpy(), shares - scale * scores.mean(axis=0)])
    return model


@pytest.fixture(scope="module")
def faces():
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (140, 32, 32, 1)).astype(np.uint8)


def test_the_strength_with_the_highest_macro_f1_lowers_the_scores_of_frequent_classes(model, faces):
    shares = TRAIN_COUNTS / TRAIN_COUNTS.sum()
    before = loop.predict(model, faces)
    labels = (before / shares).argmax(axis=1)  # what the model means without its preference
    new, table = network.with_adjusted_logits(model, before, labels, np.repeat(np.arange(7), TRAIN_COUNTS))
    assert list(table.index) == pytest.approx(np.arange(11) / 10)
    assert (table["accuracy"].iloc[-1], table["macro_f1"].iloc[-1]) == (1, 1) and table["macro_f1"].idxmax() == 1
    assert table["macro_f1"].iloc[0] == f1_score(labels, before.argmax(axis=1), average="macro") < 1
    after = loop.predict(new, faces)
    expected = before / shares
    np.testing.assert_allclose(after, expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(loop.predict(model, faces), before)  # the given model is as it was


def test_of_equal_strengths_the_lowest_is_taken(model, faces):
    before = loop.predict(model, faces)
    labels = np.full(len(faces), before.argmax(axis=1)[0])
    equal_shares = np.repeat(np.arange(7), 9)
    new, table = network.with_adjusted_logits(model, before, labels, equal_shares)
    assert table["macro_f1"].nunique() == 1 and table["macro_f1"].idxmax() == 0
    np.testing.assert_allclose(loop.predict(new, faces), before, atol=1e-6)


def test_a_class_without_pictures_counts_as_one(model, faces):
    probabilities = loop.predict(model, faces)
    _, table = network.with_adjusted_logits(model, probabilities, probabilities.argmax(axis=1), np.array([0, 0, 3]))
    assert np.isfinite(table.to_numpy()).all()


def test_a_class_that_val_lacks_counts_as_in_every_other_macro_f1(model, faces):
    probabilities = loop.predict(model, faces)
    labels = np.where(probabilities.argmax(axis=1) == 3, 4, probabilities.argmax(axis=1))
    labels[:7] = [0, 1, 2, 4, 4, 5, 6]  # none of class 3
    _, table = network.with_adjusted_logits(model, probabilities, labels, np.repeat(np.arange(7), TRAIN_COUNTS))
    expected = f1_score(labels, probabilities.argmax(axis=1), labels=range(7), average="macro", zero_division=0)
    assert table["macro_f1"].iloc[0] == pytest.approx(expected) and table["macro_f1"].max() <= 6 / 7
