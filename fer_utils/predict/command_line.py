"""The command line `python -m fer_utils.predict PATH…`.

Decoding is in `photographs`, finding faces in `detection`, applying the model in `reader`, the output in `outputs`, drawing in
`drawing`, the page in `page`. Exit status: 0 everything was read, 1 something could not be read, 2 wrong usage.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fer_utils import files, places
from fer_utils.predict import detection, drawing, photographs, timeline
from fer_utils.predict.outputs import Csv, Json, Table, kinds, printable
from fer_utils.predict.photographs import PassedOver
from fer_utils.predict.reader import BATCH, Reader, Reading
from fer_utils.predict.tracking import Tracker
from fer_utils.training import model_files
from fer_utils.training.model_files import NotOurModel

from tqdm import tqdm

LAST_CAMERA = 99  # from 100 on OpenCV takes the hundreds for the name of a driver, and negative numbers end the process


def find_model(given: str, outputs_dir: str = "outputs") -> Path:
    """The model file for `given`: `shipped`, a file as it is, or the fastest file of a folder, of a run, or for `auto` of the
    newest run with a model (see model_files.fastest)."""
    if given == "shipped":
        return places.SHIPPED
    if given != "auto" and Path(given).is_file():
        return Path(given)
    folder = places.place(outputs_dir)
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
    return model_files.fastest(model)


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m fer_utils.predict", description="Expressions of faces in pictures.")
    add, mtcnn, yunet = parser.add_argument, detection.Mtcnn.THRESHOLD, detection.YuNet.THRESHOLD
    add("paths", nargs="*", type=Path, metavar="PATH", help="image files, videos, folders of both")
    add("--webcam", type=int, metavar="N", help="watch this camera until Ctrl-C")
    add("--page", action="store_true", help="open a page for pictures and the camera in the browser")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="of the page: this machine alone (127.0.0.1)")
    add("--port", type=int, default=7860, metavar="N", help="of the page (7860)")
    add(
        "--model",
        default="shipped",
        metavar="RUN|FILE",
        help="a file (.keras, .tflite, .onnx), or a run: its fastest file that agrees with Keras; auto: the newest run; "
        "shipped: the model that comes with this package (default)",
    )
    add("--outputs", default="outputs", metavar="DIR", help="the folder of all runs")
    add("--no-detect", action="store_true", help="each picture is the crop of one face")
    add(
        "--detector",
        default="auto",
        metavar="NAME|PATH",
        help="mtcnn, yunet, or the path of YuNet's file; auto: yunet where its file is there or can be fetched, else mtcnn",
    )
    add("--smallest", type=int, default=detection.SMALLEST, metavar="PX", help="smallest face (20)")
    add(
        "--threshold",
        type=float,
        metavar="P",
        help=f"smallest confidence of a face (mtcnn {mtcnn}, yunet {yunet}); a lower one finds more, and more that are none",
    )
    add(
        "--smooth",
        type=float,
        default=0,
        metavar="SECONDS",
        help="average each face's probabilities over about this time of a video or webcam (0: do not)",
    )
    add("--every", type=int, default=1, metavar="N", help="read each N-th frame of a video")
    add("--annotate", type=Path, metavar="DIR", help="write copies with the faces framed to this folder")
    add("--timeline", type=Path, metavar="FILE.png", help="of videos: draw each track's expressions over time")
    add("--tracks", type=Path, metavar="FILE.csv", help="of videos: write a summary, a row a track")
    formats = parser.add_mutually_exclusive_group()
    for name, form in {
        "--json": (Json, "all probabilities, one document"),
        "--csv": (Csv, "all probabilities, a line a face; pictures without one too"),
    }.items():
        formats.add_argument(name, dest="format", action="store_const", const=form[0], help=form[1])
    arguments = parser.parse_args(given)
    _check(parser, arguments)
    return arguments


def _check(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if bool(given.paths) + (given.webcam is not None) + given.page != 1:
        parser.error("give paths of pictures or --webcam N or --page, one of the three")
    if given.page and (given.no_detect or given.annotate or given.format or given.timeline or given.tracks):
        parser.error("--page goes with --model, --detector, --smallest, --threshold, --host and --port only")
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
    if given.annotate and os.path.lexists(given.annotate) and not given.annotate.is_dir():
        parser.error(f"--annotate: {given.annotate} is no folder")
    for path in given.paths:
        if not path.exists() and not path.is_symlink():
            parser.error(f"{path}: no such file or folder")
        if given.annotate and path.is_dir() and given.annotate.resolve().is_relative_to(path.resolve()):
            parser.error(f"--annotate: {given.annotate} lies in {path}, whose pictures are read; choose another folder")
    for option, path, suffix in (("--timeline", given.timeline, ".png"), ("--tracks", given.tracks, ".csv")):
        if path and path.suffix.lower() != suffix:
            parser.error(f"{option} {path}: the file's name ends in {suffix}")
        if path and os.path.lexists(path) and not path.is_file():
            parser.error(f"{option}: {path} is no file")


def main(given: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no messages about a missing GPU
    try:
        return _answer(_arguments(given))
    except (OSError, NotOurModel, detection.DetectorMissing, files.TornFile) as error:
        _say(f"error: {error}")
        return 2


def _say(text: str) -> None:
    """Write a line on standard error; standard output is for the rows."""
    tqdm.write(printable(text), file=sys.stderr)


def _answer(given: argparse.Namespace) -> int:
    model = find_model(given.model, given.outputs)
    detector = None if given.no_detect else detection.detector(given.detector, given.smallest, given.threshold, _say)
    if given.page:
        from fer_utils.predict import page  # Gradio takes seconds to import

        page.serve(model, detector, given.host, given.port)
        return 0
    reader = Reader(model, detector)
    _say(f"model: {model}")
    if reader.note:
        _say(f"note: {reader.note}")
    return 1 if _run(given, reader) else 0


def _run(given: argparse.Namespace, reader: Reader) -> list[PassedOver]:
    """Read all pictures and write rows and copies one by one; return what could not be read."""
    sources, passed_over, left_alone = photographs.find(given.paths)
    for failed in passed_over:
        _complain(failed)
    for folder, files_of in left_alone.items():
        _say(f"left alone: {folder}: {kinds(files_of)}")
    for path in filter(None, (given.timeline, given.tracks)):
        if path.exists() and any(path.samefile(source) for source in sources):
            raise files.OutputError(f"{path} is one of the pictures that are read: choose another file")
    is_live = given.webcam is not None
    if is_live:
        pictures, total = photographs.watch(given.webcam, given.every), None
    else:
        pictures = (picture for path in sources for picture in photographs.read(path, given.every))
        total = sum(photographs.count(path, given.every) for path in sources)
    output = (given.format or Table)(is_live or any(map(photographs.is_video, sources)))
    tracker, times, began = Tracker(given.smooth), timeline.Timeline(), time.perf_counter()
    with (
        # On standard error, since standard output is for the rows. Its rate is that of pictures read.
        tqdm(desc="pictures", total=total, unit="picture", leave=False, file=sys.stderr, disable=None) as bar,
        drawing.Copies(given.annotate or Path()) as copies,
        contextlib.closing(reader.read(pictures, batch=1 if is_live else BATCH)) as readings,
        contextlib.suppress(*([KeyboardInterrupt] if is_live else [])),  # Ctrl-C ends a webcam, and the rest is written
    ):
        for reading in readings:
            bar.update()
            if isinstance(reading, PassedOver):
                passed_over.append(reading)
                _complain(reading)
                continue
            shown = tracker.followed(reading)
            output.add(shown)
            times.add(shown)
            if given.annotate:
                _copy(copies, shown, given.every)
    tracks = times.tracks()
    output.end(tracks, passed_over, left_alone, time.perf_counter() - began)
    if tracks and given.tracks:
        import pandas as pd  # takes a while to import

        known = [track | {"source": os.fsencode(track["source"]).decode(errors="backslashreplace")} for track in tracks]
        files.write_csv(given.tracks, pd.json_normalize(known, sep="_"))
    if tracks and given.timeline:
        times.draw(given.timeline, lambda source: printable(source)[-40:])
    if not tracks and (given.tracks or given.timeline):
        _say("no face in a video: neither tracks nor a timeline are written")
    return passed_over


def _copy(copies: drawing.Copies, reading: Reading, every: int) -> None:
    picture = reading.picture
    if picture.seconds is None:
        copies.add_picture(picture.source, reading.drawn())
    else:
        copies.add_frame(picture.source, reading.drawn(), picture.seconds, (picture.rate or drawing.RATE) / every)


def _complain(failed: PassedOver) -> None:
    _say(f"passed over: {failed.source}: {failed.reason}")
