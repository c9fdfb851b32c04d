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
    """When each source's pictures were, and what was seen of each track: source and number → picture, seven probabilities."""

    def __init__(self) -> None:
        self._times: dict[str, array] = {}
        self._tracks: dict[tuple[str, int], array] = {}

    def add(self, reading: Reading) -> None:
        """Add a video's next picture, its faces numbered; one without a time is no video's."""
        source, seconds = reading.picture.source, reading.picture.seconds
        if seconds is not None:
            times = self._times.setdefault(source, array("d"))
            for face in reading.faces:
                seen = self._tracks.setdefault((source, face.track), array("d"))
                seen.extend((len(times), *face.probabilities))
            times.append(seconds)

    def _seen(self) -> Iterator[tuple[str, int, np.ndarray, np.ndarray, np.ndarray]]:
        """For each track its source and number, and for each of the source's pictures: when it begins, for how many seconds
        the track is seen in it, and its probabilities. A picture lasts until the next one, the last one like that before."""
        for (source, number), seen in sorted(self._tracks.items()):
            begins, table = np.array(self._times[source]), np.array(seen).reshape(-1, 1 + len(CLASSES))
            steps = np.maximum(np.diff(begins), 1e-3)
            lasts, probabilities = np.zeros(len(begins)), np.zeros((len(begins), len(CLASSES)))
            places = table[:, 0].astype(int)
            lasts[places] = np.append(steps, steps[-1:] if steps.size else 1 / drawing.RATE)[places]
            probabilities[places] = table[:, 1:]
            yield source, number, begins, lasts, probabilities

    def tracks(self) -> list[dict[str, Any]]:
        """A summary of each track: when it was first and last seen, for how many seconds in all, the mean of its
        probabilities, and the share of that time for which each expression was the likeliest."""
        found = []
        for source, number, begins, lasts, probabilities in self._seen():
            shown = begins[lasts > 0]
            times = {"first": shown[0], "last": shown[-1], "seconds": lasts.sum()}
            shares = np.bincount(probabilities.argmax(axis=1), lasts, len(CLASSES)) / lasts.sum()
            of_classes = {"probability": lasts @ probabilities / lasts.sum(), "share": shares}
            summary = {"source": source, "track": number}
            summary |= {name: round(float(value), 3) for name, value in times.items()}
            found.append(summary | {name: _named(values) for name, values in of_classes.items()})
        return found

    def draw(self, path: Path, name_of: Callable[[str], str]) -> None:
        """Write the figure: for each track, those seen longest, the probabilities over time, stacked.

        name_of: a source's name in it.
        """
        from matplotlib.figure import Figure  # takes a while to import

        tracks = self.tracks()
        least = sorted(track["seconds"] for track in tracks)[-SHOWN:][0]
        shown = [pair for pair in zip(tracks, self._seen(), strict=True) if pair[0]["seconds"] >= least][:SHOWN]
        figure = Figure(figsize=(10, 1 + 1.15 * len(shown)), layout="constrained")
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (track, (*_, begins, lasts, probabilities)) in zip(grid, shown, strict=True):
            first = np.arange(0, len(begins), -(-len(begins) // STEPS))  # picture of each step
            sums = np.add.reduceat(probabilities * lasts[:, None], first)
            heights = sums / np.maximum(sums.sum(axis=1, keepdims=True), 1e-9)  # 0 where the face is not seen
            edges = np.append(begins[first], begins[-1] + max(lasts[-1], 1e-3))
            axes.stackplot(edges, *np.vstack([heights, heights[-1:]]).T, step="post", colors=COLOURS, lw=0)
            axes.set_title(described(track, name_of(track["source"])), loc="left", fontsize=9, parse_math=False)
            axes.set(ylim=(0, 1), yticks=(0, 1))
            axes.margins(x=0)
            axes.spines[["top", "right"]].set_visible(False)
        others = f"; {len(tracks) - len(shown)} tracks that were seen for a shorter time are left out"
        grid[-1].set_xlabel("seconds" + (others if len(tracks) > len(shown) else ""))
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
