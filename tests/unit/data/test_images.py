"""Pictures are decoded, repaired and refused as the docstring of `decode` says."""

import io

from fer_utils import images
from fer_utils.data.demo import draw_face

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

FACE = draw_face("happy", np.random.default_rng(3))


def _coded(image: np.ndarray, kind: str, **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_a_lossless_grey_face_comes_back_as_it_is(kind):
    image, flags = images.decode(_coded(FACE, kind), "a")
    assert image.dtype == np.uint8 and np.array_equal(image, FACE) and flags == ()


def test_colour_is_flagged_and_becomes_its_luma():
    colour = np.zeros((48, 48, 3), np.uint8)
    colour[:24, :, 0], colour[24:, :, 1] = 200, 200  # red above, green below
    image, flags = images.decode(_coded(colour, "PNG"), "a")
    assert flags == ("colour",)
    assert abs(int(image[0, 0]) - 0.299 * 200) < 1 and abs(int(image[40, 0]) - 0.587 * 200) < 1


@pytest.mark.parametrize("shape", [(96, 96), (64, 48), (20, 30)])
def test_another_size_is_flagged_and_resized(shape):
    image, flags = images.decode(_coded(cv2.resize(FACE, shape[::-1]), "PNG"), "a")
    assert image.shape == (48, 48) and flags == ("resized",)
    assert abs(image.mean() - FACE.mean()) < 5


def test_resizing_down_averages():
    image, _ = images.decode(_coded(np.repeat(np.repeat(FACE, 2, 0), 2, 1), "PNG"), "a")
    assert np.array_equal(image, FACE)


def test_blank_is_flagged_and_stays():
    image, flags = images.decode(_coded(np.full((48, 48), 7, np.uint8), "PNG"), "a")
    assert flags == ("blank",) and (image == 7).all()


def test_flags_add_up():
    assert images.decode(_coded(np.full((9, 9, 3), 7, np.uint8), "PNG"), "a")[1] == ("colour", "resized", "blank")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_ends_early_is_unreadable_and_named(kind, share):
    data = _coded(FACE, kind)
    with pytest.raises(images.UnreadableImage, match=r"some/face\.x: not a whole image file"):
        images.decode(data[: int(len(data) * share)], "some/face.x")


def test_an_empty_file_and_a_text_file_are_unreadable_and_named():
    with pytest.raises(images.UnreadableImage, match=r"a\.jpg: the file is empty"):
        images.decode(b"", "a.jpg")
    with pytest.raises(images.UnreadableImage, match=r"a\.jpg: not a whole image"):
        images.decode(b"<html>404 not found</html>", "a.jpg")


@pytest.mark.parametrize(("kind", "place", "value"), [("PNG", 11, 5), ("BMP", 47, 255), ("BMP", 46, 1)])
def test_a_damaged_header_is_unreadable(kind, place, value):
    data = bytearray(_coded(FACE, kind))
    data[place] = value
    with pytest.raises(images.UnreadableImage, match="not a whole image file"):
        images.decode(bytes(data), "a")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF"]),
    places=st.lists(st.floats(0, 0.999), max_size=6),
    value=st.integers(0, 255),
    keep=st.floats(0.05, 1),
)
def test_a_damaged_file_is_decoded_or_unreadable_and_nothing_else(kind, places, value, keep):
    data = bytearray(_coded(FACE, kind))
    for place in places:
        data[int(place * len(data))] = value
    try:
        image, _ = images.decode(bytes(data[: int(keep * len(data))]), "a")
    except images.UnreadableImage:
        return
    assert image.shape == (48, 48) and image.dtype == np.uint8


def test_the_fingerprint_is_of_the_pixels_not_of_the_file():
    one, other = _coded(FACE, "PNG", compress_level=0), _coded(FACE, "PNG", compress_level=9)
    assert one != other
    prints = {images.fingerprint(images.decode(data, "a")[0]) for data in (one, other, _coded(FACE, "BMP"))}
    assert prints == {images.fingerprint(FACE)}
    changed = FACE.copy()
    changed[47, 47] ^= 1
    assert images.fingerprint(changed) not in prints
    assert images.fingerprint(FACE[:, ::-1]) == images.fingerprint(FACE[:, ::-1].copy()) not in prints


def test_encoding_as_png_loses_nothing():
    assert np.array_equal(images.decode(images.encode_png(FACE), "a")[0], FACE)


def test_load_keeps_the_order_and_names_what_it_cannot_read(tmp_path):
    paths = [tmp_path / f"{value}.png" for value in range(40)]
    for value, path in enumerate(paths):
        path.write_bytes(images.encode_png(np.full((48, 48), value, np.uint8)))
    assert images.load(paths)[:, 0, 0].tolist() == list(range(40))
    paths[7].write_bytes(b"")
    with pytest.raises(images.UnreadableImage, match=r"7\.png"):
        images.load(paths)
