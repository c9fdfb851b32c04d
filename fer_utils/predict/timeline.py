"""Sums up each face of a video or webcam over time, and draws it."""

import csv
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.predict import drawing
from fer_utils.predict.photographs import Picture
from fer_utils.predict.reader import Reading

import numpy as np

SHOWN = 6  # tracks in a figure
STEPS = 400  # of the time axis; what lies in one of them is averaged
COLOURS = dict(  # Paul Tol's, safe for colour-blind readers
    zip(CLASSES, ("#cc3311", "#999933", "#aa3377", "#ddcc77", "#4477aa", "#ee7733", "#bbbbbb"), strict=True)
)


class Timeline:
    """What was seen of each track: source and number → rows of begin, duration in seconds, and seven probabilities.

    A picture lasts until the next one begins, the last one of a source as long as the one before it.
    """

    def __init__(self) -> None:
        self._tracks: dict[tuple[str, int], array] = {}
        self._held: Reading | None = None
        self._step = 0.0

    def add(self, reading: Reading) -> None:
        """Add a video's next picture, its faces numbered; one without a time is no video's."""
        if reading.picture.seconds is not None:
            self._let_go(reading.picture)
            self._held = reading

    def _let_go(self, next_one: Picture | None) -> None:
        if (held := self._held) is None:
            return
        begin, source = held.picture.seconds, held.picture.source
        goes_on = next_one is not None and next_one.source == source
        if goes_on:
            self._step = max(next_one.seconds - begin, 0.001)
        lasts = self._step or 1 / (held.picture.rate or drawing.RATE)  # the latter of a source's only picture
        for face in held.faces:
            self._tracks.setdefault((source, face.track), array("d")).extend((begin, lasts, *face.probabilities))
        self._held, self._step = None, self._step if goes_on else 0.0

    def _rows(self) -> dict[tuple[str, int], np.ndarray]:
        self._let_go(None)
        return {track: np.array(rows).reshape(-1, 2 + len(CLASSES)) for track, rows in sorted(self._tracks.items())}

    def tracks(self) -> list[dict[str, Any]]:
        """A summary of each track: when it was first and last seen, for how many seconds in all, the mean of its
        probabilities, and the share of that time for which each expression was the likeliest."""
        found = []
        for (source, number), rows in self._rows().items():
            begin, lasts, probabilities = rows[:, 0], rows[:, 1], rows[:, 2:]
            shares = np.bincount(probabilities.argmax(axis=1), weights=lasts, minlength=len(CLASSES)) / lasts.sum()
            found.append(
                {
                    "source": source,
                    "track": number,
                    "first": round(float(begin[0]), 3),
                    "last": round(float(begin[-1]), 3),
                    "seconds": round(float(lasts.sum()), 3),
                    "probabilities": _of_classes(np.average(probabilities, axis=0, weights=lasts)),
                    "shares": _of_classes(shares),
                }
            )
        return found

    def draw(self, path: Path, name_of: Callable[[str], str]) -> None:
        """Write the figure: for each track, those seen longest, the probabilities over time, stacked.

        name_of: a source's name in it.
        """
        from matplotlib.figure import Figure  # takes a while to import

        rows = self._rows()
        longest = sorted(self.tracks(), key=lambda track: -track["seconds"])[:SHOWN]
        shown = [track for track in self.tracks() if track in longest]
        end = max(float((rows[:, 0] + rows[:, 1]).max()) for rows in rows.values())
        figure = Figure(figsize=(10, 1 + 1.15 * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        edges = np.linspace(0, end, STEPS + 1)
        for axes, track in zip(grid, shown, strict=True):
            means = _means(rows[track["source"], track["track"]], edges)
            axes.stackplot(edges, *np.hstack([means, means[:, -1:]]), step="post", colors=COLOURS.values(), lw=0)
            title = described(track, name_of(track["source"]))
            axes.set_title(title, loc="left", fontsize=9, parse_math=False)
            axes.set(xlim=(0, end), ylim=(0, 1), yticks=(0, 1))
            axes.spines[["top", "right"]].set_visible(False)
        grid[-1].set_xlabel("seconds")
        figure.supylabel("probability", fontsize="medium")
        figure.legend(grid[0].collections, CLASSES, loc="outside upper center", ncols=len(CLASSES), frameon=False)
        if len(rows) > len(shown):
            figure.supxlabel(f"the {len(shown)} of {len(rows)} tracks that were seen longest", fontsize=8)
        with files.replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _of_classes(values: np.ndarray) -> dict[str, float]:
    return dict(zip(CLASSES, (round(float(value), 6) for value in values), strict=True))


def _means(rows: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The means of the seven probabilities in each step between the edges, 0 where the face was not seen: (7, n)."""
    begin, lasts = rows[:, 0], rows[:, 1]
    amounts = np.column_stack(
        [lasts, rows[:, 2:] * lasts[:, None]]
    )  # seconds seen, and how much of them each class has
    after = np.cumsum(amounts, axis=0)
    times = np.column_stack([begin, begin + lasts]).ravel()
    reached = np.stack([after - amounts, after], axis=1).reshape(len(times), -1)
    seen, *of_classes = (np.diff(np.interp(edges, times, column)) for column in reached.T)
    return np.divide(of_classes, seen, out=np.zeros((len(CLASSES), len(seen))), where=seen > 1e-9)


def described(track: Mapping[str, Any], source: str) -> str:
    """A track in a line of text, without expressions under one per cent."""
    shares = sorted(track["shares"].items(), key=lambda entry: -entry[1])
    expressions = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    span = f"{track['seconds']:.1f} s from {track['first']:.1f} to {track['last']:.1f}"
    return f"track {track['track']} of {source}: seen {span}, {expressions}"


def write(tracks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the tracks as CSV, a row each."""
    flat = [
        {name: value for name, value in track.items() if not isinstance(value, dict)}
        | {f"probability_{name}": value for name, value in track["probabilities"].items()}
        | {f"share_{name}": value for name, value in track["shares"].items()}
        for track in tracks
    ]
    names = ["source", "track", "first", "last", "seconds"]
    names += [f"{kind}_{name}" for kind in ("probability", "share") for name in CLASSES]
    with (
        files.replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
