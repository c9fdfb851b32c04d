"""Tables from strangers: FER2013's CSV, FER+'s votes, lists of labels. Each is read, or refused by a sentence."""

import gzip
import os
import pickle
import re
from collections.abc import Callable

from fer_utils.classes import CSV_CODES
from fer_utils.data import addresses, ferplus, known_pictures, label_sets, sources, splits
from fer_utils.data.demo import draw_face
from fer_utils.data.sources import DatasetError
from fer_utils.evaluation import scores
from fer_utils.images import UnreadableImage, encode_png
from fer_utils.pipeline import runner
from fer_utils.pipeline.parameters import ParameterError

import numpy as np
import pandas as pd
import pytest
from limits import limited
from surroundings import unchanged

USAGES = ("Training", "PublicTest")
N = len(USAGES) * len(CSV_CODES)
PIXELS = " ".join(map(str, np.random.default_rng(0).integers(0, 256, 48 * 48)))


def _csv(*more: str, header: str = "emotion,pixels,Usage", end: str = "\n") -> str:
    rows = [f"{code},{PIXELS},{usage}" for usage in USAGES for code in range(len(CSV_CODES))]
    return end.join([header, *rows, *more, ""])


def _row(pixels: str = PIXELS, code: str = "0", usage: str = "Training") -> bytes:
    return _csv(f"{code},{pixels},{usage}").encode()


AGAIN = r"save it as CSV in UTF-8, or download it again"
# What it is → (the file's bytes, what the error says, pictures that are read where unreadable ones are left out; None: none).
CSVS = {
    "UTF-16": (_csv().encode("utf-16"), rf"past its first 0 rows .*{AGAIN}", None),
    "UTF-16 without a mark": (_csv().encode("utf-16-le"), r"lacks the column\(s\) emotion, pixels, usage", None),
    "Latin-1": (_csv(f"0,{PIXELS},Training,é").encode("latin-1"), rf"past its first 14 rows .*{AGAIN}", None),
    "UTF-8 with a mark": (_csv().encode("utf-8-sig"), None, N),
    "lines of Windows": (_csv(end="\r\n").encode(), None, N),
    "lines of an old Mac": (_csv(end="\r").encode(), None, N),
    "an open quote": (_csv('0,"1 2 3,Training', *_csv().splitlines()[1:]).encode(), rf"past its first 14 rows .*{AGAIN}", None),
    "an open quote at the end": (_csv('0,"1 2 3,Training').encode(), rf"past its first 14 rows .*{AGAIN}", None),
    "a line of 100,000 characters": (_row("1 " * 50_000), rf"past its first 14 rows .*{AGAIN}", None),
    "a superscript as class": (_row(code="²"), r"row 14 has Usage 'Training' and emotion '²'; expected one of", None),
    "a class of another script": (_row(code="٣"), r"row 14 has Usage 'Training' and emotion '٣'; expected one of", None),
    "a class of 5,000 digits": (_row(code="1" * 5000), r"row 14 has Usage 'Training' and emotion '1{20}'; expected", None),
    "a negative class": (_row(code="-1"), r"row 14 has Usage 'Training' and emotion '-1'; expected one of", None),
    "a long Usage": (_row(usage="x" * 90_000), r"row 14 has Usage 'x{20}' and emotion '0'; expected one of", None),
    "no pixels": (_csv("0").encode(), r"row 14 has Usage '' and emotion '0'; expected one of", None),
    "no pixels, in another order": (
        "\n".join(f"{row.split(',')[0]},{row.split(',')[2]},{row.split(',')[1]}" for row in _csv().splitlines()).encode()
        + b"\n0,Training\n", r"1 of 15 images cannot be read.*csv#14 has 0 pixels.*exclude", N),
    "a pixel of 20 digits": (_row("9" * 20), r"1 of 15 .*csv#14 has a pixel that is no number", N),
    "a pixel of 5,000 digits": (_row("9" * 5000), r"1 of 15 .*csv#14 has a pixel that is no number", N),
    "a pixel that is not a number": (_row("nan"), r"1 of 15 .*csv#14 has a pixel that is no number", N),
    "a picture of one pixel": (_row("7"), None, N + 1),
    "more columns in a row": (_csv(f"0,{PIXELS},Training,more,and more").encode(), None, N + 1),
    "a column twice": (_csv(header="emotion,pixels,Usage,Usage").encode(), r"row 0 has Usage '' and emotion '0'", None),
    "zeros": (_csv("\0,\0,\0").encode(), r"(past its first 14 rows|row 14 has Usage)", None),
    "semicolons": (_csv().replace(",", ";").encode(), None, N),
    "tabs": (_csv().replace(",", "\t").encode(), None, N),
    "classes with a point": (_csv("6.0,7,Training").encode(), None, N + 1),
    "a page": (b"<html>\n<body>404</body>\n</html>\n", r"lacks the column\(s\) emotion, pixels, usage", None),
    "packed": (gzip.compress(_csv().encode()), rf"past its first 0 rows .*{AGAIN}", None),
    "a header alone": (b"emotion,pixels,Usage\n", r"lacks the column\(s\) emotion, pixels, usage", None),
}  # fmt: skip


@pytest.mark.parametrize("name", CSVS)
def test_a_csv_is_read_or_refused_by_a_sentence(name, tmp_path):
    content, says, usable = CSVS[name]
    path = tmp_path / "fer2013.csv"
    path.write_bytes(content)
    with unchanged(tmp_path):
        if says:
            with pytest.raises(DatasetError, match=re.compile(says, re.DOTALL)) as caught, limited(largest=60_000_000):
                splits.read_sources({"fer2013": path}, "error")
            assert str(path) in str(caught.value) and len(str(caught.value)) < 1000
        if usable:
            with limited(largest=60_000_000):
                table = splits.read_sources({"fer2013": path}, "exclude").table
            assert splits.is_usable(table).sum() == usable


@pytest.mark.parametrize("begin", [b"", b"emotion,pixels,Usage\n0,"])
def test_a_line_of_a_gigabyte_is_refused_without_reading_it(begin, tmp_path):
    path = tmp_path / "fer2013.csv"
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(1_000_000_000)  # takes no space
    with (
        pytest.raises(DatasetError, match=rf"more than 100,000 characters in a line.*{AGAIN}"),
        limited(largest=5_000_000),
    ):
        splits.read_sources({"fer2013": path}, "error")


def test_a_table_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("fer_utils.data.layouts.MAX_TABLE", 50_000)
    (tmp_path / "fer2013.csv").write_text(_csv())
    with pytest.raises(DatasetError, match=rf"past its first 6 rows .*50,000 in all.*{AGAIN}"):
        splits.read_sources({"fer2013": tmp_path / "fer2013.csv"}, "error")


def _rows(change: Callable[[list[str]], list[str]]) -> Callable[[bytes], bytes]:
    """The votes with their rows of Training changed."""

    def make(content: bytes) -> bytes:
        header, *rows = content.decode().splitlines()
        n = sum(row.startswith("Training") for row in rows)
        return "\n".join([header, *change(rows[:n]), *rows[n:], ""]).encode()

    return make


def _first(votes: str) -> Callable[[bytes], bytes]:
    return _rows(lambda rows: [",".join([*rows[0].split(",")[:2], votes]), *rows[1:]])


OTHER = r"is not the file that FER\+ published, whose rows .*: download it again from https"
# What it is → the file's bytes from those of good votes.
VOTES = {
    "moved on by one row": _rows(lambda rows: [rows[-1], *rows[:-1]]),
    "two rows swapped": _rows(lambda rows: [*rows[:100], rows[101], rows[100], *rows[102:]]),
    "a row less": _rows(lambda rows: rows[:-1]),
    "one vote more": _first("0,0,0,0,0,0,0,0,0,9"),
    "a vote without end": _first("0,0,0,0,0,0,0,0,0,inf"),
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "a page": lambda content: b"<html>",
    "a pickle": lambda content: pickle.dumps({"Usage": [1]}),
    "nothing": lambda content: b"",
    "21 MB": lambda content: bytes(21_000_000),
    "21 MB after good votes": lambda content: content + bytes(21_000_000),
}


@pytest.mark.parametrize("name", VOTES)
def test_votes_that_do_not_fit_are_refused_by_a_sentence(name, drawn, tmp_path):
    for file in (drawn[0].parent / "ferplus").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / addresses.VOTES_FILE
    path.write_bytes(VOTES[name](path.read_bytes()))
    with unchanged(tmp_path), pytest.raises(DatasetError, match=OTHER) as caught, limited(largest=100_000_000):
        ferplus.read(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


def test_votes_on_fer2013_itself_are_those_published_or_none(tmp_path):
    """Ten votes for the label of every row agree with all of them, and are still not FER+'s."""
    path = tmp_path / addresses.VOTES_FILE
    _, labels, usages = known_pictures.fer2013()
    counts = 10 * (labels[:, None] == np.array(ferplus.ANSWERS)).astype(int)
    table = pd.DataFrame(counts, columns=list(ferplus.VOTES))
    table.insert(0, "Image name", "fer.png")
    table.insert(0, "Usage", usages)
    table.to_csv(path, index=False)
    with pytest.raises(DatasetError, match=OTHER):
        ferplus.read(path)


RAF = "EmoLabel/list_patition_label.txt"
# What it is → (the file, its bytes or how it is made, what the error says).
LISTS = {
    "RAF-DB: no text": (RAF, bytes([0x80]) + os.urandom(2000), r"list_patition_label\.txt cannot be read past its first 0 rows .*save it as CSV in UTF-8"),
    "RAF-DB: UTF-16": (RAF, "train_1.jpg 5\n".encode("utf-16"), r"list_patition_label\.txt cannot be read past its first 0 rows .*save it as CSV in UTF-8"),
    "RAF-DB: a superscript as class": (RAF, "train_1.jpg ²\n".encode(), r"line 1 is 'train_1\.jpg ²'; expected such as"),
    "RAF-DB: a path as name": (RAF, b"train_/../../etc/passwd 5\n", r"lists train_/\.\./\.\./etc/passwd, but there is no such picture"),
    "RAF-DB: a pipe": (RAF, os.mkfifo, r"list_patition_label\.txt cannot be read \(it is no regular file\)"),
    "RAF-DB: too long": (RAF, lambda path: os.truncate(path.touch() or path, 101_000_000), r"past its first 0 rows .*more than 100,000 characters in a line"),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_labels_is_refused_by_a_sentence(name, tmp_path):
    file, content, says = LISTS[name]
    picture = tmp_path / "Image/aligned/train_1_aligned.jpg"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(encode_png(draw_face("sad", np.random.default_rng(1))))
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    content(path) if callable(content) else path.write_bytes(content)
    with (
        unchanged(tmp_path),
        pytest.raises((DatasetError, UnreadableImage), match=says) as caught,
        limited(largest=60_000_000),
        sources.open_extra(tmp_path, "mine", "train"),
    ):
        pass
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 1000


# What it is → (the list of the pictures faces/0.png … faces/6.png, classes, columns, what the error says, or how many
# pictures are taken and what is left out).
PATHS = {
    "with a header": (b"path,label\nfaces/0.png,happy\nfaces/1.png,Afraid\n", "", "", (2, {})),
    "without a header": (b"faces/0.png,happy\nfaces/1.png,suprise\n", "", "", (2, {})),
    "an index before it": (b",pth,label\n0,faces/0.png,happy\n1,faces/1.png,sad\n", "", "", (2, {})),
    "spaces and capitals": (b" Image Name , EMOTION\nfaces/0.png, Happy \n", "", "", (1, {})),
    "UTF-8 with a mark, lines of Windows": ("\ufeffpath,label\r\nfaces/0.png,sad\r\n".encode(), "", "", (1, {})),
    "paths of Windows": (b"path,label\nC:\\me\\faces\\0.png,sad\n", "", "", (1, {})),
    "quotes": (b'path,label\n"faces/0.png","sad"\n', "", "", (1, {})),
    "semicolons": (b"path;label\nfaces/0.png;sad\n", "", "", (1, {})),
    "numbers with a point": (b"path,label\nfaces/0.png,1.0\nfaces/1.png,7.0\n", "raf-db", "", (2, {})),
    "two classes of a picture": (b"path,label\nfaces/0.png,sad\nfaces/0.png,happy\n", "", "",
                                 r" lists faces/0\.png as sad and as happy: keep one of them"),
    "empty lines": (b"path,label\n\nfaces/0.png,sad\n\n", "", "", (1, {})),
    "a picture twice": (b"path,label\nfaces/0.png,sad\nfaces/0.png,sad\n", "", "", (1, {"(listed twice)": 1})),
    "a picture that is not there": (b"path,label\nfaces/0.png,sad\nfaces/99.png,sad\n", "", "", (1, {"(not there)": 1})),
    "other classes": (b"path,label\nfaces/0.png,sad\nfaces/1.png,contempt\nfaces/2.png,bored\n", "", "",
                      (1, {"(contempt)": 1, "(bored)": 1})),
    "another class that is named": (b"path,label\nfaces/0.png,sad\nfaces/1.png,glad\n", "glad=happy", "", (2, {})),
    "numbers of a dataset": (b"path,label\nfaces/0.png,1\nfaces/1.png,7\n", "raf-db", "", (2, {})),
    "numbers of FER2013": (b"path,label\nfaces/0.png,1\nfaces/1.png,7\n", "fer2013", "", (1, {"(contempt)": 1})),
    "parts": (b"path,label,split\nfaces/0.png,sad,Train\nfaces/1.png,sad,val\n", "", "", (1, {"(part val)": 1})),
    "columns that are named": (b"bild,gesicht\nfaces/0.png,sad\n", "", "bild:gesicht", (1, {})),
    "other columns than are named": (b"path,label\nfaces/0.png,sad\n", "", "a:b", r"no table with the columns 'a:b'; expected PICT"),
    "one column that is named": (b"path,label\nfaces/0.png,sad\n", "", "path", r"no table with the columns 'path'; expected PICTURE"),
    "columns of no known name": (b"bild,gesicht\nfaces/0.png,sad\n", "", "",
                                 r"stands for no class; .*or name the columns of list\.csv in extra_columns, as PICTURE:LABEL"),
    "numbers of nobody": (b"path,label\nfaces/0.png,3\n", "", "",
                          r"list\.csv, line 2 is 'faces/0\.png,3'; .*number their classes differently: say one of affectnet"),
    "a number beyond": (b"path,label\nfaces/0.png,9\n", "raf-db", "", r"list\.csv, line 2 is 'faces/0\.png,9'; expected such"),
    "a superscript": ("path,label\nfaces/0.png,²\n".encode(), "raf-db", "", r"list\.csv, line 2 is 'faces/0\.png,²'; expected"),
    "no class": (b"path,label\nfaces/0.png,sad\nfaces/1.png\n", "", "", r"list\.csv, line 3 is 'faces/1\.png'; expected such as"),
    "an empty class": (b"path,label\nfaces/0.png,\n", "", "", r"list\.csv, line 2 is 'faces/0\.png,'; expected such as"),
    "a part of no name": (b"path,label,split\nfaces/0.png,sad,mine\n", "", "", r"line 2 is 'faces/0\.png,sad,mine'; expected such .*: its part is 'mine'"),
    "no picture that is there": (b"path,label\nx/0000.png,sad\n", "", "", r"lists x/0000\.png, but there is no such picture: give"),
    "a path that leads out": (b"path,label\n../../etc/passwd.png,sad\n", "", "", r"passwd\.png, but there is no such picture"),
    "a header alone": (b"path,label\n", "", "", r"list\.csv lacks the column\(s\) emotion, pixels, usage; a table needs"),
    "Latin-1": (b"path,label\nfaces/0.png,tr\xe4urig\n", "", "", r"list\.csv cannot be read past its first 0 rows .*UTF-8"),
    "an open quote": (b'path,label\nfaces/0.png,sad\nfaces/1.png,"sad\n', "", "", r"list\.csv cannot be read past its first 1 rows"),
    "a line of 100,000 characters": (b"path,label\nfaces/0.png,sad\n" + b"x" * 100_000, "", "", r"more than 100,000 characters"),
    "a page": (b"<html>\n", "", "", r"holds faces/0\.png in the folder faces, which stands for no class"),
    "nothing": (b"", "", "", r"holds faces/0\.png in the folder faces, which stands for no class"),
}  # fmt: skip


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("name", PATHS)
def test_a_list_of_pictures_is_read_or_refused_by_a_sentence(name, by_itself, tmp_path):
    content, classes, columns, says = PATHS[name]
    (tmp_path / "faces").mkdir()
    for n in range(7):
        (tmp_path / "faces" / f"{n}.png").write_bytes(encode_png(draw_face("sad", np.random.default_rng(n))))
    (tmp_path / "list.csv").write_bytes(content)
    path = tmp_path / "list.csv" if by_itself else tmp_path
    if by_itself and isinstance(says, str) and "stands for no class" in says:  # no folders are looked at
        says = r"list\.csv lacks the column\(s\) emotion, pixels, usage; .*PICTURE:LABEL in extra_columns"
    with unchanged(tmp_path), limited(largest=60_000_000):
        if isinstance(says, tuple):
            with sources.open_extra(path, "mine", "train", classes, columns=columns) as source:
                assert (len(source.table), source.left_out) == says
                assert splits.is_usable(splits.read_all([source], "error").table).all()
        else:
            with (
                pytest.raises(DatasetError, match=says) as caught,
                sources.open_extra(path, "mine", "train", classes, columns=columns),
            ):
                pass
            assert str(path) in str(caught.value) and len(str(caught.value)) < 1000


BOTH_PARTS = "path,label,split\ntest/0.png,happy,test\ntrain/0.png,sad,train\n"
TWO_FOLDERS = "s0/1.png,happy\ns1/1.png,sad\n"
# What it is → (the pictures, the table and its text, the part that is taken, the class of each picture or what the error says).
MEANT = {
    "only the other part is there": ("train/0.png", "labels.csv", BOTH_PARTS, "test", r"for its test part; it holds train"),
    "only this part is there": ("train/0.png", "labels.csv", BOTH_PARTS, "train", {"train/0.png": "sad"}),
    "both names in one folder": ("0.png", "labels.csv", BOTH_PARTS, "test", r"lists 0\.png as happy and as sad: keep one"),
    "one of two folders": ("s1/1.png", "labels.csv", TWO_FOLDERS, "train", {"s1/1.png": "sad"}),
    "one of two, on another machine": (
        "set/s1/1.png", "labels.csv", TWO_FOLDERS.replace("s", "/me/s", 1).replace("\ns1", "\n/me/s1"), "train",
        {"set/s1/1.png": "sad"}),
    "flat": ("1.png 2.png", "labels.csv", "s0/1.png,happy\ns1/2.png,sad\n", "train", {"1.png": "happy", "2.png": "sad"}),
    "a name in two folders": ("s1/a.png s2/a.png", "labels.csv", "a.png,sad\n", "train",
                              r"labels\.csv, line 1 names s1/a\.png and s2/a\.png: give the paths"),
    "a name in two parts": ("train/a.png test/a.png", "labels.csv", "path,label,split\na.png,sad,test\n", "test",
                            {"test/a.png": "sad"}),
    "a name in the table's part": ("train/a.png test/a.png", "test_labels.csv", "a.png,sad\n", "test", {"test/a.png": "sad"}),
    "beside the table": ("s1/1.png s2/1.png s2/2.png", "s1/labels.csv", "1.png,sad\n2.png,happy\n", "train", {"s1/1.png": "sad"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MEANT)
def test_a_row_gets_the_picture_that_it_names_or_none(name, tmp_path):
    pictures, table, text, part, says = MEANT[name]
    for file in (*pictures.split(), table):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    (tmp_path / table).write_text(text)
    if isinstance(says, str):
        with pytest.raises(DatasetError, match=says), sources.open_extra(tmp_path, "mine", part):
            pass
        return
    with sources.open_extra(tmp_path, "mine", part) as source:
        assert dict(zip(source.table["source_path"], source.table["label"], strict=True)) == says


@pytest.mark.parametrize("end", [" ", ",", "\t", ";"])
def test_a_text_of_pictures_and_classes_is_read_beside_a_note_that_is_none(end, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text(f"a.png{end}sad\n")
    (tmp_path / "README.TXT").write_bytes("Bilder für mich".encode("latin-1"))
    with sources.open_extra(tmp_path, "mine", "train") as source:
        assert source.table["label"].tolist() == ["sad"]


@pytest.mark.parametrize("also", ["/nope", "/dev/null", "/nope.zip", "pipe.zip"])
def test_another_test_set_that_is_not_there_is_said_before_anything_runs(also, fake_run, tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    also = str(tmp_path / also)  # an absolute path stays
    run = fake_run(evaluate={"also": also}).do()
    with limited(), pytest.raises(ParameterError, match=rf"evaluate\.also: .*{re.escape(also)}"):
        runner.run("demo", ["evaluate"], run.values, repeat=True)


def _labelled(ferplus_label: str) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "path": list("abcd"),
            "label": "sad",
            "fer2013_label": "sad",
            "ferplus_label": ferplus_label,
            "votes": "0 0 0 0 0 0 0 10 0 0",
            "usage": "PublicTest",
            "seen_in_training": False,
        }
    )
    return scores.prediction_table(table, np.full((4, 7), 1 / 7))


@pytest.mark.filterwarnings("error")
def test_a_split_that_the_votes_give_no_class_is_not_scored_against_them():
    with_class, without = _labelled("sad"), _labelled("")
    assert scores.has_votes({"VAL": with_class, "TEST": with_class})
    assert not scores.has_votes({"VAL": with_class, "TEST": without})


def test_a_split_that_the_votes_leave_empty_is_said_in_01():
    table = pd.DataFrame(
        {
            "split": ["TRAIN", "VAL", "TEST", ""],
            "source": "fer2013",
            "label": "sad",
            "fer2013_label": "sad",
            "ferplus_label": ["sad", "happy", "", "sad"],
            "votes": "0 0 0 0 0 0 0 10 0 0",
        }
    )
    with pytest.raises(DatasetError, match=r"no picture of TEST a class: set merge_split\.labels to fer2013"):
        label_sets.choose(table, "ferplus")
