"""How many faces each detector finds, and how many boxes are no face's, at several thresholds of its confidence.

    python tests/benchmarks/detection.py --fer2013 data/fer2013.zip

YuNet's file is fetched, or given with `--yunet PATH`. Of each detector's boxes on FER2013's faces, mean side and centre are
printed too, in parts of the picture's side: the inverse of the side is how a crop is framed. Seconds are of the detector alone,
the two in turn on each picture.

Photographs with faces at known places are those of tests/unit/photograph_sets.py, upright and turned by up to 45°.
Portraits are scikit-image's astronaut and matplotlib's Grace Hopper, at four sizes, as they are, dark, blurred, noisy,
and as JPEG of quality 20. With --fer2013, 300 faces of its train folder too, of all classes, each enlarged to 144 px in a
grey picture of 320 × 320. Without a face: the 20 photographs of photograph_sets.py, as they are, mirrored, upside down, at
half size and at 1.5 times their size, and 100 patches without a face of scikit-image's `lfw_subset`, enlarged to 144 px.
A box counts as found where its centre lies within 0.35 of the face's width; every other box counts as false.

    python tests/benchmarks/detection.py --fer2013 data/fer2013.zip --align 300

measures instead what turning crops upright by the landmarks does to the shipped model: 300 faces of FER2013's test folder,
enlarged as above, upright, turned by up to 30° to either side, and under each corruption of evaluation.inference in its
middle strength. The accuracy is that on the faces found, cropped as they are and turned upright.
"""

import argparse
import statistics
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fer_utils import images, places
from fer_utils.classes import CLASSES
from fer_utils.predict import detection
from fer_utils.predict.detection import Box, Detector
from fer_utils.predict.reader import Reader

import cv2
import matplotlib.cbook
import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import photograph_sets as sets

THRESHOLDS = {
    "mtcnn": (0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.97, 0.99),
    "yunet": (0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9),
}
SIDE = 144  # pixels: a small face's side after enlarging
N_FER2013 = 300
GREY = 128
PORTRAITS = {"astronaut": (222, 117, 80), "grace_hopper": (263, 230, 190)}  # the face's centre and width, read off

Photograph = tuple[str, np.ndarray, list]  # name, RGB, faces as (x, y, width)


def composed(max_turn: float) -> Iterator[Photograph]:
    """Twenty photographs with 50 faces, each turned by up to `max_turn` degrees."""
    for seed in range(20):
        yield f"photograph {seed}", *sets.with_faces(seed, max_turn)


def portraits() -> Iterator[Photograph]:
    """Two clear portraits, each at four sizes and five qualities."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        pictures = {"astronaut": sets.rgb("astronaut.png"), "grace_hopper": np.array(Image.open(file).convert("RGB"))}
    for name, picture in pictures.items():
        for size in (0.4, 0.7, 1.0, 1.6):
            scaled = cv2.resize(picture, None, fx=size, fy=size, interpolation=cv2.INTER_AREA)
            face = tuple(size * value for value in PORTRAITS[name])
            for quality, changed in _qualities(scaled).items():
                yield f"{name} × {size}, {quality}", changed, [face]


def _qualities(picture: np.ndarray) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).normal(0, 20, picture.shape)
    jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 20])[1]
    return {
        "as it is": picture,
        "dark": (picture * 0.4).astype(np.uint8),
        "blurred": cv2.GaussianBlur(picture, (0, 0), 2),
        "noisy": np.clip(picture + noise, 0, 255).astype(np.uint8),
        "JPEG 20": cv2.imdecode(jpeg, cv2.IMREAD_COLOR),
    }


def fer2013(archive: Path) -> Iterator[Photograph]:
    """Faces of FER2013's train folder, the classes in turn, each alone in a grey picture."""
    for name, crop, _ in crops(archive, "train", N_FER2013):
        yield name, on_grey(crop), [(160, 160, SIDE)]


def crops(archive: Path, part: str, n: int) -> Iterator[tuple[str, np.ndarray, int]]:
    """n pictures of FER2013's train or test folder, the classes in turn: name, picture, and the class's place."""
    with zipfile.ZipFile(archive) as file:
        inside = sorted(file.namelist())
        of_class = [[name for name in inside if f"{part}/{label}/" in name and name[-1] != "/"] for label in CLASSES]
        chosen = [names[:: max(1, len(names) // n)] for names in of_class]
        for place in range(n):
            name = chosen[place % len(CLASSES)][place // len(CLASSES)]
            yield name, images.decode(file.read(name), name)[0], place % len(CLASSES)


def on_grey(crop: np.ndarray) -> np.ndarray:
    """A small grey picture, enlarged to SIDE, in the middle of a grey one: RGB (320, 320, 3)."""
    picture = np.full((320, 320), GREY, np.uint8)
    begin = (320 - SIDE) // 2
    enlarged = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    picture[begin : begin + SIDE, begin : begin + SIDE] = enlarged
    return np.dstack([picture] * 3)


def faceless() -> Iterator[Photograph]:
    """Photographs and patches without a face."""
    for name in sets.FACELESS:
        picture = sets.rgb(name)
        views = {"as it is": picture, "mirrored": picture[:, ::-1], "upside down": picture[::-1]}
        views |= {f"× {size}": cv2.resize(picture, None, fx=size, fy=size) for size in (0.5, 1.5)}
        for view, changed in views.items():
            yield f"{name}, {view}", np.ascontiguousarray(changed), []
    patches = np.load(sets.SKIMAGE / "lfw_subset.npy")[100:]  # the first hundred are faces
    for number, patch in enumerate(patches):
        scaled = (255 * (patch - patch.min()) / max(np.ptp(patch), 1e-9)).astype(np.uint8)
        yield f"lfw_subset {number}", on_grey(scaled), []


@dataclass
class Measured:
    """What one detector found in the photographs of one kind: confidences, and for false boxes photograph and box."""

    found: list[Box] = field(default_factory=list)
    false: list[tuple[str, Box]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def measured(detectors: dict[str, Detector], photographs: list[Photograph]) -> dict[str, Measured]:
    """What each detector finds, the detectors in turn on each photograph."""
    results = {name: Measured() for name in detectors}
    for photograph, picture, faces in tqdm(photographs, leave=False, disable=None):
        for name, detector in detectors.items():
            began = time.perf_counter()
            boxes = detector.find(picture)
            result = results[name]
            result.seconds.append(time.perf_counter() - began)
            _, strangers = sets.unmatched(sorted(boxes, key=lambda box: -box.confidence), faces)
            result.found += [box for box in boxes if box not in strangers]
            result.false += [(photograph, box) for box in strangers]
    return results


def show(results: dict[str, Measured], n_faces: dict[str, int], thresholds: tuple[float, ...]) -> None:
    """Print one detector's table, its framing and its false boxes."""
    print("found of all faces + false boxes")
    print(f"{'threshold':9}" + "".join(f"{name:>18}" for name in results))
    for threshold in thresholds:
        cells = []
        for name, result in results.items():
            n_found = sum(box.confidence >= threshold for box in result.found)
            n_false = sum(box.confidence >= threshold for _, box in result.false)
            cells.append(f"{f'{n_found}/{n_faces[name]} + {n_false}':>18}")
        print(f"{threshold:<9}" + "".join(cells))
    print("median ms " + "".join(f"{1000 * statistics.median(result.seconds):>18.1f}" for result in results.values()))
    for name, result in results.items():
        for photograph, box in sorted(result.false, key=lambda entry: -entry[1].confidence)[:8]:
            place = f"{box.width}×{box.height} at {box.x},{box.y}"
            print(f"false, {name}: {box.confidence:.3f}  {place}  {photograph}")


def show_framing(boxes: list[Box]) -> None:
    """Print the boxes' mean side and centre in parts of FER2013's picture, which is SIDE wide at (160, 160)."""
    sides = np.array([(box.width * box.height) ** 0.5 for box in boxes]) / SIDE
    begin = 160 - SIDE / 2
    across = np.mean([(box.x + box.width / 2 - begin) / SIDE for box in boxes])
    down = np.mean([(box.y + box.height / 2 - begin) / SIDE for box in boxes])
    low, high = np.percentile(sides, (10, 90))
    print(
        f"boxes of {len(boxes)} faces of FER2013: side {sides.mean():.3f} (10 %–90 %: {low:.2f}–{high:.2f}),", end=" "
    )
    print(f"centre {across:.2f} across, {down:.2f} down; framing {1 / sides.mean():.3f}")


def show_alignment(detectors: dict[str, Detector], archive: Path, n: int) -> None:
    """Print the shipped model's accuracy with and without crops that are turned upright."""
    from fer_utils.evaluation import inference  # Keras takes a while to import

    _, faces, labels = map(np.array, zip(*crops(archive, "test", n), strict=True))
    kinds = [kind for kind in inference.STRENGTHS if kind != "rotation"]
    cases = {f"turned by {angle}°": (faces, angle) for angle in (0, -30, 30, -20, 20, -10, 10)}
    cases |= {kind: (inference.corrupt(faces[..., None], kind, 2, 0)[..., 0], 0) for kind in kinds}
    reader = Reader(places.SHIPPED, None)
    print(f"{'':12}{'':18}{'found':>7}{'as it is':>10}{'upright':>10}{'gained':>8}{'lost':>6}")
    for name, detector in detectors.items():
        for case, (pictures, angle) in cases.items():
            way = cv2.getRotationMatrix2D((159.5, 159.5), -angle, 1)
            found, right = [], []
            for picture, label in zip(pictures, labels, strict=True):
                turned = cv2.warpAffine(on_grey(picture), way, (320, 320), borderMode=cv2.BORDER_REPLICATE)
                for box in sorted(detector.find(turned), key=lambda box: box.confidence)[-1:]:
                    both = replace(box, landmarks=()), box
                    found.append([detection.crop(turned, one, detector.framing) for one in both])
                    right.append([label, label])
            answers = reader.probabilities(np.concatenate(found)).argmax(axis=1).reshape(-1, 2)
            before, after = (answers == right).T
            counts = f"{(after & ~before).sum():>8}{(before & ~after).sum():>6}"
            print(f"{name:12}{case:18}{len(before):>7}{before.mean():>10.3f}{after.mean():>10.3f}{counts}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fer2013", type=Path, help="FER2013 as a zip file of folders")
    parser.add_argument("--yunet", type=Path, help="YuNet's file")
    parser.add_argument("--align", type=int, metavar="N", help="measure crops turned upright, on N faces of FER2013")
    parser.add_argument("--detectors", nargs="+", choices=tuple(THRESHOLDS), default=[*THRESHOLDS])
    options = parser.parse_args()
    if options.align:
        chosen = {"mtcnn": detection.Mtcnn, "yunet": lambda: detection.YuNet(file=options.yunet)}
        show_alignment({name: chosen[name]() for name in options.detectors}, options.fer2013, options.align)
        return
    parts = {"upright": list(composed(10)), "turned": list(composed(45)), "portraits": list(portraits())}
    if options.fer2013:
        parts["FER2013"] = list(fer2013(options.fer2013))
    parts["no face"] = list(faceless())
    # A box is dropped for a surer one that it overlaps: what is found at the lowest threshold holds what is found at every
    # higher one.
    detectors = {
        "mtcnn": detection.Mtcnn(threshold=THRESHOLDS["mtcnn"][0]),
        "yunet": detection.YuNet(threshold=THRESHOLDS["yunet"][0], file=options.yunet),
    }
    detectors = {name: detectors[name] for name in options.detectors}
    of_parts = {part: measured(detectors, photographs) for part, photographs in parts.items()}
    n_faces = {part: sum(len(faces) for *_, faces in photographs) for part, photographs in parts.items()}
    print("photographs: " + ", ".join(f"{part} {len(photographs)}" for part, photographs in parts.items()))
    for name, detector in detectors.items():
        print(f"\n{name}, at its threshold {detector.THRESHOLD}, framing {detector.framing}")
        show({part: results[name] for part, results in of_parts.items()}, n_faces, THRESHOLDS[name])
        if options.fer2013:
            show_framing([box for box in of_parts["FER2013"][name].found if box.confidence >= detector.THRESHOLD])


if __name__ == "__main__":
    main()
