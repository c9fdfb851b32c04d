"""The page in Chromium: a dropped picture, the camera, what is no picture; on a wide and a narrow window.

Needs Gradio, Playwright and a Chromium of this machine, and says so where one is missing. With FER_SCREENSHOTS, a folder,
screenshots are written there.
"""

import base64
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import types
import urllib.request
from pathlib import Path

from fer_utils import files, images, places
from fer_utils.predict import page, photographs, reader
from fer_utils.training import network

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

# Looked for, not imported: every process collects every file, and Gradio takes seconds to import.
for name, what in (("Gradio", "serves the page"), ("Playwright", "drives Chromium")):
    if importlib.util.find_spec(name.lower()) is None:
        pytest.skip(f"{name} is not installed: it {what}", allow_module_level=True)

FLAGS = (
    *(
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)
WAIT = 120_000  # ms; on a busy machine TensorFlow takes its time


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model on drawn faces, with metrics.json beside it."""
    folder = tmp_path_factory.mktemp("outputs") / "drawn"
    folder.mkdir()
    sources = {"fer2013": "demo", "labels": "fer2013", "leakage": "drop"}
    network.save(network.build(48, "none", network.SMALL), folder / "model.keras", sources)
    scores = {"n": 700, "accuracy": 0.913, "accuracy_interval": [0.9, 0.925], "macro_f1": 0.912}
    metrics = {
        "val": scores,
        "test": scores,
        "leakage": {"policy": "drop", "val_images_seen_in_training": 0, "test_images_seen_in_training": 0},
        "run": {"params": {"merge_split": {"fer2013": "demo"}}},
    }
    files.write_json(folder / "metrics.json", metrics)
    return folder / "model.keras"


@pytest.fixture(scope="module")
def server(model):
    """The page of the command line, at a free port: its address and the folder of its uploads."""
    folder = Path(os.environ.get("FER_REAL_DATA", Path(__file__).resolve().parents[4] / "shared/data"))
    yunet = folder / "yunet/face_detection_yunet_2023mar.onnx"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uploads = model.parents[1] / "temporary"
    uploads.mkdir()
    command = [sys.executable, "-m", "fer_utils.predict", "--page", "--model", str(model), "--port", str(port)]
    command += ["--detector", str(yunet) if yunet.is_file() else "mtcnn"]
    log = model.parent / "page.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"TMPDIR": str(uploads)})
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(address, timeout=5)
                break
            time.sleep(0.1)
        yield address, uploads
        upload(address, b"a picture that is never read")
    finally:
        process.terminate()
        process.wait(30)
    assert not list(uploads.glob("fer_page_*")), "what was uploaded outlives the page"


def upload(address: str, content: bytes) -> None:
    """Upload a file, as Gradio's page does before it asks about it."""
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--x--\r\n' % content
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    urllib.request.urlopen(urllib.request.Request(f"{address}/gradio_api/upload", part, headers), timeout=30).close()


@pytest.fixture(scope="module")
def camera(tmp_path_factory) -> Path:
    """A video for Chromium's fake camera, 640 × 480: a face that goes from left to right and back."""
    import photograph_sets as sets

    left, top, right, bottom = sets.HEAD
    head = sets.rgb("astronaut.png")[top:bottom, left:right]
    path = tmp_path_factory.mktemp("camera") / "face.mjpeg"
    with path.open("wb") as file:
        for turn in np.linspace(0, 2 * np.pi, 60, endpoint=False):
            picture = np.full((480, 640, 3), 120, np.uint8)
            sets.paste(picture, head, (320 + 180 * np.sin(turn), 220), 1.2, 0, False)
            file.write(cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    return path


@pytest.fixture(scope="module")
def browser(camera, tmp_path_factory):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("Chromium is not installed: `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=chromium,
            headless=True,
            args=[*FLAGS, f"--use-file-for-fake-video-capture={camera}"],
            permissions=["camera"],
        )
        yield context
        context.close()


@pytest.fixture
def opened(browser, server):
    """The page in a new tab."""
    tab = browser.new_page()
    tab.set_default_timeout(WAIT)
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.goto(server[0])
    tab.wait_for_selector("#upload input[type=file]", state="attached")
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    """A photograph with four faces."""
    import photograph_sets as sets

    path = tmp_path_factory.mktemp("photographs") / "four.jpg"
    Image.fromarray(sets.with_faces(3, max_turn=10)[0]).save(path, quality=92)
    return path


def give(tab, path: Path, size: int = 0) -> None:
    """Drop a file on the page, as a hand would; with a size, so many bytes of nothing under its name."""
    data = tab.evaluate_handle(
        """async ([name, bytes, size]) => {
            const data = new DataTransfer();
            const raw = size ? new Uint8Array(size) : Uint8Array.from(atob(bytes), c => c.charCodeAt(0));
            data.items.add(new File([raw], name, {type: "image/jpeg"}));
            return data;
        }""",
        [path.name, base64.b64encode(path.read_bytes()).decode(), size],
    )
    tab.dispatch_event("#upload button", "drop", {"dataTransfer": data})


def kept(folder: Path) -> list[Path]:
    """Pictures in a folder of temporary files, and what is in the page's own; TensorFlow keeps source code there, and Gradio
    makes an empty file for each upload."""
    full = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    return [path for path in full if "fer_page_" in str(path) or _is_picture(path)]


def _is_picture(path: Path) -> bool:
    try:
        Image.open(path).close()
    except UnidentifiedImageError:
        return False
    return True


def screenshot(tab, name: str) -> None:
    if folder := os.environ.get("FER_SCREENSHOTS"):
        tab.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_a_dropped_picture_gives_boxes_bars_and_on_request_grad_cam_and_is_not_kept(opened, server, photograph):
    give(opened, photograph)
    opened.wait_for_selector("#answer .face")
    assert opened.locator("#answer img.shown").count() == 1
    assert opened.locator("#answer .face").count() == 4
    assert opened.locator("#answer .bar").count() == 4 * 7
    assert reader.DRAWN in opened.inner_text("#answer")
    about = opened.inner_text(".about")
    assert "accuracy 0.913 (0.900–0.925, 95 %)" in about and reader.DRAWN in about and "model.keras" in about
    assert "Do not decide about people" in opened.inner_text("#limits")
    screenshot(opened, "picture_wide")
    opened.check("#grad-cam input")
    opened.wait_for_selector("#answer .heat")
    assert opened.locator("#answer .heat").count() == 4
    screenshot(opened, "grad_cam_wide")
    opened.set_viewport_size({"width": 390, "height": 800})
    opened.wait_for_timeout(300)
    screenshot(opened, "grad_cam_narrow")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    assert kept(server[1]) == []
    opened.uncheck("#grad-cam input")
    opened.wait_for_selector("#answer .heat", state="detached")
    assert opened.locator("#answer .face").count() == 4


def test_nothing_is_asked_of_another_machine(browser, server):
    tab, asked = browser.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(server[0])
    tab.wait_for_selector("#upload input[type=file]", state="attached", timeout=WAIT)
    others = [url for url in asked if not url.startswith((server[0], "data:", "blob:"))]
    tab.close()
    assert asked and others == []


def test_the_camera_gives_boxes_that_move_and_bars_and_leaves_no_file(opened, server):
    opened.click("role=tab[name=Camera]")
    opened.click("#camera button:has-text('Click to Access Webcam')")
    opened.click("#camera button:has-text('Record')")
    opened.wait_for_selector("#live .face")
    seen = set()
    for _ in range(80):
        opened.wait_for_timeout(100)
        seen.add(opened.get_attribute("#live img.shown", "data-boxes"))
        if len(seen) >= 4:
            break
    screenshot(opened, "camera_wide")
    opened.set_viewport_size({"width": 390, "height": 800})
    opened.wait_for_timeout(300)
    screenshot(opened, "camera_narrow")
    assert len(seen) >= 4 and opened.locator("#live .bar").count() == 7
    assert kept(server[1]) == []
    assert reader.DRAWN in opened.inner_text("#live")


def test_what_is_no_picture_and_what_is_too_large_get_a_message(opened, tmp_path):
    text, large = tmp_path / "text.jpg", tmp_path / "large.jpg"
    text.write_text("This is no picture.")
    Image.new("L", (10_000, 10_000), 128).save(large)
    for path, said in (
        (
            text,
            "text.jpg: not a whole image file (it is no JPEG, PNG, BMP, WEBP, TIFF, GIF, AVIF, HEIF): save it again in a program that opens it",
        ),
        (large, "100 megapixels; at most 51 are read"),
    ):
        give(opened, path)
        opened.wait_for_selector(f"#answer [role=alert]:has-text('{said}')")
    screenshot(opened, "message_wide")


def test_a_file_over_the_limit_gets_a_message(opened, tmp_path):
    large = tmp_path / "large.bmp"
    large.touch()
    give(opened, large, images.MAX_FILE_BYTES + 1)
    opened.wait_for_selector(
        "#answer [role=alert]:has-text('large.bmp: has 205,000,001 bytes; at most 205,000,000 are read: save it smaller')"
    )
    screenshot(opened, "too_many_bytes")


def test_a_missing_gradio_and_a_taken_port_are_named_with_the_way_out(server, model, monkeypatch):
    from fer_utils.predict import detection

    port = int(server[0].rpartition(":")[2])
    with pytest.raises(page.PageError, match=f"cannot be served at 127.0.0.1:{port} .* give another --port"):
        page.serve(model, detection.Mtcnn(), port=port)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(page.PageError, match=r'needs Gradio .*uv sync --extra page.*pip install "gradio>=6\.31,<7"'):
        page.serve(model, detection.Mtcnn())


@pytest.mark.parametrize(
    ("file", "beside", "offered"),
    [("model.tflite", "", False), ("model.tflite", "model.keras", True), (places.SHIPPED, "", True)],
)
def test_grad_cam_is_offered_where_a_keras_model_is_at_hand(tmp_path, monkeypatch, file, beside, offered):
    monkeypatch.setattr(page, "Reader", lambda *given: types.SimpleNamespace(note=""))
    if beside:
        (tmp_path / beside).touch()
    blocks = page.app(tmp_path / file, None).blocks.values()
    (box,) = (block for block in blocks if getattr(block, "elem_id", None) == "grad-cam")
    assert (box.interactive, box.info) == (offered, "" if offered else "needs model.keras beside the model")


def test_two_users_who_upload_the_same_picture_do_not_share_its_file(tmp_path, monkeypatch):
    from gradio.routes import App
    from starlette.testclient import TestClient

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    blocks = page.app(places.SHIPPED, None)
    blocks.max_file_size = None
    with TestClient(App.create_app(blocks)) as browser:
        given = {"files": ("a.png", b"the same picture", "image/png")}
        first, second = (Path(browser.post("/gradio_api/upload", files=given).json()[0]) for _ in range(2))
        assert first != second and first.name == second.name == "a.png" and first.is_relative_to(tmp_path)
        first.unlink()
        assert second.read_bytes() == b"the same picture"


def test_a_cut_picture_and_a_large_file_are_refused_by_name(tmp_path, photograph):
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photograph.read_bytes()[:9000])
    assert "cut.jpg: not a whole image file" in page.answer_file(None, cut, str(cut), False)[0] and not cut.exists()
    large = tmp_path / "large.jpg"
    large.write_bytes(b"")
    os.truncate(large, images.MAX_FILE_BYTES + 1)
    said = "large.jpg: has 205,000,001 bytes; at most 205,000,000 are read: save it"
    assert said in page.answer_file(None, large, str(large), False)[0] and not large.exists()


@pytest.mark.parametrize(
    ("size", "said"), [((10_000, 10_000), "100 megapixels"), ((1, 70_000), "65,535 pixels a side")]
)
def test_the_page_and_the_command_line_have_one_limit_and_one_sentence(tmp_path, size, said):
    path = tmp_path / "large.png"
    Image.new("1", size).save(path)
    (read,) = photographs.read(path)
    answer, shown = page.answer_file(None, path, str(path), False)
    assert said in read.reason and f"{path.name}: {read.reason}" in answer and shown is None


def test_of_a_second_output_the_page_says_its_own_score(tmp_path):
    first, second = (
        {"n": n, "accuracy": a, "accuracy_interval": [a, a], "macro_f1": a} for n, a in ((7, 0.5), (5, 0.75))
    )
    files.write_json(
        tmp_path / "metrics.json",
        {
            "val": first,
            "test": first,
            "label_sets": {"test": {"votes_output": second}},
            "leakage": {"val_images_seen_in_training": 0, "test_images_seen_in_training": 0},
        },
    )
    assert "Scores on 7 TEST images:** accuracy 0.500" in page.about(tmp_path / "model.keras", "")
    assert "5 TEST images against FER+'s majority:** accuracy 0.750" in page.about(tmp_path / "model_votes.keras", "")
