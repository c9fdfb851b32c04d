"""Pictures are decoded, repaired and refused as the docstring of `decode` says."""

import io

from fer_utils import images
from fer_utils.data.demo import draw_face

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

FACE = draw_face("happy", np.random.default_rng(3))


def _coded(image: np.ndarray | Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **how)
    return file.getvalue()


def _both(data: bytes) -> np.ndarray:
    """The grey of a picture, which is the same in a dataset and in a photograph."""
    grey, rgb = images.decode(data, "a")[0], images.decode_photograph(data)
    assert (rgb == grey[..., None]).all()
    return grey


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


# --- one decoding for datasets and photographs -------------------------------------------------------------------------

COLOURS = np.random.default_rng(5).integers(0, 256, (600, 48, 3), np.uint8)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
    + [(kind, mode) for kind in ("PNG", "BMP", "TIFF") for mode in ("L", "RGB", "P", "1")],
)
def test_of_an_ordinary_picture_no_pixel_changes(kind, mode):
    data = _coded(Image.fromarray(COLOURS).convert(mode), kind)
    plain = Image.open(io.BytesIO(data))
    assert np.array_equal(images.decode_photograph(data), np.asarray(plain.convert("RGB")))
    if kind != "TIFF":
        grey = cv2.resize(np.asarray(plain.convert("L")), (48, 48), interpolation=cv2.INTER_AREA)
        assert np.array_equal(images.decode(data, "a")[0], grey)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_of_16_bits_as_many_count_as_the_picture_uses(bits):
    deep = np.rint(FACE * ((2**bits - 1) / 255)).astype(np.uint16)
    assert np.array_equal(_both(_coded(deep, "PNG")), FACE)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0, 1, (0, 255)), (0, 0.5, (0, 128)), (0, 255, (0, 255)), (0, 4095, (0, 255)), (-3, 5, (0, 255)), (0, 1e6, (0, 255)),
     (0, 0, (0, 0)), (7, 7, (7, 7)), (-2, -2, (0, 0))],
)  # fmt: skip
def test_fractions_and_other_numbers_keep_black_and_white(low, high, shown):
    values = np.full((48, 48), low, np.float32)
    values[24:] = high
    rgb = images.decode_photograph(_coded(values, "TIFF"))
    assert (rgb[0, 0, 0], rgb[-1, 0, 0]) == shown


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(kind):
    half = np.maximum(FACE, 1)
    half[:, 24:] = 0
    if kind == "P":
        data = _coded(Image.fromarray(half).convert("P"), "PNG", transparency=0)
    else:
        alpha = Image.fromarray(np.where(half, 255, 0).astype(np.uint8))
        data = _coded(Image.merge("LA", (Image.fromarray(half), alpha)).convert(kind), "PNG")
    assert np.array_equal(_both(data), np.where(half, half, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_by_their_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)  # turns back what the other turns
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(_coded(FACE, "PNG", exif=exif))))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(_both(_coded(turned, "PNG", exif=exif)), FACE)


OTHER = Image.fromarray(FACE[::-1].copy())
AS_THEY_COME = {
    "JFIF": ("JPEG", {"quality": 95}),
    "MPO": ("MPO", {"quality": 95, "save_all": True, "append_images": [OTHER.copy()]}),
    "WebP": ("WEBP", {"lossless": True}),
    "animated WebP": ("WEBP", {"lossless": True, "save_all": True, "append_images": [OTHER.copy()]}),
    "animated GIF": ("GIF", {"save_all": True, "append_images": [OTHER.copy()]}),
    "animated PNG": ("PNG", {"save_all": True, "append_images": [OTHER.copy()]}),
    "TIFF of two pages": ("TIFF", {"save_all": True, "append_images": [OTHER.copy()]}),
    "AVIF": ("AVIF", {"quality": 95}),
    "animated AVIF": ("AVIF", {"quality": 95, "save_all": True, "append_images": [OTHER.copy()]}),
    "HEIC": ("HEIF", {"quality": 95}),
    "HEIC of two pictures": ("HEIF", {"quality": 95, "save_all": True, "append_images": [OTHER.copy()]}),
}


@pytest.mark.parametrize("name", AS_THEY_COME)
def test_a_picture_of_any_usual_format_is_read_and_of_several_the_first(name):
    kind, how = AS_THEY_COME[name]
    if kind == "HEIF":
        pytest.importorskip("pillow_heif.HeifImagePlugin")
    elif kind == "AVIF" and kind not in images.PHOTOGRAPH_FORMATS:
        pytest.skip("this Pillow has no AVIF")
    rgb = images.decode_photograph(_coded(Image.fromarray(FACE).convert("RGB"), kind, **how))
    assert rgb.shape == (48, 48, 3) and np.abs(rgb[..., 1].astype(int) - FACE).mean() < 3


def test_heic_is_turned_once():
    pytest.importorskip("pillow_heif.HeifImagePlugin")
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _coded(Image.fromarray(FACE).convert("RGB"), "HEIF", quality=95, exif=exif.tobytes())
    assert b"irot" in data  # the file tells it twice, as a phone's does
    assert np.abs(images.decode_photograph(data)[..., 1].astype(int) - np.rot90(FACE, -1)).mean() < 3


def test_heic_without_its_package_names_the_package(monkeypatch):
    monkeypatch.setattr(images, "PHOTOGRAPH_FORMATS", images.FORMATS)
    way = r'`uv sync --extra heic`, or `pip install "pillow-heif>=1,<2"`'  # cmd.exe knows no single quotes
    with pytest.raises(images.UnreadableImage, match=rf"is HEIC, which needs pillow-heif: {way}"):
        images.decode_photograph(b"\0\0\0\x1cftypheic" + bytes(16))
