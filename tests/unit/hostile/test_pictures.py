"""Picture files from strangers: each is decoded, or refused by a sentence, by one worker that stays under 1 GB."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

from fer_utils import images
from fer_utils.data import augmentation, sources
from fer_utils.data.demo import draw_face

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from surroundings import make_socket, unchanged

FACE = Image.fromarray(draw_face("happy", np.random.default_rng(3)))
MOST_BYTES, MOST_SECONDS = 1_000_000_000, 10
LARGEST = 7_141  # side of a square picture of just under 51 megapixels


def _coded(kind: str, picture: Image.Image = FACE, **how: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def _png(width: int, height: int, depth: int = 8, colour: int = 0, rows: int | None = None) -> bytes:
    """A black PNG with this header; of its rows, all or so many."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    pack, row = zlib.compressobj(1), bytes(1 + (width * depth * channels + 7) // 8)
    packed = b"".join(pack.compress(row) for _ in range(height if rows is None else rows)) + pack.flush()
    chunks = (b"IHDR", struct.pack(">LL5B", width, height, depth, colour, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _tiff(entries: dict[int, tuple[int, int, int]], data: bytes = b"", following: int = 0) -> bytes:
    """A grey TIFF of 48×48. entries: tag → (type, count, value), added to the usual ones; data: the file's end, at 512."""
    usual = {256: (4, 1, 48), 257: (4, 1, 48), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 512),
             277: (3, 1, 1), 278: (4, 1, 48), 279: (4, 1, 48 * 48)}  # fmt: skip
    all_of_them = sorted((usual | entries).items())
    head = b"II*\0" + struct.pack("<LH", 8, len(all_of_them))
    head += b"".join(struct.pack("<HHLL", tag, *entry) for tag, entry in all_of_them) + struct.pack("<L", following)
    return head.ljust(512, b"\0") + (data or FACE.tobytes())


def _webp(side: int) -> bytes:
    """A picture of one colour, whose pixels take no bytes, with this side in its header (14 bits each, less one)."""
    data = _coded("WEBP", Image.new("RGB", (48, 48)), lossless=True, method=0, quality=0)
    return _patched(data, b"VP8L", 9, struct.pack("<L", (side - 1) * (1 + (1 << 14)) | data[24] >> 4 << 28))


def _sparse(size: int, begin: bytes = b"") -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(begin)
        os.truncate(path, size)  # takes no space

    return make


def _patched(content: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    place = content.index(mark) + offset
    return content[:place] + new + content[place + len(new) :]


def _exif(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


NO_RESOLUTION = (282, 10, 1, struct.pack("<lLl", 38, 0, -1)[:4])  # its value, −1/0, is what _tags writes at 38


def _tags(tag: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of orientation 6 and another tag: its number, type, count, and value or where that lies."""
    both = sorted([(274, 3, 1, struct.pack("<HH", 6, 0)), tag])
    head = b"II*\0" + struct.pack("<LH", 8, 2) + b"".join(struct.pack("<HHL4s", *entry) for entry in both)
    return b"Exif\0\0" + head + bytes(4) + struct.pack("<ll", -1, 0)


def _text_of_100_mb() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "x" * 100_000_000, zip=True)
    return _coded("PNG", pnginfo=text)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\nshowpage\n%%EOF\n"
WHOLE, NO_DATASET = [48, 48, 3], r"not a whole image file \(it is no JPEG, PNG, BMP\)"
NONE, CUT = (
    r"not a whole image file \(it is no JPEG, PNG, BMP, WEBP, TIFF, GIF(, AVIF)?(, HEIF)?\): save it again in a program that",
    r"not a whole image file \(",
)
LARGE = r"megapixels; at most 51 are read, 65,535 pixels a side: make it smaller"
FAR = r"is far over 51 megapixels \(.*\): make it smaller"
NO_FILE = r"cannot be read \(it is no regular file\): give an image file"

# The file → (its bytes or how it is made, what a photograph is, what a dataset's picture is): a shape, flags, or a sentence.
CASES = {
    "eps.jpg": (EPS, NONE, NO_DATASET),
    "eps_in_dos.png": (b"\xc5\xd0\xd3\xc6" + struct.pack("<LL", 32, len(EPS)) + bytes(20) + EPS, NONE, NO_DATASET),
    "pdf.jpg": (b"%PDF-1.7\n", NONE, NO_DATASET),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", NONE, NO_DATASET),
    "ico.png": (_coded("ICO"), NONE, NO_DATASET),
    "ppm.bmp": (_coded("PPM"), NONE, NO_DATASET),
    "tga.jpg": (_coded("TGA"), NONE, NO_DATASET),
    "jpeg2000.jpg": (_coded("JPEG2000"), NONE, NO_DATASET),
    "gif.jpg": (_coded("GIF"), WHOLE, NO_DATASET),
    "png.jpg": (_coded("PNG"), WHOLE, []),
    "empty.jpg": (b"", r"the file is empty \(zero bytes\): copy it again", r"the file is empty \(zero bytes\)"),
    "head.gif": (_coded("GIF")[:9], r"it begins as GIF, and is cut off or damaged\): save it again", NO_DATASET),
    "head.bmp": (_coded("BMP")[:16], r"begins as BMP, and is cut off", r"it begins as BMP, and is cut off or damaged\): "),
    "deep.png": (_coded("PNG", Image.fromarray(np.array(FACE, np.uint16) * 16)), WHOLE, ["colour"]),
    "heic.png": (b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", r"(it begins as HEIF, and is cut off)|(is HEIC, which needs pillow-heif)", NO_DATASET),
    "bomb.png": (_png(13_200, 13_200, depth=1), rf"13,200 × 13,200 pixels, 174 {LARGE}", rf"13,200 × 13,200 pixels, 174 {LARGE}"),
    "bomb_of_colours.png": (_png(13_200, 13_200, 16, 6, rows=99), rf"174 {LARGE}", rf"174 {LARGE}"),
    "far_bomb.png": (_png(65_000, 65_000, rows=9), FAR, FAR),
    "long.png": (_png(1, 51_000_000, rows=9), rf"1 × 51,000,000 pixels, 51 {LARGE}", rf"51 {LARGE}"),
    "largest.png": (_png(LARGEST, LARGEST, 8, 6), [LARGEST, LARGEST, 3], ["colour", "resized", "blank"]),
    "largest_of_16_bits.png": (_png(LARGEST, LARGEST, 16, 0), [LARGEST, LARGEST, 3], ["colour", "resized", "blank"]),
    "largest.webp": (_webp(LARGEST), [LARGEST, LARGEST, 3], NO_DATASET),
    "bomb.webp": (_webp(13_200), rf"13,200 × 13,200 pixels, 174 {LARGE}", NO_DATASET),
    "thin.png": (_png(3, 65_000), [65_000, 3, 3], ["resized", "blank"]),
    "no_width.png": (_png(0, 48), CUT, CUT),
    "fewer_rows.png": (_png(48, 48, rows=20), WHOLE, ["blank"]),
    "text.png": (_text_of_100_mb(), f"({CUT})", f"({CUT})"),
    "header.jpg": (_patched(_coded("JPEG"), b"\xff\xc0", 5, b"\xff\xdc\xff\xdc"), FAR, FAR),
    "64_megapixels.jpg": (_patched(_coded("JPEG"), b"\xff\xc0", 5, struct.pack(">HH", 8000, 8000)), rf"64 {LARGE}", rf"64 {LARGE}"),
    "progressive_header.jpg": (
        _patched(_coded("JPEG", progressive=True), b"\xff\xc2", 5, struct.pack(">HH", 9999, 9999)), rf"100 {LARGE}", rf"100 {LARGE}"),
    "two_in_one.jpg": (_coded("MPO", save_all=True, append_images=[FACE]), WHOLE, []),
    "half.jpg": (_coded("JPEG")[:400], CUT, CUT),
    "orientation_99.jpg": (_coded("JPEG", exif=_exif(99)), WHOLE, []),
    "no_exif.jpg": (_coded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), WHOLE, []),
    # Orientation 6, and tags that Pillow reads and cannot write: an XResolution of −1/0, and a text as BitsPerSample.
    "turned_of_no_resolution.jpg": (_coded("JPEG", FACE.resize((60, 48)), exif=_tags(NO_RESOLUTION)), [60, 48, 3], ["resized"]),
    "turned_of_text.jpg": (_coded("JPEG", FACE.resize((60, 48)), exif=_tags((258, 2, 4, b"8 8\0"))), [60, 48, 3], ["resized"]),
    "turned_of_text.png": (_coded("PNG", FACE.resize((60, 48)), exif=_tags((258, 2, 4, b"8 8\0"))), [60, 48, 3], ["resized"]),
    "turned.jpg": (_coded("JPEG", FACE.resize((60, 48)), exif=_exif(6)), [60, 48, 3], ["resized"]),
    "wide.bmp": (_patched(_coded("BMP"), b"BM", 18, struct.pack("<l", 2**31 - 1)), FAR, FAR),
    "upside.bmp": (_patched(_coded("BMP"), b"BM", 22, struct.pack("<l", -48)), WHOLE, []),
    "screen.gif": (_patched(_coded("GIF"), b"GIF8", 6, b"\xff\xff\xff\xff"), FAR, NO_DATASET),
    "frame.gif": (_patched(_coded("GIF"), b"\x2c\0\0\0\0\x30\0\x30\0", 5, b"\xff\xff\xff\xff"), FAR, NO_DATASET),
    "thousand_frames.gif": (
        _coded("GIF", save_all=True, append_images=[Image.new("L", (48, 48), n % 256) for n in range(1000)]), WHOLE, NO_DATASET),
    "plain.tif": (_tiff({}), WHOLE, NO_DATASET),
    "tile.tif": (_tiff({259: (3, 1, 8), 322: (4, 1, 30_000), 323: (4, 1, 30_000)}), rf"30,000 × 30,000 pixels, 900 {LARGE}", NO_DATASET),
    "tile_in_words.tif": (_tiff({322: (2, 4, 0x2E2E2E), 323: (4, 1, 2**32 - 1)}), CUT, NO_DATASET),
    "next_is_itself.tif": (_tiff({}, following=8), WHOLE, NO_DATASET),
    "many_values.tif": (_tiff({273: (4, 2**31, 512)}), f"({CUT})|({NONE[:-2]})", NO_DATASET),
    "not_a_number.tif": (
        _coded("TIFF", Image.fromarray(np.full((48, 48), np.nan, np.float32))), r"\(it holds values that are no numbers\)", NO_DATASET),
    "largest_of_floats.tif": (
        _sparse(512 + 4 * LARGEST**2, _tiff({256: (4, 1, LARGEST), 257: (4, 1, LARGEST), 258: (3, 1, 32), 339: (3, 1, 3),
                                             278: (4, 1, LARGEST), 279: (4, 1, 4 * LARGEST**2)}, b"\0")),
        [LARGEST, LARGEST, 3], r"has 203,976,036 bytes; at most 10,000,000 are read: save it smaller"),
    "five_gigabytes.webp": (
        _sparse(5_000_000_000, b"RIFF"), r"has 5,000,000,000 bytes; at most 205,000,000 are read: save it sm", r"at most 10,000,000 are"),
    "pipe.jpg": (os.mkfifo, NO_FILE, NO_FILE),
    "socket.jpg": (make_socket, NO_FILE, NO_FILE),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), NO_FILE, NO_FILE),
    "folder.jpg": (Path.mkdir, NO_FILE, NO_FILE),
    "dead_link.jpg": (lambda path: path.symlink_to("nowhere"), r"cannot be read \(No such file", r"cannot be read \(No such"),
    "link_to_itself.jpg": (lambda path: path.symlink_to(path.name), r"cannot be read \(Too many levels", r"\(Too many levels"),
    "link.jpg": (lambda path: path.symlink_to("png.jpg"), WHOLE, []),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple]:
    """What one worker makes of all files, with a Ghostscript in its path that tells when it is started."""
    folder = tmp_path_factory.mktemp("pictures")
    programs = tmp_path_factory.mktemp("programs")
    for name in ("gs", "gswin64c"):
        (programs / name).write_text(f"#!/bin/sh\ntouch '{folder}/started'\n")
        (programs / name).chmod(0o755)
    for name, (content, *_) in CASES.items():
        content(folder / name) if callable(content) else (folder / name).write_bytes(content)
    paths = {name: folder / name for name in CASES}
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(Path.cwd())}
    before = {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("picture_worker.py"), *paths.values()],
        capture_output=True, text=True, timeout=90, env=environment, check=True,
    )  # fmt: skip
    assert {path.name: path.lstat().st_mtime_ns for path in folder.iterdir()} == before
    found, peak = done.stdout.splitlines()
    assert int(peak) < MOST_BYTES, f"the worker took {int(peak):,} bytes"
    return dict(zip(CASES, json.loads(found), strict=True))


def _is(found: object, expected: object) -> bool:
    if isinstance(expected, list) or isinstance(found, list):
        return found == expected
    return bool(re.match(rf"UnreadableImage: .*(?:{expected})", found, re.DOTALL)) and len(found) < 500


@pytest.mark.parametrize("name", CASES)
def test_a_picture_is_decoded_or_refused_by_a_sentence(name, answers):
    _, photograph, of_a_dataset = CASES[name]
    as_photograph, in_a_dataset, seconds = answers[name]
    assert _is(as_photograph, photograph), as_photograph
    assert _is(in_a_dataset, of_a_dataset), in_a_dataset
    assert seconds < MOST_SECONDS


def test_a_source_names_the_file_that_it_refuses(tmp_path):
    (tmp_path / "happy").mkdir()
    (tmp_path / "happy/bomb.png").write_bytes(_png(13_200, 13_200, depth=1))
    with unchanged(tmp_path), sources.open_extra(tmp_path, "mine", "train") as source:
        content = source.read("happy/bomb.png")
        with pytest.raises(images.UnreadableImage, match=rf"happy/bomb\.png: has 13,200 × 13,200 pixels, 174 {LARGE}"):
            source.decode(content, "happy/bomb.png")


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_no_augmented_copy_equals_its_original_not_even_of_a_blank_picture(grey):
    blank = np.full((48, 48), grey, np.uint8)
    assert not any(np.array_equal(augmentation.augmented_copy(blank, "a", copy, 0), blank) for copy in range(1, 101))
