"""What is known of a test set's pictures is read from a CSV, and scored by group."""

from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import attributes, loading, sources
from fer_utils.data.demo import draw_face
from fer_utils.data.sources import DatasetError
from fer_utils.evaluation import report, scores

import numpy as np
import pandas as pd
import pytest
from PIL import Image


def put(folder: Path, name: str, seed: int, label: str = "happy") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_face(label, np.random.default_rng(seed))).save(path)


def read(place: Path, given: Path) -> pd.DataFrame:
    with sources.open_extra(place, "mine", "test") as source:
        return attributes.read(given, source.table["source_path"].tolist())


@pytest.fixture
def folders(tmp_path) -> Path:
    for place in ("happy/a.png", "sad/a.png", "sad/b.png"):
        put(tmp_path / "mine", place, len(place), place.split("/")[0])
    return tmp_path / "mine"


def test_a_csv_names_pictures_by_path_or_by_name(folders, capsys):
    csv = folders.parent / "people.csv"
    csv.write_text("file,glasses\nhappy/a.png,yes\n./sad\\\\a.png,no\nb.png,yes\ngone.png,no\n".replace("\\\\", "\\"))
    assert read(folders, csv)["attribute_glasses"].tolist() == ["yes", "no", "yes"]
    assert "people.csv has attributes of 3 of 3 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as CSV"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        (b"file\na.png\n", "has one column: expected a row for each picture, its file name first"),
        (b"file,sex\nsad/b.png,m,old\n", "cannot be read as CSV .*longer than its header"),
        (b"file,sex\nsad/b.png,m\nsad/a.png,m,old\n", "cannot be read as CSV"),
        (b"file,sex\na.png,m\na.png,f\n", r"has two rows for a\.png: expected"),
        (b"file,sex\na.png,m\n", r"a\.png names happy/a\.png and sad/a\.png: give the paths inside the set"),
    ],
)
def test_a_csv_that_tells_nothing_for_sure_is_refused(folders, content, said):
    csv = folders.parent / "people.csv"
    csv.write_bytes(content)
    with pytest.raises(DatasetError, match=said):
        read(folders, csv)


def test_an_attribute_with_a_value_for_everybody_is_left_out_and_said(tmp_path, capsys):
    for number in range(attributes.MOST_GROUPS + 1):
        put(tmp_path / "mine", f"happy/{number}.png", number)
    csv = tmp_path / "people.csv"
    rows = "".join(f"{number}.png,{number},{number % 2}\n" for number in range(attributes.MOST_GROUPS + 1))
    csv.write_text("file,name,side\n" + rows)
    assert list(read(tmp_path / "mine", csv)) == ["attribute_side"]
    assert "name is left out: it has 21 different values" in capsys.readouterr().out


def test_other_sets_carry_their_attributes_and_a_csv_that_names_no_picture_is_refused(folders):
    trained = pd.DataFrame({"train_path": []})
    csv = folders.parent / "people.csv"
    csv.write_text("file,age\nb.png,30\n")
    shown = loading.load_other_sets(str(folders), "", None, trained, folders, attributes_file=str(csv))["mine"]
    table = scores.prediction_table(shown.table, np.full((3, 7), 1 / 7))
    assert dict(zip(table["path"], table["attribute_age"], strict=True)) == {
        "mine/happy/a.png": "", "mine/sad/a.png": "", "mine/sad/b.png": "30"
    }  # fmt: skip
    csv.write_text("file,age\nother.png,30\n")
    for also, said in ((str(folders), "names no picture of .*mine: its first column"), ("", "also, which is empty")):
        with pytest.raises(DatasetError, match=f"also_groups: .*{said}"):
            loading.load_other_sets(also, "", None, trained, folders, attributes_file=str(csv))


def test_groups_are_scored_apart_and_small_ones_are_counted():
    n = 100
    label = [CLASSES[place % 7] for place in range(n)]
    table = pd.DataFrame({"path": map(str, range(n)), "label": label, "usage": "", "seen_in_training": False})
    age = np.array(["4–19", "20–39"])[np.arange(n) // 50]
    age[:3], age[3:5] = "70+", ""
    right = np.eye(7)[[CLASSES.index(name) for name in label]]
    probabilities = np.where((age == "20–39")[:, None], right, np.eye(7)[3])  # the younger are called happy
    found = scores.scores_of_set(scores.prediction_table(table.assign(attribute_age=age), probabilities))
    assert {name: group["n"] for name, group in found["groups"]["age"].items()} == {
        "not known": 2, "4–19": 45, "20–39": 50, "70+": 3
    }  # fmt: skip
    young, old = found["groups"]["age"]["4–19"], found["groups"]["age"]["20–39"]
    assert old["accuracy"] == 1 and old["macro_f1_interval"][1] == 1 and old["classes"] == 7
    assert young["accuracy"] == (np.array(label)[5:50] == CLASSES[3]).mean()
    assert young["accuracy_interval"][0] < young["accuracy"] < young["accuracy_interval"][1]
    assert found["groups"]["age"]["70+"] == {"n": 3, "classes": 3, "seen_in_training": 0}
    shown = report.other_sets_table({"also": {"mine": found, "other": {**found, "groups": {}}}})
    assert list(shown.index) == ["mine", *(f"mine, age: {group}" for group in found["groups"]["age"]), "other"]
    assert shown.loc["mine, age: 70+", "accuracy 95 %"] == "too few" and shown.loc["mine, age: 70+", "n"] == 3
    assert shown["accuracy"].isna().tolist() == [False, True, False, False, True, False]
    assert shown[["n", "classes", "seen_in_training"]].dtypes.eq(np.int64).all()
