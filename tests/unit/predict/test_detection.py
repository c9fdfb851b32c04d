"""Faces are found where they are, and nowhere else; their crops are framed as FER2013's."""

import hashlib
import sys

from fer_utils.data import sources, splits
from fer_utils.predict import detection
from fer_utils.predict.detection import Box

import cv2
import numpy as np
import onnx
import pytest

pytest.importorskip("mtcnn", reason="the face detector is not installed")


@pytest.fixture(scope="module")
def mtcnn():
    return detection.Mtcnn()


@pytest.fixture(scope="module", params=["mtcnn", "yunet"])
def detector(request):
    """Each detector at its own threshold."""
    if request.param == "mtcnn":
        return request.getfixturevalue("mtcnn")
    return detection.YuNet(file=request.getfixturevalue("yunet_path"))


def test_every_face_over_40_pixels_is_found_on_20_photographs_and_nothing_else(detector):
    import photograph_sets as sets

    for seed in range(20):
        picture, faces = sets.with_faces(seed, max_turn=10)
        assert sets.unmatched(detector.find(picture), faces) == ([], []), f"photograph {seed}"


def test_nothing_is_found_on_20_photographs_without_a_face(detector):
    import photograph_sets as sets

    assert len(sets.FACELESS) == 20
    assert {name: found for name in sets.FACELESS if (found := detector.find(sets.rgb(name)))} == {}


def test_real_faces_on_a_photograph_are_found(detector, real_data):
    import zipfile

    from fer_utils import images
    from fer_utils.data.splits import FER2013

    import photograph_sets as sets

    with zipfile.ZipFile(real_data[FER2013]) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/happy/"))[:40:4]
        crops = [images.decode(archive.read(name), name)[0] for name in names]
    found = 0
    for crop in crops:
        picture = sets.rgb("china.jpg")
        picture[150:294, 250:394] = cv2.resize(crop, (144, 144), interpolation=cv2.INTER_CUBIC)[..., None]
        found += any(
            abs(b.x + b.width / 2 - 322) < 40 and abs(b.y + b.height / 2 - 222) < 40 for b in detector.find(picture)
        )
    assert found >= 7  # FER2013 holds turned, covered and cut faces, all of them enlarged here from 48 pixels


@pytest.mark.parametrize("name", ["mtcnn", "yunet"])
def test_larger_smallest_finds_large_faces_at_the_same_place(name, request):
    import photograph_sets as sets

    given = str(request.getfixturevalue("yunet_path")) if name == "yunet" else name
    (box,) = detection.detector(given, smallest=40).find(sets.rgb("astronaut.png"))
    assert abs(box.x + box.width / 2 - 222) < 15 and abs(box.y + box.height / 2 - 117) < 15


@pytest.mark.parametrize("size", [0.3, 1, 3, 6])
def test_yunet_finds_one_face_in_a_small_picture_and_in_one_of_3072_pixels(yunet_path, size):
    import photograph_sets as sets

    picture = cv2.resize(sets.rgb("astronaut.png"), None, fx=size, fy=size)
    (box,) = detection.YuNet(file=yunet_path).find(picture)
    assert abs(box.x + box.width / 2 - 222 * size) < 15 * size and abs(box.width - 90 * size) < 20 * size


def test_another_file_than_yunets_is_refused_with_the_way_out(tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    for path, said in ((other, "is not face_detection_yunet_2023mar.onnx"), (tmp_path / "nowhere", "no file at")):
        with pytest.raises(detection.DetectorMissing, match=f"{said}.*opencv_zoo"):
            detection.detector(str(path))


def test_auto_takes_yunet_from_the_cache_and_goes_on_with_mtcnn_without_a_network(yunet_path, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise Exception("URL fetch failure: no network")

    said = []
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.utils.get_file", no_network)
    assert isinstance(detection.detector("auto", say=said.append), detection.Mtcnn)
    assert "mtcnn" in said[0] and "no network" in said[0] and detection.YUNET_URL in said[0]
    with pytest.raises(detection.DetectorMissing, match="could not be fetched"):
        detection.detector("yunet")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / detection.YUNET_NAME).write_bytes(yunet_path.read_bytes())
    assert isinstance(detection.detector("auto", say=said.append), detection.YuNet) and len(said) == 1


def test_a_file_that_is_fetched_is_checked_and_kept_in_the_cache(yunet_path, tmp_path, monkeypatch):
    asked = {}

    def get_file(name, url, cache_subdir, file_hash):
        asked.update(name=name, url=url, hash=file_hash)
        return str(yunet_path)

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.utils.get_file", get_file)
    assert detection.yunet_path() == yunet_path
    assert asked == {
        "name": detection.YUNET_NAME,
        "url": detection.YUNET_URL,
        "hash": detection.YUNET[detection.YUNET_NAME],
    }


@pytest.fixture
def yunet_2026may(yunet_path, tmp_path):
    """YuNet's file of May 2026, byte for byte: that of 2023 with sizes of input and outputs left open."""
    model = onnx.load(yunet_path)
    for place, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = "anchors"
    del model.graph.value_info[:]
    file = tmp_path / "2026may.onnx"
    file.write_bytes(model.SerializeToString())
    assert hashlib.sha256(file.read_bytes()).hexdigest() == detection.YUNET["face_detection_yunet_2026may.onnx"]
    return file


def test_both_files_of_yunet_find_the_same_faces_at_any_size(yunet_path, yunet_2026may):
    import photograph_sets as sets

    older, newer = detection.detector(str(yunet_path)), detection.detector(str(yunet_2026may))
    for size in ((512, 512), (640, 640), (321, 433), (1001, 500), (172, 448), (47, 20)):
        picture = cv2.resize(sets.rgb("astronaut.png"), size)
        assert older.find(picture) == newer.find(picture)
    assert older.find(sets.rgb("astronaut.png"))


@pytest.mark.parametrize("shape", [(1, 1, 3), (10, 300, 3), (300, 13, 3), (172, 448, 3)])
def test_small_and_narrow_pictures_hold_no_face(detector, shape):
    assert detector.find(np.full(shape, 90, np.uint8)) == []


def test_a_lower_threshold_shows_what_the_default_leaves_out(mtcnn):
    import photograph_sets as sets

    gravel = np.ascontiguousarray(sets.rgb("gravel.png")[:, ::-1])  # MTCNN takes some of it for a face
    boxes = detection.Mtcnn(threshold=0.75).find(gravel)
    assert boxes and all(0.75 <= box.confidence < mtcnn.THRESHOLD for box in boxes)
    assert mtcnn.find(gravel) == []


def test_a_missing_detector_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "mtcnn", None)
    with pytest.raises(detection.DetectorMissing, match=r'pip install "mtcnn.*--no-detect'):
        detection.Mtcnn()


def test_the_crop_is_a_square_around_the_box_and_repeats_the_edge():
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[:, 100:] = 200
    crop = detection.crop(picture, Box(80, 80, 40, 40, 1.0), 1.10)
    assert crop.shape == (48, 48) and crop.dtype == np.uint8
    assert (crop[:, :23] == 0).all() and (crop[:, 25:] == 200).all()
    corner = detection.crop(picture, Box(190, 190, 10, 10, 1.0), 1.10)
    assert (corner == 200).all()


def test_a_face_cut_by_the_border_is_cropped_as_if_the_picture_went_on():
    picture = np.random.default_rng(0).integers(0, 256, (120, 100, 3), np.uint8)
    padded = cv2.copyMakeBorder(picture, 60, 60, 60, 60, cv2.BORDER_REPLICATE)
    for x, y in ((-20, 30), (70, 90), (-15, -15), (20, 30)):
        cut, whole = Box(x, y, 50, 60, 1.0), Box(x + 60, y + 60, 50, 60, 1.0)
        assert (detection.crop(picture, cut, 1.1) == detection.crop(padded, whole, 1.1)).all()
    assert Box(-20, 90, 50, 60, 1.0).within(picture) == Box(0, 90, 30, 30, 1.0)


def test_the_box_of_a_face_at_the_border_is_neither_smaller_nor_shifted(detector):
    import photograph_sets as sets

    (whole,) = detector.find(sets.rgb("astronaut.png"))
    left = whole.x + whole.width // 5
    (cut,) = detector.find(np.ascontiguousarray(sets.rgb("astronaut.png")[:, left:]))
    assert cut.x < 0 and abs(cut.x + left + cut.width / 2 - whole.x - whole.width / 2) < 0.12 * whole.width
    assert cut.width > 0.85 * whole.width


def test_landmarks_are_eyes_nose_and_mouth_in_the_order_in_which_they_lie(detector):
    import photograph_sets as sets

    (box,) = detector.find(sets.rgb("astronaut.png"))
    left_eye, right_eye, nose, mouth_left, mouth_right = box.landmarks
    assert box.x < left_eye[0] < nose[0] < right_eye[0] < box.x + box.width and mouth_left[0] < mouth_right[0]
    assert box.y < left_eye[1] < nose[1] < mouth_left[1] < box.y + box.height


@pytest.mark.parametrize("angle", [-60, -30, -7, 0, 7, 30, 60])
def test_a_turned_face_is_cropped_upright(angle):
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8), (0, 0), 5)
    points = 150 + 20 * np.array(detection.UPRIGHT)
    way = cv2.getRotationMatrix2D((150, 150), -angle, 1)  # clockwise
    turned = cv2.warpAffine(picture, way, (300, 300))
    box = Box(110, 110, 80, 80, 1.0, tuple(map(tuple, np.hstack([points, np.ones((5, 1))]) @ way.T)))
    assert box.turn() == pytest.approx(angle)
    nearly = np.hstack([points, np.ones((5, 1))]) @ cv2.getRotationMatrix2D((150, 150), detection.TREMBLE - 1, 1).T
    assert Box(110, 110, 80, 80, 1.0, tuple(map(tuple, nearly))).turn() == 0
    upright = detection.crop(picture, Box(110, 110, 80, 80, 1.0), 1.1).astype(int)
    assert np.abs(detection.crop(turned, box, 1.1) - upright).max() <= 6


@pytest.mark.parametrize("framing", [detection.Mtcnn.framing, detection.YuNet.framing])
def test_the_crop_frames_a_marked_face_by_the_measured_margin(framing):
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[150:250, 150:250] = 255
    crop = detection.crop(picture, Box(150, 150, 100, 100, 1.0), framing)
    assert crop.mean() / 255 == pytest.approx(1 / framing**2, rel=0.03)


def test_photographs_given_as_extra_are_cropped_to_their_one_face(tmp_path):
    import photograph_sets as sets

    astronaut = sets.rgb("astronaut.png")
    folder = tmp_path / "happy"
    folder.mkdir()
    for name, picture in (
        ("one.png", astronaut),
        ("two.png", np.hstack([astronaut, astronaut])),
        ("none.png", sets.rgb("gravel.png")),
    ):
        cv2.imwrite(str(folder / name), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with sources.open_extra(tmp_path, "mine", "train", find_faces=detection.face_finder("detect")) as source:
        merged = splits.read_all([source], "error")
    flags = {row.source_path: row.flags for row in merged.table.itertuples()}
    assert flags["happy/one.png"] == "colour face_cropped"
    assert flags["happy/two.png"].endswith("several_faces") and flags["happy/none.png"].endswith("no_face_found")
    (face,) = detection.face_finder("detect")(astronaut)
    row = list(flags).index("happy/one.png")
    assert (merged.pixels[row] == face).all() and face.shape == (48, 48)
    assert detection.face_finder("whole") is None


def test_mtcnn_says_that_it_computes_with_tensorflow_alone(monkeypatch):
    monkeypatch.setattr("keras.config.backend", lambda: "jax")
    with pytest.raises(
        detection.DetectorMissing, match=r"TensorFlow alone, and KERAS_BACKEND is jax: name YuNet's file"
    ):
        detection.Mtcnn()
