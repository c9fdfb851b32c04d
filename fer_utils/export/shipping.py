"""Makes a finished run of the network `small` the model that comes with the package: its file, its scores and its card.

python -m fer_utils.export.shipping outputs/small
"""

import sys
from pathlib import Path

from fer_utils import entry, files, places
from fer_utils.classes import PROBABILITIES
from fer_utils.evaluation import scores
from fer_utils.export import formats, model_card, small_onnx
from fer_utils.pipeline import runs
from fer_utils.pipeline.runs import Run
from fer_utils.training import loop, model_files

import pandas as pd

COMPARED = 5000  # pictures of TRAIN and VAL
SAME_CLASS = 0.99  # share of them to which the file must give the class that Keras gives
TAKES = "Input `pixels`: float32 `(n, 48, 48, 1)`, grey, 0–255, a face cropped as FER2013 does."
USE = """```bash
python -m fer_utils.predict photo.jpg  # finds the faces and crops them
```

```python
import cv2, numpy as np  # a crop, without this project

network = cv2.dnn.readNetFromONNX("small.onnx")
network.setInput(np.float32(crop).reshape(1, 48, 48, 1), "pixels")
probabilities = network.forward()  # float32 (1, 7)

from fer_utils import places  # with it: the Keras model again, for training on
from fer_utils.training import network

model = network.load(places.SHIPPED)
```
"""


def ship(run: Run, file: Path = places.SHIPPED) -> pd.DataFrame:
    """Write the run's model to `file`, with the temperature that 05 fitted on VAL; beside it metrics.json and the card, README.md.

    Returns how the file agrees with Keras. Raises ValueError where it gives another class on more than 1 % of the pictures.
    """
    runs.require_scored(run)
    metrics = files.read_json(run.path("metrics.json"))
    temperature = metrics["temperature_scaling"]["temperature"]
    model = model_files.load_keras(run.path("model.keras"))
    pictures = formats.pictures(run, ("TRAIN", "VAL"), COMPARED).images
    with files.replacing(file) as temporary:
        small_onnx.write(model, temporary, temperature)
        if origin := model_files.read_origin(run.path("model.keras")):
            model_files.write_origin(temporary, origin)
        answers, milliseconds = formats.timed(model_files.opencv(temporary), pictures)
        unscaled = pd.DataFrame(loop.predict(model, pictures), columns=list(PROBABILITIES))
        expected = scores.at_temperature(unscaled, temperature)[list(PROBABILITIES)].to_numpy()
        difference, same = formats.agreement(answers, expected)
        if same < SAME_CLASS:
            said = f"Keras' class for {same:.1%} of the pictures, expected {SAME_CLASS:.0%}"
            raise ValueError(f"{file}: {said}; not replaced")
        row = (round(temporary.stat().st_size / 1e6, 1), round(milliseconds, 1), f"{difference:.1e}", round(same, 4))
    columns = ["MB", "ms a picture", "largest difference", "same class"]
    found = pd.DataFrame([row], pd.Index([file.name], name="file"), columns)
    card = model_card.text(metrics, run.name, found, len(pictures), TAKES, USE, is_scaled=True)
    file.with_name("README.md").write_text(card, encoding="utf-8")
    for stage, params in metrics["run"]["params"].items():  # paths of this machine stay here
        kept = {name: value for name, value in params.items() if not Path(str(value)).is_absolute()}
        metrics["run"]["params"][stage] = kept
    files.write_json(file.with_name("metrics.json"), metrics)
    return found


def main() -> int:
    """Ship the run whose folder is the one argument."""
    run = Path(sys.argv[1])
    print(ship(Run(run, run / "images")).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(entry.enter(main))
