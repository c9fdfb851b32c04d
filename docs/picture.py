"""Draws docs/demo.png: drawn faces of each class, and how the demo's model takes those of TEST.

python docs/picture.py outputs/demo

The folder is that of a finished run of the profile `demo`.
"""

import argparse
from pathlib import Path

from fer_utils import plots
from fer_utils.classes import CLASSES
from fer_utils.data.demo import draw_face
from fer_utils.evaluation import scores

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

ROWS = 1  # of faces
WIDTH = 900  # pixels
COLOURS = 96  # of the palette: keeps the file small
MARGIN = 6  # pixels above
SEED = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished demo run")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("demo.png"), help="the PNG to write")
    options = parser.parse_args()
    predictions = pd.read_csv(options.run / "predictions_test.csv")
    accuracy = (predictions["label"] == predictions["predicted"]).mean()
    title = f"TEST of the demo: {len(predictions)} drawn faces, accuracy {accuracy:.2f}"
    rng = np.random.default_rng(SEED)
    drawn = np.stack([draw_face(label, rng) for _ in range(ROWS) for label in CLASSES])
    faces = plots.faces(drawn, list(CLASSES) * ROWS, len(CLASSES))
    matrix = plots.confusion_matrix(scores.confusion(predictions), title)
    stacked([pixels(faces), pixels(matrix)]).quantize(COLOURS).save(options.to, optimize=True)
    print(f"{options.to}  {options.to.stat().st_size / 1000:.0f} kB")


def pixels(figure: Figure) -> Image.Image:
    """The figure, drawn WIDTH pixels wide."""
    figure.set_dpi(WIDTH / figure.get_figwidth())
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def stacked(parts: list[Image.Image]) -> Image.Image:
    """Pictures of one width, one below the other, under a margin."""
    whole = Image.new("RGB", (WIDTH, MARGIN + sum(part.height for part in parts)), "white")
    top = MARGIN
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


if __name__ == "__main__":
    main()
