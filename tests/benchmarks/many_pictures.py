"""Measures the copy search on up to a million pictures, with FAISS and comparing all with all; and both on the real datasets.

    python tests/benchmarks/many_pictures.py [FOLDER] [--pairs] [--sizes 72000 250000 1000000]
        [--all-with-all 72000 250000] [--montage DIR]

FOLDER as for near_duplicates.py. `--pairs` compares the two searches' pairs on the real pictures; `--montage` draws what
differs. Each search is a process of its own, at `--sizes` with FAISS, at `--all-with-all` without.

The pictures are made from real ones. A distinct picture is two random real ones, each mirrored half of the time, turned by up to
3°, scaled by up to 3 % and moved by up to 1 pixel, then blended (the weaker has a weight of 0.2 to 0.4), with the stronger's
contrast and noise of 3 grey levels. Of all pictures 46 % are distinct, the share of the real datasets; the others are copies of
them: 90 % re-encoded, 4 % mirrored and re-encoded, 6 % cropped. `candidates a pair` is the share of pairs of different pictures
that the descriptors propose: 2.5e-5 among the distinct real ones. It decides what a search of a million pictures costs.
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
    spent: dict[str, float] = {}
    for name in ("_confirm", "_confirm_aligned"):
        _time(name, spent)
    before, began = benchmark._peak(), time.perf_counter()
    pairs = near_duplicates.find_pairs(images, index_from=0 if way == "faiss" else n + 1)
    seconds, cpu = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "seconds": seconds,
        "cpu": cpu.ru_utime + cpu.ru_stime,
        "candidates": seconds - sum(spent.values()),
        "compared": spent["_confirm"],
        "aligned": spent["_confirm_aligned"],
        "peak": benchmark._peak(),
        "before": before,
        "pairs": len(pairs),
    }
    print("\n" + json.dumps(found))


def _time(name: str, spent: dict[str, float]) -> None:
    timed = getattr(near_duplicates, name)

    def wrapped(*arguments):
        began = time.perf_counter()
        result = timed(*arguments)
        spent[name] = spent.get(name, 0) + time.perf_counter() - began
        return result

    setattr(near_duplicates, name, wrapped)


def recall(file: Path, n: int) -> str:
    """Which candidates of a sample of pictures FAISS proposes, of those found by comparing them with all."""
    import faiss

    images = np.fromfile(file, np.uint8, count=n * 48 * 48).reshape(n, 48, 48)
    _, pictures = near_duplicates._exact_copies(images, np.flatnonzero(~near_duplicates.is_blank(images)))
    descriptors = near_duplicates._descriptors(images, pictures)
    del images
    found = [pairs for _, pairs in near_duplicates._indexed_candidates(descriptors, faiss)]
    first, second, flipped = (np.concatenate(column) for column in zip(*found, strict=True))
    m = len(descriptors)
    keys = np.sort((first * m + second) * 2 + flipped)
    sample = np.random.default_rng(0).choice(m, min(SAMPLE, m), replace=False)
    there = total = 0
    for rows in np.array_split(sample, len(sample) // 100):
        for turned, queries in enumerate((descriptors[rows], near_duplicates._mirror(descriptors[rows]))):
            row, column = np.nonzero(queries @ descriptors.T >= near_duplicates.MIN_SIMILARITY)
            one, two = np.minimum(rows[row], column), np.maximum(rows[row], column)
            wanted = ((one * m + two) * 2 + turned)[one != two]
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            there, total = there + int((keys[place] == wanted).sum()), total + len(wanted)
    return f"{n:,}: {len(keys):,} candidates; of {total:,} of {len(sample):,} pictures FAISS proposes {there:,}"


def sizes(real: np.ndarray, faiss: list[int], compared: list[int], folder: Path) -> None:
    began = time.perf_counter()
    file = make(real, max(*faiss, *compared), folder)
    print(f"\n{max(*faiss, *compared):,} pictures made in {time.perf_counter() - began:.0f} s")
    made = np.fromfile(file, np.uint8, count=min(faiss) * 48 * 48).reshape(-1, 48, 48)
    own = np.flatnonzero(np.arange(len(made)) % BLOCK < round(DISTINCT * BLOCK))[:20_000]
    descriptors = near_duplicates._descriptors(made, own)
    hits = sum(len(first) for _, (first, _, _) in near_duplicates._candidates(descriptors))
    print(f"candidates a pair of different pictures: {hits / (len(own) ** 2 / 2):.1e}")
    print(f"{'':14} {'pictures':>9} seconds     CPU  candidates  compared  aligned  peak MB  (images)    pairs")
    for way, listed in (("faiss", faiss), ("all with all", compared)):
        for n in listed:
            x = search(file, n, way)
            print(
                f"{way:14} {n:9,} {x['seconds']:7.0f} {x['cpu']:7.0f} {x['candidates']:11.0f} {x['compared']:9.0f} "
                f"{x['aligned']:8.0f} {x['peak']:8.0f} {x['before']:9.0f} {x['pairs']:8,}",
                flush=True,
            )
    for n in faiss:
        print(recall(file, n), flush=True)


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
