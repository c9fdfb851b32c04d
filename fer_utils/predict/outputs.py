"""What the command line writes on standard output: a table, CSV or JSON."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fer_utils.classes import CLASSES
from fer_utils.predict import timeline
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver
from fer_utils.predict.reader import Face, Reading

import numpy as np
from tqdm import tqdm

LeftAlone = Mapping[str, Counter[str]]  # folder → kind of file → number: see photographs.find

# Columns of the table and their widths. The path comes last, since it may have any length.
COLUMNS = {"box": ">22", "expression": "<13", "next": "<13", "detector": "<8", "picture": ""}
OF_FRAMES = {"seconds": ">8", "track": ">5"}  # only with a video or a webcam


def printable(text: str) -> str:
    """The text with what a terminal would obey or cannot show as escapes: a file's name may hold line feeds and colours."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def kinds(files: Mapping[str, int]) -> str:
    """Numbers of files by kind, most first: `12 .pdf, 3 .txt and 1 hidden`."""
    *most, last = (f"{n:,} {kind}" for kind, n in Counter(files).most_common())
    return f"{', '.join(most)} and {last}" if most else last


class Table:
    """Lines for the terminal, one per face."""

    def __init__(self, is_timed: bool):
        self._columns = OF_FRAMES | COLUMNS if is_timed else COLUMNS
        self._is_timed = is_timed
        self._n_faces = self._n_pictures = 0
        self._note = ""
        self._say({name: name for name in self._columns})

    def _say(self, cells: Mapping[str, str]) -> None:
        line = "  ".join(f"{cells.get(name, ''):{width}}" for name, width in self._columns.items())
        tqdm.write(printable(line), file=sys.stdout)

    def add(self, reading: Reading) -> None:
        of_picture = {"picture": reading.picture.source}
        if reading.picture.seconds is not None:
            of_picture["seconds"] = f"{reading.picture.seconds:.2f}"
        self._note = reading.note
        self._n_pictures += 1
        self._n_faces += len(reading.faces)
        if not reading.faces:
            self._say(of_picture | {"box": "no face found"})
        for face in reading.faces:
            second = int(np.argsort(face.probabilities)[-2])
            of_face = {
                "track": str(face.track or ""),
                "box": f"{face.box.width}×{face.box.height} at {face.box.x},{face.box.y}",
                "expression": face.label,
                "next": f"{CLASSES[second]} {face.probabilities[second]:.2f}",
                "detector": f"{face.box.confidence:.2f}",
            }
            self._say(of_picture | of_face)

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        lines = [timeline.described(track, track["source"]) for track in tracks]
        counts = f"{_counted(self._n_faces, 'face')} in {_counted(self._n_pictures, 'picture')}"
        counts += f"; passed over: {len(passed_over)}"
        counts += f"; left alone: {kinds(sum(left_alone.values(), Counter()))}" if left_alone else ""
        counts += f"; {self._n_pictures / seconds:.1f} pictures a second" if self._is_timed else ""
        for line in filter(None, [*lines, counts, self._note]):
            tqdm.write(printable(line), file=sys.stdout)


class Csv:
    """Comma-separated lines, one per face; frame, seconds and track only with a video or a webcam.

    At the end stands a line, with its `reason`, for each file that could not be read and for each folder with files that
    were left alone. Notes are on standard error alone, tracks in the file of --tracks.
    """

    def __init__(self, is_timed: bool):
        of_picture = ["source", "frame", "seconds", "track"] if is_timed else ["source"]
        of_face = _columns(0, Face(Box(0, 0, 0, 0, 0.0), (0.0,) * len(CLASSES)))
        columns = [*of_picture, *of_face, "reason"]
        self._writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()

    def add(self, reading: Reading) -> None:
        rows = [{"track": face.track} | _columns(number, face) for number, face in enumerate(reading.faces)]
        self._writer.writerows(_of_picture(reading) | row for row in rows or [{}])

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        self._writer.writerows(asdict(failed) for failed in passed_over)
        for folder, files_of in left_alone.items():
            self._writer.writerow({"source": folder, "reason": f"left alone: {kinds(files_of)}"})


class Json:
    """One JSON document, written at the end."""

    def __init__(self, is_timed: bool):
        self._pictures: list[dict] = []
        self._note = ""

    def add(self, reading: Reading) -> None:
        self._note = reading.note
        height, width = reading.picture.rgb.shape[:2]
        faces = [_as_json(face) for face in reading.faces]
        self._pictures.append(_of_picture(reading) | {"width": width, "height": height, "faces": faces})

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        document: dict[str, Any] = {"note": self._note} if self._note else {}
        document |= {"tracks": tracks} if tracks else {}
        document |= {"pictures": self._pictures, "passed_over": [asdict(one) for one in passed_over]}
        print(json.dumps(document | {"left_alone": left_alone}, indent=2))  # ASCII, which every output can hold


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _of_picture(reading: Reading) -> dict[str, Any]:
    picture = reading.picture
    return {"source": picture.source, "frame": picture.frame, "seconds": picture.seconds}


def _columns(number: int, face: Face) -> dict[str, Any]:
    probabilities = {f"probability_{name}": p for name, p in _probabilities(face).items()}
    return {"face": number} | _box(face.box) | {"expression": face.expression} | probabilities


def _as_json(face: Face) -> dict[str, Any]:
    points = [[round(x, 1), round(y, 1)] for x, y in face.box.landmarks]
    of_face = {"box": _box(face.box), "landmarks": points, "expression": face.expression}
    of_face |= {"probabilities": _probabilities(face)}
    return of_face | ({} if face.track is None else {"track": face.track})


def _box(box: Box) -> dict[str, Any]:
    return {name: value for name, value in asdict(box).items() if name != "landmarks"}


def _probabilities(face: Face) -> dict[str, float]:
    return {name: round(p, 6) for name, p in zip(CLASSES, face.probabilities, strict=True)}
