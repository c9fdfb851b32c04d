"""Runs listed and set side by side."""

import json

from fer_utils import files, places
from fer_utils.pipeline import pages, runs, terminal

import pandas as pd
import pytest


def _read(*fakes) -> list[runs.Run]:
    return [runs.read(fake.folders.folder) for fake in fakes]


@pytest.fixture
def two(fake_run):
    one = fake_run("one").do(content="a")
    other = fake_run("other", fine_tune={"learning_rate": 0.5}, evaluate={"seed": 9}).do(content="a")
    return one, other


def test_what_differs_in_parameters_and_nothing_else(two):
    table = pages.differing_parameters(_read(*two))
    assert list(table.index) == ["fine_tune.learning_rate", "evaluate.seed"]
    assert table.loc["fine_tune.learning_rate"].tolist() == ["0.001", "0.5"]


def test_a_version_that_differs_is_told_by_stage(two):
    path = two[1].folders.stage_record("fine_tune")
    record = files.read_json(path)
    files.write_json(path, record | {"versions": record["versions"] | {"keras": "0.0"}})
    assert pages.differing_parameters(_read(*two)).loc["fine_tune: keras", "other"] == "0.0"


def test_results_stand_side_by_side_with_intervals(two):
    one, _ = _read(*two)
    table = pages.results(_read(*two))
    assert table.loc["VAL accuracy", "one"] == terminal.with_interval(one.metrics["val"], "accuracy")
    assert {"TEST macro_f1", "TEST images seen in training", "fine_tune: epochs", "state"} <= set(table.index)


def test_what_was_changed_by_hand_is_marked(two):
    path = two[1].folders.stage_record("fine_tune")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"by_hand": ["epochs became 9 after the setup", "another cell ran"]}))
    table = pages.results(_read(*two))
    assert list(table.loc["fine_tune: by hand"]) == ["–", "epochs became 9 after the setup; another cell ran"]
    assert "train_head: by hand" not in table.index


def test_a_run_without_scores_has_dashes(two, fake_run):
    table = pages.results(_read(two[0], fake_run("half").do("merge_split")))
    assert table.loc["TEST accuracy", "half"] == "–" and table.loc["state", "half"] == "next: balance"


def test_mcnemar_counts_the_images_that_one_run_alone_gets_right(two):
    for fake, right in zip(two, (7, 2), strict=True):
        path = fake.folders.path("predictions_test.csv")
        table = pd.read_csv(path)
        table["predicted"] = [label if row < right else "none" for row, label in enumerate(table["label"])]
        files.write_csv(path, table)
    tests = pages.mcnemar_tests(_read(*two)).set_index("images of").loc["TEST"]
    assert (tests["in both"], tests["only run 1 right"], tests["only run 2 right"]) == (7, 5, 0)
    assert tests["p"] == pytest.approx(2 * 0.5**5)


def test_pictures_of_one_name_with_other_pixels_are_not_the_same_images(fake_run):
    runs_of = _read(fake_run("one").do(content="a"), fake_run("other").do(content="b"))
    assert pages.mcnemar_tests(runs_of) is None


def test_a_p_of_nearly_nothing_is_not_shown_as_nothing(two, tmp_path, monkeypatch):
    same = {"n": 7178, "only_first": 815, "only_second": 373, "p_value": 2.0996e-38}
    monkeypatch.setattr(pages.scores, "mcnemar", lambda one, two: same)
    html = pages.write_comparison(_read(*two), tmp_path)[0].read_text()
    assert "<td>2.100e-38</td>" in html and "<td>0.0000</td>" not in html


def test_a_loss_of_nearly_nothing_is_not_shown_as_nothing(two):
    runs_of = _read(*two)
    runs_of[0].metrics["test"]["loss"] = 0.00004321
    assert pages.results(runs_of).loc["TEST loss", "one"] == "4.321e-05"


def test_the_page_stands_alone_and_the_sheet_holds_its_tables(two, tmp_path):
    page, sheet = pages.write_comparison(_read(*two), tmp_path)
    html = page.read_text()
    assert page.name.startswith("compare_one_other_") and sheet.stem == page.stem and sheet.suffix == ".csv"
    assert html.count("data:image/png;base64,") == 3 and 'src="http' not in html
    assert "fine_tune.learning_rate" in html and "McNemar" in html
    table = pd.read_csv(sheet)
    assert set(table["kind"]) == {"parameter", "result"} and {"one", "other"} <= set(table.columns)


def test_names_in_a_page_are_escaped(fake_run, tmp_path):
    fakes = [fake_run(name).do("merge_split") for name in ("<b>a", "b")]
    html = pages.write_comparison(_read(*fakes), tmp_path)[0].read_text()
    assert "<b>a" not in html and "&lt;b&gt;a" in html


def test_many_runs_get_a_short_file_name(fake_run, tmp_path):
    fakes = [fake_run(f"a_run_with_a_rather_long_name_{number}").do("merge_split") for number in range(4)]
    name = pages.write_comparison(_read(*fakes), tmp_path)[0].name
    assert name.startswith("compare_a_run_with_a_rather_long_name_0_a_run") and len(name) < 130


def test_the_list_has_a_row_a_run_with_scores_and_state(two, fake_run, tmp_path):
    fake_run("third").do("merge_split")
    rows = {
        row[0]: dict(zip(terminal.COLUMNS, row, strict=True)) for row in terminal.list_rows(tmp_path / "outputs")[0]
    }
    one = _read(two[0])[0]
    assert rows["one"]["TEST macro F1"] == terminal.with_interval(one.metrics["test"], "macro_f1")
    assert rows["one"]["state"] == "done" and rows["one"]["leakage"] == "drop" and rows["one"]["profile"] == "demo"
    assert rows["third"]["state"] == "next: balance" and rows["third"]["TEST accuracy"] == ""


def test_the_list_fits_a_terminal_of_80_and_of_100_columns(fake_run, tmp_path):
    for name in ("demo", "half", "demo__train_head.epochs=3__fine_tune.unfreeze_top=30"):
        fake_run(name).do(*(["merge_split"] if name == "half" else []))
    rows = [terminal.COLUMNS, *terminal.list_rows(tmp_path / "outputs")[0]]
    whole = terminal.as_lines(rows)
    assert len(whole) == 4 and whole[0].split()[:2] == ["run", "state"]
    for width in (80, 100):
        lines = terminal.as_lines(rows, width, apart=4)
        assert len(lines) == 8 and max(map(len, lines)) <= width
        assert [cell for line in lines for cell in line.split()] == [cell for line in whole for cell in line.split()]
    assert terminal.as_lines(rows, max(map(len, whole)), apart=4) == whole


def test_scores_have_a_row_for_each_part_and_fit_80_columns(fake_run, capsys):
    run = fake_run().do()
    path = run.folders.path("metrics.json")
    metrics = files.read_json(path)
    scores = metrics["test"] | {"n": 35_887, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6]}
    both = {"val": scores, "test": scores | {"public": scores, "private": scores}}
    files.write_json(path, metrics | both | {"test_time_augmentation": {"kind": "ten_crop", **both}})
    capsys.readouterr()
    terminal.print_summary(run.folders, 1)
    _, heading, *rows = capsys.readouterr().out.splitlines()
    parts = ["VAL", "TEST", "TEST, public", "TEST, private"]
    names = [*parts, *(f"{name}, ten_crop" for name in parts)]
    assert heading.split() == ["images", "accuracy", "95", "%", "macro", "F1", "95", "%"]
    assert [row.partition("  ")[0].partition(" 3")[0] for row in rows[: len(names)]] == names and not rows[len(names)]
    assert rows[0].split()[1:4] == ["35887", "0.500", "0.400–0.600"] and max(map(len, [heading, *rows[:8]])) <= 80


def test_runs_of_an_earlier_version_are_listed_and_compared(two, tmp_path):
    for fake in two:
        metrics = files.read_json(fake.folders.path("metrics.json"))
        metrics["leakage"] = {"policy": "keep", "val_images_in_train": 7, "test_images_in_train": 7}
        files.write_json(fake.folders.path("metrics.json"), metrics)
        for name in ("trained", "trained_head"):
            (fake.folders.folder / f"{name}.csv").unlink()
    assert [row[0] for row in terminal.list_rows(tmp_path / "outputs")[0]] == ["one", "other"]
    assert pages.results(_read(*two)).loc["TEST images seen in training"].tolist() == ["–", "–"]
    assert "is not on record" in pages.write_comparison(_read(*two), tmp_path)[0].read_text()


def test_an_unknown_run_is_an_error_that_lists_those_there(two, tmp_path):
    with pytest.raises(places.NotFoundHere, match="has no run 'nowhere'; runs there: 'one', 'other'"):
        runs.find(tmp_path / "outputs", ["one", "nowhere"])


def test_scores_against_both_label_sets_are_compared_where_there_are_votes(fake_run):
    first, second = fake_run("first").do(), fake_run("second").do(content="x")
    found = {"n": 7, "accuracy": 0.5, "macro_f1": 0.4, "accuracy_interval": [0.3, 0.7], "macro_f1_interval": [0.2, 0.6]}
    both = {"fer2013": found, "ferplus": found | {"n": 5, "accuracy": 0.6}, "divergence": {"n": 6, "mean": 0.8}}
    metrics = json.loads(first.folders.path("metrics.json").read_text())
    files.write_json(first.folders.path("metrics.json"), metrics | {"label_sets": {"test": both}})
    table = pages.results(_read(first, second))
    assert table.loc["TEST images, FER+ majority"].tolist() == ["5", "–"]
    assert table.loc["TEST accuracy, FER+ majority", "first"].startswith("0.600 [0.300–0.700]")
    assert table.loc["TEST macro_f1, FER2013's label", "first"].startswith("0.400")
    assert table.loc["TEST divergence from the votes"].tolist() == ["0.8000", "–"]


def test_the_mean_over_corruptions_is_compared_where_it_was_scored(fake_run):
    first, second = fake_run("first").do(), fake_run("second").do(content="x")
    metrics = json.loads(first.folders.path("metrics.json").read_text())
    harder = {"mean_accuracy": 0.31, "mean_macro_f1": 0.25, "by_kind": {}}
    files.write_json(first.folders.path("metrics.json"), metrics | {"corruptions": harder})
    table = pages.results(_read(first, second))
    assert table.loc["TEST mean accuracy over corruptions"].tolist() == ["0.3100", "–"]
    assert table.loc["TEST mean macro_f1 over corruptions"].tolist() == ["0.2500", "–"]
