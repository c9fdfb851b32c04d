"""The command line `python -m fer_utils.predict PATH…`, and its output as a table, CSV or JSON.

Decoding is in `photographs`, finding faces in `detection`, applying the model in `reader`, drawing in `drawing`. Exit
status: 0 everything was read, 1 something could not be read, 2 wrong usage.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fer_utils import files, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.predict.reader import BATCH, Face, NotOurModel, Reader, Reading

import numpy as np
from tqdm import tqdm


def find_model(given: str, outputs_dir: str = "outputs") -> Path:
    """The model file for `given`: a file, a run's name, or empty for the newest run with a model."""
    if given and Path(given).is_file():
        return Path(given)
    outputs = places.place(outputs_dir)
    known = sorted(outputs.glob("*/model.keras"), key=lambda path: path.stat().st_mtime)
    by_name = {path.parent.name: path for path in known}
    if given in by_name:
        return by_name[given]
    if given or not known:
        raise places.NotFoundHere(
            f"--model: {f'no file and no run with a model is called {given}' if given else 'no run has a model yet'}; "
            f"runs with a model in {outputs}: {', '.join(sorted(by_name)) or 'none, `python run_all.py` makes one'}"
        )
    return known[-1]


def rows(reading: Reading) -> list[dict[str, Any]]:
    """A picture's faces as rows of the CSV; for a picture without faces one row with only the picture's columns."""
    picture = reading.picture
    place = {"source": picture.source, "frame": picture.frame, "seconds": picture.seconds}
    return [place | _columns(face, number) for number, face in enumerate(reading.faces)] or [place]


def _columns(face: Face, number: int) -> dict[str, Any]:
    of_classes = {f"probability_{name}": round(p, 6) for name, p in zip(CLASSES, face.probabilities, strict=True)}
    return {"face": number} | asdict(face.box) | {"expression": face.expression} | of_classes


def as_json(reading: Reading) -> dict[str, Any]:
    """A picture and its faces as an entry of the JSON output."""
    picture = reading.picture
    height, width = picture.rgb.shape[:2]
    faces = [
        {
            "box": asdict(face.box),
            "expression": face.expression,
            "probabilities": dict(zip(CLASSES, (round(p, 6) for p in face.probabilities), strict=True)),
        }
        for face in reading.faces
    ]
    place = {"source": picture.source, "frame": picture.frame, "seconds": picture.seconds}
    return place | {"width": width, "height": height, "faces": faces}


def counted(n: int, noun: str) -> str:
    """A number and its noun: `1 face`, `2 faces`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def shortened(path: str, width: int) -> str:
    """A path in at most `width` characters; leading folders are omitted first: `…/album/holiday.jpg`."""
    parts = Path(path).parts
    tails = (str(Path("…", *parts[place:])) for place in range(1, len(parts)))
    return next((text for text in (path, *tails) if len(text) <= width), "…" + path[len(path) - width + 1 :])


WIDTHS = {"seconds": -8, "box": -22, "expression": 13, "next": 13, "detector": 8}  # of columns; negative: aligned right


class Table:
    """Lines for the terminal, one per face, at most as wide as the terminal."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
        shown = [name for name in WIDTHS if name != "seconds" or is_timed]
        longest_name = max((len(Path(source).name) for source in sources), default=0) + len("…/")
        for name in ("next", "detector"):  # omitted first if a file's name needs the space
            if columns - self._taken(shown) < longest_name:
                shown.remove(name)
        longest = max((len(source) for source in sources), default=0)
        self._columns = shown
        self._width = max(len("picture"), min(longest, columns - self._taken(shown)))
        self._n_faces = self._n_pictures = 0
        self._say("picture", {name: name for name in shown})

    def _taken(self, shown: Sequence[str]) -> int:
        return sum(2 + abs(WIDTHS[name]) for name in shown)

    def _say(self, source: str, cells: dict[str, str]) -> None:
        line = f"{shortened(source, self._width):{self._width}}"
        for name in self._columns:
            width = WIDTHS[name]
            line += f"  {cells.get(name, ''):{'>' if width < 0 else '<'}{abs(width)}}"
        tqdm.write(line.rstrip(), file=sys.stdout)

    def add(self, reading: Reading) -> None:
        picture = reading.picture
        time = {} if picture.seconds is None else {"seconds": f"{picture.seconds:.2f}"}
        self._n_pictures += 1
        self._n_faces += len(reading.faces)
        if not reading.faces:
            self._say(picture.source, time | {"box": "no face found"})
        for face in reading.faces:
            second = int(np.argsort(face.probabilities)[-2])
            cells = {
                "box": f"{face.box.width}×{face.box.height} at {face.box.x},{face.box.y}",
                "expression": face.label,
                "next": f"{CLASSES[second]} {face.probabilities[second]:.2f}",
                "detector": f"{face.box.confidence:.2f}",
            }
            self._say(picture.source, time | cells)

    def end(self, passed_over: Sequence[PassedOver]) -> None:
        faces, pictures = counted(self._n_faces, "face"), counted(self._n_pictures, "picture")
        tqdm.write(f"{faces} in {pictures}; passed over: {len(passed_over)}", file=sys.stdout)


class Csv:
    """Comma-separated lines, one per face; frame and seconds only with a video or a webcam."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        place = ["source", "frame", "seconds"] if is_timed else ["source"]
        empty = _columns(Face(Box(0, 0, 0, 0, 0.0), (0.0,) * len(CLASSES)), 0)
        self._writer = csv.DictWriter(sys.stdout, place + list(empty), extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()

    def add(self, reading: Reading) -> None:
        self._writer.writerows(rows(reading))

    def end(self, passed_over: Sequence[PassedOver]) -> None:
        """Nothing to write: pictures that could not be read are reported on standard error."""


class Json:
    """One JSON document, written at the end."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        self._pictures: list[dict] = []

    def add(self, reading: Reading) -> None:
        self._pictures.append(as_json(reading))

    def end(self, passed_over: Sequence[PassedOver]) -> None:
        document = {"pictures": self._pictures, "passed_over": [asdict(failed) for failed in passed_over]}
        print(json.dumps(document, indent=2, ensure_ascii=False))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.predict", description="Expressions of faces in pictures."
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="image files, videos, folders of both")
    parser.add_argument("--webcam", type=int, metavar="N", help="watch this camera until Ctrl-C")
    parser.add_argument("--model", default="", metavar="RUN|FILE", help="default: the newest run with a model")
    parser.add_argument("--outputs", default="outputs", metavar="DIR", help="the folder of all runs")
    parser.add_argument("--no-detect", action="store_true", help="each picture is the crop of one face")
    parser.add_argument("--smallest", type=int, default=detection.SMALLEST, metavar="PX", help="smallest face (20)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=detection.THRESHOLD,
        metavar="P",
        help=f"smallest confidence of a face ({detection.THRESHOLD}); a lower one finds more, and more that are none",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="read each N-th frame of a video")
    parser.add_argument(
        "--annotate", type=Path, metavar="DIR", help="write copies with the faces framed to this folder"
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--json", dest="format", action="store_const", const=Json, help="all probabilities, one document"
    )
    formats.add_argument(
        "--csv",
        dest="format",
        action="store_const",
        const=Csv,
        help="all probabilities, a face a line; pictures without one too",
    )
    arguments = parser.parse_args(given)
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if bool(given.paths) == (given.webcam is not None):
        parser.error("give paths of pictures or --webcam N, one of the two")
    for path in given.paths:
        if not path.exists():
            parser.error(f"{path}: no such file or folder")
    if given.every < 1 or given.smallest < detection.SMALLEST:
        parser.error(f"--every starts at 1 and --smallest at {detection.SMALLEST}")
    if not 0 < given.threshold < 1:
        parser.error(f"--threshold {given.threshold}: a confidence lies between 0 and 1")
    if given.annotate and given.annotate.exists() and not given.annotate.is_dir():
        parser.error(f"--annotate: {given.annotate} is no folder")
    for path in given.paths if given.annotate else ():
        if path.is_dir() and given.annotate.resolve().is_relative_to(path.resolve()):
            parser.error(f"--annotate: {given.annotate} lies in {path}, whose pictures are read; choose another folder")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    arguments = _arguments(given)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages about a missing GPU
    try:
        model = find_model(arguments.model, arguments.outputs)
        detector = None if arguments.no_detect else detection.Detector(arguments.smallest, arguments.threshold)
        reader = Reader(model, detector)
    except (places.NotFoundHere, NotOurModel, detection.DetectorMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"model: {model}", file=sys.stderr)
    try:
        return 1 if _run(arguments, reader) else 0
    except files.OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(arguments: argparse.Namespace, reader: Reader) -> list[PassedOver]:
    """Read all pictures and write rows and copies one by one; return what could not be read."""
    sources, passed_over = photographs.find(arguments.paths)
    for failed in passed_over:
        _complain(failed)
    is_live = arguments.webcam is not None
    names = [f"webcam {arguments.webcam}"] if is_live else [str(path) for path in sources]
    output = (arguments.format or Table)(names, is_live or any(map(photographs.is_video, sources)))
    pictures = photographs.watch(arguments.webcam, arguments.every) if is_live else _all(sources, arguments.every)
    total = None if is_live else sum(photographs.count(path, arguments.every) for path in sources)
    # On standard error, since standard output is for the rows.
    bar = tqdm(pictures, "pictures", total, leave=False, file=sys.stderr, disable=None)
    with drawing.Copies(arguments.annotate or Path(), sources) as copies:
        try:
            for reading in reader.read(bar, 1 if is_live else BATCH):
                if isinstance(reading, PassedOver):
                    passed_over.append(reading)
                    _complain(reading)
                    continue
                output.add(reading)
                if arguments.annotate:
                    _copy(copies, reading, arguments.every)
        except KeyboardInterrupt:
            if not is_live:
                raise
    output.end(passed_over)
    return passed_over


def _all(sources: Sequence[Path], every: int) -> Iterator[Picture | PassedOver]:
    for path in sources:
        yield from photographs.read(path, every)


def _copy(copies: drawing.Copies, reading: Reading, every: int) -> None:
    picture = reading.picture
    if picture.frame is None:
        copies.add_picture(picture.source, reading.drawn())
    else:
        copies.add_frame(picture.source, reading.drawn(), (picture.rate or drawing.RATE) / every)


def _complain(failed: PassedOver) -> None:
    tqdm.write(f"passed over: {failed.source}: {failed.reason}", file=sys.stderr)
