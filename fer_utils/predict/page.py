"""A local page: drop a picture or use the camera, and see the faces, their expressions and where the model looks.

Built with Gradio, the extra `page`. Nothing is kept: what is uploaded is deleted once it is read, the picture that is
shown stays in memory for KEPT seconds at most, and answers are sent inside the page instead of as files.
"""

import base64
import os
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fer_utils import files, images
from fer_utils.classes import CLASSES
from fer_utils.evaluation import report
from fer_utils.predict import photographs
from fer_utils.predict.detection import Detector, scaled
from fer_utils.predict.photographs import PassedOver, Picture
from fer_utils.predict.reader import Face, Reader, Reading
from fer_utils.predict.tracking import Tracker
from fer_utils.training import model_files

import cv2
import numpy as np
from jinja2 import Environment

MAX_SIDE = 2000  # pixels; larger pictures are shrunk before faces are looked for
SHOWN_SIDE = 900  # pixels of the picture in the answer
KEPT = 600  # seconds, the picture that is shown
SMOOTHED = 0.5  # seconds, of the camera
# One picture at a time: detector and model are not for several threads at once.
ONCE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}
STREAM: dict[str, Any] = {"stream_every": 0.06, "show_progress": "hidden", "time_limit": None}  # seconds

# Of Gradio's server. Up to its limit of a file's size the answer says what is wrong; with a run history the browser
# would keep what was asked.
LAUNCH: dict[str, Any] = {"max_file_size": 5 * images.MAX_FILE_BYTES, "run_history": False, "share": False}
LAUNCH |= {"quiet": True, "prevent_thread_lock": True, "ssr_mode": False, "footer_links": []}

LIMITS = """- An expression is not an emotion: what a face shows does not tell reliably what a person feels.
- Do not decide about people with it: not in hiring, at work, in education, in policing, at borders, in insurance or
  credit, in diagnosis. In the European Union emotion recognition at work and in education is prohibited (Regulation
  (EU) 2024/1689, Article 5(1)(f)).
- How it does on groups of people was not measured. Faces that are turned, covered or small are read worse.
- Pictures stay on the machine that runs this page. A file is deleted once it is read; the picture that is shown stays
  in memory for ten minutes at most."""

CSS = """
.answer img.shown { max-width: 100%; height: auto; display: block; border-radius: 6px; }
.answer .note, .about .note, .answer .message { background: #7a4b00; color: #fff; padding: .5em .8em; }
.answer .faces { display: flex; flex-wrap: wrap; gap: 1em; margin-top: .8em; }
.answer .face { flex: 1 1 15em; max-width: 24em; display: flex; gap: .8em; }
.answer .face img { width: 72px; height: 72px; border-radius: 4px; display: block; margin-bottom: 4px; }
.answer .bars { flex: 1; display: grid; grid-template-columns: 5em 1fr 3em; gap: 2px 6px; font-size: 13px; }
.answer .bar { width: 100%; }
.answer .best { font-weight: 700; }
"""

ANSWER = Environment(autoescape=True).from_string("""<div class="answer">
{% if message %}<p class="message" role="alert">{{ message }}</p>{% else %}
<img class="shown" alt="the picture, its faces framed" src="{{ picture }}" data-boxes="
  {% for face, crop in faces %}{{ [face.box.x, face.box.y, face.box.width, face.box.height] }}{% endfor %}">
{% if note %}<p class="note">{{ note }}</p>{% endif %}
<div class="faces">{% for face, crop in faces %}<div class="face"><div>
  <img alt="the face as the model sees it" src="{{ crop }}">{% if heat %}
  <img class="heat" alt="Grad-CAM of {{ face.expression }}" src="{{ heat[loop.index0] }}">{% endif %}</div>
  <div class="bars">{% for name, p in face.named.items() %}{% set best = "best" if name == face.expression %}
    <span class="{{ best }}">{{ name }}</span>
    <progress class="bar" value="{{ p }}"></progress>
    <span class="{{ best }}">{{ "%.0f" % (100 * p) }}%</span>{% endfor %}</div></div>
{% else %}<p class="no-face">No face found. The detector looks for upright faces from about 20 pixels on.</p>
{% endfor %}</div>{% endif %}</div>""")


class PageError(OSError):
    """The page cannot be served: Gradio is not installed, or the address is taken or none of this machine."""


def answer_file(reader: Reader, keras_file: Path, path: str, with_heat: bool) -> tuple[str, Reading | None]:
    """The answer to an uploaded file, as HTML, or what is wrong with it; and what was read. The file is deleted."""
    picture = photographs.read_picture(Path(path))
    Path(path).unlink(missing_ok=True)
    if isinstance(picture, PassedOver):
        return ANSWER.render(message=f"{Path(path).name}: {picture.reason}"), None
    reading = reader.read_one(replace(picture, rgb=_shrunk(picture.rgb, MAX_SIDE)))
    return answer_again(keras_file, reading, with_heat), reading


def answer_again(keras_file: Path, reading: Reading | None, with_heat: bool) -> str:
    """What was read, as HTML, with heat maps of Grad-CAM or without; nothing where it is no longer kept."""
    if reading is None:
        return ""
    return _html(reading, _heat(keras_file, reading.faces) if with_heat and reading.faces else ())


def answer_camera(reader: Reader, rgb: np.ndarray | None, tracker: Tracker | None) -> tuple[str, Tracker | None]:
    """The answer to the camera's picture, as HTML; and the tracker, which the next one needs."""
    if rgb is None:
        return "", tracker
    tracker = tracker or Tracker(SMOOTHED)
    reading = reader.read_one(Picture("camera", rgb, 0, time.monotonic()))
    return _html(tracker.followed(reading)), tracker


@cache
def _loaded(keras_file: Path):
    from fer_utils.training import network  # takes seconds to import

    return network.load(keras_file)


def _heat(keras_file: Path, faces: Sequence[Face]) -> list[str]:
    """Each face under the heat map of its expression, as a data URL."""
    from fer_utils import plots
    from fer_utils.evaluation import inference  # both take seconds to import

    crops = np.array([face.crop for face in faces])
    classes = np.array([CLASSES.index(face.expression) for face in faces])
    maps = inference.grad_cam(_loaded(keras_file), crops[..., None], classes)
    return [_inline(np.rint(255 * rgb).astype(np.uint8)) for rgb in map(plots.covered, crops, maps)]


def _html(reading: Reading, heat: Sequence[str] = ()) -> str:
    picture = _inline(_shrunk(replace(reading, note="").drawn(), SHOWN_SIDE))  # the note stands below
    faces = [(face, _inline(face.crop)) for face in reading.faces if face.crop is not None]
    return ANSWER.render(picture=picture, faces=faces, heat=heat, note=reading.note)


def _shrunk(rgb: np.ndarray, side: int) -> np.ndarray:
    return scaled(rgb, min(1, side / max(rgb.shape[:2])))


def _inline(rgb: np.ndarray) -> str:
    """A picture as a data URL: JPEG, RGB or grey."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR) if rgb.ndim == 3 else rgb
    data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def about(model_file: Path, note: str) -> str:
    """Which model answers and how it scored, in Markdown, by the metrics.json beside it."""
    folder, name = model_file.parent, model_file.name
    run = folder.parent if folder.name == "export" else folder
    if (folder / "metrics.json").is_file():
        with files.reading_json(folder / "metrics.json") as metrics:
            test, against = metrics["test"], ""
            if name == "model_votes.keras":
                test, against = metrics["label_sets"]["test"]["votes_output"], " against FER+'s majority"
            low, high = test["accuracy_interval"]
            scores = f"**Scores on {test['n']:,} TEST images{against}:** accuracy {test['accuracy']:.3f} "
            scores += f"({low:.3f}–{high:.3f}, 95 %), macro F1 {test['macro_f1']:.3f}; "
            scores += "a guess is right one time in seven. " + report.honesty_line(metrics)
    else:
        scores = f"**Scores:** not known, since there is no `metrics.json` beside `{name}`."
    return "\n\n".join([*([f"**{note}**"] if note else []), f"**Model:** {run.name}, `{name}`", scores])


def app(model_file: Path, detector: Detector | None):
    """The page as Gradio Blocks. Raises PageError without Gradio, NotOurModel for a file that is no model of ours."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        way = '`uv sync --extra page`, or `pip install "gradio>=6.31,<7"`'
        raise PageError(f"the page needs Gradio ({error}): {way}") from error
    _give_each_upload_a_folder()
    reader = Reader(model_file, detector)
    is_keras = model_file.suffix == ".keras" or model_files.is_shipped(model_file)
    keras_file = model_file if is_keras else model_file.parent / "model.keras"
    has_heat = keras_file.is_file()
    with gradio.Blocks(title="Facial expressions", analytics_enabled=False, delete_cache=(60, 60)) as blocks:
        gradio.Markdown("# Facial expressions")
        gradio.Markdown(about(model_file, reader.note), elem_classes="about")
        with gradio.Tab("Picture"), gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                limit = f"A picture, at most {images.MAX_MEGAPIXELS} megapixels"
                upload = gradio.File(label=limit, height=140, elem_id="upload")
                with_heat = gradio.Checkbox(
                    label="Show where the model looks (Grad-CAM)",
                    info="" if has_heat else "needs model.keras beside the model",
                    interactive=has_heat,
                    elem_id="grad-cam",
                )
            with gradio.Column(scale=3, min_width=280):
                answer = gradio.HTML(elem_id="answer")
            shown = gradio.State(time_to_live=KEPT)
            read = partial(answer_file, reader, keras_file)
            given = upload.upload(read, [upload, with_heat], [answer, shown], **ONCE)
            given.then(lambda: None, outputs=upload, api_visibility="private")  # ready for the next picture
            with_heat.input(partial(answer_again, keras_file), [shown, with_heat], answer, **ONCE)
        with gradio.Tab("Camera"), gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                camera = gradio.Image(sources=["webcam"], streaming=True, label="Camera", elem_id="camera", height=260)
            with gradio.Column(scale=3, min_width=280):
                live_answer = gradio.HTML(elem_id="live")
            live = gradio.State()
            camera.stream(partial(answer_camera, reader), [camera, live], [live_answer, live], **ONCE, **STREAM)
        with gradio.Accordion("Limits", open=True, elem_id="limits"):
            gradio.Markdown(LIMITS)
    return blocks


def serve(model_file: Path, detector: Detector | None, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until Ctrl-C; bound to this machine alone unless `host` says otherwise.

    Raises PageError without Gradio or where the port is taken, NotOurModel for a file that is no model of this project.
    """
    try:
        socket.create_server((host, port)).close()
    except (OSError, UnicodeError, TypeError) as error:  # the latter two: what is no name of a machine
        said = f"the page cannot be served at {host}:{port} ({error}); give another --port or --host"
        raise PageError(said) from error
    with tempfile.TemporaryDirectory(prefix="fer_page_") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        os.environ["no_proxy"] = "*"  # Gradio asks the page itself whether it is there, and nobody else
        blocks = app(model_file, detector)
        from gradio.themes import Base

        fonts = Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # those of the machine: none is fetched
        blocks.launch(server_name=host, server_port=port, theme=fonts, css=CSS, **LAUNCH)
        print(f"page: http://{host}:{port}, until Ctrl-C", file=sys.stderr)
        try:
            blocks.block_thread()
        finally:
            blocks.close(verbose=False)  # else an upload under way would be written after the folder is removed


def _give_each_upload_a_folder() -> None:
    """Gradio names an upload's folder by its content: the first answer would delete the file of two users' equal pictures."""
    from gradio import route_utils

    class Upload(route_utils.GradioUploadFile):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.sha.update(uuid.uuid4().bytes)

    route_utils.GradioUploadFile = Upload  # type: ignore[misc]  # there is no hook for it
