"""Measures the near-duplicate search on the two real datasets: recall, false pairs, time, memory, what it misses.

    python tests/benchmarks/near_duplicates.py [FOLDER] [--montage DIR] [--only recall|time|bars|second …]

FOLDER holds fer2013.zip and emotion-detection-fer.zip (default: $FER_REAL_DATA, else ../shared/data beside the
repository). About six minutes on two cores. The montage shows real faces: write it outside the repository.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/unit")]

from fer_utils.classes import class_of  # noqa: E402
from fer_utils.data import audit, near_duplicates, splits  # noqa: E402
from fer_utils.images import is_blank  # noqa: E402

import gradients  # noqa: E402

ARCHIVES = {splits.FER2013: "fer2013.zip", splits.EMOTION_DETECTION: "emotion-detection-fer.zip"}
PARTS = ("recall", "time", "bars", "second")


def load(folder: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """All images of both datasets, FER2013 first: uint8 (n, 48, 48), and their `source`, `split`, `label`."""
    images, rows = [], []
    for source, archive in ARCHIVES.items():
        with zipfile.ZipFile(folder / archive) as file:
            for name in sorted(name for name in file.namelist() if not name.endswith("/")):
                images.append(np.asarray(Image.open(io.BytesIO(file.read(name))).convert("L")))
                split, label = Path(name).parts[-3:-1]
                rows.append((source, split, class_of(label)))
    return np.stack(images), pd.DataFrame(rows, columns=["source", "split", "label"])


def coded(image: np.ndarray, **how) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, **how)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("L"))


def line(image: np.ndarray, gain: float, offset: float = 0.0) -> np.ndarray:
    return np.clip(np.round(gain * image.astype(float) + offset), 0, 255).astype(np.uint8)


def resized(image: np.ndarray, up: int, down: int) -> np.ndarray:
    return cv2.resize(cv2.resize(image, (96, 96), interpolation=up), (48, 48), interpolation=down)


CHANGES = {
    "JPEG 40": lambda x: coded(x, format="JPEG", quality=40),
    "JPEG 60": lambda x: coded(x, format="JPEG", quality=60),
    "JPEG 80": lambda x: coded(x, format="JPEG", quality=80),
    "JPEG 95": lambda x: coded(x, format="JPEG", quality=95),
    "PNG": lambda x: coded(x, format="PNG"),
    "48→96→48 linear": lambda x: resized(x, cv2.INTER_LINEAR, cv2.INTER_LINEAR),
    "48→96→48 cubic, area": lambda x: resized(x, cv2.INTER_CUBIC, cv2.INTER_AREA),
    "brightness × 1.2": lambda x: line(x, 1.2),
    "brightness × 0.8": lambda x: line(x, 0.8),
    "brightness + 51": lambda x: line(x, 1, 51),
    "brightness − 51": lambda x: line(x, 1, -51),
    "contrast × 1.2": lambda x: line(x, 1.2, -0.2 * x.mean()),
    "contrast × 0.8": lambda x: line(x, 0.8, 0.2 * x.mean()),
    "flip": lambda x: np.ascontiguousarray(x[:, ::-1]),
    "flip + JPEG 60": lambda x: coded(np.ascontiguousarray(x[:, ::-1]), format="JPEG", quality=60),
}


def blanks(images: np.ndarray) -> np.ndarray:
    return np.array([is_blank(image) for image in images])


def firsts(images: np.ndarray) -> np.ndarray:
    """Position of the first pixel-identical copy of each image, by brute force: int (n,)."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(image.tobytes(), i) for i, image in enumerate(images)])


def recall(images: np.ndarray, about: pd.DataFrame, folder: Path | None) -> None:
    """Changed copies of 2,000 distinct images, each kind in turn against all of FER2013."""
    pool = images[(about["source"] == splits.FER2013).to_numpy()]
    n, first = len(pool), firsts(pool)
    own = near_duplicates.group(n, near_duplicates.find_pairs(pool))
    distinct = np.flatnonzero((first == np.arange(n)) & ~blanks(pool))
    chosen = np.random.default_rng(2013).choice(distinct, 2000, replace=False)
    strays = []
    print(f"\nRecall and strays: 2,000 changed copies against {n:,} FER2013 images")
    print(f"{'change':<22} recall  distance: median  99 %    max  strays")
    for name, alter in CHANGES.items():
        everything = np.concatenate([pool, [alter(pool[i]) for i in chosen]])
        pairs = near_duplicates.find_pairs(everything)
        pairs = pairs[(pairs["first"] < n) & (pairs["second"] >= n)]
        origin = chosen[pairs["second"] - n]
        expected = ["flipped"] if name.startswith("flip") else ["exact", "re-encoded"]
        right = pairs[(pairs["first"] == origin) & pairs["kind"].isin(expected)]
        stray = own[pairs["first"]] != own[origin]
        strays.append(pairs[stray].assign(second=origin[stray]))  # drawn beside the unchanged original
        middle, high, top = right["distance"].quantile([0.5, 0.99, 1])
        print(
            f"{name:<22} {len(right) / 2000:.4f}  {middle:16.4f}  {high:.4f}  {top:.4f}  {stray.sum():6d}", flush=True
        )
    print("stray: paired with an image outside its original's group. An upper bound of wrong pairs: the search cannot")
    print("judge itself, so look at the sheet of strays (--montage).")
    found = pd.concat(strays).drop_duplicates(["first", "second"], ignore_index=True)
    if folder and len(found):
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "strays.png"), _sheet(pool, found))


def timing(images: np.ndarray) -> None:
    """Time and peak memory of a search in a fresh process each, the images shuffled once."""
    print("\nTime and peak memory")
    print(f"{'images':>7}  seconds  peak MB  of which images and libraries   pairs")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.raw"
        np.random.default_rng(0).permutation(images).tofile(path)
        for n in (5_000, 10_000, 20_000, 40_000, len(images)):
            command = [sys.executable, __file__, "--search", str(path), str(n)]
            print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def _search(path: str, n: int) -> None:
    images = np.fromfile(path, np.uint8, count=n * 48 * 48).reshape(n, 48, 48)
    before, start = _peak(), time.perf_counter()
    pairs = near_duplicates.find_pairs(images)
    seconds = time.perf_counter() - start
    print(f"{n:7,}  {seconds:7.1f}  {_peak():7.0f}  {before:29.0f}  {len(pairs):7,}")


def _peak() -> float:
    """Peak memory of this process in MB. Not `ru_maxrss`: that one is inherited from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def bars(images: np.ndarray, about: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """Which originals and copies of the real pair of datasets are found."""
    fer = (about["source"] == splits.FER2013).to_numpy()
    test, label = (about["split"] == "test").to_numpy(), about["label"].to_numpy()
    blank, groups = blanks(images), near_duplicates.group(len(images), pairs)
    rows = pd.DataFrame({"group": groups, "label": label})
    known, known_at_all = rows[fer & ~blank].drop_duplicates(), np.unique(groups[fer & ~blank])
    keys = set(zip(known["group"], known["label"], strict=True))
    right = np.array([key in keys for key in zip(groups[~fer], label[~fer], strict=True)])
    print(f"\nBars, {len(images):,} images, {len(pairs):,} pairs: {pairs['kind'].value_counts().to_dict()}")
    print(f"blank images: FER2013 {(blank & fer).sum()}, Emotion Detection FER {(blank & ~fer).sum()}")
    for split, rows_of in (("train", ~test[~fer]), ("test", test[~fer]), ("both", np.full((~fer).sum(), True))):
        found = np.isin(groups[~fer], known_at_all)
        counts = f"{(found & rows_of).sum():,} of {rows_of.sum():,}, with the right label {(right & rows_of).sum():,}"
        print(f"Emotion Detection FER {split}: original found {counts}")
    exact = near_duplicates.group(len(images), pairs[pairs["kind"] == "exact"])
    _exact_bar(images, fer, test, blank, exact)
    sizes = np.bincount(groups[fer & ~blank])
    print(f"FER2013 alone: {(sizes > 0).sum():,} groups, largest {sizes.max()}, {(sizes > 1).sum():,} of two or more")
    _crossing(fer, test, groups, exact)


def _exact_bar(images: np.ndarray, fer: np.ndarray, test: np.ndarray, blank: np.ndarray, exact: np.ndarray) -> None:
    first = firsts(images)
    expected = fer & test & np.isin(first, first[fer & ~test])
    found = fer & test & np.isin(exact, exact[fer & ~test])
    missed = expected & ~found
    print(
        f"FER2013 test images with an exact copy in its train folder: {expected.sum()} by brute force, {found.sum()} "
        f"found, {missed.sum()} missed of which {(missed & blank).sum()} blank, {(found & ~expected).sum()} wrong"
    )


def _crossing(fer: np.ndarray, test: np.ndarray, groups: np.ndarray, exact: np.ndarray) -> None:
    for name, numbers in (("exact", exact), ("any kind", groups)):
        shared = np.isin(numbers[fer & test], numbers[fer & ~test]).sum()
        print(f"FER2013 test images that share a group with its train folder, {name}: {shared:,}")


def second(images: np.ndarray, about: pd.DataFrame, pairs: pd.DataFrame, folder: Path | None) -> None:
    """The second method: what it knows of changed copies, and what it still finds after `leakage: drop`."""
    images, seen = images[~blanks(images)], ~blanks(images)
    table = about.rename(columns={"split": "part"}).assign(usage="", flags="")
    table["split"] = splits.assign_splits(table, 0.25, "all", 42)
    clean = audit.apply_policy(audit.describe_copies(table, pairs), "drop", "one")[seen].reset_index(drop=True)
    chosen = np.random.default_rng(2013).choice(np.flatnonzero(clean["split"] == "TEST"), 2000, replace=False)
    print(
        f"\nSecond method, cosine of gradient directions: 2,000 changed TEST images\n{'change':<22} lowest  share ≥ SAME"
    )
    for name, alter in CHANGES.items():
        changed = np.stack([alter(images[i]) for i in chosen])
        plain, mirrored = (gradients.descriptors(np.ascontiguousarray(x)) for x in (changed, changed[:, :, ::-1]))
        own = gradients.descriptors(images[chosen])
        cosine = np.maximum((plain * own).sum(axis=1), (mirrored * own).sum(axis=1))
        print(f"{name:<22} {cosine.min():.3f}   {(cosine >= gradients.SAME).mean():.4f}")
    print(f"after drop, of 1,000 TEST images {missed_crops(images, clean)} align with a TRAIN image: wider crops")
    left = []
    for one, two in (("TEST", "TRAIN"), ("VAL", "TRAIN"), ("VAL", "TEST")):
        rows, pool = (np.flatnonzero(clean["split"] == split) for split in (one, two))
        position, cosine = gradients.nearest(images[rows], images[pool])
        counts = ", ".join(f"≥ {x}: {(cosine >= x).sum()}" for x in (gradients.SAME, gradients.ALIKE, 0.85, 0.8))
        print(f"after drop, {one} ({len(rows):,}) against {two} ({len(pool):,}): highest {cosine.max():.3f}, {counts}")
        alike = cosine >= 0.85
        pairs_left = {"first": rows[alike], "second": pool[position[alike]], "kind": "left", "cosine": cosine[alike]}
        left.append(pd.DataFrame(pairs_left))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "left.png"), _sheet(images, pd.concat(left).sort_values("cosine", ascending=False)))


def missed_crops(images: np.ndarray, clean: pd.DataFrame, sample: int = 1000) -> int:
    """TEST images of a sample that align with one of their 8 nearest in TRAIN by descriptor, either way round."""
    rows, pool = (np.flatnonzero(clean["split"] == split) for split in ("TEST", "TRAIN"))
    rows = np.random.default_rng(0).choice(rows, min(sample, len(rows)), replace=False)
    own, theirs = (near_duplicates._descriptors(images, x) for x in (rows, pool))
    found = np.zeros(len(rows), bool)
    for turned, pictures in (
        (theirs, images),
        (np.where(near_duplicates._IS_ODD, -theirs, theirs), images[:, :, ::-1]),
    ):
        nearest = np.argsort(own @ turned.T, axis=1)[:, -8:]
        others = np.ascontiguousarray(pictures[pool[nearest.ravel()]])
        distance = near_duplicates.aligned_distance(images[np.repeat(rows, 8)], others)
        found |= (distance.reshape(nearest.shape) <= near_duplicates.MAX_DISTANCE).any(axis=1)
    return int(found.sum())


def montage(images: np.ndarray, about: pd.DataFrame, pairs: pd.DataFrame, folder: Path) -> None:
    """500 random non-exact pairs, and every non-exact pair within FER2013, the harder ones: sheets of 50."""
    folder.mkdir(parents=True, exist_ok=True)
    fer = (about["source"] == splits.FER2013).to_numpy()
    near = pairs[pairs["kind"] != "exact"]
    within = near[fer[near["first"]] & fer[near["second"]]]
    for name, rows in (("sample", near.sample(min(500, len(near)), random_state=500)), ("within", within)):
        rows = rows.sort_values("distance", ignore_index=True)
        for start in range(0, len(rows), 50):
            cv2.imwrite(str(folder / f"{name}_{start // 50:02d}.png"), _sheet(images, rows[start : start + 50]))
        print(f"{name}: {len(rows):,} of {len(near):,} non-exact pairs drawn to {folder}")


def _sheet(images: np.ndarray, rows: pd.DataFrame, columns: int = 7) -> np.ndarray:
    cells = [_cell(images[i], images[j], *rest) for i, j, *rest in rows.itertuples(index=False)]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)])


def _cell(first: np.ndarray, second: np.ndarray, kind: str, distance: float) -> np.ndarray:
    second = second[:, ::-1] if kind == "flipped" else second
    cell = np.hstack([cv2.resize(x, (96, 96), interpolation=cv2.INTER_CUBIC) for x in (first, second)])
    cell = cv2.copyMakeBorder(cell, 16, 3, 3, 3, cv2.BORDER_CONSTANT, value=255)
    note = f"{distance:.3f}" + (" mirrored" if kind == "flipped" else "")
    return cv2.putText(cell, note, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("FER_REAL_DATA", ROOT / "../shared/data"))
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="holds the two zip files")
    parser.add_argument("--montage", type=Path, metavar="DIR", help="draw the sampled pairs here")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--search", nargs=2, metavar=("RAW", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        return _search(args.search[0], int(args.search[1]))
    missing = [name for name in ARCHIVES.values() if not (args.folder / name).is_file()]
    if missing:
        sys.exit(f"{args.folder.resolve()} lacks {' and '.join(missing)}: name the folder that holds them")
    images, about = load(args.folder)
    if "recall" in args.only:
        recall(images, about, args.montage)
    if "time" in args.only:
        timing(images)
    if "bars" in args.only or "second" in args.only or args.montage:
        pairs = near_duplicates.find_pairs(images)
        if "bars" in args.only:
            bars(images, about, pairs)
        if "second" in args.only:
            second(images, about, pairs, args.montage)
        if args.montage:
            montage(images, about, pairs, args.montage)


if __name__ == "__main__":
    main()
