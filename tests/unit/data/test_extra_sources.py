"""Pictures beside the two datasets: every layout and every kind of picture gets its decided answer."""

import io
import zipfile
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import (
    addresses,
    audit,
    finding,
    label_sets,
    layouts,
    loading,
    near_duplicates,
    sources,
    splits,
)
from fer_utils.data.demo import draw_face
from fer_utils.data.sources import DatasetError
from fer_utils.data.splits import EMOTION_DETECTION, FER2013

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image


def face(label: str = "happy", seed: int = 0) -> np.ndarray:
    return draw_face(label, np.random.default_rng([seed, CLASSES.index(label)]))


def put(folder: Path, name: str, picture: np.ndarray) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def read(path: Path, part: str = "train", classes: str = "", find_faces=None):
    with sources.open_extra(path, "mine", part, classes, find_faces) as source:
        return source, splits.read_all([source], "exclude")


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, Path("wrapped") / file.relative_to(folder))
    return path


@pytest.mark.parametrize("as_zip", [False, True])
def test_class_folders_at_any_depth_in_any_usual_spelling(tmp_path, as_zip):
    spellings = ["Anger", "disgusted", "FEAR", "Joy", "sadness", "Surprised", "neutral"]
    for label, spelling in zip(CLASSES, spellings, strict=True):
        put(tmp_path / "mine" / "2024" / spelling, "a.png", face(label))
    (tmp_path / "mine" / "notes.txt").write_text("hello")
    source, merged = read(zipped(tmp_path / "mine") if as_zip else tmp_path / "mine")
    assert sorted(merged.table["label"]) == sorted(CLASSES) and set(merged.table["part"]) == {"train"}
    assert len(source.ignored) == 1 and not source.left_out


def test_pictures_of_any_size_colour_and_format_become_48_px_grey(tmp_path):
    grey = face()
    large = cv2.resize(grey, (200, 200))
    put(tmp_path / "happy", "plain.png", grey)
    put(tmp_path / "happy", "colour.jpg", np.dstack([large] * 2 + [large // 2]))
    put(tmp_path / "happy", "small.gif", cv2.resize(grey, (20, 20)))
    put(tmp_path / "happy", "web.webp", large)  # WebP has no grey
    put(tmp_path / "happy", "deep.tif", (large.astype(np.uint16) * 257))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(grey[::-1, ::-1].copy()).save(tmp_path / "happy" / "turned.jpg", exif=exif, quality=100)
    _, merged = read(tmp_path)
    table = merged.table.assign(name=merged.table["source_path"].map(lambda path: Path(path).stem)).set_index("name")
    row = {name: place for place, name in enumerate(table.index)}
    assert dict(table["flags"]) == {
        "plain": "converted", "colour": "colour resized", "small": "resized", "deep": "resized", "turned": "converted",
        "web": "colour resized",
    }  # fmt: skip
    assert (merged.pixels[row["plain"]] == grey).all()
    assert np.abs(merged.pixels[row["turned"]].astype(int) - grey).mean() < 3
    assert np.abs(merged.pixels[row["deep"]].astype(int) - grey).mean() < 8
    for place, data in enumerate(merged.data):  # what is written to TRAIN is what was read
        assert (images.decode(data, "written")[0] == merged.pixels[place]).all()
    assert all(name.endswith(".png") for name in table["file"])


@pytest.mark.parametrize(
    ("folder", "classes", "said"),
    [
        ("bored", "", r"folder bored, which stands for no class; .*bored= to leave"),
        (
            "3",
            "",
            r"folder 3, which stands for no class; datasets number their classes differently: say one of affectnet, fer2013, raf-db",
        ),
        ("7", "happy=sad", r"number their classes differently"),
        ("", "", r"holds a\.png; pictures should lie in folders named as their class"),
        ("happy", "joy", r"'joy' is neither affectnet, fer2013, raf-db nor FOLDER=CLASS"),
        ("happy", "joy=glad", r"'joy=glad' is neither"),
        ("contempt", "contempt=", r"has no pictures of the seven classes for its train part"),
        (
            "test/happy",
            "",
            r"no pictures of the seven classes for its train part; it holds test\. To take another part, give",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_way_out(tmp_path, folder, classes, said):
    put(tmp_path / "mine" / folder, "a.png", face())
    with pytest.raises(DatasetError, match=said):
        read(tmp_path / "mine", classes=classes)


def test_nothing_there_an_empty_folder_and_a_file_that_is_no_zip(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "faces.rar").write_bytes(b"Rar!")
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04")
    for name, said in (
        ("absent", "nothing at"),
        ("empty", "it holds no pictures in class folders"),
        ("faces.rar", r"neither a folder, a \.zip nor a \.csv file"),
        ("cut.zip", "not a whole zip file"),
    ):
        with pytest.raises(DatasetError, match=said):
            read(tmp_path / name)


def test_classes_are_given_or_left_out_by_folder(tmp_path):
    for folder in ("glad", "unsure", "SAD"):
        put(tmp_path / folder, "a.png", face())
    source, merged = read(tmp_path, classes="Glad=joy, unsure=")
    assert list(merged.table["label"]) == ["sad", "happy"] and source.left_out == {"(unsure)": 1}


def test_the_nearest_folder_with_a_classs_name_tells_the_class(tmp_path):
    for folder in ("sad/batch1", "sad/batch2/2024", "sad/happy", "happy/unsure", "fear/contempt/1"):
        put(tmp_path / folder, "a.png", face())
    source, merged = read(tmp_path, classes="unsure=")
    found = dict(zip(merged.table["source_path"], merged.table["label"], strict=True))
    assert found == {"sad/batch1/a.png": "sad", "sad/batch2/2024/a.png": "sad", "sad/happy/a.png": "happy"}
    assert source.left_out == {"(unsure)": 1, "(contempt)": 1}


def test_training_takes_the_train_part_and_testing_the_test_part(tmp_path):
    for part, n in (("train", 3), ("test", 2), ("valid", 1)):
        for number in range(n):
            put(tmp_path / "set" / part / "sad", f"{number}.png", face("sad", number))
    source, merged = read(tmp_path / "set")
    assert len(merged.table) == 3 and source.left_out == {"(part test)": 2, "(part val)": 1}
    source, merged = read(tmp_path / "set", "test")
    assert len(merged.table) == 2 and source.left_out == {"(part train)": 3, "(part val)": 1}
    assert len(read(tmp_path / "set" / "test")[1].table) == 2  # the folder itself, for training


# --- RAF-DB and AffectNet, drawn in the layouts of their owners --------------------------------------------------------


def raf_db(folder: Path) -> Path:
    """RAF-DB basic: EmoLabel/list_patition_label.txt, Image/aligned/*_aligned.jpg of 100 × 100 pixels in colour."""
    lines = []
    codes = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
    for part, n in (("train", 2), ("test", 1)):
        for number in range(n * 7):
            label = codes[number % 7]
            picture = np.dstack([cv2.resize(face(label, number), (100, 100))] * 3)
            put(folder / "basic" / "Image" / "aligned", f"{part}_{number + 1:05d}_aligned.jpg", picture)
            put(folder / "basic" / "Image" / "original", f"{part}_{number + 1:05d}.jpg", picture)
            lines.append(f"{part}_{number + 1:05d}.jpg {number % 7 + 1}")
    (folder / "basic" / "EmoLabel").mkdir()
    (folder / "basic" / "EmoLabel" / layouts.RAF_DB_LIST).write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("as_zip", [False, True])
def test_raf_db(tmp_path, as_zip):
    folder = raf_db(tmp_path / "raf")
    place = zipped(folder) if as_zip else folder
    source, merged = read(place)
    assert dict(merged.table["label"].value_counts()) == dict.fromkeys(CLASSES, 2)
    first = merged.table.set_index(merged.table["source_path"].map(lambda path: Path(path).name))["label"]
    assert first["train_00001_aligned.jpg"] == "surprise" and first["train_00006_aligned.jpg"] == "angry"
    assert source.left_out == {"(part test)": 7}
    assert len(source.ignored) == 22  # the list, and the pictures that are not aligned
    assert len(read(place, "test")[1].table) == 7


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train_00001.jpg 8", r"line 1 is 'train_00001\.jpg 8'; expected such as"),
        ("train_00001.jpg", "line 1 is"),
        ("photo.jpg 1", r"lists photo\.jpg, but there is no such picture"),
        ("train_99999.jpg 1", r"lists train_99999\.jpg, but there is no such picture: give the folder that holds both"),
    ],
)
def test_raf_db_that_is_not_whole(tmp_path, line, said):
    folder = raf_db(tmp_path / "raf")
    (folder / "basic" / "EmoLabel" / layouts.RAF_DB_LIST).write_text(line)
    with pytest.raises(DatasetError, match=said):
        read(folder)


AFFECTNET = ("neutral", "happy", "sad", "surprise", "fear", "disgust", "angry")


def test_affectnet_as_class_folders_by_number(tmp_path):
    for part, n in (("train", 2), ("val", 1)):
        for code in range(8):
            for number in range(n):
                put(tmp_path / part / str(code), f"{number}.jpg", face(AFFECTNET[code % 7], number))
    source, merged = read(tmp_path, classes="affectnet")
    assert dict(merged.table["label"].value_counts()) == dict.fromkeys(CLASSES, 2)
    assert source.left_out == {"(contempt)": 2, "(part val)": 8}
    labels = merged.table.set_index("source_path")["label"]
    assert [labels[f"train/{code}/0.jpg"] for code in range(7)] == list(AFFECTNET)
    assert len(read(tmp_path, "test", "affectnet")[1].table) == 7


# --- faces found, names, and what becomes of the pictures --------------------------------------------------------------


def test_pictures_with_one_face_are_cropped_and_the_others_are_reported(tmp_path):
    for number in range(3):
        put(tmp_path / "happy", f"{number}.png", np.full((100, 80), 50 + number, np.uint8))
    found = {50: [], 51: [face()], 52: [face(), face("sad")]}
    source, merged = read(tmp_path, find_faces=lambda rgb: found[rgb[0, 0, 0]])
    assert list(merged.table["flags"]) == ["resized blank no_face_found", "face_cropped", "resized blank several_faces"]
    assert (merged.pixels[1] == face()).all() and list(splits.is_usable(merged.table)) == [False, True, False]
    assert splits.describe_extra(source, merged.table) == (
        "mine: 1 pictures; left out: no face found 1, several faces 1"
    )


def test_names_of_several_places_are_unique_and_plain():
    found = finding.extra_places("/a/My faces (1).zip; b/faces/; /c/faces ;fer2013.zip", ["fer2013"])
    assert list(found) == ["My_faces_1", "faces", "faces_2", "fer2013_2"]
    assert finding.extra_places("") == {} and finding.extra_places(" ; ") == {}


def test_no_place_is_called_like_a_dataset_of_its_own_even_if_that_is_not_taken(fer2013, tmp_path):
    """Under its name the pictures would get the votes of other pictures."""
    put(tmp_path / "emotion_detection" / "happy", "im1.png", face())
    merged = splits.read_sources({FER2013: fer2013}, "error", str(tmp_path / "emotion_detection"))
    assert set(merged.table["source"]) == {FER2013, "emotion_detection_2"}


def test_another_test_set_in_which_nothing_is_usable_is_said_when_it_is_loaded(tmp_path):
    put(tmp_path / "happy", "a.png", face()).write_bytes(b"")
    with pytest.raises(DatasetError, match=r"none of the pictures of .* can be scored; .* unreadable 1"):
        loading.load_other_sets(str(tmp_path), "", None, pd.DataFrame({"train_path": []}), tmp_path)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A small FER2013 and Emotion Detection, and an extra folder with changed copies of TEST pictures and new faces."""
    from fer_utils.data import demo

    folder = tmp_path_factory.mktemp("extra")
    demo.write_datasets(folder / "drawn", 350, 1)
    held_out = sorted((folder / "drawn" / "fer2013" / "test").rglob("*.jpg"))[::3][:20]
    for path in held_out:
        grey = np.asarray(Image.open(path))
        coloured = np.dstack([cv2.resize(grey, (96, 96), interpolation=cv2.INTER_CUBIC)] * 3)
        file = folder / "mine" / path.parent.name / path.name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coloured).save(file, quality=70)
    for number in range(14):
        put(folder / "mine" / CLASSES[number % 7], f"new_{number}.png", face(CLASSES[number % 7], 900 + number))
    found = {FER2013: folder / "drawn" / "fer2013", EMOTION_DETECTION: folder / "drawn" / "emotion-detection-fer"}
    merged = splits.read_sources(found, "error", str(folder / "mine"))
    table = merged.table.assign(split=splits.assign_splits(merged.table, 0.25, "all", 1))
    pairs = near_duplicates.find_pairs(merged.pixels)
    return folder, merged, audit.describe_copies(table, pairs), pairs


def test_copies_of_test_pictures_among_the_extra_ones_are_taken_out(audited):
    _, _, table, pairs = audited
    mine = table["source"] == "mine"
    assert mine.sum() == 34 and set(table.loc[mine, "split"]) == {"TRAIN"}
    dropped = audit.apply_policy(table, "drop", "one")
    is_copy = mine & table["source_path"].str.contains("Test_")
    assert (dropped.loc[is_copy, "split"] == "").sum() == 20
    assert (dropped.loc[mine & ~is_copy, "split"] == "TRAIN").all()
    assert audit.summary(dropped, pairs, "drop")["dropped_leaks_by_source"]["mine"] == 20


def test_extra_pictures_keep_their_label_under_ferplus(audited):
    folder, merged, table, _ = audited
    votes = folder / "drawn" / "ferplus" / addresses.VOTES_FILE
    chosen = label_sets.choose(label_sets.add_votes(table, merged.pixels, votes), "ferplus")
    mine = table["source"] == "mine"
    assert (chosen.loc[mine, "label"] == table.loc[mine, "label"]).all()
    assert (chosen.loc[mine, "split"] == "TRAIN").all()


def test_another_test_set_says_how_many_of_its_pictures_the_model_has_seen(audited, tmp_path):
    folder, merged, table, _ = audited
    manifest = splits.to_manifest(audit.apply_policy(label_sets.add_votes(table, merged.pixels, None), "keep", "one"))
    splits.write_split_folders(manifest, merged.data, tmp_path)
    mine = manifest["source"] == "mine"
    trained = manifest[mine & manifest["source_path"].str.contains("new_")].head(9)
    trained = pd.DataFrame({"train_path": trained["path"]})
    sets = loading.load_other_sets(str(folder / "mine"), "", None, trained, tmp_path)
    (name, faces), *others = sets.items()
    assert not others and name == "mine" and len(faces) == 34 and faces.images.shape == (34, 48, 48, 1)
    assert faces.table["seen_in_training"].sum() == 9
    assert [CLASSES[label] for label in faces.labels] == list(faces.table["label"])
    assert loading.load_other_sets("", "", None, trained, tmp_path) == {}


def test_a_zip_bomb_among_photographs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_PHOTOGRAPHS_BYTES", 10)
    put(tmp_path / "mine" / "happy", "a.png", face())
    with pytest.raises(DatasetError, match="unpacks to"):
        read(zipped(tmp_path / "mine"))
    monkeypatch.setattr(sources, "MAX_PHOTOGRAPHS_BYTES", 10**9)
    monkeypatch.setattr(sources, "MAX_PHOTOGRAPH_BYTES", 10)
    _, merged = read(zipped(tmp_path / "mine"))
    assert list(merged.table["flags"]) == ["unreadable"]


def test_a_broken_picture_is_named(tmp_path):
    put(tmp_path / "happy", "a.png", face())
    (tmp_path / "happy" / "b.jpg").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(face()).save(buffer, "JPEG")
    (tmp_path / "happy" / "c.jpg").write_bytes(buffer.getvalue()[:300])
    said = r"2 of 3 images cannot be read.*\n.*happy/b\.jpg.*\n.*happy/c\.jpg"
    with sources.open_extra(tmp_path, "mine", "train") as source, pytest.raises(DatasetError, match=said):
        splits.read_all([source], "error")
