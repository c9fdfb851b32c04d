"""Both datasets open whatever they come in; odd input gets the answer that the reader's docstring promises."""

import hashlib
import re
import shutil
import zipfile
from pathlib import Path

from fer_utils import images, places
from fer_utils.classes import CLASSES, CSV_CODES
from fer_utils.data import archives, finding, sources
from fer_utils.data.sources import DatasetError, open_source

import cv2
import numpy as np
import pytest

N_TRAIN, N_TEST = 280, 70  # four fifths and one fifth of the 350 drawn faces


def _hashes(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) for path in files}


def _zip(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def _error(path: Path) -> str:
    with pytest.raises(DatasetError) as caught, open_source(path, "fer2013"):
        pass
    assert str(path) in str(caught.value)
    return str(caught.value)


def _csv_rows(per_part: int = 1) -> list[tuple[int, str, str]]:
    rows = []
    for usage in ("Training", "PublicTest", "PrivateTest"):
        for code in range(7):
            for copy in range(per_part):
                pixels = np.random.default_rng([code, copy, len(usage)]).integers(0, 256, 48 * 48)
                rows.append((code, usage, " ".join(map(str, pixels))))
    return rows


def _write_csv(path: Path, header: str, line: str, rows: list) -> Path:
    lines = [line.format(code=code, usage=usage, pixels=pixels) for code, usage, pixels in rows]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def _fer2013_csv(path: Path, rows: list | None = None) -> Path:
    return _write_csv(path, "emotion,pixels,Usage", "{code},{pixels},{usage}", _csv_rows() if rows is None else rows)


def test_fer2013_folders_give_every_image_with_class_part_and_usage(drawn):
    with open_source(drawn[0], "fer2013") as source:
        table = source.table
        assert list(table.columns) == list(sources.COLUMNS)
        assert table["part"].value_counts().to_dict() == {"train": N_TRAIN, "test": N_TEST}
        assert set(table["label"]) == set(CLASSES)
        assert set(table.loc[table["part"] == "train", "usage"]) == {"Training"}
        assert set(table.loc[table["part"] == "test", "usage"]) == {"PublicTest", "PrivateTest"}
        for row in table.sample(20, random_state=1).itertuples():
            assert source.read(row.source_path) == (drawn[0] / row.source_path).read_bytes()
            assert row.source_path.split("/")[:2] == [row.part, row.label]


def test_the_second_dataset_has_its_own_spellings_and_tells_no_usage(drawn):
    assert {folder.name for folder in (drawn[1] / "train").iterdir()} >= {"disgusted", "fearful", "surprised"}
    with open_source(drawn[1], "emotion_detection") as source:
        assert len(source.table) == N_TRAIN + N_TEST
        assert set(source.table["label"]) == set(CLASSES)
        assert set(source.table["usage"]) == {""}
        spelled = source.table[source.table["source_path"].str.contains("disgusted")]
        assert len(spelled) and set(spelled["label"]) == {"disgust"}


def test_paths_are_in_natural_order(drawn):
    with open_source(drawn[1], "emotion_detection") as source:
        happy = source.table[source.table["source_path"].str.startswith("train/happy")]["source_path"]
    numbers = [int(Path(path).stem.removeprefix("im")) for path in happy]
    assert numbers == sorted(numbers)
    assert sorted(["im10", "im9", "im2"], key=archives.natural_key) == ["im2", "im9", "im10"]


@pytest.mark.parametrize("wrap", ["", "archive", "train"])
def test_a_zip_reads_as_its_folder_whatever_folder_wraps_it(drawn, tmp_path, wrap):
    shutil.copytree(drawn[0], tmp_path / "in" / wrap, dirs_exist_ok=True)
    path = _zip(tmp_path / "in", tmp_path / "fer2013.zip")
    with open_source(path, "fer2013") as zipped, open_source(drawn[0], "fer2013") as plain:
        prefix = f"{wrap}/" if wrap else ""
        assert [row.removeprefix(prefix) for row in zipped.table["source_path"]] == list(plain.table["source_path"])
        assert zipped.table.drop(columns="source_path").equals(plain.table.drop(columns="source_path"))
        for place in (0, 100, 349):
            assert zipped.read(zipped.table["source_path"][place]) == plain.read(plain.table["source_path"][place])


def test_a_folder_that_holds_the_zip_reads_as_the_zip(drawn, tmp_path):
    _zip(drawn[0], tmp_path / "download.zip")
    with open_source(tmp_path, "fer2013") as source:
        assert len(source.table) == N_TRAIN + N_TEST
        assert images.decode(source.read(source.table["source_path"][0]), "")[0].shape == (48, 48)


@pytest.mark.parametrize(
    ("file", "header", "line"),
    [
        ("fer2013.csv", "emotion,pixels,Usage", "{code},{pixels},{usage}"),
        ("icml_face_data.csv", "emotion, Usage, pixels", "{code},{usage},{pixels}"),
    ],
)
@pytest.mark.parametrize("wrapped", ["file", "folder", "zip"])
def test_both_csv_files_give_their_pixels_classes_and_usage(tmp_path, file, header, line, wrapped):
    (tmp_path / "in").mkdir()
    rows = _csv_rows(2)
    path = _write_csv(tmp_path / "in" / file, header, line, rows)
    if wrapped == "folder":
        path = path.parent
    elif wrapped == "zip":
        path = _zip(path.parent, tmp_path / "archive.zip")
    with open_source(path, "fer2013") as source:
        table = source.table
        assert list(table["usage"]) == [usage for _, usage, _ in rows]
        assert list(table["part"]) == ["train" if usage == "Training" else "test" for _, usage, _ in rows]
        assert list(table["label"]) == [CSV_CODES[code] for code, _, _ in rows]
        image, flags = images.decode(source.read(table["source_path"][5]), "")
        assert image.ravel().tolist() == list(map(int, rows[5][2].split()))
        assert flags == ()


def test_reading_changes_nothing_in_a_source(drawn, tmp_path):
    zipped = _zip(drawn[1], tmp_path / "emotion-detection-fer.zip")
    _fer2013_csv(tmp_path / "fer2013.csv")
    folder = drawn[0].parent
    before = _hashes(folder) | _hashes(tmp_path)
    for path in (drawn[0], drawn[1], zipped, tmp_path / "fer2013.csv"):
        with open_source(path, "any") as source:
            for source_path in source.table["source_path"]:
                source.read(source_path)
    assert _hashes(folder) | _hashes(tmp_path) == before


def test_nothing_there_is_an_error(tmp_path):
    assert "nothing at" in _error(tmp_path / "absent")


def test_a_file_of_another_kind_is_an_error(tmp_path):
    (tmp_path / "fer2013.rar").write_bytes(b"Rar!")
    assert "neither a folder, a .zip nor a .csv" in _error(tmp_path / "fer2013.rar")


def test_a_folder_without_images_is_an_error_that_says_what_it_should_hold(tmp_path):
    (tmp_path / "README.txt").write_text("moved")
    message = _error(tmp_path)
    assert "holds 1 files" in message and "train/<class>/" in message


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_missing_part_is_an_error_that_names_it(fer2013, part):
    shutil.rmtree(fer2013 / part)
    assert f"no images under {part}/: download" in _error(fer2013)


@pytest.mark.parametrize("emptied", [True, False])
def test_a_class_folder_that_is_missing_or_empty_is_an_error_that_names_the_class(fer2013, emptied):
    shutil.rmtree(fer2013 / "test" / "fear")
    if emptied:
        (fer2013 / "test" / "fear").mkdir()
    message = _error(fer2013)
    assert "no images of fear under test/" in message and "missing or empty" in message


def test_pictures_of_formats_that_a_source_does_not_take_are_named(fer2013):
    for file in (fer2013 / "test" / "fear").iterdir():
        file.rename(file.with_suffix(".webp"))
    assert re.search(
        r"fear under test/: .*\. \d+ files such as test/fear/\S+\.webp are left alone: convert", _error(fer2013)
    )
    shutil.rmtree(fer2013 / "train")
    assert re.search(r"no images under train/: .*\.webp are left alone: convert", _error(fer2013))
    for file in (fer2013 / "test").rglob("*.jpg"):
        file.rename(file.with_suffix(".tif"))
    assert re.search(r"among them no images .*\.tif are left alone: convert", _error(fer2013))


def test_folders_inside_a_class_belong_to_it(fer2013):
    (fer2013 / "train" / "happy").rename(fer2013 / "train" / "batch1")
    (fer2013 / "train" / "happy").mkdir()
    (fer2013 / "train" / "batch1").rename(fer2013 / "train" / "happy" / "batch1")
    with open_source(fer2013, "fer2013") as source:
        assert source.table["part"].value_counts().to_dict() == {"train": N_TRAIN, "test": N_TEST}


def test_a_folder_of_no_class_is_an_error_that_lists_the_spellings(fer2013):
    (fer2013 / "train" / "fear").rename(fer2013 / "train" / "bored")
    message = _error(fer2013)
    assert "train/bored, which stands for no class" in message
    assert all(spelling in message for spelling in (*CLASSES, "disgusted", "fearful", "surprised"))


def test_one_wrapping_folder_is_read_through(fer2013):
    (fer2013 / "train").rename(fer2013 / "held")
    (fer2013 / "train").mkdir()
    (fer2013 / "held").rename(fer2013 / "train" / "train")
    with open_source(fer2013, "fer2013") as source:
        assert source.table["part"].value_counts().to_dict() == {"train": N_TRAIN, "test": N_TEST}


def test_the_same_part_twice_counts_once_and_another_one_is_an_error_that_names_both(fer2013):
    shutil.copytree(fer2013 / "train", fer2013 / "held")
    (fer2013 / "held").rename(fer2013 / "train" / "train")
    with open_source(fer2013, "fer2013") as source:
        assert source.table["part"].value_counts().to_dict() == {"train": N_TRAIN, "test": N_TEST}
        assert source.left_out == {"(listed twice)": N_TRAIN}
    other, *_ = (fer2013 / "train" / "train" / "happy").iterdir()
    other.write_bytes(next((fer2013 / "test" / "happy").iterdir()).read_bytes())
    assert "train images under both train/ and train/train/: keep one" in _error(fer2013)


def test_an_image_outside_the_class_folders_is_an_error(fer2013):
    shutil.copy(next((fer2013 / "train" / "happy").iterdir()), fer2013 / "train" / "stray.jpg")
    assert "holds train/stray.jpg" in _error(fer2013)


def test_files_that_are_no_images_are_counted(fer2013):
    for stray in ("train/angry/Thumbs.db", "readme.md", "test/happy/.hidden.png"):
        (fer2013 / stray).write_bytes(b"x")
    (fer2013 / "__MACOSX" / "train" / "angry").mkdir(parents=True)
    (fer2013 / "__MACOSX" / "train" / "angry" / "._a.jpg").write_bytes(b"x")
    with open_source(fer2013, "fer2013") as source:
        expected = {"train/angry/Thumbs.db", "readme.md", "test/happy/.hidden.png", "__MACOSX/train/angry/._a.jpg"}
        assert set(source.ignored) == expected
        assert len(source.table) == N_TRAIN + N_TEST


def test_links_are_followed_but_not_in_a_circle_and_one_to_nothing_is_unreadable(fer2013, tmp_path):
    with open_source(fer2013, "fer2013") as source:
        expected = list(source.table["source_path"])
    elsewhere = Path(shutil.move(fer2013 / "train" / "happy", tmp_path / "elsewhere"))
    (fer2013 / "train" / "happy").symlink_to(elsewhere)
    (fer2013 / "train" / "angry" / "back").symlink_to(fer2013)
    (fer2013 / "test" / "sad" / "lost.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with open_source(fer2013, "fer2013") as source:
        assert sorted(source.table["source_path"]) == sorted([*expected, "test/sad/lost.jpg"])
        with pytest.raises(images.UnreadableImage, match=r"lost\.jpg cannot be read"):
            source.read("test/sad/lost.jpg")


def test_a_zip_that_ends_early_is_an_error(drawn, tmp_path):
    path = _zip(drawn[0], tmp_path / "fer2013.zip")
    path.write_bytes(path.read_bytes()[:-1000])
    assert "not a whole zip file" in _error(path)


def test_an_entry_that_stands_twice_is_an_error(drawn, tmp_path):
    path = _zip(drawn[0], tmp_path / "fer2013.zip")
    entry = next(name for name in zipfile.ZipFile(path).namelist() if name.endswith(".jpg"))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(entry, b"other")
    assert f"holds the entry {entry} twice" in _error(path)


def test_an_entry_that_unpacks_to_no_face_is_unreadable_before_it_is_unpacked(drawn, tmp_path):
    path = _zip(drawn[0], tmp_path / "fer2013.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/happy/bomb.png", bytes(archives.MAX_IMAGE_BYTES + 1))
    assert path.stat().st_size < 3_000_000
    with (
        open_source(path, "fer2013") as source,
        pytest.raises(images.UnreadableImage, match=r"bomb\.png unpacks to 10,"),
    ):
        source.read("train/happy/bomb.png")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("damage", [b"\xff", b"\x00"])
def test_a_damaged_entry_is_unreadable_and_named(drawn, tmp_path, compression, damage):
    path, entry = tmp_path / "fer2013.zip", "train/happy/damaged.bmp"
    _zip(drawn[0], path)
    picture = cv2.imencode(".bmp", np.random.default_rng(0).integers(0, 9, (48, 48)).astype(np.uint8))[1].tobytes()
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr(entry, picture)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(entry)
    content = bytearray(path.read_bytes())
    middle = info.header_offset + 30 + len(entry) + info.compress_size // 2
    content[middle : middle + 40] = damage * 40
    path.write_bytes(content)
    with open_source(path, "fer2013") as source, pytest.raises(images.UnreadableImage, match=r"damaged\.bmp"):
        source.read(entry)


def test_a_csv_without_its_columns_is_an_error_that_names_them(tmp_path):
    (tmp_path / "fer2013.csv").write_text("emotion,pixels\n0,1 2 3 4\n")
    assert "lacks the column(s) usage" in _error(tmp_path / "fer2013.csv")
    (tmp_path / "fer2013.csv").write_text("")
    assert "lacks the column(s) emotion, pixels, usage" in _error(tmp_path / "fer2013.csv")


@pytest.mark.parametrize(
    ("row", "found"), [((8, "Training", "0 0 0 0"), "'8'"), ((0, "Validation", "0 0 0 0"), "'Validation'")]
)
def test_a_csv_row_of_unknown_class_or_usage_is_an_error_that_names_the_row(tmp_path, row, found):
    message = _error(_fer2013_csv(tmp_path / "fer2013.csv", [*_csv_rows(), row]))
    assert "row 21" in message and found in message


def test_a_csv_that_ends_inside_a_row_is_an_error(tmp_path):
    path = _fer2013_csv(tmp_path / "fer2013.csv")
    path.write_text(path.read_text()[:-500])
    assert "row 20 has Usage ''" in _error(path)


def test_a_csv_without_a_class_is_an_error_that_names_it(tmp_path):
    rows = [row for row in _csv_rows() if row[0] != 1]
    assert "no images of disgust under train/" in _error(_fer2013_csv(tmp_path / "fer2013.csv", rows))


@pytest.mark.parametrize("pixels", ["", "1 2 3", "1 2 3 256", "1 2 3 -1", "1 2 3 x"])
def test_a_csv_row_that_is_no_picture_is_unreadable(tmp_path, pixels):
    path = _fer2013_csv(tmp_path / "fer2013.csv", [*_csv_rows(), (0, "Training", pixels)])
    with open_source(path, "fer2013") as source, pytest.raises(images.UnreadableImage, match=r"fer2013\.csv#21"):
        source.read("fer2013.csv#21")


def test_a_run_can_do_without_the_second_dataset_alone(tmp_path):
    given = {"fer2013": str(tmp_path), "emotion_detection": "none"}
    assert finding.find_or_draw(given, 350, 1, tmp_path) == {"fer2013": tmp_path}
    with pytest.raises(places.NotFoundHere, match=r"emotion_detection: nothing at .*/nowhere"):
        finding.find_or_draw(given | {"emotion_detection": "nowhere"}, 350, 1, tmp_path)
    with pytest.raises(places.NotFoundHere, match=r"fer2013: nothing at .*/none"):
        finding.find_or_draw(given | {"fer2013": "none"}, 350, 1, tmp_path)
