"""The tables and sentences that a report shows say what metrics.json holds."""

from fer_utils.classes import CLASSES
from fer_utils.evaluation import report, scores
from fer_utils.pipeline import runs

import numpy as np
import pandas as pd
import pytest


def _predictions(n: int, n_seen: int) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    labels = [CLASSES[place] for place in rng.integers(0, 7, n)]
    usage = ["PublicTest", "PrivateTest"] * (n // 2)
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(n)], "label": labels, "usage": usage})
    table["seen_in_training"] = np.arange(n) < n_seen
    return scores.prediction_table(table, rng.dirichlet(np.ones(7), n))


@pytest.fixture
def metrics() -> dict:
    """Scores of 20 VAL and 40 TEST images, 3 of the latter seen in training."""
    val, test = _predictions(20, 0), _predictions(40, 3)
    found = {name: scores.scores_with_parts(of) for name, of in (("val", val), ("test", test))}
    temperature = scores.fit_temperature(val)
    scaled = {name: scores.scores_at(of, temperature) for name, of in (("val", val), ("test", test))}
    return found | {
        "leakage": {"policy": "keep", "val_images_seen_in_training": 0, "test_images_seen_in_training": 3},
        "temperature_scaling": {"temperature": temperature} | scaled,
    }


def test_a_row_for_each_part_that_is_told_apart(metrics):
    table = report.score_table(metrics)
    parts = ["VAL", "VAL, public", "VAL, private", "TEST", "TEST, public", "TEST, private", "TEST, unseen"]
    assert list(table.index) == parts and table.loc["TEST, unseen", "n"] == 37
    low, high = metrics["test"]["macro_f1_interval"]
    assert table.loc["TEST", "macro_f1 95 %"] == f"{low:.3f}–{high:.3f}"


def test_test_time_augmentation_stands_beside_the_plain_scores(metrics):
    plain = report.score_table(metrics)
    augmented = {"kind": "flip", "val": metrics["val"], "test": {**metrics["test"], "accuracy": 0.5}}
    table = report.score_table(metrics | {"test_time_augmentation": augmented})
    assert table.iloc[: len(plain)].equals(plain)
    assert list(table.index[len(plain) :]) == [f"{name}, flip" for name in plain.index]
    assert table.loc["TEST, flip", "accuracy"] == 0.5


def test_calibration_before_and_after_scaling(metrics):
    table = report.calibration_table(metrics)
    temperature = metrics["temperature_scaling"]["temperature"]
    assert table.loc[f"TEST at temperature {temperature:.2f}"].to_dict() == metrics["temperature_scaling"]["test"]
    assert table.loc["VAL", "loss"] == metrics["val"]["loss"]
    assert table.iloc[1]["loss"] <= table.iloc[0]["loss"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8e-5, "8.000e-05"),
        (2.0996e-38, "2.100e-38"),
        (0.467, "0.4670"),
        (0.00123456, "0.001235"),
        (-1.23456, "-1.235"),
        (312.5, "312.5"),
        (999.99, "1000"),
        (12345.6, "12,346"),
        (0.0, "0"),
    ],
)
def test_numbers_have_significant_digits(value, text):
    assert report.significant(value) == text
    assert f"<td>{text}</td>" in report.html_table(pd.DataFrame({"value": [value]}))


def test_the_report_shows_parameters_as_they_are_written(metrics, tmp_path):
    folders = runs.Run(tmp_path, tmp_path / "images")
    parameters = {"learning_rate": 8e-5, "epochs": 20, "seed": 123456, "optimizer": "adamw", "picture": ""}
    metrics["per_class"] = {"test": [{"class": "sad", "f1": 0.00001234}]}
    sources = {"fer2013": "auto", "emotion_detection": "auto"}
    metrics["run"] = {
        "params": {"merge_split": sources, "fine_tune": parameters},
        "versions": {},
        "seconds_per_stage": {"fine_tune": 4321.9},
    }
    page = report.page(metrics, "r", folders.figure)
    for value in ("8e-05", "20", "123456", "adamw", "1.234e-05", "4,322"):
        assert f"<td>{value}</td>" in page


def test_the_honesty_line_counts_what_was_seen_and_names_the_way_out(metrics):
    line = report.honesty_line(metrics)
    assert "3 of 40 TEST images" in line and "0 of 20 VAL images" in line and "params/clean.yaml" in line
    title = report.confusion_title(metrics, "TEST").splitlines()
    assert title[1].startswith("WARNING: the model was trained on copies of 3 of 40 pictures")
    metrics["leakage"]["test_images_seen_in_training"] = 0
    assert "never saw" in report.honesty_line(metrics) and "WARNING" not in report.honesty_line(metrics)
    title = report.confusion_title(metrics, "TEST").splitlines()
    assert title[1] == "the model was trained on no copy of these pictures"


@pytest.mark.parametrize("weights", ["shipped", "outputs/keep/model.keras", "faces_notop.h5"])
def test_pictures_that_an_earlier_training_saw_are_not_said_to_be_unseen(metrics, weights):
    metrics["leakage"]["test_images_seen_in_training"] = 0
    metrics["run"] = {"params": {"fine_tune": {"weights": weights}}}
    line, title = report.honesty_line(metrics), report.confusion_title(metrics, "TEST").splitlines()[1]
    assert "never saw" not in line and f"weights that it began with ({weights}) were trained on is not counted" in line
    assert title == "in this run the model was trained on no copy of these pictures"


def test_scores_of_an_earlier_version_say_that_they_counted_something_else(metrics):
    metrics["leakage"] = {"policy": "keep", "val_images_in_train": 20, "test_images_in_train": 40}
    assert report.seen_in_training(metrics, "TEST") is None
    line = report.honesty_line(metrics)
    assert line.startswith("WARNING") and "not on record" in line and "40" not in line


@pytest.fixture
def page(metrics, tmp_path):
    """Writes the report of a run with few figures, of Confidence none: its HTML."""
    metrics |= {"per_class": {"test": [{"class": "angry", "f1": 0.5}]}}
    metrics["run"] = {
        "params": {"merge_split": {"fer2013": "auto", "emotion_detection": "auto"}, "evaluate": {"n_mistakes": 24}},
        "versions": {"keras": "3"},
        "seconds_per_stage": {"evaluate": 1.0},
    }
    folders = runs.run_named("r", str(tmp_path), "")
    figures = [folders.figure(name) for name in ("confused_pairs", "learning_curves", "faces")]
    for path in (folders.path("confusion_matrix_test.png"), *figures):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.stem.encode())

    def write() -> str:
        return report.page(metrics, "r", folders.figure)

    return write


def test_the_report_opens_with_scores_honesty_and_confusion_and_ends_with_parameters(page):
    html = page()
    order = ["TEST accuracy", 'class="warning"', "Confusion matrix of TEST", ">Scores<", ">TEST, class by class<"]
    order += [">Mistakes<", ">Confidence<", "Learning curves", ">Data<", ">Stages<", ">Parameters<", ">Versions<"]
    places = [html.index(text) for text in order]
    assert places == sorted(places)


def test_a_figure_that_is_not_there_is_named_in_one_sentence_and_leaves_no_broken_image(page):
    html = page()
    assert html.count("<img") == html.count("<figure>") == 4 and "<h2>VAL" not in html
    shown, _, rest = html.partition("Figures that this run has not saved")
    sentence = rest.partition("</p>")[0]
    for missing in ("Confusion matrix of VAL", "Grad-CAM on TEST", "Reliability"):
        assert missing in sentence and missing not in shown
    assert "Confusion matrix of TEST" in shown and "Confusion matrix of TEST" not in sentence


def test_a_report_with_all_figures_names_none_as_missing(metrics, page, tmp_path):
    page()
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    assert "has not saved" not in report.page(metrics, "r", lambda name: picture)


def test_other_sets_have_their_groups_where_there_are_some(page, metrics):
    whole = metrics["test"] | {"classes": 7, "seen_in_training": 0}
    metrics["also"] = {"mine": whole}
    assert "Other test sets" in page() and "mine, age" not in page()
    metrics["also"]["mine"] = whole | {"groups": {"age": {"70+": {"n": 3, "classes": 2}, "20–39": whole}}}
    html = page()
    assert (
        "<th>mine, age: 70+</th>" in html and "too few" in html and html.count("<table") == html.count('class="wide"')
    )


def test_only_a_leak_is_shown_as_a_warning(page, metrics):
    assert '<p class="warning">WARNING' in page()
    metrics["leakage"]["test_images_seen_in_training"] = 0
    assert '<p class="honesty">The model was trained on no copy' in page() and '<p class="warning">' not in page()


def test_the_report_is_made_for_phones_and_for_paper(page):
    html = page()
    assert 'name="viewport"' in html and "@media print" in html and "@media (max-width" in html
    assert html.count("<table") == html.count('<div class="wide"><table')


@pytest.mark.parametrize(("sources", "is_drawn"), [(("demo", "demo"), True), (("auto", "data/x.zip"), False)])
def test_of_drawn_faces_the_first_lines_say_so(metrics, sources, is_drawn):
    names = dict(zip(("fer2013", "emotion_detection"), sources, strict=True))
    line = report.drawn_line(metrics | {"run": {"params": {"merge_split": names}}})
    assert line.startswith("The faces are drawn") if is_drawn else line == ""


@pytest.fixture
def metrics_of_both(metrics) -> dict:
    """The same with votes: FER+ gives every other picture FER2013's label, and the rest no class."""
    tables = {}
    for name, n in (("VAL", 20), ("TEST", 40)):
        found = _predictions(n, 0)
        half = np.arange(n) % 2 == 0
        tables[name] = found.assign(
            fer2013_label=found["label"], ferplus_label=found["label"].where(half, ""), votes="5 5 0 0 0 0 0 0 0 0"
        )
    return metrics | {"label_sets": scores.against_both(tables)}


def test_both_label_sets_stand_side_by_side_with_their_numbers_of_pictures(metrics_of_both):
    table = report.label_set_table(metrics_of_both)
    assert table.loc["TEST: FER2013's label", "n"] == 40 and table.loc["TEST: FER+ majority", "n"] == 20
    found = metrics_of_both["label_sets"]["test"]["ferplus"]
    assert table.loc["TEST: FER+ majority", "accuracy"] == found["accuracy"]
    low, high = found["accuracy_interval"]
    assert table.loc["TEST: FER+ majority", "accuracy 95 %"] == f"{low:.3f}–{high:.3f}"
    classes = report.label_set_classes(metrics_of_both, "TEST")
    assert classes["class"].tolist() == list(CLASSES)
    line = report.disagreement_line(metrics_of_both, "TEST")
    assert "differ on 0 of 20 pictures" in line and "0 of" in line and "nats on 40 pictures" in line


def test_a_second_output_has_its_own_rows(metrics_of_both):
    without = report.label_set_table(metrics_of_both)
    second = {
        split: found | {"votes_output": found["ferplus"] | {"accuracy": 0.123}}
        for split, found in metrics_of_both["label_sets"].items()
    }
    table = report.label_set_table(metrics_of_both | {"label_sets": second})
    name = "TEST: FER+ majority, second output"
    assert table.loc[name, "accuracy"] == 0.123 and name not in without.index
    assert table.loc[without.index].equals(without)
    classes = report.label_set_classes(metrics_of_both | {"label_sets": second}, "TEST")
    assert "F1, FER+ majority, second output" in classes
