"""Measures the copy search on up to a million pictures, with FAISS and comparing all with all; and both on the real datasets.

    python tests/benchmarks/many_pictures.py [FOLDER] [--pairs] [--sizes 72000 250000 1000000]
        [--all-with-all 72000 250000] [--montage DIR]

FOLDER as for near_duplicates.py. `--pairs` compares the two searches' pairs on the real pictures; `--montage` draws what
differs. Each search is a process of its own, at `--sizes` with FAISS, at `--all-with-all` without.
Times of its parts are CPU seconds, which depend less on what else the machine does than the clock.

The pictures are made from real ones. A distinct picture is two random real ones, each mirrored half of the time, turned by up to
3°, scaled by up to 3 % and moved by up to 1 pixel, then blended (the weaker has a weight of 0.2 to 0.4), with the stronger's
contrast and noise of 3 grey levels. Of all pictures 46 % are distinct, the share of the real datasets; the others are copies of
them: 90 % re-encoded, 4 % mirrored and re-encoded, 6 % cropped. `candidates a pair` is the share of pairs of different pictures
that the descriptors propose: 2.5e-5 among the distinct real ones. It decides what a search of a million pictures costs.

On two cores that did other work too 72,000 pictures took six minutes in both ways, 250,000 nine, a million with FAISS 45.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import near_duplicates as benchmark
import numpy as np

sys.path[:0] = [str(benchmark.ROOT)]

from fer_utils.data import near_duplicates  # noqa: E402

SIZES, ALL_WITH_ALL = (72_000, 250_000, 1_000_000), (72_000, 250_000)
BLOCK = 2_000  # pictures made from one seed, so that fewer pictures are the first of more
DISTINCT = 0.46
SAMPLE = 2_000  # pictures whose candidates are also found by comparing them with all


def moved(image: np.ndarray, rng: np.random.Generator, turn: float, scale: float, shift: float) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((23.5, 23.5), rng.uniform(-turn, turn), rng.uniform(1 - scale, 1 + scale))
    matrix[:, 2] += rng.uniform(-shift, shift, 2)
    return cv2.warpAffine(image, matrix, (48, 48), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def distinct(real: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One new picture out of two real ones."""
    pair = [real[i][:, :: rng.choice([-1, 1])] for i in rng.integers(len(real), size=2)]
    strong, weak = (moved(np.ascontiguousarray(x), rng, 3, 0.03, 1).astype(np.float32) for x in pair)
    blend = strong + rng.uniform(0.2, 0.4) * (weak - strong)
    blend = (blend - blend.mean()) * strong.std() / max(blend.std(), 1) + strong.mean()
    return np.clip(blend + rng.normal(0, 3, blend.shape), 0, 255).astype(np.uint8)


def copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = rng.random()
    if kind < 0.04:
        image = np.ascontiguousarray(image[:, ::-1])
    elif kind < 0.1:
        image = moved(image, rng, 0, 0.05, 2)
    return benchmark.coded(image, format="JPEG", quality=int(rng.integers(60, 96)))


def _make_block(arguments: tuple[str, str, int, int]) -> None:
    real_file, file, n, block = arguments
    real, rng = np.load(real_file, mmap_mode="r"), np.random.default_rng([19, block])
    made = np.memmap(file, np.uint8, "r+", shape=(n, 48, 48))[block * BLOCK : (block + 1) * BLOCK]
    count = min(round(DISTINCT * BLOCK), len(made))
    for i in range(len(made)):
        made[i] = distinct(real, rng) if i < count else copy(np.array(made[rng.integers(count)]), rng)


def make(real: np.ndarray, n: int, folder: Path) -> Path:
    """A file of `n` made pictures, uint8 (n, 48, 48), from real ones that are not blank."""
    cv2.setNumThreads(1)
    real_file, file = folder / "real.npy", folder / "made.raw"
    np.save(real_file, real)
    np.memmap(file, np.uint8, "w+", shape=(n, 48, 48)).flush()
    blocks = [(str(real_file), str(file), n, block) for block in range(-(-n // BLOCK))]
    with multiprocessing.Pool() as pool:
        pool.map(_make_block, blocks, chunksize=4)
    return file


def search(file: Path, n: int, way: str) -> dict:
    """Search the first `n` pictures of a file in a process of its own."""
    command = [sys.executable, __file__, "--search", str(file), str(n), way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _search(file: str, n: int, way: str) -> None:
    images = np.fromfile(file, np.uint8, count=n * 48 * 48).reshape(n, 48, 48)
    seen = {name: _watched(name) for name in ("_confirm", "_confirm_aligned", "aligned_distance")}
    kept = _kept("_in_rows"), _kept("_indexed_candidates")
    before, began, spent = benchmark._peak(), time.perf_counter(), _cpu()
    pairs = near_duplicates.find_pairs(images, index_from=0 if way == "faiss" else n + 1)
    seconds, spent, peak = time.perf_counter() - began, _cpu() - spent, benchmark._peak()
    found = {
        "seconds": seconds,
        "cpu": spent,
        "peak": peak,
        "before": before,
        "pairs": len(pairs),
        "n_candidates": seen["_confirm"]["rows"],
        "n_aligned": seen["aligned_distance"]["rows"],
        "cpu_candidates": spent - seen["_confirm"]["cpu"] - seen["_confirm_aligned"]["cpu"],
        "cpu_compared": seen["_confirm"]["cpu"],
        "cpu_aligned": seen["_confirm_aligned"]["cpu"],
        "recall": "",
    }
    if way == "faiss":
        there, total = recall(kept[1][0], kept[0][1])
        found["recall"] = f"{there:,} of {total:,}"
    print("\n" + json.dumps(found))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _watched(name: str) -> dict[str, float]:
    """CPU seconds and rows of the calls of a function of the search, from now on."""
    watched, seen = getattr(near_duplicates, name), {"cpu": 0.0, "rows": 0}

    def wrapped(*arguments):
        spent = _cpu()
        result = watched(*arguments)
        seen["cpu"] += _cpu() - spent
        seen["rows"] += len(arguments[1])
        return result

    setattr(near_duplicates, name, wrapped)
    return seen


def _kept(name: str) -> list:
    """The arguments of a function's last call, from now on."""
    watched, kept = getattr(near_duplicates, name), []

    def wrapped(*arguments):
        kept[:] = arguments
        return watched(*arguments)

    setattr(near_duplicates, name, wrapped)
    return kept


def recall(descriptors: np.ndarray, keys: np.ndarray) -> tuple[int, int]:
    """Candidates of a sample of pictures, found by comparing them with all: how many FAISS proposed, and how many there are.

    keys: (first × n + second) × 2 + flipped of what FAISS proposed, sorted.
    """
    n, there, total = len(descriptors), 0, 0
    sample = np.random.default_rng(0).choice(n, min(SAMPLE, n), replace=False)
    for rows in np.array_split(sample, -(-len(sample) // 100)):
        for flipped, queries in enumerate((descriptors[rows], near_duplicates._mirror(descriptors[rows]))):
            row, column = np.nonzero(queries @ descriptors.T >= near_duplicates.MIN_SIMILARITY)
            first, second = np.minimum(rows[row], column), np.maximum(rows[row], column)
            wanted = ((first * n + second) * 2 + flipped)[first != second]
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            there, total = there + int((keys[place] == wanted).sum()), total + len(wanted)
    return there, total


def sizes(real: np.ndarray, faiss: list[int], compared: list[int], folder: Path) -> None:
    began = time.perf_counter()
    file = make(real, max([*faiss, *compared]), folder)
    print(f"\n{max([*faiss, *compared]):,} pictures made in {time.perf_counter() - began:.0f} s")
    made = np.fromfile(file, np.uint8, count=min(faiss) * 48 * 48).reshape(-1, 48, 48)
    own = np.flatnonzero(np.arange(len(made)) % BLOCK < round(DISTINCT * BLOCK))[:20_000]
    descriptors = near_duplicates._descriptors(made, own)
    hits = sum(len(first) for _, (first, _, _) in near_duplicates._candidates(descriptors))
    print(f"candidates a pair of different pictures: {hits / (len(own) ** 2 / 2):.1e}")
    print(
        f"{'':14} {'pictures':>9} seconds     CPU  candidates  compared  aligned  peak MB  (images)    pairs  candidates   aligned  found"
    )
    for way, listed in (("faiss", faiss), ("all with all", compared)):
        for n in listed:
            x = search(file, n, way)
            print(
                f"{way:14} {n:9,} {x['seconds']:7.0f} {x['cpu']:7.0f} {x['cpu_candidates']:11.0f} {x['cpu_compared']:9.0f} "
                f"{x['cpu_aligned']:8.0f} {x['peak']:8.0f} {x['before']:9.0f} {x['pairs']:8,} {x['n_candidates']:11,} "
                f"{x['n_aligned']:9,}  {x['recall']}",
                flush=True,
            )


def compare_pairs(images: np.ndarray, folder: Path | None) -> None:
    """The pairs of both searches on the real pictures, and what only one of them has."""
    tables = []
    for way, index_from in (("all with all", len(images) + 1), ("faiss", 0)):
        began = time.perf_counter()
        tables.append(near_duplicates.find_pairs(images, index_from=index_from))
        print(f"\n{way}: {len(tables[-1]):,} pairs in {time.perf_counter() - began:.0f} s")
    names = ["first", "second", "kind"]
    both = tables[0].merge(tables[1], on=names, how="outer", indicator=True, suffixes=("", "_faiss"))
    apart = both[both["_merge"] != "both"]
    print(f"{len(apart)} pairs differ of {len(both):,}")
    if len(apart):
        print(apart.to_string())
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            rows = apart.assign(distance=apart["distance"].fillna(apart["distance_faiss"]))
            cv2.imwrite(str(folder / "apart.png"), benchmark._sheet(images, rows[[*names, "distance"]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("FER_REAL_DATA", benchmark.ROOT / "../shared/data"))
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="holds the two zip files")
    parser.add_argument("--pairs", action="store_true", help="compare both searches on the real pictures")
    parser.add_argument("--sizes", nargs="*", type=int, default=SIZES, help="pictures searched with FAISS")
    parser.add_argument("--all-with-all", nargs="*", type=int, default=ALL_WITH_ALL, help="pictures searched without")
    parser.add_argument("--montage", type=Path, metavar="DIR", help="draw pairs that differ here")
    parser.add_argument("--search", nargs=3, metavar=("RAW", "N", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.search:
        return _search(args.search[0], int(args.search[1]), args.search[2])
    images, _ = benchmark.load(args.folder)
    if args.pairs:
        compare_pairs(images, args.montage)
    if args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            sizes(images[~near_duplicates.is_blank(images)], args.sizes, args.all_with_all, Path(folder))


if __name__ == "__main__":
    main()
