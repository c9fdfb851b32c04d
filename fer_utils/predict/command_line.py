"""The command line `python -m fer_utils.predict PATH…`, and its output as a table, CSV or JSON.

Decoding is in `photographs`, finding faces in `detection`, applying the model in `reader`, drawing in `drawing`, the page in
`page`. Exit status: 0 everything was read, 1 something could not be read, 2 wrong usage.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fer_utils import files, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection, drawing, photographs, timeline
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.predict.reader import Face, Reader, Reading
from fer_utils.predict.smoothing import Smoother
from fer_utils.predict.tracking import Tracker
from fer_utils.training import model_files
from fer_utils.training.model_files import NotOurModel

import numpy as np
from tqdm import tqdm

LeftAlone = Mapping[str, Counter[str]]  # folder → kind of file → number: see photographs.find


def find_model(given: str, outputs_dir: str = "outputs") -> Path:
    """The model file for `given`: `shipped`, a file as it is, or the fastest file of a folder, of a run, or for `auto` of the
    newest run with a model (see model_files.fastest)."""
    if given == "shipped":
        return places.SHIPPED
    if given != "auto" and Path(given).is_file():
        return Path(given)
    outputs = places.place(outputs_dir)
    if outputs.exists() and not outputs.is_dir():
        raise places.NotFoundHere(f"--outputs: {outputs} is no folder")
    models = (path for path in outputs.glob("*/model.keras") if path.is_file())
    known = sorted(models, key=lambda path: path.stat().st_mtime)
    by_name = {path.parent.name: path for path in known}
    if given in by_name:
        return model_files.fastest(by_name[given])
    if given != "auto" and (Path(given) / "model.keras").is_file():
        return model_files.fastest(Path(given) / "model.keras")
    if given != "auto" or not known:
        raise places.NotFoundHere(
            f"--model: {f'no file and no run with a model is called {given}' if given != 'auto' else 'no run has a model yet'}; "
            f"runs with a model in {outputs}: {', '.join(sorted(by_name)) or 'none, `python run_all.py` makes one'}"
        )
    return model_files.fastest(known[-1])


def rows(reading: Reading) -> list[dict[str, Any]]:
    """A picture's faces as rows of the CSV; for a picture without faces one row with only the picture's columns."""
    picture = reading.picture
    place = {"source": picture.source, "frame": picture.frame, "seconds": picture.seconds}
    faces = enumerate(reading.faces)
    return [place | {"track": face.track} | _columns(face, number) for number, face in faces] or [place]


def _columns(face: Face, number: int) -> dict[str, Any]:
    of_classes = {f"probability_{name}": round(p, 6) for name, p in zip(CLASSES, face.probabilities, strict=True)}
    return {"face": number} | _place(face.box) | {"expression": face.expression} | of_classes


def _place(box: Box) -> dict[str, Any]:
    return {name: value for name, value in asdict(box).items() if name != "landmarks"}


def as_json(reading: Reading) -> dict[str, Any]:
    """A picture and its faces as an entry of the JSON output."""
    picture = reading.picture
    height, width = picture.rgb.shape[:2]
    faces = [
        {
            "box": _place(face.box),
            "landmarks": [[round(x, 1), round(y, 1)] for x, y in face.box.landmarks],
            "expression": face.expression,
            "probabilities": dict(zip(CLASSES, (round(p, 6) for p in face.probabilities), strict=True)),
        }
        | ({} if face.track is None else {"track": face.track})
        for face in reading.faces
    ]
    place = {"source": picture.source, "frame": picture.frame, "seconds": picture.seconds}
    return place | {"width": width, "height": height, "faces": faces}


def counted(n: int, noun: str) -> str:
    """A number and its noun: `1 face`, `2 faces`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def kinds(files: Mapping[str, int]) -> str:
    """Numbers of files by kind, most first: `12 .pdf, 3 .txt and 1 hidden`."""
    *most, last = (f"{n:,} {kind}" for kind, n in Counter(files).most_common())
    return f"{', '.join(most)} and {last}" if most else last


def printable(text: str) -> str:
    """The text with what a terminal would obey or cannot show as escapes: a file's name may hold line feeds and colours."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def shortened(path: str, width: int) -> str:
    """A path in at most `width` characters; leading folders are omitted first: `…/album/holiday.jpg`."""
    path = printable(path)
    parts = Path(path).parts
    tails = (str(Path("…", *parts[place:])) for place in range(1, len(parts)))
    return next((text for text in (path, *tails) if len(text) <= width), "…" + path[len(path) - width + 1 :])


LAST_CAMERA = 99  # from 100 on OpenCV takes the hundreds for the name of a driver, and negative numbers end the process
# Of columns; negative: aligned right.
WIDTHS = {"seconds": -8, "track": -5, "box": -22, "expression": 13, "next": 13, "detector": 8}


class Table:
    """Lines for the terminal, one per face, at most as wide as the terminal."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
        shown = [name for name in WIDTHS if is_timed or name not in ("seconds", "track")]
        longest_name = max((len(Path(source).name) for source in sources), default=0) + len("…/")
        for name in ("next", "detector", "track"):  # omitted first if a file's name needs the space
            if name in shown and columns - self._taken(shown) < longest_name:
                shown.remove(name)
        longest = max((len(printable(source)) for source in sources), default=0)
        self._columns = shown
        self._width = max(len("picture"), min(longest, columns - self._taken(shown)))
        self._n_faces = self._n_pictures = 0
        self._is_timed = is_timed
        self._note = ""
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
        place = {} if picture.seconds is None else {"seconds": f"{picture.seconds:.2f}"}
        self._note = reading.note
        self._n_pictures += 1
        self._n_faces += len(reading.faces)
        if not reading.faces:
            self._say(picture.source, place | {"box": "no face found"})
        for face in reading.faces:
            second = int(np.argsort(face.probabilities)[-2])
            cells = {
                "track": str(face.track or ""),
                "box": f"{face.box.width}×{face.box.height} at {face.box.x},{face.box.y}",
                "expression": face.label,
                "next": f"{CLASSES[second]} {face.probabilities[second]:.2f}",
                "detector": f"{face.box.confidence:.2f}",
            }
            self._say(picture.source, place | cells)

    def sum_up(self, tracks: Sequence[dict[str, Any]]) -> None:
        for track in tracks:
            tqdm.write(timeline.described(track, printable(track["source"])), file=sys.stdout)

    def end(self, passed_over: Sequence[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        faces, pictures = counted(self._n_faces, "face"), counted(self._n_pictures, "picture")
        others = f"; left alone: {kinds(sum(left_alone.values(), Counter()))}" if left_alone else ""
        rate = f"; {self._n_pictures / seconds:.1f} pictures a second" if self._is_timed else ""
        tqdm.write(printable(f"{faces} in {pictures}; passed over: {len(passed_over)}{others}{rate}"), file=sys.stdout)
        if self._note:
            tqdm.write(self._note, file=sys.stdout)


class Csv:
    """Comma-separated lines, one per face; frame, seconds and track only with a video or a webcam. At the end a line for each
    file that could not be read, and for each folder with files that were left alone, with the `reason`."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        place = ["source", "frame", "seconds", "track"] if is_timed else ["source"]
        empty = _columns(Face(Box(0, 0, 0, 0, 0.0), (0.0,) * len(CLASSES)), 0)
        columns = [*place, *empty, "reason"]
        self._writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        self._writer.writeheader()

    def add(self, reading: Reading) -> None:
        self._writer.writerows(rows(reading))

    def sum_up(self, tracks: Sequence[dict[str, Any]]) -> None:
        """Nothing to write: standard output holds one table, and --tracks names the file of the other."""

    def end(self, passed_over: Sequence[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        """A note is reported on standard error alone."""
        self._writer.writerows(asdict(failed) for failed in passed_over)
        for folder, files_of in left_alone.items():
            self._writer.writerow({"source": folder, "reason": f"left alone: {kinds(files_of)}"})


class Json:
    """One JSON document, written at the end."""

    def __init__(self, sources: Sequence[str], is_timed: bool):
        self._pictures: list[dict] = []
        self._note: dict[str, Any] = {}

    def add(self, reading: Reading) -> None:
        self._note = {"note": reading.note} if reading.note else {}
        self._pictures.append(as_json(reading))

    def sum_up(self, tracks: Sequence[dict[str, Any]]) -> None:
        self._note |= {"tracks": tracks} if tracks else {}

    def end(self, passed_over: Sequence[PassedOver], left_alone: LeftAlone, seconds: float) -> None:
        failed = [asdict(one) for one in passed_over]
        document = self._note | {"pictures": self._pictures, "passed_over": failed, "left_alone": left_alone}
        print(json.dumps(document, indent=2))  # in ASCII, which every output can hold, bytes that are no text too


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fer_utils.predict", description="Expressions of faces in pictures."
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="image files, videos, folders of both")
    parser.add_argument("--webcam", type=int, metavar="N", help="watch this camera until Ctrl-C")
    parser.add_argument("--page", action="store_true", help="open a page for pictures and the camera in the browser")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="of the page: this machine alone (127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="of the page (7860)")
    parser.add_argument(
        "--model",
        default="shipped",
        metavar="RUN|FILE",
        help="a file (.keras, .tflite, .onnx), or a run: its fastest file that agrees with Keras; auto: the newest run; "
        "shipped: the model that comes with this package (default)",
    )
    parser.add_argument("--outputs", default="outputs", metavar="DIR", help="the folder of all runs")
    parser.add_argument("--no-detect", action="store_true", help="each picture is the crop of one face")
    parser.add_argument(
        "--detector",
        default="auto",
        metavar="NAME|PATH",
        help="mtcnn, yunet, or the path of YuNet's file; auto: yunet where its file is there or can be fetched",
    )
    parser.add_argument("--smallest", type=int, default=detection.SMALLEST, metavar="PX", help="smallest face (20)")
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help=f"smallest confidence of a face (mtcnn {detection.Mtcnn.THRESHOLD}, yunet {detection.YuNet.THRESHOLD}); a lower "
        "one finds more, and more that are none",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=0,
        metavar="SECONDS",
        help="average each face's probabilities over about this time of a video or webcam (0: do not)",
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="read each N-th frame of a video")
    parser.add_argument(
        "--annotate", type=Path, metavar="DIR", help="write copies with the faces framed to this folder"
    )
    parser.add_argument(
        "--timeline", type=Path, metavar="FILE.png", help="of videos: draw each track's expressions over time"
    )
    parser.add_argument("--tracks", type=Path, metavar="FILE.csv", help="of videos: write a summary, a row a track")
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
    if bool(given.paths) + (given.webcam is not None) + given.page != 1:
        parser.error("give paths of pictures or --webcam N or --page, one of the three")
    written = {f"--{name}": vars(given)[name] for name in ("timeline", "tracks") if vars(given)[name] is not None}
    if given.page and (given.no_detect or given.annotate or given.format or written):
        parser.error("--page goes with --model, --detector, --smallest, --threshold, --host and --port only")
    for path in given.paths:
        if not path.exists() and not path.is_symlink():
            parser.error(f"{path}: no such file or folder")
    if given.webcam is not None and not 0 <= given.webcam <= LAST_CAMERA:
        parser.error(f"--webcam {given.webcam}: cameras are numbered from 0 to {LAST_CAMERA}")
    if not 1 <= given.port <= 65535:
        parser.error(f"--port {given.port}: ports are numbered from 1 to 65535")
    if given.every < 1 or given.smallest < detection.SMALLEST:
        parser.error(f"--every starts at 1 and --smallest at {detection.SMALLEST}")
    if given.threshold is not None and not 0 < given.threshold < 1:
        parser.error(f"--threshold {given.threshold}: a confidence lies between 0 and 1")
    if not 0 <= given.smooth < float("inf"):
        parser.error(f"--smooth {given.smooth}: a time in seconds, 0 or more")
    if given.annotate and (given.annotate.exists() or given.annotate.is_symlink()) and not given.annotate.is_dir():
        parser.error(f"--annotate: {given.annotate} is no folder")
    for option, path in written.items():
        if path.suffix.lower() != (suffix := ".png" if option == "--timeline" else ".csv"):
            parser.error(f"{option} {path}: the file's name ends in {suffix}")
        if (path.exists() or path.is_symlink()) and not path.is_file():
            parser.error(f"{option}: {path} is no file")
    for path in given.paths if given.annotate else ():
        if path.is_dir() and given.annotate.resolve().is_relative_to(path.resolve()):
            parser.error(f"--annotate: {given.annotate} lies in {path}, whose pictures are read; choose another folder")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages about a missing GPU
    try:
        return _answer(_arguments(given))
    except (OSError, NotOurModel, detection.DetectorMissing, files.TornFile) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def _answer(arguments: argparse.Namespace) -> int:
    model = find_model(arguments.model, arguments.outputs)
    detector = None if arguments.no_detect else _detector(arguments)
    if arguments.page:
        from fer_utils.predict import page  # Gradio takes seconds to import

        page.serve(model, detector, arguments.host, arguments.port)
        return 0
    reader = Reader(model, detector)
    print(f"model: {printable(str(model))}", file=sys.stderr)
    if reader.note:
        print(f"note: {reader.note}", file=sys.stderr)
    return 1 if _run(arguments, reader) else 0


def _detector(given: argparse.Namespace) -> detection.Detector:
    return detection.detector(
        given.detector, given.smallest, given.threshold, lambda text: print(text, file=sys.stderr)
    )


def _run(arguments: argparse.Namespace, reader: Reader) -> list[PassedOver]:
    """Read all pictures and write rows and copies one by one; return what could not be read."""
    sources, passed_over, left_alone = photographs.find(arguments.paths)
    for failed in passed_over:
        _complain(failed)
    for folder, files_of in left_alone.items():
        print(printable(f"left alone: {folder}: {kinds(files_of)}"), file=sys.stderr)
    for path in filter(None, (arguments.timeline, arguments.tracks)):
        if path.exists() and any(path.samefile(source) for source in sources):
            raise files.OutputError(f"{path} is one of the pictures that are read: choose another file")
    is_live = arguments.webcam is not None
    names = [f"webcam {arguments.webcam}"] if is_live else [str(path) for path in sources]
    output = (arguments.format or Table)(names, is_live or any(map(photographs.is_video, sources)))
    pictures = photographs.watch(arguments.webcam, arguments.every) if is_live else _all(sources, arguments.every)
    total = None if is_live else sum(photographs.count(path, arguments.every) for path in sources)
    followed = Smoother(arguments.smooth).smoothed if arguments.smooth else Tracker().followed
    times = timeline.Timeline()
    began = time.perf_counter()
    with (
        # On standard error, since standard output is for the rows. Its rate is that of pictures read.
        tqdm(desc="pictures", total=total, unit="picture", leave=False, file=sys.stderr, disable=None) as bar,
        drawing.Copies(arguments.annotate or Path()) as copies,
        contextlib.closing(reader.read(pictures, is_live=is_live)) as readings,
    ):
        try:
            for reading in readings:
                bar.update()
                if isinstance(reading, PassedOver):
                    passed_over.append(reading)
                    _complain(reading)
                    continue
                shown = followed(reading)
                output.add(shown)
                times.add(shown)
                if arguments.annotate:
                    _copy(copies, shown, arguments.every)
        except KeyboardInterrupt:
            if not is_live:
                raise
    took = time.perf_counter() - began
    tracks = times.tracks()
    output.sum_up(tracks)
    output.end(passed_over, left_alone, took)
    if not tracks and (arguments.tracks or arguments.timeline):
        print("no face in a video: neither tracks nor a timeline are written", file=sys.stderr)
    elif arguments.tracks:
        import pandas as pd  # takes a while to import

        known = [track | {"source": os.fsencode(track["source"]).decode(errors="backslashreplace")} for track in tracks]
        files.write_csv(arguments.tracks, pd.json_normalize(known, sep="_"))
    if tracks and arguments.timeline:
        times.draw(arguments.timeline, lambda source: shortened(source, 40))
    return passed_over


def _all(sources: Sequence[Path], every: int) -> Iterator[Picture | PassedOver]:
    for path in sources:
        yield from photographs.read(path, every)


def _copy(copies: drawing.Copies, reading: Reading, every: int) -> None:
    picture = reading.picture
    if picture.frame is None:
        copies.add_picture(picture.source, reading.drawn())
    else:
        rate = (picture.rate or drawing.RATE) / every
        copies.add_frame(picture.source, reading.drawn(), picture.seconds, rate)


def _complain(failed: PassedOver) -> None:
    tqdm.write(f"passed over: {printable(failed.source)}: {printable(failed.reason)}", file=sys.stderr)
