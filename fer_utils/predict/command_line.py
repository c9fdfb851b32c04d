"""The command line `python -m fer_utils.predict PATH…`, and its output as a table, CSV or JSON.

Exit status: 0 everything was read, 1 something could not be read, 2 wrong usage.
"""

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from fer_utils import files, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs
from fer_utils.predict.photographs import PassedOver
from fer_utils.predict.reader import Reader, Reading
from fer_utils.predict.tracking import Timeline, Tracker, described
from fer_utils.training import model_files

import numpy as np
from tqdm import tqdm

LAST_CAMERA = 99  # from 100 on OpenCV takes the hundreds for the name of a driver, and negative numbers end the process
# Columns of the table and their widths. The path comes last, since it may have any length.
COLUMNS = {"box": ">22", "expression": "<13", "next": "<13", "detector": "<8", "picture": ""}
OF_FRAMES = {"seconds": ">8", "track": ">5"}  # only with a video or a webcam


def find_model(given: str, outputs_dir: str | None = None) -> Path:
    """The model file for `given`: `shipped`, a file as it is, or the model.keras of a folder, of a run, or for `auto` of
    the newest run that has one. outputs_dir: the folder of all runs, by default `outputs` in the project's folder."""
    if given == "shipped":
        return places.SHIPPED
    if given != "auto" and Path(given).is_file():
        return Path(given)
    folder = Path(outputs_dir) if outputs_dir else places.place("outputs")
    if folder.exists() and not folder.is_dir():
        raise places.NotFoundHere(f"--outputs: {folder} is no folder")
    runs = {path.parent.name: path for path in folder.glob("*/model.keras") if path.is_file()}
    model = runs.get(given, Path(given) / "model.keras")
    if given == "auto" and runs:
        model = max(runs.values(), key=lambda path: path.stat().st_mtime)
    if not model.is_file():
        missing = "no run has a model yet" if given == "auto" else f"no file and no run with a model is called {given}"
        known = ", ".join(sorted(runs)) or "none, `python run_all.py` makes one"
        raise places.NotFoundHere(f"--model: {missing}; runs with a model in {folder}: {known}")
    return model


def _printable(text: str) -> str:
    """The text with escapes for what a terminal would obey or cannot show: a file's name may hold line feeds."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _say(text: str, file: TextIO | None = None) -> None:
    """Write a line on standard error, since standard output is for the rows, or to another file."""
    tqdm.write(_printable(text), file=file or sys.stderr)


def _kinds(files: Mapping[str, int]) -> str:
    """Numbers of files by kind, most first: `12 .pdf, 3 .txt and 1 hidden`."""
    *most, last = (f"{n:,} {kind}" for kind, n in Counter(files).most_common())
    return f"{', '.join(most)} and {last}" if most else last


class Table:
    """Lines for the terminal, one per face."""

    def __init__(self, is_timed: bool, note: str = ""):
        self._columns, self._note = OF_FRAMES | COLUMNS if is_timed else COLUMNS, note
        self._n_faces = self._n_pictures = 0
        self._row({name: name for name in self._columns})

    def _row(self, cells: Mapping[str, str]) -> None:
        _say("  ".join(f"{cells.get(name, ''):{width}}" for name, width in self._columns.items()), sys.stdout)

    def add(self, reading: Reading) -> None:
        source, seconds = reading.picture.source, reading.picture.seconds
        of_picture = {"picture": source, "seconds": "" if seconds is None else f"{seconds:.2f}"}
        self._n_pictures += 1
        self._n_faces += len(reading.faces)
        if not reading.faces:
            self._row(of_picture | {"box": "no face found"})
        for face in reading.faces:
            second = int(np.argsort(face.probabilities)[-2])
            of_face = {
                "track": str(face.track or ""),
                "box": f"{face.box.width}×{face.box.height} at {face.box.x},{face.box.y}",
                "expression": face.label,
                "next": f"{CLASSES[second]} {face.probabilities[second]:.2f}",
                "detector": f"{face.box.confidence:.2f}",
            }
            self._row(of_picture | of_face)

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: Mapping) -> None:
        faces, pictures = ("" if n == 1 else "s" for n in (self._n_faces, self._n_pictures))
        counts = f"{self._n_faces:,} face{faces} in {self._n_pictures:,} picture{pictures}"
        counts += f"; passed over: {len(passed_over)}"
        counts += f"; left alone: {_kinds(sum(left_alone.values(), Counter()))}" if left_alone else ""
        for line in filter(None, [*(described(track, track["source"]) for track in tracks), counts, self._note]):
            _say(line, sys.stdout)


class Csv:
    """Comma-separated lines, one per face. At the end stands one, with a `reason`, for each file that could not be
    read and each folder with files that were left alone. Notes are on standard error alone."""

    def __init__(self, is_timed: bool, note: str = ""):
        columns = ["source", "frame", "seconds", "track"] if is_timed else ["source"]
        columns += ["face", "x", "y", "width", "height", "confidence", "expression"]
        columns += [*(f"probability_{name}" for name in CLASSES), "reason"]
        self._writer = csv.DictWriter(sys.stdout, columns, "", "ignore", lineterminator="\n")
        self._writer.writeheader()

    def add(self, reading: Reading) -> None:
        rows = [
            face
            | {"face": number}
            | face["box"]
            | {f"probability_{name}": p for name, p in face["probabilities"].items()}
            for number, face in enumerate(_faces(reading))
        ]
        self._writer.writerows(_of_picture(reading) | row for row in rows or [{}])

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: Mapping) -> None:
        self._writer.writerows(asdict(failed) for failed in passed_over)
        for folder, files_of in left_alone.items():
            self._writer.writerow({"source": folder, "reason": f"left alone: {_kinds(files_of)}"})


class Json:
    """One JSON document, written at the end."""

    def __init__(self, is_timed: bool, note: str = ""):
        self._pictures: list[dict] = []
        self._note: dict[str, Any] = {"note": note} if note else {}

    def add(self, reading: Reading) -> None:
        height, width = reading.picture.rgb.shape[:2]
        self._pictures.append(_of_picture(reading) | {"width": width, "height": height, "faces": _faces(reading)})

    def end(self, tracks: list[dict], passed_over: list[PassedOver], left_alone: Mapping) -> None:
        document = self._note | ({"tracks": tracks} if tracks else {}) | {"pictures": self._pictures}
        document |= {"passed_over": [asdict(failed) for failed in passed_over], "left_alone": left_alone}
        print(json.dumps(document, indent=2))  # in ASCII, which every output can hold


def _of_picture(reading: Reading) -> dict[str, Any]:
    return {name: getattr(reading.picture, name) for name in ("source", "frame", "seconds")}


def _faces(reading: Reading) -> list[dict[str, Any]]:
    faces = []
    for face in reading.faces:
        box = asdict(face.box)
        landmarks = [[round(x, 1), round(y, 1)] for x, y in box.pop("landmarks")]
        track = {} if face.track is None else {"track": face.track}
        answer = {"expression": face.expression, "probabilities": face.named}
        faces.append({"box": box, "landmarks": landmarks} | answer | track)
    return faces


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m fer_utils.predict",
        description="Expressions of faces in pictures.",
        epilog="A run stands for its model.keras. A lower --threshold finds more faces, and more "
        "boxes that are none. --timeline is of videos and webcams.",
    )
    add, mtcnn, yunet = parser.add_argument, detection.Mtcnn.THRESHOLD, detection.YuNet.THRESHOLD
    add("paths", nargs="*", type=Path, metavar="PATH", help="image files, videos, folders of both")
    add("--webcam", type=int, metavar="N", help="watch this camera until Ctrl-C")
    add("--page", action="store_true", help="serve a page for pictures and the camera, and print its address")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="of the page: this machine alone (127.0.0.1)")
    add("--port", type=int, default=7860, metavar="N", help="of the page (7860)")
    model = "a run, a file (.keras, .tflite, .onnx), auto: the newest run, or shipped: this package's own (default)"
    add("--model", default="shipped", metavar="RUN|FILE", help=model)
    add("--outputs", metavar="DIR", help="the folder of all runs (outputs in the project's folder)")
    add("--no-detect", action="store_true", help="each picture is the crop of one face")
    detector = "mtcnn, yunet, or the path of YuNet's file; auto: yunet where its file is there or can be fetched"
    add("--detector", default="auto", metavar="NAME|PATH", help=detector)
    add("--smallest", type=int, default=detection.SMALLEST, metavar="PX", help="smallest face (20)")
    add("--threshold", type=float, metavar="P", help=f"smallest confidence of a face (mtcnn {mtcnn}, yunet {yunet})")
    smooth = "average each face's probabilities over about this time of a video or webcam (0: do not)"
    add("--smooth", type=float, default=0, metavar="SECONDS", help=smooth)
    add("--every", type=int, default=1, metavar="N", help="read each N-th frame of a video")
    add("--annotate", type=Path, metavar="DIR", help="write copies with the faces framed to this folder")
    add("--timeline", type=Path, metavar="FILE.png", help="draw each track's expressions over time")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--json", dest="format", action="store_const", const=Json, help="all probabilities, one document")
    add("--csv", dest="format", action="store_const", const=Csv, help="all probabilities, a line a face")
    arguments = parser.parse_args(given)
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    copies, figure, threshold = given.annotate, given.timeline, given.threshold
    camera, smallest = given.webcam or 0, detection.SMALLEST
    n_sources = bool(given.paths) + (given.webcam is not None) + given.page
    others = given.no_detect or copies or given.format or figure
    for is_right, said in (
        (n_sources == 1, "give paths of pictures or --webcam N or --page, one of the three"),
        (not (given.page and others), "--page goes with --model, --detector, --smallest, --threshold, --host, --port"),
        (0 <= camera <= LAST_CAMERA, f"--webcam {camera}: cameras are numbered from 0 to {LAST_CAMERA}"),
        (1 <= given.port <= 65535, f"--port {given.port}: ports are numbered from 1 to 65535"),
        (given.webcam is None or given.every == 1, "--every goes with videos, not with --webcam"),
        (given.every >= 1 and given.smallest >= smallest, f"--every starts at 1 and --smallest at {smallest}"),
        (threshold is None or 0 < threshold < 1, f"--threshold {threshold}: a confidence lies between 0 and 1"),
        (0 <= given.smooth < float("inf"), f"--smooth {given.smooth}: a time in seconds, 0 or more"),
        (not copies or copies.is_dir() or not os.path.lexists(copies), f"--annotate: {copies} is no folder"),
        (not figure or figure.suffix.lower() == ".png", f"--timeline {figure}: the file's name ends in .png"),
        (not figure or figure.is_file() or not os.path.lexists(figure), f"--timeline: {figure} is no file"),
    ):
        if not is_right:
            parser.error(said)
    for path in given.paths:
        if not path.exists() and not path.is_symlink():
            parser.error(f"{path}: no such file or folder")
        if copies and path.is_dir() and copies.resolve().is_relative_to(path.resolve()):
            parser.error(f"--annotate: {copies} lies in {path}, whose pictures are read; choose another folder")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages about a missing GPU
    try:
        arguments = _arguments(given)
        model, detector = find_model(arguments.model, arguments.outputs), None
        if not arguments.no_detect:
            detector = detection.detector(arguments.detector, arguments.smallest, arguments.threshold, _say)
        if arguments.page:
            from fer_utils.predict import page  # Gradio takes seconds to import

            page.serve(model, detector, arguments.host, arguments.port)
            return 0
        reader = Reader(model, detector)
        _say(f"model: {model}")
        if reader.note:
            _say(f"note: {reader.note}")
        return 1 if _run(arguments, reader) else 0
    except (OSError, model_files.NotOurModel, detection.DetectorMissing, files.TornFile) as error:
        _say(f"error: {error}")
        return 2


def _run(given: argparse.Namespace, reader: Reader) -> list[PassedOver]:
    """Read all pictures, write rows and copies one by one, then summaries; return what could not be read."""
    sources, unreadable, left_alone = photographs.find(given.paths)
    for folder, files_of in left_alone.items():
        _say(f"left alone: {folder}: {_kinds(files_of)}")
    is_live, figure = given.webcam is not None, given.timeline
    if is_live:
        pictures, total = photographs.watch(given.webcam), None
    else:
        pictures = chain(unreadable, *(photographs.read(path, given.every) for path in sources))
        total = len(unreadable) + sum(photographs.count(path, given.every) for path in sources)
    output = (given.format or Table)(is_live or any(map(photographs.is_video, sources)), reader.note)
    tracker, times = Tracker(given.smooth), Timeline()
    passed_over: list[PassedOver] = []
    with (
        tqdm(desc="pictures", total=total, unit="picture", leave=False, file=sys.stderr, disable=None) as bar,
        drawing.Copies(given.annotate or Path()) as copies,
        closing(reader.read(pictures)) as readings,
        suppress(*([KeyboardInterrupt] if is_live else [])),  # Ctrl-C ends a webcam, and the rest is written
    ):
        for reading in readings:
            bar.update()
            if isinstance(reading, PassedOver):
                passed_over.append(reading)
                _say(f"passed over: {reading.source}: {reading.reason}")
                continue
            shown = tracker.followed(reading)
            output.add(shown)
            times.add(shown)
            if given.annotate:
                copies.add(shown.picture, shown.drawn(), given.every)
    tracks = times.tracks()
    output.end(tracks, passed_over, left_alone)
    if figure and tracks:
        figure = drawing.free(figure)
        times.draw(figure, lambda source: _printable(source)[-40:])
        _say(f"timeline: {figure}")
    elif figure:
        _say("no face in a video: no timeline is written")
    return passed_over
