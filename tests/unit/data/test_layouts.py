"""Each layout in which datasets are shared gives its counts: as a source where it is FER2013, as `extra` and as `also`."""

import csv
import zipfile
from collections.abc import Callable
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CSV_CODES, class_of
from fer_utils.data import known_pictures, splits
from fer_utils.data.demo import draw_face
from fer_utils.data.sources import DatasetError, open_extra, open_source

import cv2
import numpy as np
import pytest

USAGES = known_pictures.USAGES
# A small FER2013 in the order of its rows: usage, label, pixels.
FACES = [
    (usage, label, draw_face(label, np.random.default_rng([place, code, copy])))
    for place, usage in enumerate(USAGES)
    for copy in range(2)
    for code, label in enumerate(CSV_CODES)
]
N = len(FACES) // 3  # of each usage


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """These faces are FER2013's."""
    usages, labels, pixels = map(np.array, zip(*FACES, strict=True))
    monkeypatch.setattr(known_pictures, "fer2013", lambda: (known_pictures.codes(pixels), labels, usages))


def _put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.encode_png(pixels))


def _text(pixels: np.ndarray) -> str:
    return " ".join(map(str, pixels.ravel()))


def _table(path: Path, *rows: tuple, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, lineterminator=end).writerows(rows)
    return path


def _rows(pattern: str, usages: tuple[str, ...] = USAGES) -> list[tuple]:
    """Rows of a table with the columns of `pattern`: e emotion, p pixels, u usage."""
    cells = [
        {"e": CSV_CODES.index(label), "p": _text(face), "u": usage} for usage, label, face in FACES if usage in usages
    ]
    return [tuple(row[column] for column in pattern) for row in cells]


def _competition(root: Path) -> Path:
    _table(root / "train.csv", ("emotion", "pixels"), *_rows("ep", USAGES[:1]))
    _table(root / "test.csv", ("pixels",), *_rows("p", USAGES[1:]))
    _table(root / "example_submission.csv", ("id", "emotion"), (0, 0))
    return root


def _icml(root: Path) -> Path:
    _table(_competition(root) / "icml_face_data.csv", ("emotion", " Usage", " pixels"), *_rows("eup"))
    return root


def _train_and_validation(root: Path, *copies: str) -> Path:
    """As jonathanoheix/face-expression-recognition-dataset: parts drawn anew, file names that tell nothing."""
    for number, (_, label, face) in enumerate(FACES):
        for folder in copies or ("images",):
            _put(root / folder / ("validation" if number % 14 < 7 else "train") / label / f"{number}.png", face)
    return root


def _by_usage(root: Path) -> Path:
    for number, (usage, label, face) in enumerate(FACES):
        _put(root / usage / label / f"{number}.png", face)
    return root


def _paths(root: Path, header: tuple = ("File Name", "split", "Emotion"), folder: str = "faces") -> Path:
    rows = []
    for number, (usage, label, face) in enumerate(FACES):
        _put(root / folder / f"{number}.png", face)
        rows.append((f"{folder}\\{number}.png", "train" if usage == "Training" else "test", label.upper()))
    return _table(root / "list.csv", *([header] if header else []), *rows)


def _flat(root: Path) -> Path:
    for number, (_, label, face) in enumerate(FACES):
        _put(root / label / f"{number}.png", face)
    return root


def _zipped(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    def zipped(root: Path) -> Path:
        place = make(root / "in")
        with zipfile.ZipFile(root / "data.zip", "w") as archive:
            for file in sorted(place.rglob("*.*")):
                archive.write(file, Path("wrapped") / file.relative_to(place))
        return root / "data.zip"

    return zipped


TEST = 2 * N
# What it is → (how it is made, pictures that `extra` takes, that `also` takes; None: refused, since classes are not said).
FER2013 = {
    "the competition's train.csv and test.csv": (_competition, N, None),
    "the competition's icml_face_data.csv": (_icml, N, TEST),
    "train and validation": (_train_and_validation, 21, 21),
    "train and validation, zipped": (_zipped(_train_and_validation), 21, 21),
    "train and validation, doubled": (lambda root: _train_and_validation(root, "images", "images/images"), 21, 21),
    "folders of usages": (_by_usage, N, TEST),
    "one folder a class": (_flat, len(FACES), len(FACES)),
    "paths and labels": (_paths, N, TEST),
    "paths and labels, beside them": (lambda root: _paths(root).parent, N, TEST),
    "paths and labels without a header": (lambda root: _paths(root, ()), N, TEST),
    "a CSV in another order": (
        lambda root: _table(root / "a.csv", (" PIXELS ", "usage", "Emotion"), *_rows("pue"), end="\r\n", encoding="utf-8-sig"),
        N, TEST),
    "a CSV without a header": (lambda root: _table(root / "a.csv", *_rows("epu")), N, TEST),
    "a CSV without usage": (lambda root: _table(root / "a.csv", ("emotion", "pixels"), *_rows("ep")), len(FACES), len(FACES)),
    "a CSV without anything but pixels": (lambda root: _table(root / "a.csv", ("pixels",), *_rows("p")), None, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FER2013)
def test_fer2013_in_any_layout_gives_each_picture_its_label_and_usage(name, tmp_path, capsys):
    path = FER2013[name][0](tmp_path)
    table = splits.read_sources({"fer2013": path}, "error").table
    expected = sorted((images.fingerprint(face), label, usage) for usage, label, face in FACES)
    if name.startswith("paths"):  # the list says train and test; Public and Private are told by the pixels
        assert "known by their pixels" in capsys.readouterr().out
    assert sorted(zip(table["fingerprint"], table["label"], table["usage"], strict=True)) == expected
    assert (table["part"] == table["usage"].map(known_pictures.PARTS)).all()


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("name", FER2013)
def test_fer2013_in_any_layout_is_taken_as_extra_and_as_also(name, part, tmp_path):
    make, *taken = FER2013[name]
    path, n = make(tmp_path), taken[part == "test"]
    if n is None:
        with (
            pytest.raises(DatasetError, match=r"no pictures of the seven classes .*no class.*icml_face_data\.csv"),
            open_extra(path, "mine", part),
        ):
            pass
        return
    with open_extra(path, "mine", part) as source:
        merged = splits.read_all([source], "error")
    assert len(merged.table) == n == merged.table["source_path"].nunique()
    truth = {images.fingerprint(face): label for _, label, face in FACES}
    assert list(merged.table["fingerprint"].map(truth)) == list(merged.table["label"])


def test_what_is_left_out_of_a_doubled_copy_is_counted(tmp_path):
    with open_extra(_train_and_validation(tmp_path / "a", "images", "images/images"), "mine", "train") as source:
        assert source.left_out == {"(listed twice)": len(FACES), "(part val)": 21} and not source.ignored


def test_unlabelled_or_undivided_pictures_that_are_not_fer2013s_are_refused_as_a_source(tmp_path, monkeypatch):
    monkeypatch.undo()
    for path in (_competition(tmp_path / "a"), _flat(tmp_path / "b")):
        with (
            pytest.raises(DatasetError, match=r"not FER2013's; .*take icml_face_data\.csv"),
            open_source(path, "fer2013"),
        ):
            pass


# --- other datasets -----------------------------------------------------------------------------------------------------

RAF_CODES = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")


def _raf_db_on_kaggle(root: Path) -> Path:
    """As shuvoalok/raf-db-dataset."""
    for part, n in (("train", 2), ("test", 1)):
        rows = [("image", "label")]
        for number in range(7 * n):
            name, code = f"{part}_{number + 1:05}_aligned.jpg", number % 7 + 1
            _put(
                root / "DATASET" / part / str(code) / name,
                draw_face(RAF_CODES[code - 1], np.random.default_rng(number)),
            )
            rows.append((name, code))
        _table(root / f"{part}_labels.csv", *rows)
    return root


def _raf_db_flat(root: Path) -> Path:
    lines = []
    for number in range(21):
        part, code = "valid" if number % 3 == 0 else "train", number % 7 + 1
        name = f"train_{number + 1:05}"
        _put(root / part / f"{name}_aligned.jpg", draw_face(RAF_CODES[code - 1], np.random.default_rng(number)))
        lines.append(f"{name}.jpg {code}")
    (root / "list_patition_label.txt").write_text("\n".join(lines))
    return root


def _affectnet_on_kaggle(root: Path) -> Path:
    """As noamsegal/affectnet-training-data: folders, and a list that another model labelled."""
    folders = ("anger", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    rows = [("", "pth", "label", "relFCs")]
    for number in range(16):
        folder = folders[number % 8]
        _put(
            root / folder / f"image{number:07}.png", draw_face(class_of(folder) or "sad", np.random.default_rng(number))
        )
        rows.append((number, f"{folder}/image{number:07}.png", folders[(number + (number < 3)) % 8], 0.9))
    _table(root / "labels.csv", *rows)
    return root


def _ck48(root: Path) -> Path:
    for place, folder in enumerate(("anger", "contempt", "disgust", "fear", "happy", "sadness", "surprise")):
        for number in range(3):
            _put(
                root / "CK+48" / folder / f"S{place:03}_001_{number:08}.png",
                draw_face("sad", np.random.default_rng(number)),
            )
    return root


def _ckextended(root: Path) -> Path:
    rows = [
        (code, _text(draw_face("sad", np.random.default_rng(n))), u) for n, u in enumerate(USAGES) for code in range(8)
    ]
    return _table(root / "ckextended.csv", ("emotion", "pixels", "Usage"), *rows)


# What it is → (how it is made, classes, columns, pictures of `extra`, of `also`, what else `extra` says).
OTHERS = {
    "RAF-DB on Kaggle": (_raf_db_on_kaggle, "raf-db", "", 14, 7, {"(part test)": 7}),
    "RAF-DB, flat": (_raf_db_flat, "", "", 14, 7, {"(part val)": 7}),
    "AffectNet on Kaggle, by folders": (_affectnet_on_kaggle, "", "", 14, 0, {"(contempt)": 2}),
    "AffectNet on Kaggle, by its list": (_affectnet_on_kaggle, "", "pth:label", 14, 0, {"(contempt)": 2}),
    "CK+48": (_ck48, "", "", 18, 0, {"(contempt)": 3}),
    "ckextended.csv": (_ckextended, "", "", 7, 14, {"(contempt)": 1, "(part test)": 16}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_datasets_give_their_counts(name, tmp_path):
    make, classes, columns, n_extra, n_also, left_out = OTHERS[name]
    path = make(tmp_path)
    with open_extra(path, "mine", "train", classes, columns=columns) as source:
        assert (len(source.table), source.left_out) == (n_extra, left_out)
        if name.startswith("RAF"):
            codes = source.table["source_path"].map(lambda file: (int(Path(file).name.split("_")[1]) - 1) % 7)
            assert list(source.table["label"]) == [RAF_CODES[code] for code in codes]
    with open_extra(path, "mine", "test", classes, columns=columns) as source:
        assert len(source.table) == (n_also or n_extra)  # without parts both take everything


def test_folders_are_taken_unless_the_columns_of_a_list_are_named(tmp_path):
    path = _affectnet_on_kaggle(tmp_path)  # folders and list differ on three pictures
    for columns, label in (("", "angry"), ("pth:label", "(contempt)")):
        with open_extra(path, "mine", "train", columns=columns) as source:
            labels = dict(zip(source.table["source_path"], source.table["label"], strict=True))
            assert labels.get("anger/image0000000.png", "(contempt)") == label


def test_ck_is_no_source_of_a_run_without_all_classes_in_both_parts(tmp_path):
    with open_source(_ckextended(tmp_path / "a"), "fer2013") as source:  # it has them
        assert source.left_out == {"(contempt)": 3} and len(source.table) == 21
    with (
        pytest.raises(DatasetError, match="nothing tells part or class"),
        open_source(_ck48(tmp_path / "b"), "fer2013"),
    ):
        pass


@pytest.mark.parametrize(
    ("spelling", "label"),
    [("suprise", "surprise"), ("Afraid", "fear"), ("natural", "neutral"), ("HAPPINESS", "happy"), ("boredom", None)],
)
def test_spellings_that_people_use(spelling, label):
    assert class_of(spelling) == label


# --- known by the pixels ------------------------------------------------------------------------------------------------


def test_jpegs_are_known_and_copies_go_to_their_own_part():
    usages, labels, pixels = map(np.array, zip(*FACES, strict=True))
    again = [cv2.imdecode(cv2.imencode(".jpg", face, [cv2.IMWRITE_JPEG_QUALITY, 90])[1], 0) for face in pixels]
    rows = known_pictures.find_rows(np.array(again), labels, np.full(len(again), ""))
    assert rows.tolist() == list(range(len(FACES)))
    strangers = np.array([draw_face(label, np.random.default_rng([9, n])) for n, label in enumerate(labels)])
    assert (known_pictures.find_rows(strangers, labels, usages) == known_pictures.UNKNOWN).all()


def test_a_picture_in_both_parts_keeps_its_part(monkeypatch):
    face = FACES[0][2]
    known = (known_pictures.codes([face, face]), np.array(["sad", "sad"]), np.array(["Training", "PrivateTest"]))
    monkeypatch.setattr(known_pictures, "fer2013", lambda: known)
    for parts in (["train", "test"], ["test", "train"], ["", ""]):
        rows = known_pictures.find_rows(np.array([face, face]), np.array(["sad", ""]), np.array(parts))
        assert sorted(rows) == [0, 1] and (parts[0] != "test" or list(rows) == [1, 0])


def test_the_codes_are_those_of_fer2013(real_data, monkeypatch):
    """Some real pictures, as PNG and as JPEG, are known, with their usage."""
    monkeypatch.undo()
    for name, path in real_data.items():
        with open_source(path, name) as source:
            some = source.table.sample(300, random_state=1)
            pixels = np.array([images.decode(source.read(file), file)[0] for file in some["source_path"]])
            rows = known_pictures.find_rows(pixels, some["label"].to_numpy(str), some["part"].to_numpy(str))
        assert (rows != known_pictures.UNKNOWN).mean() > 0.99
        usages = known_pictures.fer2013()[2][rows]
        told = some["usage"].to_numpy(str)
        assert ((usages == told) | (told == "")).mean() > 0.99
