"""Finds copies of the same picture: re-encoded, resized, changed in brightness or contrast, cropped or mirrored.

Candidates are pairs with a high cosine similarity of the 8 × 8 lowest DCT frequencies, weighted by frequency. The weight
separates faces: on FER2013, with a cosine of 0.85, it gives 0.3 candidates per image, against 10 without it. All pictures are
compared with all.

Candidates are then compared by pixels, first without alignment (`picture_distance`). For 2,000 FER2013 images the changes
above give distances below 0.09; the smallest distance seen between different photographs was 0.26; crops of one photograph are
in between, so the other candidates are aligned (`aligned_distance`). Of 15,650 such pairs on FER2013, 2,013 then have a
distance of at most 0.20, 134 between 0.20 and 0.25, and from 0.25 on the number grows. On inspection the 94 pairs closest below
0.20 were all copies; from 0.23 on there were different photographs. NOT found are crops with a larger offset (their descriptors
differ), other frames of a series, and retouched, recoloured or heavily watermarked versions; docs/measurements.md has their
numbers, and tests/benchmarks/near_duplicates.py measures them.
"""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from fer_utils.images import LOW, SIZE, fingerprint, is_blank, low_frequencies
from fer_utils.progress import bar

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

KINDS = ("exact", "re-encoded", "cropped", "flipped")

MIN_SIMILARITY = 0.85  # cosine of two descriptors
MAX_DISTANCE = 0.20  # residual divided by contrast, see `picture_distance` and `aligned_distance`

_IS_ODD = np.arange(LOW * LOW) % 2 == 1  # horizontal frequencies whose sign changes in the mirror image
_CONTRAST_FLOOR = 10.0  # grey levels; JPEG noise does not decrease with a picture's contrast
_UNCLIPPED = (5, 250)  # grey values between which a pixel is not clipped, also after JPEG
_PIXEL = np.arange(SIZE, dtype=np.float32)
_BLUR = np.exp(-((_PIXEL[:, None] - _PIXEL) ** 2) / 2)  # Gaussian blur (1 pixel) of a column of pixels as a matrix
_BLUR /= _BLUR.sum(axis=1, keepdims=True)
_ROWS, _COLUMNS = 1024, 8192  # block of similarities in memory: 32 MB
_BATCH = 256  # pairs that a thread compares at once: about 25 MB
_ALIGNED_AT_ONCE = 16_384  # pairs whose pictures are copied to be aligned: 75 MB

_MAX_MOVE = 8.0  # pixels; largest shift of a corner by alignment; FER2013's crops need 6
_ECC_BLUR = 5  # pixels, size of the Gaussian filter before alignment
_ECC_MASK = np.ones((SIZE, SIZE), np.uint8)  # all pixels count
_CORNERS = np.array([(x, y, 1) for x in (0, SIZE - 1) for y in (0, SIZE - 1)])
_ECC_STOP = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-3)


def find_pairs(images: np.ndarray) -> pd.DataFrame:
    """All pairs of copies of the same picture, one row per pair, sorted: see `compare`."""
    return compare(images)[0]


def compare(images: np.ndarray, unread: Collection[int] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All pairs of copies of the same picture, and the candidates that are none; one row per pair.

    `images`: uint8 (n, 48, 48). Columns: `first`, `second` (int positions, first < second) · `kind` ("exact": pixel for
    pixel; "re-encoded": after JPEG, resizing, brightness or contrast; "cropped": the same photograph, moved or scaled by a
    few pixels; "flipped": the mirror image, re-encoded, cropped or neither) · `distance` (float, of copies at most
    MAX_DISTANCE, see `picture_distance`, for crops `aligned_distance`). Pairs of copies are sorted.

    Each exact copy is paired only with the first of its kind, and only that first one is in other pairs: k copies give
    k - 1 rows instead of k(k - 1)/2. If two groups of closer copies are crops of each other, only their most similar pair
    is compared and listed. `group` gives complete clusters from all pairs. Blank images are in exact pairs only, and those at
    the positions `unread`, which stand for files that could not be read, in none. Raises ValueError on any other shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIZE, SIZE):
        raise ValueError(f"expected uint8 images of shape (n, {SIZE}, {SIZE}), got {images.dtype} {images.shape}")
    exact, distinct = _exact_copies(images, unread)
    pictures = np.array([row for row in distinct if not is_blank(images[row])], int)
    near, rest = [exact], [exact[:0]]
    with bar(description="searching copies", total=len(pictures)) as shown:
        for done, (rows, others, flipped) in _candidates(_descriptors(images, pictures)):
            first, second = pictures[rows], pictures[others]
            distance = picture_distance(images[first], _mirrored(images[second], flipped))
            candidates = _rows(first, second, np.where(flipped, "flipped", "re-encoded").astype(object), distance)
            is_near = candidates["distance"] <= MAX_DISTANCE
            near.append(candidates[is_near])
            rest.append(candidates[~is_near])
            shown.update(done - shown.n)
    pairs = pd.concat(near, ignore_index=True)
    aligned = _aligned(images, pd.concat(rest, ignore_index=True), pairs)
    is_near = aligned["distance"] <= MAX_DISTANCE
    # A symmetric picture matches its copy both mirrored and not: the smaller distance decides.
    pairs = pd.concat([pairs, aligned[is_near]]).sort_values(["first", "second", "distance"], kind="stable")
    return pairs.drop_duplicates(["first", "second"]).reset_index(drop=True), aligned[~is_near]


def group(n: int, pairs: pd.DataFrame) -> np.ndarray:
    """Group number of each of `n` images, int (n,): images connected by a chain of pairs share one.

    Groups are numbered 0, 1, … in the order of their first image. Raises ValueError if a pair is outside 0 … n-1.
    """
    ends = (pairs["first"].to_numpy(np.int64), pairs["second"].to_numpy(np.int64))
    links = coo_matrix((np.ones(len(pairs), bool), ends), shape=(n, n))
    component = connected_components(links, directed=False)[1]
    return pd.factorize(component)[0]


def picture_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The distance of pictures, pair by pair: float32 (n,), 0 (the same) … about 1 (unrelated).

    The best gain and offset map one picture to the other, with values clipped to 0 … 255. The residual is the remaining
    difference, slightly blurred (1 pixel). The distance is its root mean square divided by the contrast (standard
    deviation) of the target picture, in the better of the two directions, since clipping cannot be reversed.
    `first`, `second`: uint8 (n, 48, 48).
    """
    with ThreadPoolExecutor() as pool:  # NumPy releases the GIL
        blocks = pool.map(lambda block: _fitted(first[block], second[block]), _blocks(len(first), _BATCH))
        return np.concatenate([np.empty(0, np.float32), *blocks])


def aligned_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The distance of pictures after alignment, pair by pair: float32 (n,), 0 … 1.

    OpenCV's ECC (Evangelidis & Psarakis 2008, doi:10.1109/TPAMI.2008.113) finds the affine map with the largest
    correlation ρ over the common area, independent of gain and offset. The distance is √(1 - ρ²), the residual divided by
    the contrast, in the better of the two directions. It is 1 if no map is found, or one that moves a corner by more than
    8 pixels. `first`, `second`: uint8 (n, 48, 48).
    """
    with ThreadPoolExecutor() as pool:  # OpenCV releases the GIL
        there, back = (
            np.fromiter(pool.map(_aligned_correlation, *pair), np.float32, len(first))
            for pair in ((first, second), (second, first))
        )
    return np.sqrt(1 - np.maximum(there, back) ** 2)


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _exact_copies(images: np.ndarray, unread: Collection[int]) -> tuple[pd.DataFrame, np.ndarray]:
    """Pairs of each exact copy with the first one, and the positions of the distinct pictures."""
    names = [row if row in unread else fingerprint(image) for row, image in enumerate(images)]
    codes, _ = pd.factorize(np.array(names, dtype=object))
    _, start = np.unique(codes, return_index=True)
    is_copy = start[codes] != np.arange(len(images))
    return _rows(start[codes][is_copy], np.flatnonzero(is_copy), "exact", 0.0), start


def _rows(first: np.ndarray, second: np.ndarray, kind: str | np.ndarray, distance: float | np.ndarray) -> pd.DataFrame:
    rows = pd.DataFrame({"first": first, "second": second}, dtype=np.int64)
    return rows.assign(kind=kind, distance=distance).astype({"kind": object, "distance": np.float64})


def _descriptors(images: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Float32 (len(pictures), 64), unit norm: the lowest DCT frequencies, each times its frequency, without the mean.

    Faces are similar in the lowest frequencies; the weight compensates for the 1/f spectrum. Purely horizontal and vertical
    ones count √2 times: the measured numbers of candidates are with this weight.
    """
    weight = np.hypot(*np.mgrid[:LOW, :LOW]).astype(np.float32)
    weight[0] *= np.sqrt(2)
    weight[:, 0] *= np.sqrt(2)
    weighted = (low_frequencies(images[row] for row in pictures) * weight).reshape(len(pictures), LOW * LOW)
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-6)


def _candidates(descriptors: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """For each block of rows: rows done, and (first, second, flipped) of the similar pairs, first < second.

    Mirroring changes the sign of the odd horizontal frequencies. So the sum of the products of the even and of the odd
    frequencies is the cosine of two pictures, and their difference that of a picture and the other's mirror image.
    """
    even, odd = (np.ascontiguousarray(descriptors[:, columns]) for columns in (~_IS_ODD, _IS_ODD))
    for rows in _blocks(len(descriptors), _ROWS):
        found = []
        for start in range(rows.start, len(descriptors), _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            first, second, flipped = _similar(even[rows] @ even[columns].T, odd[rows] @ odd[columns].T)
            first, second = first + rows.start, second + start
            keep = first < second
            found.append((first[keep], second[keep], flipped[keep]))
        first, second, flipped = (np.concatenate(column) for column in zip(*found, strict=True))
        yield rows.stop, (first, second, flipped)


def _similar(even: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    larger = np.abs(odd)
    larger += even
    # Few rows remain, so that most of the memory is read once, not three times.
    hit = np.flatnonzero(larger.max(axis=1) >= MIN_SIMILARITY)
    plain, mirrored = (np.nonzero(cosine >= MIN_SIMILARITY) for cosine in (even[hit] + odd[hit], even[hit] - odd[hit]))
    first, second = np.hstack([plain, mirrored])
    return hit[first], second, np.repeat([False, True], [len(plain[0]), len(mirrored[0])])


def _aligned(images: np.ndarray, candidates: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The candidates with their distances after alignment; of two groups of `known` pairs only the nearest pair."""
    ends = np.sort(group(len(images), known)[candidates[["first", "second"]].to_numpy()], axis=1)
    tried = candidates.assign(group_1=ends[:, 0], group_2=ends[:, 1])[ends[:, 0] != ends[:, 1]]
    tried = tried.sort_values(["distance", "first", "second"]).drop_duplicates(["group_1", "group_2", "kind"])
    first, second, flipped = (
        tried["first"].to_numpy(),
        tried["second"].to_numpy(),
        tried["kind"].to_numpy() == "flipped",
    )
    distance = np.empty(len(tried), np.float32)
    with bar(description="aligning crops", total=len(tried), unit="pairs") as shown:
        for block in _blocks(len(tried), _ALIGNED_AT_ONCE):
            distance[block] = aligned_distance(images[first[block]], _mirrored(images[second[block]], flipped[block]))
            shown.update(block.stop - block.start)
    return _rows(first, second, np.where(flipped, "flipped", "cropped").astype(object), distance)


def _aligned_correlation(first: np.ndarray, second: np.ndarray) -> float:
    start, kind = np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE
    try:
        correlation, warp = cv2.findTransformECC(first, second, start, kind, _ECC_STOP, _ECC_MASK, _ECC_BLUR)
    except cv2.error:  # ECC found no map
        return 0.0
    moved = np.abs(_CORNERS @ warp.T - _CORNERS[:, :2]).max()
    return min(max(correlation, 0.0), 1.0) if moved <= _MAX_MOVE else 0.0


def _mirrored(images: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return np.where(flipped[:, None, None], images[:, :, ::-1], images)


def _fitted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    a, b = (x.reshape(-1, SIZE * SIZE).astype(np.float32) for x in (first, second))
    low, high = np.minimum(a, b), np.maximum(a, b)
    weight = ((low > _UNCLIPPED[0]) & (high < _UNCLIPPED[1])).astype(np.float32)
    weight[weight.mean(axis=1) < 0.1] = 1  # too few pixels for a fit
    return np.minimum(_residual(a, b, weight), _residual(b, a, weight))


def _residual(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Root mean square residual of `target` after the best gain and offset, divided by its contrast: float32 (n,)."""
    total = weight.sum(axis=1, keepdims=True)
    source_mean = (weight * source).sum(axis=1, keepdims=True) / total
    target_mean = (weight * target).sum(axis=1, keepdims=True) / total
    centred = weight * (source - source_mean)
    slope = (centred * (target - target_mean)).sum(axis=1, keepdims=True)
    gain = np.maximum(slope / np.maximum((centred * (source - source_mean)).sum(axis=1, keepdims=True), 1e-6), 0)
    left = target - np.clip(gain * (source - source_mean) + target_mean, 0, 255)
    left = _BLUR @ left.reshape(-1, SIZE, SIZE) @ _BLUR.T
    return np.sqrt((left**2).mean(axis=(1, 2))) / np.hypot(target.std(axis=1), _CONTRAST_FLOOR)
