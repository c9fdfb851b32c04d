"""The manifest accounts for each source image; odd images are repaired, refused or excluded, never skipped."""

import errno
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from fer_utils import files, images
from fer_utils.classes import CLASSES
from fer_utils.data import audit, balance, label_sets, near_duplicates, splits
from fer_utils.data.sources import DatasetError, open_source
from fer_utils.data.splits import EMOTION_DETECTION, FER2013, SPLITS, assign_splits

import cv2
import numpy as np
import pandas as pd
import pytest

NO_PAIRS = pd.DataFrame({"first": [], "second": [], "kind": [], "distance": []}).astype({"first": int, "second": int})


def _merge(*paths: Path, unreadable: str = "error") -> splits.Merged:
    with ExitStack() as stack:
        named = zip(paths, (FER2013, EMOTION_DETECTION), strict=False)
        return splits.read_all([stack.enter_context(open_source(*one)) for one in named], unreadable)


def _manifest(merged: splits.Merged) -> pd.DataFrame:
    table = merged.table.assign(split=assign_splits(merged.table, 0.25, "all", 0))
    return splits.to_manifest(label_sets.add_votes(audit.describe_copies(table, NO_PAIRS), merged.pixels, None))


def _on_disk(folder: Path) -> set[str]:
    """Every file but the lists by which each folder is known as the project's own."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return found - {f"{split}/{files.WRITTEN}" for split in SPLITS}


def _any_image(folder: Path) -> Path:
    return sorted(folder.iterdir())[0]


def _row(table: pd.DataFrame, name: str) -> pd.Series:
    found = table[table["source_path"].str.endswith(name)]
    assert len(found) == 1
    return found.iloc[0]


def test_every_source_image_stands_in_the_manifest_once_and_on_disk(drawn, tmp_path):
    merged = _merge(*drawn)
    manifest = _manifest(merged)
    assert list(manifest.columns) == list(splits.MANIFEST_COLUMNS)
    on_disk = {
        (name, path)
        for name, folder in zip((FER2013, EMOTION_DETECTION), drawn, strict=True)
        for path in _on_disk(folder)
    }
    assert set(zip(manifest["source"], manifest["source_path"], strict=True)) == on_disk
    assert len(manifest) == len(on_disk) == 700
    splits.write_split_folders(manifest, merged.data, tmp_path / "images")
    assert _on_disk(tmp_path / "images") == set(manifest["path"])
    for row in manifest.sample(30, random_state=0).itertuples():
        source = drawn[0] if row.source == FER2013 else drawn[1]
        written = (tmp_path / "images" / row.path).read_bytes()
        assert written == (source / row.source_path).read_bytes()
        assert images.fingerprint(images.decode(written, "")[0]) == row.fingerprint
        assert row.path.split("/")[:2] == [row.split, row.label]


def test_blank_pictures_are_flagged_and_kept(drawn):
    manifest = _manifest(_merge(*drawn))
    blank = manifest[manifest["flags"] == "blank"]
    assert sorted(blank["source"]) == [EMOTION_DETECTION, FER2013] and (blank["path"] != "").all()


def test_one_name_in_two_sources_parts_or_classes_does_not_clash(drawn):
    merged = _merge(*drawn)
    assert not merged.table.duplicated(["label", "file"]).any()
    assert not merged.table["flags"].str.contains("renamed").any()


@pytest.mark.parametrize("twin", ["one.PNG", "ONE.png", "one.bmp"])
def test_a_second_image_of_one_name_is_numbered_and_flagged(fer2013, twin):
    face = next((fer2013 / "train" / "sad").iterdir()).read_bytes()
    (fer2013 / "train" / "sad" / "one.png").write_bytes(face)
    (fer2013 / "train" / "sad" / twin).write_bytes(face)
    table = _merge(fer2013).table
    pair = table[table["source_path"].str.contains(r"/one\.", case=False)]
    stems = [Path(file).stem.casefold() for file in pair["file"]]
    assert len(set(stems)) == 2, "copies made of them would have one name"
    assert sorted(pair["flags"]) == ["", "renamed"]


def test_no_image_is_called_like_an_augmented_copy_of_another(fer2013):
    face = next((fer2013 / "train" / "sad").iterdir()).read_bytes()
    for name in ("x.png", "x_aug1.png", "X_AUG2.PNG"):
        (fer2013 / "train" / "sad" / name).write_bytes(face)
    table = _merge(fer2013).table
    came = table[table["source_path"].str.contains(r"/x(?:_aug\d)?\.", case=False)].set_index("file")["flags"]
    path = f"TRAIN/sad/{next(file for file in came.index if file.endswith('_x.png'))}"
    copies = {Path(balance.balanced_name(path, copy)).name.casefold() for copy in (1, 2)}
    assert copies == {"fer2013_train_x_aug1.png", "fer2013_train_x_aug2.png"}
    assert not copies & set(came.index.str.casefold())
    assert sorted(came) == ["", "renamed", "renamed"]


def test_a_name_with_a_number_sign_is_kept(fer2013):
    shutil.copy(_any_image(fer2013 / "train" / "sad"), fer2013 / "train" / "sad" / "IMG#1.jpg")
    assert _row(_merge(fer2013).table, "IMG#1.jpg")["file"] == "fer2013_train_IMG#1.jpg"


def test_two_spellings_of_one_class_may_share_a_name(fer2013):
    original = _any_image(fer2013 / "train" / "fear")
    (fer2013 / "train" / "fearful").mkdir()
    shutil.copy(original, fer2013 / "train" / "fearful" / original.name)
    table = _merge(fer2013).table
    pair = table[table["source_path"].str.endswith(original.name)]
    assert set(pair["label"]) == {"fear"} and pair["file"].nunique() == 2
    assert sorted(pair["flags"]) == ["", "renamed"]


def _damage(folder: Path) -> list[str]:
    empty, cut, text = sorted((folder / "train" / "happy").iterdir())[:3]
    cut.write_bytes(cut.read_bytes()[:300])
    empty.write_bytes(b"")
    text.write_text("<html>quota exceeded</html>")
    return [path.relative_to(folder).as_posix() for path in (empty, cut, text)]


def test_unreadable_images_are_one_error_that_names_them_all(fer2013):
    damaged = _damage(fer2013)
    with pytest.raises(DatasetError) as caught:
        _merge(fer2013)
    message = str(caught.value)
    assert "3 of 350 images cannot be read" in message and "merge_split.unreadable=exclude" in message
    assert all(f"{fer2013}: {path}" in message for path in damaged)


def test_the_error_shows_ten_of_many(fer2013):
    for path in sorted((fer2013 / "train" / "happy").iterdir())[:12]:
        path.write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        _merge(fer2013)
    assert "12 of 350" in str(caught.value) and str(caught.value).count("zero bytes") == 10


def test_excluded_images_stay_in_the_manifest_and_out_of_the_folders(fer2013, tmp_path):
    damaged = _damage(fer2013)
    merged = _merge(fer2013, unreadable="exclude")
    manifest = _manifest(merged)
    assert len(manifest) == 350
    excluded = manifest[manifest["flags"] == "unreadable"]
    assert sorted(excluded["source_path"]) == sorted(damaged)
    assert set(excluded["split"]) == set(excluded["path"]) == {""}
    splits.write_split_folders(manifest, merged.data, tmp_path / "images")
    assert len(_on_disk(tmp_path / "images")) == 347
    for path in map((tmp_path / "images").joinpath, _on_disk(tmp_path / "images")):
        images.decode(path.read_bytes(), str(path))


def test_a_repaired_image_is_written_as_png_and_the_source_is_left_alone(fer2013, tmp_path):
    colour, large = sorted((fer2013 / "train" / "happy").iterdir())[:2]
    picture = cv2.imread(str(colour), cv2.IMREAD_GRAYSCALE)
    tinted = np.stack([picture, picture // 2, picture // 3], axis=2)
    cv2.imwrite(str(colour), tinted)
    cv2.imwrite(str(large), cv2.resize(picture, (100, 80)))
    before = {path: path.read_bytes() for path in (colour, large)}
    merged = _merge(fer2013)
    manifest = _manifest(merged)
    splits.write_split_folders(manifest, merged.data, tmp_path / "images")
    for path, flag in ((colour, "colour"), (large, "resized")):
        row = _row(manifest, path.name)
        assert row["flags"] == flag and row["path"].endswith(".png")
        image, flags = images.decode((tmp_path / "images" / row["path"]).read_bytes(), "")
        assert flags == () and images.fingerprint(image) == row["fingerprint"]
        assert path.read_bytes() == before[path]


def test_a_csv_names_its_rows(tmp_path):
    pixels = " ".join(["9"] * 2304)
    lines = [f"{code},{pixels},{usage}" for usage in ("Training", "PrivateTest") for code in range(7)]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines]))
    merged = _merge(tmp_path / "fer2013.csv")
    assert merged.table["file"][0] == "fer2013_train_0.png" and merged.table["file"][13] == "fer2013_test_13.png"
    assert (merged.pixels == 9).all()


def _some(drawn) -> tuple[pd.DataFrame, list[bytes]]:
    merged = _merge(drawn[0])
    return _manifest(merged), merged.data


def test_writing_again_replaces_each_folder_whole(drawn, tmp_path):
    manifest, data = _some(drawn)
    other = manifest.assign(path=manifest["path"].str.replace("Training", "stale"))
    assert not set(manifest["path"]) >= set(other["path"])
    splits.write_split_folders(other, data, tmp_path)
    splits.write_split_folders(manifest, data, tmp_path)
    assert _on_disk(tmp_path) == set(manifest["path"])
    assert {path.name for path in tmp_path.iterdir()} == set(SPLITS)
    assert {path.name for path in (tmp_path / "VAL").iterdir()} == {*CLASSES, files.WRITTEN}


@pytest.mark.parametrize("number", [errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)])
def test_a_full_disk_is_explained_and_leaves_what_was_there(drawn, tmp_path, monkeypatch, number):
    manifest, data = _some(drawn)
    (tmp_path / "TRAIN").mkdir()
    (tmp_path / "TRAIN" / "old.txt").write_text("old")

    def full(self, content):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(files.OutputError, match=r"no space left on the disk while writing .*TRAIN: free some"):
        splits.write_split_folders(manifest, data, tmp_path)
    assert _on_disk(tmp_path) == {"TRAIN/old.txt"}  # neither a half folder nor a partial one


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_folder_is_explained(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(files.OutputError, match=r"a\.json cannot be written .*choose another output folder"):
        files.write_json(tmp_path / "a.json", {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (tmp_path / "a.json").read_text() == "old"


def test_a_disk_that_is_full_indeed_is_explained_and_left_clean(drawn, tiny_disk):
    manifest, data = _some(drawn)
    with pytest.raises(files.OutputError, match="no space left"):
        splits.write_split_folders(manifest, data, tiny_disk)
    assert _on_disk(tiny_disk) == set()


def test_too_little_space_is_said_before_any_work(tmp_path):
    with pytest.raises(files.OutputError, match="this stage writes about 1,000,000,000,000 MB"):
        files.require_space(tmp_path / "images", 10**18)
    files.require_space(tmp_path / "images", 1)
    assert list((tmp_path / "images").iterdir()) == []


def test_partial_folders_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / ".partial-12345678-TRAIN").mkdir()
    (tmp_path / ".partial-12345678-TRAIN" / "a.png").write_bytes(b"")
    (tmp_path / "TRAIN").mkdir()
    assert [path.name for path in files.remove_partials(tmp_path)] == [".partial-12345678-TRAIN"]
    assert [path.name for path in tmp_path.iterdir()] == ["TRAIN"]


def test_copies_across_the_drawn_sources_are_found_in_the_merged_pixels(drawn):
    merged = _merge(*drawn)
    group = near_duplicates.group(len(merged.table), near_duplicates.find_pairs(merged.pixels))
    is_first = (merged.table["source"] == FER2013).to_numpy()
    has_twin = np.isin(group[is_first], group[~is_first])
    assert has_twin.mean() > 0.98
