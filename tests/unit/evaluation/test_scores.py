"""Scores are those worked out by hand, and scikit-learn's."""

from fer_utils.classes import CLASSES
from fer_utils.data import loading
from fer_utils.data.sources import DatasetError
from fer_utils.evaluation import scores

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn import metrics

labels = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=60)


def _predictions(
    true: list[str], given: list[str], sure: float | list[float] = 0.7, usage: str | list = ""
) -> pd.DataFrame:
    """Predictions with probability `sure` on the class given, the rest spread over the others."""
    sure = np.broadcast_to(sure, len(true))
    probabilities = np.repeat(((1 - sure) / 6)[:, None], 7, axis=1)
    probabilities[np.arange(len(true)), [CLASSES.index(label) for label in given]] = sure
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(len(true))], "label": true, "usage": usage, "other": 1})
    return scores.prediction_table(table, probabilities)


def test_a_prediction_is_the_likeliest_class_with_all_seven_probabilities():
    table = _predictions(["sad", "fear"], ["sad", "happy"], usage=["PublicTest", ""])
    assert list(table.columns) == ["path", "label", "usage", "predicted", *scores.PROBABILITIES]
    assert table["predicted"].tolist() == ["sad", "happy"] and table["p_happy"].tolist() == [0.05, 0.7]


def test_predictions_follow_the_rows_whatever_their_index():
    table = pd.DataFrame({"path": ["a", "b"], "label": ["sad", "fear"], "usage": ""}, index=[7, 3])
    found = scores.prediction_table(table, np.eye(7)[[4, 2]])
    assert found["predicted"].tolist() == ["sad", "fear"] and found["p_sad"].tolist() == [1, 0]
    assert scores.overall(found)["accuracy"] == 1


def test_scores_are_those_worked_out_by_hand():
    # angry: precision 1/2, recall 1/2; disgust 1/2, 1; fear: 0, 0; the other four classes have no image: 0.
    found = scores.overall(
        _predictions(["angry", "angry", "disgust", "fear"], ["angry", "disgust", "disgust", "angry"])
    )
    assert found["n"] == 4 and found["accuracy"] == 0.5
    assert found["loss"] == pytest.approx(-(2 * np.log(0.7) + 2 * np.log(0.05)) / 4, abs=1e-6)
    assert found["macro_precision"] == pytest.approx((1 / 2 + 1 / 2) / 7)
    assert found["macro_recall"] == pytest.approx((1 / 2 + 1) / 7)
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 7)


def test_all_right_scores_one_and_a_probability_of_zero_stays_finite():
    right = scores.overall(_predictions(list(CLASSES), list(CLASSES), 1.0))
    assert right["accuracy"] == right["macro_f1"] == right["macro_recall"] == right["macro_precision"] == 1
    assert right["loss"] == 0
    wrong = scores.overall(_predictions(["sad"], ["fear"], 1.0))
    assert wrong["loss"] == pytest.approx(-np.log(1e-7))


@settings(max_examples=40, deadline=None)
@given(labels, st.randoms(use_true_random=False))
def test_scores_agree_with_scikit_learn(true, random):
    guessed = [random.choice(CLASSES) for _ in true]
    table = _predictions(true, guessed, 0.4)
    found = scores.overall(table)
    how = {"labels": CLASSES, "average": "macro", "zero_division": 0}
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(true, guessed))
    assert found["macro_precision"] == pytest.approx(metrics.precision_score(true, guessed, **how))
    assert found["macro_recall"] == pytest.approx(metrics.recall_score(true, guessed, **how))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(true, guessed, **how))
    probabilities = table[list(scores.PROBABILITIES)].to_numpy()
    expected = metrics.log_loss([CLASSES.index(label) for label in true], probabilities, labels=range(7))
    assert found["loss"] == pytest.approx(expected, abs=1e-5)


def _parts(predictions: pd.DataFrame) -> dict[str, dict]:
    return {name: part for name, part in scores.scores_with_parts(predictions).items() if isinstance(part, dict)}


def test_public_private_and_unseen_are_scored_apart_where_they_can_be_told():
    usage = ["PublicTest", "PublicTest", "PrivateTest", "PrivateTest"]
    table = _predictions(["sad", "sad", "sad", "fear"], ["sad", "sad", "sad", "sad"], usage=usage).assign(
        seen_in_training=False
    )
    parts = _parts(table)
    assert parts["public"]["accuracy"] == 1 and parts["private"]["accuracy"] == 0.5
    assert parts["public"]["n"] == parts["private"]["n"] == 2 and len(parts) == 2
    assert list(_parts(table[2:])) == ["private"]
    assert _parts(table.assign(usage="")) == {}
    seen = table.assign(seen_in_training=[True, False, True, False])
    unseen = _parts(seen)["unseen"]
    assert (unseen["n"], unseen["accuracy"]) == (2, 0.5)
    assert "unseen" not in _parts(table.assign(seen_in_training=True))


def _intervals(counts: np.ndarray) -> dict[str, list[float]]:
    """Those of predictions with these (7, 7) confusion counts."""
    true, said = np.array(CLASSES)[np.indices(counts.shape)].reshape(2, -1).repeat(counts.ravel(), axis=1)
    return scores.bootstrap_intervals(pd.DataFrame({"label": true, "predicted": said}))


def test_intervals_hold_the_score_narrow_with_more_images_and_follow_the_seed():
    few, many = np.diag([8] * 7) + 1, np.diag([800] * 7) + 100
    for counts in (few, many):
        found = _intervals(counts)
        low, high = found["accuracy_interval"]
        assert low < np.trace(counts) / counts.sum() < high
    widths = [np.diff(_intervals(counts)["accuracy_interval"])[0] for counts in (few, many)]
    assert widths[1] == pytest.approx(widths[0] / 10, rel=0.15)  # by the root of 100 times the images
    accuracy = np.trace(few) / few.sum()
    assert widths[0] == pytest.approx(2 * 1.96 * np.sqrt(accuracy * (1 - accuracy) / few.sum()), rel=0.1)
    assert _intervals(few) == _intervals(few)


def test_copies_of_one_picture_are_drawn_together():
    """Four copies of each picture, all right or all wrong, tell no more than one; copies beside singles count as they are."""
    rng = np.random.default_rng(0)
    true, said = np.array(CLASSES)[rng.integers(0, 7, (2, 300))]
    said = np.where(rng.random(300) < 0.6, true, said)
    once, four_times = _predictions(true, said), _predictions(np.tile(true, 4), np.tile(said, 4))
    intervals = {
        name: scores.overall(table)["accuracy_interval"]
        for name, table in (
            ("once", once),
            ("strangers", four_times),
            ("each its own", four_times.assign(group=np.arange(1200))),
            ("copies", four_times.assign(group=np.tile(np.arange(300), 4) + 17)),
            ("half of them", four_times.assign(group=np.r_[np.tile(np.arange(150), 4), 1000 : 1000 + 600])),
        )
    }
    width = {name: high - low for name, (low, high) in intervals.items()}
    assert intervals["strangers"] == intervals["each its own"]
    assert width["copies"] == pytest.approx(width["once"], rel=0.1)
    assert width["strangers"] == pytest.approx(width["once"] / 2, rel=0.1)
    assert width["strangers"] < width["half of them"] < width["copies"]


def test_a_group_of_copies_keeps_its_right_and_wrong_predictions_together():
    """One copy right and one wrong in every group: no draw has another accuracy than one half."""
    table = _predictions(["sad"] * 40, ["sad", "fear"] * 20).assign(group=np.repeat(np.arange(20), 2))
    assert scores.overall(table)["accuracy_interval"] == [0.5, 0.5]


def test_a_perfect_score_has_an_interval_of_no_width():
    found = _intervals(np.diag([5] * 7))
    assert found["accuracy_interval"] == [1, 1] and found["macro_f1_interval"][1] == 1


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    half_right = _predictions(["sad"] * 4, ["sad", "sad", "fear", "fear"], 0.9)
    bins = scores.reliability(half_right)
    assert bins[["n", "confidence", "accuracy"]].to_numpy().tolist() == [[4, pytest.approx(0.9), 0.5]]
    assert bins[["low", "high"]].to_numpy().tolist() == [[pytest.approx(13 / 15), pytest.approx(14 / 15)]]
    assert scores.calibration_error(bins) == pytest.approx(0.4)
    assert scores.calibration_error(scores.reliability(_predictions(["sad"], ["sad"], 1.0))) == 0


def test_mcnemar_counts_what_one_model_alone_gets_right():
    true = ["sad"] * 10
    first = _predictions(true, ["sad"] * 8 + ["fear"] * 2)
    second = _predictions(true, ["fear"] * 6 + ["sad"] * 2 + ["fear", "sad"])
    found = scores.mcnemar(first, second)
    assert (found["n"], found["only_first"], found["only_second"]) == (10, 6, 1)
    assert found["p_value"] == pytest.approx(2 * (1 + 7) / 2**7)  # two-sided, of 7 fair coins 6 or more alike
    assert scores.mcnemar(first, first)["p_value"] == 1
    with pytest.raises(ValueError, match="no image in common"):
        scores.mcnemar(first, second.assign(path="elsewhere"))


def test_leaving_out_takes_what_it_says():
    table = pd.DataFrame({"label_conflict": [True, False, True, False], "flags": ["", "blank", "colour blank", ""]})
    table = table.assign(split="TEST", votes="")
    expected = {"none": [0, 1, 2, 3], "conflicts": [1, 3], "blanks": [0, 3], "conflicts_and_blanks": [3]}
    assert {what: loading.leave_out(table, what).index.tolist() for what in expected} == expected


def test_leaving_out_what_is_no_face_needs_votes():
    flags = ["", "blank not_a_face", "not_a_face dropped:leak", "no not_a_faces"]
    table = pd.DataFrame({"label_conflict": [True, False, False, False], "flags": flags, "split": "VAL", "votes": ""})
    for what in ("not_a_face", "all"):
        with pytest.raises(DatasetError, match=r"01 found no votes: put fer2013new.csv"):
            loading.leave_out(table, what)
    with_votes = table.assign(votes="0 0 0 0 0 0 0 0 0 10")
    left = {what: loading.leave_out(with_votes, what).index.tolist() for what in ("not_a_face", "all")}
    assert left == {"not_a_face": [0, 3], "all": [3]}


LABELLED = pd.DataFrame(
    {
        "path": list("abcdef"),
        "usage": ["PublicTest", "PrivateTest"] * 3,
        "seen_in_training": False,
        "fer2013_label": ["happy", "happy", "sad", "sad", "fear", "fear"],
        "ferplus_label": ["happy", "neutral", "neutral", "sad", "surprise", ""],
        "votes": [
            "0 10 0 0 0 0 0 0 0 0",
            "8 2 0 0 0 0 0 0 0 0",
            "10 0 0 0 0 0 0 0 0 0",
            "0 0 0 10 0 0 0 0 0 0",
            "0 0 10 0 0 0 0 0 0 0",
            "0 0 0 0 0 0 0 0 0 10",
        ],
    }
)
SAID = ["happy", "neutral", "sad", "neutral", "surprise", "fear"]


def _labelled_predictions() -> pd.DataFrame:
    probabilities = np.full((6, 7), 0.01)
    probabilities[np.arange(6), [CLASSES.index(label) for label in SAID]] = 0.94
    return scores.prediction_table(LABELLED.assign(label=LABELLED["fer2013_label"]), probabilities)


def test_scores_against_both_label_sets_are_those_of_their_own_pictures():
    found = scores.against_both({"TEST": _labelled_predictions()})["test"]
    assert (found["fer2013"]["n"], found["ferplus"]["n"]) == (6, 5)
    assert found["fer2013"]["accuracy"] == pytest.approx(3 / 6)  # a, c, f
    assert found["ferplus"]["accuracy"] == pytest.approx(3 / 5)  # a, b, e
    assert found["ferplus"]["public"]["n"] == 3 and found["ferplus"]["private"]["n"] == 2
    assert found["fer2013"]["per_class"]["fear"] == pytest.approx(2 / 3)  # e is missed
    assert found["ferplus"]["per_class"]["surprise"] == 1
    # b, c, e have two labels; b, d, e are mistakes against FER2013's, b and e what FER+ says
    assert found["disagreement"] == {
        "n": 5, "differ": 3, "errors": 3, "errors_where_they_differ": 2, "of_them_ferplus_label": 2
    }  # fmt: skip


def test_a_second_output_is_scored_on_the_votes_majority_and_the_first_stays_as_it_was():
    predictions, probabilities = _labelled_predictions(), np.full((6, 7), 0.01)
    majority = LABELLED["ferplus_label"].where(LABELLED["ferplus_label"] != "", "happy")
    probabilities[np.arange(6), majority.map(CLASSES.index)] = 0.94
    alone = scores.against_both({"TEST": predictions})["test"]
    both = {"TEST": scores.prediction_table(predictions, probabilities)}
    found = scores.against_both({"TEST": predictions}, both)["test"]
    second = found.pop("votes_output")
    assert found == alone and (second["n"], second["accuracy"]) == (5, 1.0)


def test_the_divergence_is_that_of_scipy_on_pictures_with_a_class():
    predictions = _labelled_predictions()
    found = scores.divergence(predictions)
    assert found["n"] == 5  # f is no face
    votes = np.zeros((5, 7))
    for row, shares in enumerate(
        [{"happy": 1}, {"neutral": 0.8, "happy": 0.2}, {"neutral": 1}, {"sad": 1}, {"surprise": 1}]
    ):
        for label, share in shares.items():
            votes[row, CLASSES.index(label)] = share
    expected = entropy(votes, predictions[list(scores.PROBABILITIES)].to_numpy()[:5], axis=1).mean()
    assert found["mean"] == pytest.approx(expected, rel=1e-6)


def test_without_votes_there_is_nothing_to_compare():
    with_votes = _labelled_predictions()
    assert scores.has_votes({"VAL": with_votes, "TEST": with_votes})
    assert not scores.has_votes({"VAL": with_votes, "TEST": with_votes.assign(votes="")})
    assert not scores.has_votes({"VAL": with_votes.drop(columns="votes")})


def test_the_confusion_matrix_has_true_rows_and_predicted_columns():
    counts = scores.confusion(_predictions(["angry", "angry", "neutral"], ["fear", "angry", "neutral"]))
    assert counts.shape == (7, 7) and counts.sum() == 3
    assert (counts[0, 2], counts[0, 0], counts[6, 6], counts[2, 0]) == (1, 1, 1, 0)


def test_the_class_report_has_a_row_a_class_even_for_one_without_images():
    report = scores.class_report(_predictions(["sad", "sad", "fear"], ["sad", "fear", "fear"])).set_index("class")
    assert list(report.index) == [*CLASSES, "macro avg", "weighted avg"]
    assert list(report.columns) == ["precision", "recall", "f1", "support"]
    assert report.loc["sad"].tolist() == pytest.approx([1, 0.5, 2 / 3, 2])
    assert report.loc["fear"].tolist() == pytest.approx([0.5, 1, 2 / 3, 1])
    assert report.loc["disgust"].tolist() == [0, 0, 0, 0]
    assert report.loc["macro avg", "f1"] == pytest.approx(4 / 3 / 7)


def test_the_report_is_whole_when_every_prediction_is_right():
    assert scores.class_report(_predictions(list(CLASSES), list(CLASSES)))["f1"].eq(1).all()


def test_the_worst_mistakes_are_wrong_and_surest_first():
    true, guessed = ["sad"] * 5, ["fear", "sad", "happy", "angry", "fear"]
    table = _predictions(true, guessed, [0.5, 0.99, 0.9, 0.7, 0.9])
    worst = scores.worst_mistakes(table, 3)
    assert worst["path"].tolist() == ["2.png", "4.png", "3.png"]  # equally sure: by path
    assert worst["confidence"].tolist() == pytest.approx([0.9, 0.9, 0.7])
    assert len(scores.worst_mistakes(table, 99)) == 4 and len(scores.worst_mistakes(table, 0)) == 0


def test_of_each_class_the_surest_right_and_the_surest_wrong():
    true, guessed = ["sad", "sad", "sad", "fear", "sad"], ["sad", "sad", "fear", "sad", "angry"]
    found = scores.surest_of_each_class(_predictions(true, guessed, [0.6, 0.8, 0.5, 0.7, 0.9]))
    assert sorted(found["path"]) == ["1.png", "3.png", "4.png"]


def test_the_most_confused_pairs_with_their_share_of_the_class():
    true = ["sad"] * 4 + ["fear"] * 2 + ["happy"] * 9
    guessed = ["fear", "fear", "fear", "sad", "sad", "fear"] + ["happy"] * 9
    pairs = scores.most_confused(_predictions(true, guessed), 5)
    assert pairs.to_dict("records") == [
        {"label": "sad", "predicted": "fear", "n": 3, "share": 0.75},
        {"label": "fear", "predicted": "sad", "n": 1, "share": 0.5},
    ]
    assert len(scores.most_confused(_predictions(true, true), 5)) == 0


def _drawn_predictions(temperature: float, n: int = 20_000) -> pd.DataFrame:
    """Predictions of a model whose scores are `temperature` times those that the labels follow."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (n, 7))
    true = (logits + rng.gumbel(size=(n, 7))).argmax(axis=1)
    exps = np.exp(logits * temperature)
    table = pd.DataFrame({"path": [str(i) for i in range(n)], "label": [CLASSES[i] for i in true]})
    return scores.prediction_table(table, exps / exps.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_temperature_that_made_a_model_too_sure_is_found_and_undone(temperature):
    predictions = _drawn_predictions(temperature)
    found = scores.fit_temperature(predictions)
    assert found == pytest.approx(temperature, rel=0.03)
    assert scores.scores_at(predictions, found)["calibration_error"] < 0.01
    scaled = scores.at_temperature(predictions, found)
    highest = scaled[list(scores.PROBABILITIES)].to_numpy().argmax(axis=1)
    assert [CLASSES[place] for place in highest] == predictions["predicted"].tolist()


def test_a_temperature_of_one_changes_nothing():
    predictions = _drawn_predictions(1.7, 50)
    plain = scores.overall(predictions)
    same = scores.scores_at(predictions, 1.0)
    assert same["loss"] == pytest.approx(plain["loss"], abs=1e-5)
    assert same["calibration_error"] == pytest.approx(plain["calibration_error"], abs=1e-5)
