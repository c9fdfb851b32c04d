"""Sums up each face of a video or webcam over time, and draws it."""

from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.predict import drawing
from fer_utils.predict.reader import Reading

import numpy as np

SHOWN = 6  # tracks in a figure
STEPS = 400  # of its time axis; the pictures of a step are averaged
# Paul Tol's, for the colour-blind, one for each class.
COLOURS = ("#cc3311", "#999933", "#aa3377", "#ddcc77", "#4477aa", "#ee7733", "#bbbbbb")


class Timeline:
    """The times of each source's pictures, and in which of them each track was seen with which probabilities."""

    def __init__(self) -> None:
        self._times: dict[str, array] = {}
        self._tracks: dict[tuple[str, int], array] = {}  # source, number → rows of a picture's index and probabilities

    def add(self, reading: Reading) -> None:
        """Add a video's next picture, its faces numbered; one without a time is no video's."""
        source, seconds = reading.picture.source, reading.picture.seconds
        if seconds is not None:
            times = self._times.setdefault(source, array("d"))
            for face in reading.faces:
                assert face.track is not None, "a Tracker numbers the faces first"
                self._tracks.setdefault((source, face.track), array("d")).extend((len(times), *face.probabilities))
            times.append(seconds)

    def _seen(self) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray]]:
        """For each track its summary, and for each of the source's pictures: when it begins, for how many seconds the track
        is seen in it, and its probabilities. A picture lasts until the next one, the last one like that before."""
        for (source, number), seen in sorted(self._tracks.items()):
            begins, table = np.array(self._times[source]), np.array(seen).reshape(-1, 1 + len(CLASSES))
            steps = np.maximum(np.diff(begins), 1e-3)
            lasts, probabilities = np.zeros(len(begins)), np.zeros((len(begins), len(CLASSES)))
            indices = table[:, 0].astype(int)
            lasts[indices] = np.append(steps, steps[-1:] if steps.size else 1 / drawing.RATE)[indices]
            probabilities[indices] = table[:, 1:]
            total = lasts.sum()
            shares = np.bincount(probabilities.argmax(axis=1), lasts, len(CLASSES)) / total
            times = {"first": begins[indices[0]], "last": begins[indices[-1]], "seconds": total}
            summary = {"source": source, "track": number}
            summary |= {name: round(float(value), 3) for name, value in times.items()}
            summary |= {"probability": _named(lasts @ probabilities / total), "share": _named(shares)}
            yield summary, begins, lasts, probabilities

    def tracks(self) -> list[dict[str, Any]]:
        """A summary of each track: when it was first and last seen, for how many seconds in all, the mean of its
        probabilities, and the share of that time for which each expression was the likeliest."""
        return [summary for summary, *_ in self._seen()]

    def draw(self, path: Path, name_of: Callable[[str], str]) -> None:
        """Write the figure: for each track, those seen longest, the probabilities over time, stacked.

        name_of: a source's name in it.
        """
        from matplotlib.figure import Figure  # takes a while to import

        longest = sorted((track["seconds"] for track in self.tracks()), reverse=True)
        shown = [seen for seen in self._seen() if seen[0]["seconds"] >= longest[:SHOWN][-1]][:SHOWN]
        figure = Figure(figsize=(10, 1 + 1.15 * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (summary, begins, lasts, probabilities) in zip(grid, shown, strict=True):
            first = np.arange(0, len(begins), -(-len(begins) // STEPS))  # picture of each step
            sums = np.add.reduceat(probabilities * lasts[:, None], first)
            heights = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-9)  # 0 where the face is not seen
            edges = np.append(begins[first], begins[-1] + max(lasts[-1], 1e-3))
            axes.stackplot(edges, *np.vstack([heights, heights[-1:]]).T, step="post", colors=COLOURS, lw=0)
            axes.set_title(described(summary, name_of(summary["source"])), loc="left", fontsize=9, parse_math=False)
            axes.set(ylim=(0, 1), yticks=(0, 1))
            axes.margins(x=0)
            axes.spines[["top", "right"]].set_visible(False)
        n_others = len(longest) - len(shown)
        others = f"; {n_others} tracks that were seen for a shorter time are left out" if n_others else ""
        grid[-1].set_xlabel(f"seconds{others}")
        figure.supylabel("probability", fontsize="medium")
        figure.legend(grid[0].collections, CLASSES, loc="outside upper center", ncols=len(CLASSES), frameon=False)
        with files.replacing(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _named(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(CLASSES, values, strict=True)}


def described(track: dict[str, Any], source: str) -> str:
    """A track in a line of text, without expressions under one per cent."""
    shares = sorted(track["share"].items(), key=lambda entry: -entry[1])
    expressions = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.005)
    span = f"{track['seconds']:.1f} s from {track['first']:.1f} to {track['last']:.1f}"
    return f"track {track['track']} of {source}: seen {span}, {expressions}"
