"""The command line that reads expressions: sources of every kind, outputs, exit statuses."""

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.predict import command_line, detection, drawing, photographs, reader
from fer_utils.predict.detection import Box
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.training import model_files, network

import clips
import cv2
import keras
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """An outputs folder whose run `bright` calls bright pictures happy, dark ones angry."""
    folder = tmp_path_factory.mktemp("outputs")
    (folder / "bright").mkdir()
    raw = keras.Input((None, None, 1))
    model = keras.Model(raw, keras.layers.Dense(7, activation="softmax")(keras.layers.GlobalAveragePooling2D()(raw)))
    kernel, bias = np.zeros((1, 7)), np.full(7, -20.0)
    kernel[0, 3], bias[0], bias[3] = 0.1, 12.75, 0  # happy over 127.5
    model.layers[-1].set_weights([kernel, bias])
    sources = {"fer2013": "auto", "emotion_detection": "auto", "labels": "fer2013", "leakage": "keep"}
    network.save(model, folder / "bright" / "model.keras", sources)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _a_file_is_loaded_once() -> Iterator[None]:
    """Thirty command lines read the tiny model, which takes far longer to load and to trace than to answer."""
    load = model_files.load_keras
    known = lru_cache(lambda path, changed: load(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "load_keras", lambda path: known(path, path.stat().st_mtime_ns))
        yield


@pytest.fixture
def run(outputs, capsys):
    """Runs the command line on crops: (status, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        newest = "--model", "auto", "--outputs", str(outputs)
        status = command_line.main([*newest, *map(str, arguments), "--no-detect"])
        return status, *capsys.readouterr()

    return run


def write(path, value=230, size=(60, 50), **how):
    Image.new("L", size, value).save(path, **how)
    return path


def write_video(path, n=12, code="MJPG"):
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (64, 48))
    if not video.isOpened():
        pytest.skip("this OpenCV writes no such video")
    for i in range(n):
        video.write(np.full((48, 64, 3), 20 if i < n // 2 else 230, np.uint8))
    video.release()
    return path


def test_json_holds_boxes_and_seven_probabilities_that_sum_to_one(run, tmp_path):
    bright, dark = write(tmp_path / "a.png"), write(tmp_path / "b.png", 10)
    status, out, _ = run(bright, dark, "--json")
    first, second = json.loads(out)["pictures"]
    assert status == 0
    assert (first["source"], first["width"], first["height"]) == (str(bright), 60, 50)
    assert first["faces"][0]["box"] == {"x": 0, "y": 0, "width": 60, "height": 50, "confidence": 1.0}
    assert [picture["faces"][0]["expression"] for picture in (first, second)] == ["happy", "angry"]
    probabilities = first["faces"][0]["probabilities"]
    assert tuple(probabilities) == CLASSES and sum(probabilities.values()) == pytest.approx(1, abs=1e-4)


def test_csv_has_a_line_a_face_and_the_table_counts(run, tmp_path):
    write(tmp_path / "a.png"), write(tmp_path / "b.jpg", 10)
    _, out, _ = run(tmp_path, "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["expression"] for row in rows] == ["happy", "angry"]
    assert float(rows[0]["probability_happy"]) > 0.99
    _, out, _ = run(tmp_path)
    assert out.splitlines()[-1] == "2 faces in 2 pictures; passed over: 0"
    _, out, _ = run(tmp_path / "a.png")
    assert out.splitlines()[-1] == "1 face in 1 picture; passed over: 0"


class SeesBrightPictures:
    """A detector that finds one face in a bright picture and none in a dark one."""

    framing = 1.0

    def find(self, picture):
        return [Box(2, 3, 40, 30, 0.97)] if picture.mean() > 127 else []


def test_csv_lists_pictures_without_a_face(outputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection, "detector", lambda *_: SeesBrightPictures())
    bright, dark = write(tmp_path / "a.png"), write(tmp_path / "b.png", 10)
    assert command_line.main([str(bright), str(dark), "--model", "auto", "--outputs", str(outputs), "--csv"]) == 0
    face, nothing = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (face["source"], face["face"], face["width"], face["expression"]) == (str(bright), "0", "40", "happy")
    assert nothing.pop("source") == str(dark) and set(nothing.values()) == {""}


@pytest.mark.parametrize("form", [[], ["--csv"]])
def test_seconds_stand_only_where_there_is_a_video(run, tmp_path, form):
    picture, video = write(tmp_path / "a.png"), write_video(tmp_path / "v.avi", 2)
    assert "seconds" not in run(picture, *form)[1].splitlines()[0]
    out = run(picture, video, *form)[1].splitlines()
    assert "seconds" in out[0] and "0.1" in out[3]


def test_the_table_gives_the_whole_path_of_a_file_after_aligned_columns(capsys):
    folder = "a_folder_with_a_rather_long_name/and_another_one_in_it_with_a_name_that_is_long_too"
    names = [f"{folder}/IMG_20240101_120000.png", f"{folder}/party.avi"]
    face = reader.Face(Box(1234, 2345, 1011, 1213, 0.97), (0.0, 0.0, 0.05, 0.95, 0.0, 0.0, 0.0))
    table = command_line.Table(is_timed=True)
    table.add(reader.Reading(Picture(names[0], np.empty(0)), (face,)))
    table.add(reader.Reading(Picture(names[1], np.empty(0), 10, 1.0, 10.0), ()))
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == ["picture", *names]
    assert {line.index(end) for line, end in zip(lines, ["picture", *names], strict=True)} == {
        lines[0].index("picture")
    }
    assert "1011×1213 at 1234,2345  happy 0.95     fear 0.05      0.97" in lines[1]
    assert "1.00  " in lines[2] and "no face found" in lines[2]


def test_many_pictures_keep_their_order(outputs):
    bright = reader.Reader(outputs / "bright" / "model.keras", None)
    values = np.random.default_rng(1).integers(0, 2, 30) * 200 + 20
    pictures = [Picture(str(n), np.full((48, 48, 3), value, np.uint8)) for n, value in enumerate(values)]
    pictures.insert(5, PassedOver("x", "broken"))
    readings = list(bright.read(pictures))
    assert readings.pop(5) == PassedOver("x", "broken")
    assert [one.picture.source for one in readings] == [str(n) for n in range(30)]
    assert [one.faces[0].expression for one in readings] == ["happy" if value > 127 else "angry" for value in values]


def test_a_broken_file_is_reported_passed_over_and_told_by_the_status(run, tmp_path):
    write(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    whole = write(tmp_path / "c.png", size=(200, 200)).read_bytes()
    (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(tmp_path, "--json")
    assert status == 1 and len(json.loads(out)["pictures"]) == 1
    assert [one["source"][-5:] for one in json.loads(out)["passed_over"]] == ["b.jpg", "c.png"]
    assert "b.jpg: not a whole image file" in err and "c.png: not a whole image file" in err


def test_an_empty_folder_is_said(run, tmp_path):
    status, _, err = run(tmp_path)
    assert status == 1 and "the folder holds no picture and no video" in err


PICTURES = ("jpg", "JFIF", "png", "bmp", "webp", "tif", "gif", "mpo", "avif", "heic")


@pytest.fixture
def album(tmp_path):
    """Ten bright pictures of ten kinds, one that is cut, and what else lies in a folder: text, papers, hidden files."""
    pytest.importorskip("pillow_heif.HeifImagePlugin")
    for suffix in PICTURES:
        kind = {"jpg": "JPEG", "JFIF": "JPEG", "tif": "TIFF", "heic": "HEIF"}.get(suffix, suffix.upper())
        Image.new("RGB", (60, 50), (230,) * 3).save(tmp_path / f"a.{suffix}", kind)
    (tmp_path / "papers").mkdir()
    for name in ("a.txt", "b.TXT", "c.pdf", "README", ".DS_Store", "._a.jpg", "papers/d.txt"):
        (tmp_path / name).write_text("no picture")
    (tmp_path / "cut.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:300])
    return tmp_path


LEFT_ALONE = "3 .txt, 2 hidden, 1 without a suffix and 1 .pdf"


def test_an_album_of_ten_kinds_is_read_and_what_is_left_alone_is_counted_by_kind(run, album):
    status, out, err = run(album)
    assert status == 1  # the cut one
    assert out.splitlines()[-1] == f"10 faces in 10 pictures; passed over: 1; left alone: {LEFT_ALONE}"
    assert f"left alone: {album}: {LEFT_ALONE}" in err.splitlines()
    (album / "cut.heic").unlink()
    assert run(album)[0] == 0
    assert "left alone" not in "".join(map(str, run(album / "a.heic")[1:]))


def test_csv_and_json_name_what_was_not_read(run, album):
    document = json.loads(run(album, "--json")[1])
    assert {one["source"] for one in document["pictures"]} == {str(album / f"a.{suffix}") for suffix in PICTURES}
    assert document["left_alone"] == {str(album): {".txt": 3, "hidden": 2, "without a suffix": 1, ".pdf": 1}}
    *faces, cut, others = csv.DictReader(io.StringIO(run(album, "--csv")[1]))
    assert {(row["expression"], row["reason"]) for row in faces} == {("happy", "")} and len(faces) == 10
    assert cut["source"] == str(album / "cut.heic") and cut["reason"] == document["passed_over"][0]["reason"]
    assert (others["source"], others["reason"]) == (str(album), f"left alone: {LEFT_ALONE}") and not others["face"]


def test_a_video_is_read_every_nth_frame_with_its_time(run, tmp_path):
    status, out, _ = run(write_video(tmp_path / "v.avi"), "--every", 3, "--json")
    pictures = json.loads(out)["pictures"]
    assert status == 0
    assert [(one["frame"], one["seconds"]) for one in pictures] == [(0, 0.0), (3, 0.3), (6, 0.6), (9, 0.9)]
    assert [one["faces"][0]["expression"] for one in pictures] == ["angry", "angry", "happy", "happy"]


def test_a_video_without_its_end_gives_what_it_has_and_says_so(run, tmp_path):
    whole = write_video(tmp_path / "v.avi", 60).read_bytes()
    (tmp_path / "v.avi").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(tmp_path / "v.avi", "--csv")
    assert status == 1 and len(out.splitlines()) > 5
    assert "the video ends early" in err and "of 60 frames" in err


def test_the_times_of_a_video_of_a_variable_rate_are_those_of_its_frames(run, tmp_path):
    times = [0, 0.033, 0.067, 0.1, 1.0, 1.033, 1.067, 2.5, 2.533, 4.0]
    video = clips.with_times(write_video(tmp_path / "v.mp4", len(times), "mp4v"), times)
    pictures = json.loads(run(video, "--json")[1])["pictures"]
    assert [one["seconds"] for one in pictures] == pytest.approx(times, abs=0.002)
    status, out, _ = run(video, "--every", 4, "--json")
    assert status == 0
    assert [one["seconds"] for one in json.loads(out)["pictures"]] == pytest.approx([0, 1.0, 2.533], abs=0.002)


class Stamps:
    """A capture of frames with these time stamps, which its header counts as duration times rate."""

    def __init__(self, stamps, rate=30.0, promised=0):
        self.stamps, self.rate, self.promised, self.number = stamps, rate, promised, -1

    def get(self, what):
        stamp = self.stamps[max(0, min(self.number, len(self.stamps) - 1))]
        return {cv2.CAP_PROP_FRAME_COUNT: self.promised, cv2.CAP_PROP_FPS: self.rate}.get(what, 1000 * stamp)

    def grab(self):
        self.number += 1
        return self.number < len(self.stamps)

    def retrieve(self):
        return True, np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("stamps", "times"),
    [
        ([0, 0.04, 0.5, 0.54], [0, 0.04, 0.5, 0.54]),
        ([5.0, 5.04, 5.5], [0, 0.04, 0.5]),  # a recording that was begun before
        ([0, 0, 0, 0], [0, 0.033, 0.067, 0.1]),  # no time stamps: by the rate
        ([0.033, 0.067, 0.1], [0, 0.034, 0.067]),  # a backend that names the time of the next frame
        ([0, 0.04, 0.01, 0.02, 0.15], [0, 0.04, 0.073, 0.107, 0.15]),  # a clock that was set back
    ],
)
def test_times_grow_and_begin_with_the_first_frame(stamps, times):
    read = list(photographs._frames(Stamps(stamps), "v", 1))
    assert [one.seconds for one in read] == pytest.approx(times, abs=0.001)


def test_a_header_that_counts_frames_by_the_duration_promises_no_more_than_that():
    stamps = [*np.arange(30) / 30, *np.arange(5, 20) / 5]  # 45 frames in 4 seconds: WebM from a browser
    assert all(isinstance(one, Picture) for one in photographs._frames(Stamps(stamps, promised=120), "v", 1))
    half = list(photographs._frames(Stamps(stamps[:35], promised=120), "v", 1))
    assert half[-1] == PassedOver("v", "the video ends early: 35 of 120 frames could be read", 35)


def test_a_video_that_a_player_turns_is_read_upright(tmp_path):
    video = clips.turned(write_video(tmp_path / "v.mp4", 3, "mp4v"))
    assert [one.rgb.shape for one in photographs.read_video(video)] == [(64, 48, 3)] * 3


@pytest.mark.parametrize(
    ("name", "code"), [("v.webm", "VP90"), ("v.webm", "VP80"), ("v.mkv", "MJPG"), ("v.mov", "mp4v")]
)
def test_other_containers_are_read_with_their_times(name, code, tmp_path):
    read = list(photographs.read_video(write_video(tmp_path / name, 5, code)))
    assert [one.seconds for one in read] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_a_file_that_is_no_video_is_said(run, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"no video")
    status, _, err = run(tmp_path / "v.mp4")
    assert status == 1 and "v.mp4: not a video that can be opened" in err


def test_annotated_copies_leave_sources_alone(run, tmp_path):
    source, video = write(tmp_path / "a.png", size=(300, 300)), write_video(tmp_path / "v.avi")
    (tmp_path / "sub").mkdir()
    namesake = write(tmp_path / "sub" / "a.png", size=(300, 300))
    before = source.read_bytes()
    status, *_ = run(source, namesake, video, "--annotate", tmp_path / "out")
    assert status == 0 and source.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_faces.png", "a_faces_2.png", "v_faces.mp4"]
    copy = images.decode_photograph(tmp_path / "out" / "a_faces.png")
    assert copy.shape == (300, 300, 3) and (copy != 230).any()
    assert len(list(photographs.read_video(tmp_path / "out" / "v_faces.mp4"))) == 12


def test_a_copy_never_takes_a_sources_name(run, tmp_path):
    one, other = write(tmp_path / "a.png"), write(tmp_path / "a_faces.png")
    before = other.read_bytes()
    run(one, other, "--annotate", tmp_path)
    assert other.read_bytes() == before and (tmp_path / "a_faces_2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "paths of pictures or --webcam N"),
        (["nowhere.png"], "nowhere.png: no such file or folder"),
        ([".", "--every", "0"], "--every starts at 1"),
        ([".", "--smallest", "5"], "--smallest at 20"),
        ([".", "--threshold", "95"], "--threshold 95.0: a confidence lies between 0 and 1"),
        ([".", "--annotate", "copies"], "lies in ."),
        ([".", "--page"], "paths of pictures or --webcam N or --page"),
        (["--page", "--json"], "--page goes with"),
        ([".", "--smooth", "-1"], "--smooth -1.0: a time in seconds"),
    ],
)
def test_wrong_usage_has_status_2(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2 and said in capsys.readouterr().err


class Camera:
    """A camera of 40 pictures, dark ones and then bright ones, which is then unplugged."""

    def __init__(self, number):
        self.number = -1

    def isOpened(self):  # noqa: N802
        return True

    def set(self, what, value):
        assert (what, value) == (cv2.CAP_PROP_BUFFERSIZE, 2)  # what comes while a picture is read is left out

    def grab(self):
        self.number += 1
        return self.number < 40

    def retrieve(self):
        return True, np.full((48, 64, 3), 20 if self.number < 20 else 230, np.uint8)

    def release(self):
        pass


def test_a_camera_is_read_until_it_ends_and_the_last_picture_is_not_left_out(run, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    status, out, err = run("--webcam", 0, "--json")
    pictures = json.loads(out)["pictures"]
    frames = [one["frame"] for one in pictures]
    assert status == 1 and "the camera gives no more pictures" in err
    assert frames == sorted(set(frames)) and frames[-1] == 39
    assert pictures[-1]["faces"][0]["expression"] == "happy"


def test_smoothing_delays_a_change_and_is_off_by_default(run, tmp_path):
    video = write_video(tmp_path / "v.avi")

    def happy(*options):
        pictures = json.loads(run(video, "--json", *options)[1])["pictures"]
        return [one["faces"][0]["probabilities"]["happy"] for one in pictures]

    plain, smooth = happy(), happy("--smooth", 0.5)
    assert plain[5] < 0.01 and plain[6] > 0.99
    assert smooth[5] < 0.01 and smooth[6] == pytest.approx(1 - np.exp(-0.2), abs=0.01) and smooth[11] > smooth[6]


def test_two_faces_that_cross_are_two_tracks_in_every_output(outputs, tmp_path, capsys):
    video, figure = clips.crossing(tmp_path / "v.mp4"), tmp_path / "line.png"

    def read(*options) -> str:
        given = [video, "--detector", "mtcnn", "--model", "auto", "--outputs", outputs, *options]
        assert command_line.main([*map(str, given)]) == 0
        return capsys.readouterr().out

    rows = list(csv.DictReader(io.StringIO(read("--csv", "--timeline", figure))))
    going, coming = ([int(row["x"]) for row in rows if row["track"] == track] for track in "12")
    assert {row["track"] for row in rows} == {"1", "2"} and min(len(going), len(coming)) > 12
    assert going == sorted(going) and coming == sorted(coming, reverse=True)
    assert figure.read_bytes().startswith(b"\x89PNG")
    document = json.loads(read("--json"))
    first, second = document["tracks"]
    assert [(track["source"], track["track"]) for track in (first, second)] == [(str(video), 1), (str(video), 2)]
    assert tuple(first["share"]) == CLASSES and first["seconds"] == pytest.approx(2, abs=0.15)
    face = document["pictures"][0]["faces"][0]
    assert face["track"] == 1 and len(face["landmarks"]) == 5
    lines = read("--smooth", 0.5).splitlines()
    assert lines[-3].startswith(f"track 1 of {video}: seen ") and lines[-2].startswith(f"track 2 of {video}: seen ")


def test_only_videos_have_tracks(run, tmp_path):
    picture = write(tmp_path / "a.png")
    assert "track" not in run(picture)[1].splitlines()[0] and "track" not in run(picture, "--csv")[1].splitlines()[0]
    document = json.loads(run(picture, "--json")[1])
    assert "tracks" not in document and "track" not in document["pictures"][0]["faces"][0]
    status, _, err = run(picture, "--timeline", tmp_path / "line.png")
    assert status == 0 and "no face in a video" in err and [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_no_file_is_replaced_by_the_timeline(run, tmp_path):
    before, video = write(tmp_path / "a.png").read_bytes(), write_video(tmp_path / "v.avi", 2)
    for n, paths in enumerate(([video], [tmp_path]), 2):  # whether the file is read or not
        status, _, err = run(*paths, "--timeline", tmp_path / "a.png")
        assert status == 0 and f"timeline: {tmp_path / f'a_{n}.png'}" in err.splitlines()
        assert (tmp_path / "a.png").read_bytes() == before
        assert (tmp_path / f"a_{n}.png").read_bytes().startswith(b"\x89PNG")


def test_the_annotated_copy_of_a_video_of_a_variable_rate_plays_as_its_source(run, tmp_path):
    times = [*np.arange(15) / 10, *np.arange(7, 14) / 4, *np.arange(35, 50) / 10]  # slower between 1.5 and 3.5 seconds
    video = clips.write(tmp_path / "v.mp4", [np.full((96, 128, 3), 30 * (n % 8), np.uint8) for n in range(len(times))])
    run(clips.with_times(video, times), "--annotate", tmp_path / "out")
    copy = [one for one in photographs.read_video(tmp_path / "out" / "v_faces.mp4") if isinstance(one, Picture)]
    assert abs(copy[-1].seconds - times[-1]) < 0.2
    for one in copy:
        shown = times[round(float(one.rgb[50:80, 50:110].mean()) / 30) :: 8]
        assert np.abs(one.seconds - np.array(shown)).min() < 0.26  # the longest step


def test_a_wrong_time_fills_no_disk(tmp_path):
    with drawing.Copies(tmp_path) as copies:
        for seconds in (0.0, 1e6, 1e6 + 0.1):
            black = np.zeros((48, 64, 3), np.uint8)
            copies.add(Picture("v.mp4", black, 0, seconds, 10.0), black)
    assert len(list(photographs.read_video(tmp_path / "v_faces.mp4"))) == 10 * drawing.LONGEST + 2


def test_a_copy_names_the_track(monkeypatch):
    said = []
    monkeypatch.setattr(drawing, "drawn", lambda rgb, boxes, labels, note: said.extend(labels))
    face = reader.Face(Box(0, 0, 9, 9, 1.0), (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0))
    reader.Reading(Picture("v", np.empty(0)), (face, replace(face, track=2))).drawn()
    assert said == ["happy 1.00", "2 happy 1.00"]


@pytest.mark.parametrize(("side", "x"), [(2000, 1924), (400, 390), (48, 0), (48, 40), (1, 0)])
def test_a_label_lies_in_the_picture(side, x, monkeypatch):
    put, spans = cv2.putText, []

    def spy(picture, text, at, font, size, colour, thickness, line):
        spans.append((at[0], at[0] + cv2.getTextSize(text, font, size, thickness)[0][0]))
        return put(picture, text, at, font, size, colour, thickness, line)

    monkeypatch.setattr(cv2, "putText", spy)
    drawing.drawn(np.zeros((side, side, 3), np.uint8), [Box(x, 0, 60, 60, 1.0)], ["happy 0.85"])
    ((left, right),) = spans
    assert 0 <= left < right <= side


@pytest.fixture
def old_model(outputs, tmp_path):
    """A model whose file does not say what it was trained on, alone in the folder of the run `drawn`."""
    (tmp_path / "drawn").mkdir()
    keras.saving.load_model(outputs / "bright" / "model.keras").save(tmp_path / "drawn" / "model.keras")
    return tmp_path / "drawn" / "model.keras"


@pytest.fixture
def drawn_run(old_model, tmp_path):
    """An outputs folder whose run was trained on drawn faces."""
    sources = {"fer2013": "demo", "labels": "fer2013", "leakage": "keep"}
    network.save(keras.saving.load_model(old_model), old_model, sources)
    return tmp_path


def test_a_model_trained_on_drawn_faces_says_so_in_every_output(drawn_run, tmp_path, capsys):
    picture, copies = write(tmp_path / "a.png", size=(300, 300)), tmp_path / "copies"
    given = [str(picture), "--no-detect", "--model", "drawn", "--outputs", str(drawn_run), "--annotate", str(copies)]
    said = "This model was trained on drawn faces"
    for form in ([], ["--csv"], ["--json"]):
        assert command_line.main([*given, *form]) == 0
        out, err = capsys.readouterr()
        assert said in err and (said in out or form == ["--csv"])
        assert form != ["--json"] or json.loads(out)["note"] == reader.DRAWN
    foot = images.decode_photograph(copies / "a_faces.png")[-5:]
    assert (foot < 100).mean() > 0.5  # a dark strip on a bright picture
    readings = reader.read_photograph(drawn_run / "drawn" / "model.keras", reader.load_if_given(str(picture)))
    titles = [reading.figure().axes[0].get_title() for reading in readings.values()]
    assert dict(zip(readings, titles, strict=True)) == {"this run's model": reader.DRAWN, "the shipped model": ""}


def test_a_model_trained_on_photographs_has_no_note(run, tmp_path):
    _, out, err = run(write(tmp_path / "a.png"), "--json")
    assert "note" not in json.loads(out) and "drawn" not in err


def test_what_an_old_model_was_trained_on_is_said_not_to_be_known(old_model, tmp_path, capsys):
    assert command_line.main([str(write(tmp_path / "a.png")), "--no-detect", "--model", str(old_model), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["note"] == reader.UNKNOWN and reader.UNKNOWN in err


def test_a_copied_model_keeps_its_note_whatever_lies_beside_it(drawn_run, tmp_path):
    copy = tmp_path / "copy.keras"
    copy.write_bytes((drawn_run / "drawn" / "model.keras").read_bytes())
    (tmp_path / "metrics.json").write_text(json.dumps({"run": {"params": {"merge_split": {"fer2013": "auto"}}}}))
    assert reader.note(copy) == reader.DRAWN


def test_a_camera_that_is_not_there_is_said(run, monkeypatch):
    status, _, err = run("--webcam", 97)
    assert status == 1 and "webcam 97: no such camera" in err


def test_models_are_found_by_file_by_name_and_by_age(outputs, tmp_path, monkeypatch):
    bright = outputs / "bright" / "model.keras"
    assert command_line.find_model(str(bright)) == bright
    for age, name in enumerate(("newest", "older")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.keras").write_bytes(bright.read_bytes())
        os.utime(tmp_path / name / "model.keras", (1e9 - age, 1e9 - age))
    assert command_line.find_model("older", str(tmp_path)).parent.name == "older"
    assert command_line.find_model("auto", str(tmp_path)).parent.name == "newest"
    with pytest.raises(FileNotFoundError, match=r"is called oldest; runs with a model in .*: newest, older"):
        command_line.find_model("oldest", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_merge_split.py").touch()  # a project, and in it a folder with runs
    (tmp_path / "newest").rename(tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "older")
    assert command_line.find_model("runs", "..").parent.name == "runs"  # from the current folder, as run_all.py
    with pytest.raises(FileNotFoundError, match="no run has a model yet"):
        command_line.find_model("auto", str(tmp_path / "older"))


def test_what_is_no_model_of_ours_is_refused_with_status_2(run, tmp_path):
    torn = tmp_path / "torn.keras"
    torn.write_bytes(b"PK")
    other = tmp_path / "other.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    picture = write(tmp_path / "a.png")
    for model, said in ((torn, "torn.keras: not a whole Keras model"), (other, "other.keras: takes (None, 4)")):
        status, _, err = run(picture, "--model", model)
        assert status == 2 and said in err


def _gradient() -> np.ndarray:
    return np.tile(np.arange(0, 256, 4, dtype=np.uint8), (32, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "I;16", "I", "F", "CMYK"])
def test_all_modes_give_the_same_picture(mode, tmp_path):
    grey = _gradient()
    if mode in ("I;16", "I"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
        picture = picture if mode == "I;16" else picture.convert("I")
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        picture = Image.fromarray(grey).convert(mode)
    path = tmp_path / ("a.tif" if mode in ("F", "I", "CMYK") else "a.png")
    picture.save(path)
    read = images.decode_photograph(path)
    assert read.shape == (32, 64, 3) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - grey[..., None]).max() <= 1 + (mode == "I;16")


def test_transparent_parts_lie_on_white(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (images.decode_photograph(tmp_path / "a.png") == 255).all()


def test_pictures_are_turned_upright_by_their_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn to the right
    Image.fromarray(_gradient()).save(tmp_path / "a.png", exif=exif)
    read = images.decode_photograph(tmp_path / "a.png")
    assert read.shape == (64, 32, 3) and read[0].mean() < 5 and read[-1].mean() > 245


class OneBadFrame:
    """A capture of four frames whose second cannot be decoded."""

    def __init__(self):
        self.number = -1

    def get(self, what):
        return {cv2.CAP_PROP_FRAME_COUNT: 4.0, cv2.CAP_PROP_FPS: 2.0, cv2.CAP_PROP_POS_MSEC: 0.0}[what]

    def grab(self):
        self.number += 1
        return self.number < 4

    def retrieve(self):
        return (False, None) if self.number == 1 else (True, np.zeros((8, 8, 3), np.uint8))


def test_a_broken_frame_is_passed_over_and_the_next_are_read():
    read = list(photographs._frames(OneBadFrame(), "v", 1))
    assert read[1] == PassedOver("v", "frame 1 is broken", 1)
    assert [(one.frame, one.seconds) for one in read if isinstance(one, Picture)] == [(0, 0.0), (2, 1.0), (3, 1.5)]
