"""Arguments, pictures and outputs that `predict` cannot use: it answers, or says in a sentence what is wrong with which.

Nothing but the folder of copies is written to.
"""

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from fer_utils import places
from fer_utils.predict import command_line, detection, page, photographs
from fer_utils.predict.photographs import PassedOver
from fer_utils.training import model_files, network

import cv2
import keras
import numpy as np
import pytest
from keras import layers
from limits import limited
from PIL import Image
from surroundings import unchanged

ROOT = Path(__file__).resolve().parents[3]
LONG = "a" * 5000


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """An outputs folder with one run, whose model finds every class as likely."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "plain").mkdir()
    raw = keras.Input((None, None, 1))
    answer = layers.Dense(7, activation="softmax", kernel_initializer="zeros")(layers.GlobalAveragePooling2D()(raw))
    sources = {"fer2013": "auto", "labels": "fer2013", "leakage": "keep"}
    network.save(keras.Model(raw, answer), folder / "plain" / "model.keras", sources)
    return folder


@pytest.fixture
def album(tmp_path) -> Path:
    """A folder with one picture."""
    folder = tmp_path / "album"
    folder.mkdir()
    Image.new("L", (60, 50), 200).save(folder / "whole.png")
    (tmp_path / "album.png").mkdir()
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "gone.png").symlink_to("nowhere")
    return folder


@pytest.fixture
def ask(outputs, album, capsys, monkeypatch):
    """Runs the command line in the folder of the album: exit status, output, errors."""
    monkeypatch.chdir(album.parent)

    def ask(*arguments: str, writes: bool = False) -> tuple[int, str, str]:
        given = ["--model", "auto", *([] if "--outputs" in arguments else ["--outputs", str(outputs)])]
        given += [*([] if "--page" in arguments else ["--no-detect"]), *arguments]
        with unchanged(outputs, *([] if writes else [album.parent])), limited():
            sys.stdout.reconfigure(errors="backslashreplace")  # as entry.enter does
            try:
                status = command_line.main(given)
            except SystemExit as stopped:
                status = stopped.code
        return status, *capsys.readouterr()

    return ask


# What is refused before anything is read: arguments, and what is said.
REFUSED = {
    "a camera before the first": (["--webcam", "-1"], "--webcam -1: cameras are numbered from 0 to 99"),
    "a driver's number": (["--webcam", "200"], "--webcam 200: cameras are numbered"),
    "a camera of 12 digits": (["--webcam", "1" * 12], "cameras are numbered"),
    "a camera of 5,000 digits": (["--webcam", "1" * 5000], "--webcam: invalid int value"),
    "port 0": (["--page", "--port", "0"], "--port 0: ports are numbered from 1 to 65535"),
    "a negative port": (["--page", "--port", "-1"], "--port -1: ports are numbered"),
    "port 65536": (["--page", "--port", "65536"], "--port 65536: ports are numbered"),
    "outputs that are a file": (["album", "--outputs", "album/whole.png"], "album/whole.png is no folder"),
    "outputs that are not there": (["album", "--outputs", "gone"], "no run has a model yet"),
    "outputs with a long name": (["album", "--outputs", LONG], "File name too long"),
    "a model with a long name": (["album", "--model", LONG], "File name too long"),
    "a model that is a picture": (["album", "--model", "album/whole.png"], "whole.png: not a whole Keras model"),
    "a picture with a long name": ([LONG], "File name too long"),
    "no name at all": (["", "--annotate", "."], "--annotate: . lies in ."),
    "a threshold that is no number": (["album", "--threshold", "nan"], "--threshold nan: a confidence lies between"),
    "every fifth picture of a camera": (["--webcam", "0", "--every", "5"], "--every goes with videos"),
    "endless smoothing": (["album", "--smooth", "inf"], "--smooth inf: a time in seconds"),
    "every -1st frame": (["album", "--every", "-1"], "--every starts at 1"),
    "a timeline of no known kind": (["album", "--timeline", "x.xyz"], "--timeline x.xyz: the file's name ends in .png"),
    "a timeline over a folder": (["album", "--timeline", "album.png"], "--timeline: album.png is no file"),
    "a timeline over a device": (["album", "--timeline", "null.png"], "--timeline: null.png is no file"),
    "a timeline over a link to nowhere": (["album", "--timeline", "gone.png"], "--timeline: gone.png is no file"),
    "a timeline of a page": (["--page", "--timeline", "x.png"], "--page goes with"),
    "a timeline in a long name": (["album/whole.png", "--timeline", LONG + ".png"], "ile name too long"),
    "copies over a file": (["album", "--annotate", "album/whole.png"], "--annotate: album/whole.png is no folder"),
    "copies into a device": (["album", "--annotate", "/dev/null"], "--annotate: /dev/null is no folder"),
    "copies below a file": (["album/whole.png", "--annotate", "album/whole.png/x"], "album/whole.png/x"),
    "copies in a long name": (["album/whole.png", "--annotate", LONG], "ile name too long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_cannot_be(ask, name):
    arguments, said = REFUSED[name]
    status, out, err = ask(*arguments)
    assert status == 2 and said in err.splitlines()[-1] and "Traceback" not in err
    assert out.count("\n") <= 2  # the table: a copy is written after its row


@pytest.mark.parametrize("target", ["gone", "copies"])
def test_copies_into_a_link_that_leads_nowhere(ask, tmp_path, target):
    (tmp_path / "copies").symlink_to(target)
    status, _, err = ask("album", "--annotate", "copies")
    assert status == 2 and "--annotate: copies is no folder" in err


ANSWERED = {
    "faces larger than any picture": ["--smallest", "9" * 9],
    "faces of 400 digits": ["--smallest", "9" * 400],
    "each frame in a lifetime": ["--every", "9" * 30],
    "no time to smooth over": ["--smooth", "1e-320"],
    "the same picture twice": ["album", "album/whole.png"],
}


@pytest.mark.parametrize("name", ANSWERED)
def test_arguments_that_are_only_unusual(ask, name):
    status, out, _ = ask("--json", "album", *ANSWERED[name])
    assert status == 0 and len(json.loads(out)["pictures"]) == 1


def eps(path: Path) -> None:
    """PostScript that calls itself a JPEG: Pillow would start Ghostscript for it."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def playlist(path: Path) -> None:
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n")


# What is passed over: the file's name, what writes it, and the reason given.
PASSED_OVER = {
    "a pipe": ("x.jpg", os.mkfifo, "a pipe or a device"),
    "a pipe for a video": ("x.mp4", os.mkfifo, "a pipe or a device"),
    "a socket": ("x.png", listening, "a pipe or a device"),
    "a link to nowhere": ("x.png", lambda path: path.symlink_to("gone"), "a link that leads nowhere"),
    "a link to itself": ("x.png", lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
    "a link to a device": ("x.png", lambda path: path.symlink_to("/dev/zero"), "a pipe or a device"),
    "PostScript": ("x.jpg", eps, "not a whole image file (it is no JPEG, PNG"),
    "174 megapixels": ("x.png", lambda path: Image.new("1", (13_200, 13_200)).save(path), "174 megapixels; at most 51"),
    "174 megapixels a frame": (
        "x.mp4",
        lambda path: Image.new("1", (13_200, 13_200)).save(path, format="PNG"),
        "at most 51 megapixels are read",
    ),
    "a playlist": ("x.mp4", playlist, "not a video that can be opened"),
    "an empty picture": ("x.webp", Path.touch, "the file is empty (zero bytes): copy it again"),
    "an empty video": ("x.mov", Path.touch, "not a video that can be opened"),
}


@pytest.mark.parametrize("where", ["alone", "in an album"])
@pytest.mark.parametrize("name", PASSED_OVER)
def test_what_is_no_picture_is_passed_over_by_name(ask, album, monkeypatch, name, where):
    file, write, reason = PASSED_OVER[name]
    tools = album.parent / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tools}/started\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=os.pathsep)
    write(album / file)
    status, out, err = ask(*([str(album / file)] if where == "alone" else ["album"]), "--json")
    (failed,) = json.loads(out)["passed_over"]
    assert status == 1 and failed["source"].endswith(file) and reason in failed["reason"]
    assert f"{file}: " in err and "Traceback" not in err
    assert len(json.loads(out)["pictures"]) == (where == "in an album")


def test_the_page_starts_no_program_for_postscript(album, monkeypatch):
    eps(album / "x.jpg")
    monkeypatch.setenv("PATH", str(album))
    (album / "gs").write_text(f"#!/bin/sh\necho > {album}/started\n")
    (album / "gs").chmod(0o755)
    assert (
        "x.jpg: not a whole image file (it is no JPEG" in page.answer_file(None, album, str(album / "x.jpg"), False)[0]
    )
    assert not (album / "started").exists() and not (album / "x.jpg").exists()


def test_a_folder_that_is_called_like_a_picture_is_searched(ask, album):
    (album / "x.jpg").mkdir()
    Image.new("L", (9, 9), 9).save(album / "x.jpg" / "y.png")
    status, out, _ = ask("album", "--json")
    assert status == 0 and len(json.loads(out)["pictures"]) == 2


def test_linked_folders_are_counted_and_closed_ones_are_passed_over(ask, album, monkeypatch):
    (album / "linked").symlink_to(album)
    (album / "closed").mkdir()
    scan = os.scandir

    def scandir(path):  # whoever runs this may be root, to whom no folder is closed
        if os.fspath(path) == str(album / "closed"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found, passed_over, left_alone = photographs.find([album, album / "closed"])
    assert found == [album / "whole.png"] and left_alone == {str(album): {"linked folder(s)": 1}}
    assert passed_over == [PassedOver(str(album / "closed"), "Permission denied")] * 2


def test_a_file_that_may_not_be_looked_at_is_passed_over(album, monkeypatch):
    def is_file(path):  # of a folder that may be listed and not entered
        raise PermissionError(13, "Permission denied", os.fspath(path))

    monkeypatch.setattr(Path, "is_file", is_file)
    assert photographs.find([album])[1] == [PassedOver(str(album / "whole.png"), "Permission denied")]


def video(path: Path) -> None:
    """Three frames, moved to the path, which OpenCV may not be given."""
    plain = path.with_name("plain.mp4")
    writer = cv2.VideoWriter(str(plain), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    plain.rename(path)


def test_a_video_whose_path_is_not_utf_8_is_named_and_ends_nothing(album):
    video(album / os.fsdecode(b"caf\xe9.mp4"))
    done = _process(ALL_FORMS, str(album))
    assert done.returncode == 1 and b"caf\udce9.mp4: OpenCV opens no name that is not UTF-8: rename it" in done.stderr
    assert done.stdout.count(b"whole.png") == 3
    video(album.parent / "clip.mp4")
    done = _process(ALL_FORMS, str(album.parent / "clip.mp4"), "--annotate", str(album / os.fsdecode(b"out\xff")))
    assert done.returncode == 2 and b"clip_faces.mp4 cannot be written (OpenCV opens no name that is not" in done.stderr


def test_models_and_detectors_are_opened_at_any_path(yunet_path, tmp_path):
    face = np.zeros((1, 48, 48, 1), np.float32)
    for name in ("plain.onnx", os.fsdecode(b"caf\xe9.onnx")):
        (tmp_path / name).write_bytes(places.SHIPPED.read_bytes())
        assert model_files.opencv(tmp_path / name)(face).shape == (1, 7)
        (tmp_path / name).write_bytes(yunet_path.read_bytes())
        assert detection.YuNet(file=tmp_path / name).find(np.zeros((99, 99, 3), np.uint8)) == []


def test_a_colon_in_a_bare_name_makes_no_url_of_a_video(ask, tmp_path):
    video(tmp_path / "12:30.mp4")
    status, out, _ = ask("12:30.mp4", "--json", "--annotate", ".", writes=True)
    assert status == 0 and len(json.loads(out)["pictures"]) == 3
    assert len(list(photographs.read_video(tmp_path / "12:30_faces.mp4"))) == 3


def test_a_long_name_is_cut_in_that_of_its_copy(ask, tmp_path, album):
    for end in "ab":
        (album / f"{'ä' * 120}{end}.png").write_bytes((album / "whole.png").read_bytes())
    assert ask("album", "--annotate", "copies", writes=True)[0] == 0
    names = {path.name for path in (tmp_path / "copies").iterdir()}
    assert names == {"whole_faces.png", f"{'ä' * 100}_faces.png", f"{'ä' * 100}_faces_2.png"}


SHAPES = [(1, 1), (1, 40_000), (40_000, 1), (2, 3)]


@pytest.mark.parametrize("size", SHAPES)
def test_pictures_of_odd_shapes_are_answered_and_copied(ask, tmp_path, size):
    Image.new("RGB", size, 200).save(tmp_path / "odd.png")
    status, out, _ = ask("odd.png", "--json", "--annotate", "copies", writes=True)
    assert status == 0 and (json.loads(out)["pictures"][0]["width"], len(list((tmp_path / "copies").iterdir()))) == (
        size[0],
        1,
    )


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("smallest", [20, 10**9])
def test_the_detector_looks_at_pictures_of_odd_shapes(yunet_path, size, smallest):
    with limited():
        assert detection.YuNet(smallest, file=yunet_path).find(np.zeros((*size, 3), np.uint8)) == []


# A detector's file: what writes it.
DETECTORS = {
    "600 MB": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 600_000_000),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "text": lambda path: path.write_text("yunet"),
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_that_is_another_file(tmp_path, name):
    DETECTORS[name](tmp_path / "yunet.onnx")
    with (
        limited(),
        pytest.raises(detection.DetectorMissing, match=rf"--detector {tmp_path}/yunet\.onnx: .*{detection.YUNET_URL}"),
    ):
        detection.detector(str(tmp_path / "yunet.onnx"))


@pytest.mark.parametrize("host", ["300.1.1.1", "a..b", "ł" * 70, "192.0.2.1", "::1", "http://127.0.0.1", "a b"])
def test_a_host_that_cannot_be(host):
    with (
        limited(),
        pytest.raises(page.PageError, match=r"the page cannot be served at .* give another --port or --host"),
    ):
        page.serve(Path("never.keras"), None, host, 7860)


# Names that outputs cannot hold, or that a terminal would obey.
NAMES = {
    "arrows and ł": "zdjęcie → ł.png",
    "no text": os.fsdecode(b"caf\xe9 \xff.png"),
    "a line feed": "a\npassed over.png",
    "escape codes": "a\x1b[2Jb.png",
    "other than BMP": "\U0001f600.png",
    "a pattern": "%s %d %%.png",
    "a name of 255 bytes": "n" * 251 + ".png",
    "an option": "--page.png",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_kept_in_json_and_csv_and_obeyed_by_no_terminal(ask, album, name):
    path = album / NAMES[name]
    path.write_bytes((album / "whole.png").read_bytes())
    status, out, err = ask("--json", "--", str(path))
    assert status == 0 and out.isascii() and json.loads(out)["pictures"][0]["source"] == str(path)
    in_csv = str(path).encode(errors="backslashreplace").decode()
    assert next(csv.DictReader(io.StringIO(ask("--csv", "--", str(path))[1])))["source"] == in_csv
    status, out, err = ask("--", str(path))
    assert status == 0 and len(out.splitlines()) == 3 and "\x1b" not in out + err
    path.write_bytes(b"")
    status, out, err = ask("--", str(path))
    assert status == 1 and "\x1b" not in out + err and len(err.splitlines()) == 2


ALL_FORMS = """
import sys
from pathlib import Path
from fer_utils import entry
from fer_utils.predict import command_line, reader
from fer_utils.predict.reader import Face, Reading
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver
class Fake:
    note = "a → note"
    def __init__(self, *_): ...
    def read(self, pictures):
        for one in pictures:
            face = Face(Box(0, 0, 9, 9, 1.0), (1.0,) + (0.0,) * 6)
            yield one if isinstance(one, PassedOver) else Reading(one, (face,), self.note)
command_line.Reader, command_line.find_model = Fake, lambda *_: Path("ł")
entry.enter(lambda: max(command_line.main([*sys.argv[1:], "--no-detect", *form]) for form in ([], ["--csv"], ["--json"])))
"""


def _process(code: str, *arguments: str, encoding: str = "utf-8", **how) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, timeout=60, **({"capture_output": True} | how))


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_outputs_that_cannot_hold_a_name(album, encoding):
    paths = [album / NAMES[name] for name in ("arrows and ł", "no text", "other than BMP")]
    for path in paths:
        path.write_bytes((album / "whole.png").read_bytes())
    done = _process(ALL_FORMS, str(album), str(album / "gone.png"), encoding=encoding)
    assert done.returncode == 2 and b"gone.png: no such file" in done.stderr
    done = _process(ALL_FORMS, str(album), encoding=encoding)
    out = done.stdout.decode(encoding)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    document = json.loads(out[out.index("{\n") :])
    assert {one["source"] for one in document["pictures"]} == {str(path) for path in [*paths, album / "whole.png"]}
    assert document["note"] == "a → note"
    assert out.count("zdj") == 3 and ("→" in out) == (encoding == "utf-8") and ("\\u2192" in out)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_run_all_in_an_output_that_cannot_hold_a_name(tmp_path, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, str(ROOT / "run_all.py"), "--list", "--outputs-dir", str(tmp_path / "łódź →")]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0 and rb"\u0142" in done.stdout and rb"\u2192" in done.stdout


def test_output_that_nobody_reads_or_that_finds_no_room_ends_with_a_sentence(album):
    reading, writing = os.pipe()
    os.close(reading)
    with Path("/dev/full").open("wb") as full, os.fdopen(writing, "wb") as broken:
        for out, said in ((full, b"No space left"), (broken, b"Broken pipe")):
            done = _process(ALL_FORMS, str(album), stdout=out, stderr=subprocess.PIPE, capture_output=False)
            assert done.returncode in (1, 2) and said in done.stderr and b"Traceback" not in done.stderr


HOLDS_A_FOLDER = """
import sys, tempfile, time
from fer_utils import entry
def main():
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        print("ready", flush=True)
        time.sleep(30)
entry.enter(main)
"""


@pytest.mark.parametrize(
    ("number", "ignored", "status"),
    [
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGHUP, False, 129),
        (signal.SIGHUP, True, 143),
    ],
)
def test_a_signal_leaves_no_temporary_folder_and_nohup_stays_nohup(tmp_path, number, ignored, status):
    before = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None
    command = [sys.executable, "-c", HOLDS_A_FOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, preexec_fn=before) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        if ignored:
            time.sleep(0.3)
            assert process.poll() is None
            process.terminate()
        assert process.wait(20) == status
    assert not list(tmp_path.iterdir())
