"""What 300 own pictures a class add to the shipped model, on pictures of another kind: dark, lit from one side, small, noisy.

    python tests/benchmarks/own_pictures.py --run outputs/small --folder own
    python run_all.py --params own -p merge_split.fer2013=own
    python tests/benchmarks/own_pictures.py --run outputs/small --folder own --after outputs/own

Needs a finished run of `params/small.yaml` on the real data. The public half of its TEST gives the own pictures, at most 300 a
class, and the private half the test pictures. The shipped model has seen neither.
"""

import argparse
from pathlib import Path

from fer_utils import images, places
from fer_utils.data import loading, sources
from fer_utils.evaluation import scores
from fer_utils.training import model_files

import cv2
import numpy as np
import pandas as pd

PER_CLASS = 300
SIDE, LIGHT, NOISE = 24, (0.8, 0.3), 4  # pixels; factors at the left and right border; grey levels


def changed(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """uint8 (n, 48, 48) as a poor camera in poor light would give them."""
    small = [cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for picture in pictures]
    blurred = np.array([cv2.resize(picture, (images.SIZE,) * 2) for picture in small], np.float32)
    noisy = blurred * np.linspace(*LIGHT, images.SIZE, dtype=np.float32) + rng.normal(0, NOISE, blurred.shape)
    return np.rint(noisy).clip(0, 255).astype(np.uint8)


def write(run: Path, folder: Path) -> None:
    """Write the changed pictures as folder/train/<class> and folder/test/<class>."""
    manifest = loading.read_table(run / "manifest.csv", loading.COLUMNS["manifest.csv"])
    rng = np.random.default_rng(0)
    for part, usage in (("train", "PublicTest"), ("test", "PrivateTest")):
        table = manifest[(manifest["split"] == "TEST") & (manifest["usage"] == usage)]
        if part == "train":
            table = table.groupby("label").head(PER_CLASS)
        faces = loading.load_faces(table, run / "images")
        for place, picture in zip(table["path"], changed(faces.images[..., 0], rng), strict=True):
            path = folder / part / Path(place).relative_to("TEST").with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.encode_png(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--after", type=Path, help="the run on the folder, finished")
    arguments = parser.parse_args()
    if not arguments.folder.exists():
        write(arguments.run, arguments.folder)
    with sources.open_source(arguments.folder, "own") as source:
        table = source.table[source.table["part"] == "test"]
        pixels = np.array([source.decode(source.read(path), path)[0] for path in table["source_path"]])
    probabilities = model_files.load(places.SHIPPED)(pixels[..., None].astype(np.float32))
    rows = {
        "shipped": scores.prediction_table(
            table.assign(path=table["source_path"], seen_in_training=False), probabilities
        )
    }
    if arguments.after:
        after = pd.read_csv(arguments.after / "predictions_test.csv", keep_default_na=False, low_memory=False)
        rows[arguments.after.name] = after
    for name, predictions in rows.items():
        found = scores.overall(predictions)
        low, high = found["accuracy_interval"]
        print(
            f"{name}: n {found['n']:,}, accuracy {found['accuracy']:.3f} ({low:.3f}–{high:.3f}), macro F1 {found['macro_f1']:.3f}"
        )


if __name__ == "__main__":
    main()
