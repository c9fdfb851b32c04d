"""Zip files and folders from strangers: each is read, or refused by a sentence that names file, fault and way out."""

import errno
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

from fer_utils import digests, images
from fer_utils.classes import CLASSES
from fer_utils.data import audit, balance, near_duplicates, sources, splits
from fer_utils.data.archives import DatasetError, natural_key

import numpy as np
import pandas as pd
import pytest
from limits import limited
from surroundings import make_socket, unchanged

PARTS = ("train", "test")
N = len(PARTS) * len(CLASSES)


def _picture(value: int = 0) -> bytes:
    return images.encode_png(np.random.default_rng(value).integers(0, 256, (48, 48)).astype(np.uint8))


def _names() -> list[str]:
    return [f"{part}/{label}/im{place}.png" for place, label in enumerate(CLASSES) for part in PARTS]


def _folder(root: Path) -> Path:
    for place, name in enumerate(_names()):
        path = root / "data" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(_picture(place))
    return root / "data"


def _zip(root: Path, *more: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(root / "data.zip", "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that stand twice
        for place, name in enumerate(_names()):
            archive.writestr(name, _picture(place))
        for name, content in more:
            archive.writestr(name, content)
    return root / "data.zip"


def _with(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    """A folder of the dataset in which something was changed."""

    def make(root: Path) -> Path:
        folder = _folder(root)
        change(folder)
        return folder

    return make


def _lying(declared: int, held: int) -> Callable[[Path], Path]:
    """A zip with an entry that declares another size than it holds, in the entry itself and in the directory."""

    def make(root: Path) -> Path:
        path = _zip(root, ("train/happy/lies.png", _picture() + bytes(held)))
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("train/happy/lies.png")
        content = bytearray(path.read_bytes())
        for place in (info.header_offset + 22, content.rindex(b"train/happy/lies.png") - 46 + 24):
            content[place : place + 4] = struct.pack("<L", declared)
        path.write_bytes(content)
        return path

    return make


def _overwritten(at: bytes, offset: int, content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        path = _zip(root)
        data = bytearray(path.read_bytes())
        place = data.rindex(at) + offset
        data[place : place + len(content)] = content
        path.write_bytes(data)
        return path

    return make


def _bytes(content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "data.zip").write_bytes(content)
        return root / "data.zip"

    return make


def _packed(method: int) -> Callable[[Path], Path]:
    return lambda root: _zip(root, method=method)


def _entry(name: str, content: bytes | None = None) -> Callable[[Path], Path]:
    return lambda root: _zip(root, (name, _picture(99) if content is None else content))


def _huge(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)  # takes no space


def _diamonds(folder: Path) -> None:
    """Thirty folders, each with two links to the next: a thousand million ways to the last."""
    for depth in range(30):
        (folder / f"d{depth}").mkdir()
        for name in ("a", "b"):
            (folder / f"d{depth}" / name).symlink_to(folder / f"d{depth + 1}")
    (folder / "d30").mkdir()


def _each_other(folder: Path) -> None:
    (folder / "train/happy/there").symlink_to(folder / "test/happy")
    (folder / "test/happy/back").symlink_to(folder / "train/happy")


def _damaged_table(root: Path) -> Path:
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        archive.writestr("fer2013.csv", "emotion,pixels,Usage\n")
    content = (root / "data.zip").read_bytes()
    (root / "data.zip").write_bytes(b"PKXX" + content[4:])
    return root / "data.zip"


def _one_twice_among_many(root: Path) -> Path:
    """The directory of a zip with 72,000 entries, one of them twice."""
    names = [f"train/happy/{n}.png".encode() for n in (0, *range(71_999))]
    fields = struct.Struct("<4s6H3L5H2L")
    heads = (fields.pack(b"PK\x01\x02", 20, 20, *[0] * 7, len(name), *[0] * 6) + name for name in names)
    directory = b"".join(heads)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *[len(names) % 2**16] * 2, len(directory), 0, 0)
    (root / "data.zip").write_bytes(directory + end)
    return root / "data.zip"


# What it is → (how it is made, what the error says, pictures that are read where unreadable ones are left out; None: none).
CASES = {
    "a header that declares less": (_lying(5_000, 50_000_000), r"lies\.png cannot be unpacked .*exclude", N),
    "a header that declares nothing": (_lying(0, 50_000_000), r"lies\.png: the file is empty .*exclude", N),
    "a header that declares more": (_lying(9_000_000, 100), None, N + 1),
    "CR in a name": (_entry("train/happy/a\rb.png"), r"'train/happy/a\\rb\.png'; its name has a control.*rename it", None),
    "LF in a name": (_entry("train/happy/a\nb.png"), r"'train/happy/a\\nb\.png'; its name has a control.*rename it", None),
    "an escape code": (_entry("train/happy/\x1b[31mb.png"), r"'train/happy/\\x1b\[31mb\.png'; its name has a control", None),
    "CR in the name of what is no image": (_entry("Icon\r", b"x"), None, N),
    "a name over 255 bytes": (_entry(f"train/happy/{'n' * 300}.png"), r"n\.png'; its name has more than 255 bytes: ren", None),
    "a name of 100 characters, 400 bytes": (_entry(f"train/happy/{'😀' * 100}.png"), r"its name has more than 255 bytes", None),
    "a number of 5,000 digits": (_entry(f"train/happy/im{'1' * 5000}.png"), r"its name has more than 255 bytes: rename", None),
    "a superscript among digits": (_entry("train/happy/im1²2.jpg"), None, N + 1),
    "digits of another script": (_entry("train/happy/im٣.png"), None, N + 1),
    "one name twice among 72,000": (_one_twice_among_many, r"holds the entry train/happy/0\.png twice \(1 such\): download", None),
    "packed by bzip2": (_packed(zipfile.ZIP_BZIP2), r"which is packed by another method .*: get the zip from its", None),
    "packed by LZMA": (_packed(zipfile.ZIP_LZMA), r"which is packed by another method .*: get the zip from its", None),
    "a method of no name": (_overwritten(b"PK\x01\x02", 10, b"\x63\0"), r"which is packed by another method", None),
    "another version of zip": (_overwritten(b"PK\x01\x02", 6, b"\xff"), r"not a whole zip file .*: download it again", None),
    "a name that is not UTF-8": (
        _overwritten(b"test/neutral/im6.png", -38, struct.pack("<H", 0x800) + bytes(36) + b"\xff\xfe"),
        r"data\.zip (is not a whole zip file|holds the entry)", None,
    ),
    "a directory elsewhere": (_overwritten(b"PK\x05\x06", 16, b"\xf0\xff\xff\x7f"), r"14 of 14 images cannot be", 0),
    "text called zip": (_bytes(b"<html>404</html>"), r"not a whole zip file .*: download it again", None),
    "a zip of nothing": (_bytes(b"PK\x05\x06" + bytes(18)), r"holds 0 files, .*should hold train/<class>/", None),
    "a zip in a zip": (lambda root: _rezipped(_zip(root)), r"holds 1 files, .*should hold train/<class>/", None),
    "a pipe for an image": (
        _with(lambda data: os.mkfifo(data / "train/happy/p.png")), r"p\.png cannot be read \(it is no regular", N),
    "a socket for an image": (
        _with(lambda data: make_socket(data / "train/happy/s.png")), r"s\.png cannot be read \(it is no regular", N),
    "a device for an image": (
        _with(lambda data: (data / "train/happy/z.png").symlink_to("/dev/zero")), r"z\.png cannot be read \(it is no r", N),
    "a dead link": (
        _with(lambda data: (data / "train/happy/l.png").symlink_to("nowhere")), r"l\.png cannot be read \(No such file", N),
    "a link to itself": (
        _with(lambda data: (data / "train/happy/l.png").symlink_to("l.png")), r"l\.png cannot be read \(Too many levels", N),
    "a link in a path": (_with(lambda data: (data / "train/happy/l").symlink_to("/etc/passwd/x")), None, N),
    "a link to a folder around it": (
        _with(lambda data: (data / "train/happy/up").symlink_to(data.parent.parent)), None, N),
    "a link to everything": (_with(lambda data: (data / "train/happy/up").symlink_to("/")), None, N),
    "two folders that link to each other": (_with(_each_other), None, N),
    "links that multiply": (_with(_diamonds), None, N),
    "an image of 11 MB": (
        _with(lambda data: _huge(data / "train/happy/h.png", 11_000_000)), r"h\.png has 11,000,000 bytes; at most", N),
    "a name that is not UTF-8, in a folder": (
        _with(lambda data: Path(os.fsdecode(bytes(data / "train/happy") + b"/\xff.png")).write_bytes(_picture())),
        r"'train/happy/\\udcff\.png'; its name has a control character, or is not UTF-8: rename it", None,
    ),
    "a table whose header is damaged": (_damaged_table, r"data\.zip: fer2013\.csv cannot be read past its first 0 rows", None),
    "a tar": (lambda root: _zip(root).rename(root / "data.tar"), r"neither a folder, a \.zip nor .*: unpack other archives", None),
    "a pipe called zip": (lambda root: _fifo(root / "data.zip"), r"neither a folder, a \.zip nor a \.csv file", None),
    "a pipe called csv": (lambda root: _fifo(root / "fer2013.csv"), r"neither a folder, a \.zip nor a \.csv file", None),
    "a folder with a pipe called zip": (
        lambda root: _fifo(root / "in" / "a.zip").parent, r"neither a folder, a \.zip nor a \.csv file", None),
    "a folder with a pipe for the table": (
        lambda root: _fifo(root / "in" / "fer2013.csv").parent, r"fer2013\.csv cannot be read \(it is no regular file\): give the table", None),
    "a folder with a dead link for the zip": (
        lambda root: _dead(root / "in" / "a.zip").parent, r"neither a folder, a \.zip nor a \.csv file", None),
    "a dead link called zip": (lambda root: _dead(root / "data.zip"), r"nothing at .*data\.zip", None),
}  # fmt: skip


def _rezipped(path: Path) -> Path:
    outer = path.with_name("outer.zip")
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(path, "data.zip")
    return outer


def _fifo(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    return path


def _dead(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("nowhere")
    return path


@pytest.mark.parametrize("name", CASES)
def test_a_source_is_read_or_refused_by_a_sentence(name, tmp_path):
    make, says, usable = CASES[name]
    (tmp_path / "held").mkdir()
    path = make(tmp_path / "held")
    largest = 0 if make is _one_twice_among_many else 60_000_000
    with unchanged(tmp_path):
        if says:
            with pytest.raises(DatasetError, match=re.compile(says, re.DOTALL)) as caught, limited(largest=largest):
                splits.read_sources({"fer2013": path}, "error")
            assert len(str(caught.value)) < 3000  # ten files are named
        if usable is not None:
            with limited(largest=largest):
                table = splits.read_sources({"fer2013": path}, "exclude").table
            assert splits.is_usable(table).sum() == usable


@pytest.mark.parametrize("name", CASES)
def test_pictures_of_ones_own_are_read_or_refused_alike(name, tmp_path):
    """`extra` and `also` take class folders at any depth, so that both parts are read; only what is no picture differs."""
    (tmp_path / "held").mkdir()
    path = CASES[name][0](tmp_path / "held")
    with unchanged(tmp_path), limited(largest=0 if "72,000" in name else 200_000_000):
        try:
            with sources.open_extra(path, "mine", "train") as source:
                table = splits.read_all([source], "exclude").table
        except DatasetError as error:
            assert str(path) in str(error) and len(str(error)) < 1500
        else:
            assert splits.is_usable(table).sum() in ((N // 2, N // 2 + 1) if CASES[name][2] else (0,))


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    """The rights of a folder do not keep an administrator out, so that the system's answer is set here."""
    folder, scan = _folder(tmp_path), os.scandir

    def refuse(path):
        if Path(path).name == "happy":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    said = r"test/happy cannot be read \(Permission denied\): change its permissions"
    with pytest.raises(DatasetError, match=said):
        splits.read_sources({"fer2013": folder}, "exclude")
    with pytest.raises(OSError, match=said):
        digests.of_listing(folder)


@pytest.mark.parametrize("change", [_diamonds, _each_other, lambda data: (data / "up").symlink_to("/")])
def test_a_listing_reads_each_folder_once_and_nothing_above(change, tmp_path):
    folder = _folder(tmp_path)
    change(folder)
    with limited(5):
        digests.of_listing(folder)
        assert len(digests._listed(folder)) == N


def test_files_far_larger_than_their_pictures_are_not_kept(tmp_path):
    """Forty files of 9 MB, all but their first bytes zeros that pack to nothing, are kept as their pictures alone."""
    path = _zip(tmp_path, *[(f"train/happy/{n}.png", _picture(n) + bytes(9_000_000)) for n in range(40)])
    assert path.stat().st_size < 1_000_000
    with limited(largest=60_000_000):
        merged = splits.read_sources({"fer2013": path}, "error")
    assert splits.is_usable(merged.table).sum() == N + 40 and max(map(len, merged.data)) < 3_000
    assert set(merged.table["flags"]) == {"", "converted"}


def test_numbers_in_names_are_in_order_however_long():
    names = ["im", "im1²2.jpg", f"im{'1' * 5000}", "im10", "im9", "im010"]
    assert sorted(names, key=natural_key)[:3] == ["im", "im1²2.jpg", "im9"]


def test_names_stay_short_and_their_own_through_every_stage(tmp_path):
    """The longest names that a disk holds, of many pictures that are called alike, fit on it after all that is added."""
    n = 3_000
    table = pd.DataFrame(
        {
            "source": "a" * 60,
            "part": "train",
            "label": "surprise",
            "source_path": [f"{i}/{'é' * 125}.png" for i in range(n)],
        }
    )
    marks = [[] for _ in range(n)]
    with limited(5):
        names = splits._unique_names(table, marks)
    assert len(set(names)) == n and marks[0] == marks[-1] == ["renamed"]
    longest = "surprise_" + max(names, key=lambda name: len(name.encode()))
    assert len(Path(balance.balanced_name(f"TRAIN/surprise/{longest}", 7000)).name.encode()) <= 255


def test_a_blank_picture_in_train_and_test_is_a_copy_under_clean():
    """All of one grey, it has nothing that a search for copies could compare, but its pixels are the same."""
    pixels = np.stack([np.full((48, 48), 7, np.uint8)] * 2 + [np.full((48, 48), 8, np.uint8)])
    table = pd.DataFrame({"split": ["TRAIN", "TEST", "TRAIN"], "label": "sad", "flags": "blank"})
    table = audit.describe_copies(table, near_duplicates.find_pairs(pixels))
    assert audit.apply_policy(table, "drop", "one")["split"].tolist() == ["", "TEST", "TRAIN"]


def test_damaged_zips_are_read_or_refused_and_nothing_else(tmp_path):
    path = _zip(tmp_path)
    whole, rng = path.read_bytes(), np.random.default_rng(5)
    directory = whole.index(b"PK\x01\x02")
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(directory if rng.random() < 0.7 else 0, len(data), rng.integers(1, 5)):
            data[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path.write_bytes(data)
        with limited():
            try:
                splits.read_sources({"fer2013": path}, "exclude")
            except DatasetError as error:
                assert str(path) in str(error)
