"""Pictures given as `extra` and `also`, on the real datasets: are copies of TEST found, and what becomes of broken files?

    python tests/benchmarks/extra_pictures.py --fer2013 data/fer2013.zip --emotion-detection data/emotion-detection-fer.zip

500 pictures of TEST, drawn at random, are scaled to 96 px, coloured and saved as JPEG at quality 70; 500 faces are drawn.
Both are given as `extra`, beside a folder of broken and odd files. Told are: copies taken out under `drop` and counted
under `keep`, drawn faces that stay, and the answer to each odd file. Takes about three minutes on two CPU cores.
"""

import argparse
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fer_utils.classes import CLASSES
from fer_utils.data import audit, demo, loading, near_duplicates, splits
from fer_utils.data.splits import EMOTION_DETECTION, FER2013

import cv2
import numpy as np
import pandas as pd
from PIL import Image

N = 500


def write_copies(fer2013: Path, folder: Path, seed: int) -> None:
    """Changed copies of N pictures of FER2013's test folder."""
    with zipfile.ZipFile(fer2013) as archive:
        names = sorted(name for name in archive.namelist() if "test/" in name and name.endswith(".jpg"))
        for name in np.random.default_rng(seed).choice(names, N, replace=False):
            grey = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"))
            large = cv2.resize(grey, (96, 96), interpolation=cv2.INTER_CUBIC)
            warm = np.clip(np.dstack([large * 1.1, large, large * 0.9]), 0, 255).astype(np.uint8)
            place = folder / Path(name).parent.name / Path(name).name
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(warm).save(place, quality=70)


def write_drawn(folder: Path, seed: int) -> None:
    """N drawn faces."""
    for number in range(N):
        label = CLASSES[number % len(CLASSES)]
        (folder / label).mkdir(parents=True, exist_ok=True)
        face = demo.draw_face(label, np.random.default_rng([seed, number]))
        Image.fromarray(face).save(folder / label / f"{number}.png")


def odd_files(seed: int) -> Iterator[tuple[str, bytes, str]]:
    """File name, content, and the expected answer: `read`, `unreadable` or `ignored`."""

    def coded(picture: np.ndarray | Image.Image, kind: str, **how) -> bytes:
        stream = io.BytesIO()
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(stream, kind, **how)
        return stream.getvalue()

    rng = np.random.default_rng(seed)
    faces = iter([demo.draw_face(CLASSES[number % 7], rng) for number in range(40)])
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg, png = coded(next(faces), "JPEG"), coded(next(faces), "PNG")
    crc = bytearray(coded(next(faces), "PNG"))
    crc[len(crc) // 2] ^= 0xFF
    yield "empty.jpg", b"", "unreadable"
    yield "cut_early.jpg", jpeg[:200], "unreadable"
    yield "cut_late.jpg", jpeg[:-60], "unreadable"
    yield "cut.png", png[: len(png) // 2], "unreadable"
    yield "checksum.png", bytes(crc), "unreadable"
    yield "text.jpg", b"not a picture\n", "unreadable"
    yield "page.png", b"<!doctype html><title>404</title>", "unreadable"
    yield "zip.jpg", b"PK\x05\x06" + bytes(18), "unreadable"
    yield "header.bmp", b"BM" + bytes(60), "unreadable"
    yield "nan.tif", coded(Image.fromarray(np.full((48, 48), np.nan, np.float32)), "TIFF"), "unreadable"
    yield "gif_as.jpg", coded(next(faces), "GIF"), "read"
    yield "deep.png", coded(next(faces).astype(np.uint16) * 257, "PNG"), "read"
    yield "transparent.png", coded(Image.fromarray(next(faces)).convert("RGBA"), "PNG"), "read"
    yield "palette.png", coded(Image.fromarray(next(faces)).convert("P"), "PNG"), "read"
    yield "print.jpg", coded(Image.fromarray(next(faces)).convert("CMYK"), "JPEG"), "read"
    yield "two_tone.png", coded(Image.fromarray(next(faces)).convert("1"), "PNG"), "read"
    yield "float.tif", coded(Image.fromarray(next(faces).astype(np.float32)), "TIFF"), "read"
    yield "web.webp", coded(next(faces), "WEBP"), "read"
    frames = [Image.fromarray(next(faces)) for _ in range(3)]
    yield "moving.gif", coded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "read"
    yield "turned.jpg", coded(Image.fromarray(next(faces)), "JPEG", exif=exif), "read"
    yield "one_pixel.png", coded(np.full((1, 1), 9, np.uint8), "PNG"), "read"
    yield "strip.png", coded(rng.integers(0, 255, (3, 900), np.uint8), "PNG"), "read"
    yield "blank.png", coded(np.full((48, 48), 77, np.uint8), "PNG"), "read"
    yield "CAPITALS.JPG", coded(next(faces), "JPEG"), "read"
    yield "face_aug1.png", coded(next(faces), "PNG"), "read"
    yield "ünïcode näme.png", coded(next(faces), "PNG"), "read"
    yield "._mac.jpg", jpeg, "ignored"
    yield "Thumbs.db", b"\xd0\xcf\x11\xe0", "ignored"
    yield "notes.txt", b"hello", "ignored"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fer2013", type=Path, required=True)
    parser.add_argument("--emotion-detection", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_copies(options.fer2013, folder / "copies", options.seed)
        write_drawn(folder / "drawn", options.seed)
        expected = {}
        (folder / "odd" / "happy").mkdir(parents=True)
        for name, content, answer in odd_files(options.seed):
            (folder / "odd" / "happy" / name).write_bytes(content)
            expected[name] = answer
        extra = ";".join(str(folder / name) for name in ("copies", "drawn", "odd"))
        found = {FER2013: options.fer2013, EMOTION_DETECTION: options.emotion_detection}
        merged = splits.read_sources(found, "exclude", extra)
        table = merged.table.assign(split=splits.assign_splits(merged.table, 0.25, "all", 42))
        table = audit.describe_copies(table, near_duplicates.find_pairs(merged.pixels))
        _tell_odd(merged, expected)
        dropped, kept = (audit.apply_policy(table, policy, "one") for policy in ("drop", "keep"))
        for name in ("copies", "drawn"):
            mine = table["source"] == name
            in_test = mine & audit.shares_group_with(table, "TEST")
            print(
                f"{name}: {mine.sum()} pictures; with a copy in TEST {in_test.sum()}; left in TRAIN under drop "
                f"{(dropped.loc[mine, 'split'] == 'TRAIN').sum()}, under keep {(kept.loc[mine, 'split'] == 'TRAIN').sum()}"
            )
        _tell_seen(table, kept, merged, folder)


def _tell_odd(merged: splits.Merged, expected: dict[str, str]) -> None:
    odd = merged.table[merged.table["source"] == "odd"]
    answers = {
        Path(path).name: ("unreadable" if "unreadable" in flags.split() else "read", flags)
        for path, flags in zip(odd["source_path"], odd["flags"], strict=True)
    } | {Path(path).name: ("ignored", "") for path in merged.ignored}
    for name, answer in expected.items():
        got, flags = answers.get(name, ("nothing", ""))
        print(f"{'ok  ' if got == answer else 'NOT '} {name}: {got} {flags}")


def _tell_seen(table: pd.DataFrame, kept: pd.DataFrame, merged: splits.Merged, folder: Path) -> None:
    """A model trained on the copies alone: what of TEST, and of the same folder given as `also`, has it seen?"""
    manifest = splits.to_manifest(kept.assign(fer2013_label="", row="", votes="", ferplus_label=""))
    mine = (manifest["source"] == "copies") & (manifest["path"] != "")
    trained = pd.DataFrame({"train_path": manifest.loc[mine, "path"]})
    seen = audit.seen_in_training(manifest, trained["train_path"])
    print(f"TEST pictures seen by a model trained on the copies: {seen[manifest['split'] == 'TEST'].sum()}")
    for path, row in zip(manifest.loc[mine, "path"], np.flatnonzero(mine), strict=True):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(merged.data[row])
    loading.load_other_sets(f"{folder / 'copies'};{folder / 'drawn'}", "", None, trained, folder)


if __name__ == "__main__":
    main()
