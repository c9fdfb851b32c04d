"""Pictures a second of a 640 × 480 video with one face, from the file to the expression, for each detector and model file.

    python tests/benchmarks/video.py outputs/clean/export/model_int8.tflite outputs/clean/export/model.keras

The face is the astronaut's of tests/unit/photograph_sets.py, 96 px wide, moving to and fro over a landscape. Each picture is
read by itself, as a webcam's is, without leaving any out; decoding, detection and the model overlap. Rounds alternate; the
median is printed, and CPU seconds, which depend less on what else the machine does. YuNet's file is fetched, or given with
`--yunet PATH`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from fer_utils.predict import detection, photographs
from fer_utils.predict.reader import Reader

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import photograph_sets as sets

SIZE = 640, 480
RATE = 30


def write_video(path: Path, n: int) -> None:
    """A video of n pictures, a face moving through it once to and fro in 60 pictures."""
    left, top, right, bottom = sets.HEAD
    head = sets.rgb("astronaut.png")[top:bottom, left:right]
    landscape = cv2.resize(sets.rgb("china.jpg"), SIZE)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, SIZE)
    for turn in np.arange(n) * 2 * np.pi / 60:
        picture = landscape.copy()
        sets.paste(picture, head, (320 + 180 * np.sin(turn), 220), 1.2, 0, False)
        writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    writer.release()


def once(reader: Reader, video: Path) -> tuple[float, float, int]:
    """Seconds, CPU seconds and faces of one pass through the video."""
    began, used = time.perf_counter(), time.process_time()
    faces = sum(len(reading.faces) for reading in reader.read(photographs.read(video)))
    return time.perf_counter() - began, time.process_time() - used, faces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="model files: .keras, .tflite, .onnx")
    parser.add_argument("--yunet", type=Path, help="YuNet's file")
    parser.add_argument("--detectors", nargs="+", choices=("yunet", "mtcnn"), default=["yunet", "mtcnn"])
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    detectors = {
        name: detection.YuNet(file=options.yunet) if name == "yunet" else detection.Mtcnn()
        for name in options.detectors
    }
    readers = {(name, model): Reader(model, found) for name, found in detectors.items() for model in options.models}
    with tempfile.TemporaryDirectory() as folder:
        video, short = Path(folder) / "face.mp4", Path(folder) / "short.mp4"
        write_video(video, options.pictures)
        write_video(short, 5)
        for reader in readers.values():
            once(reader, short)
        results = {key: [] for key in readers}
        for _ in range(options.rounds):
            for key, reader in readers.items():
                results[key].append(once(reader, video))
    print(f"{'detector':10}{'model':24}{'pictures/s':>12}{'CPU ms a picture':>18}{'faces found':>14}")
    for (name, model), rounds in results.items():
        seconds, cpu, faces = (statistics.median(values) for values in zip(*rounds, strict=True))
        rate, each = options.pictures / seconds, 1000 * cpu / options.pictures
        print(f"{name:10}{model.name:24}{rate:>12.1f}{each:>18.1f}{f'{faces}/{options.pictures}':>14}")


if __name__ == "__main__":
    main()
