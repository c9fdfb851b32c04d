"""How far each exported format is from Keras, for a model that was trained briefly on faces of FER2013.

    python tests/benchmarks/formats.py --fer2013 data/fer2013.zip --weights STAND_IN.h5 --image-size 36 --images 6000 --epochs 3

The head is trained for 12 epochs on the frozen backbone's features, then with `--epochs` the backbone's top 50 layers too. The
formats are compared on 500 pictures of the test folder, and all are listed, int8 weights too where an export leaves them out.
"""

import argparse
import tempfile
import zipfile
from pathlib import Path

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data.loading import Faces
from fer_utils.export import formats
from fer_utils.training import network

import keras
import numpy as np
import pandas as pd


def sample(archive: Path, part: str, n: int) -> Faces:
    """n pictures of a part of FER2013, drawn at random."""
    with zipfile.ZipFile(archive) as file:
        inside = [name for name in file.namelist() if name.startswith(f"{part}/") and name[-4:] in (".jpg", ".png")]
        chosen = [inside[place] for place in np.random.default_rng(0).permutation(len(inside))[:n]]
        pixels = np.stack([images.decode(file.read(name), name)[0] for name in chosen])
    labels = np.array([CLASSES.index(name.split("/")[1]) for name in chosen])
    return Faces(pixels[..., None], labels, pd.DataFrame({"path": chosen}), labels)


def trained(faces: Faces, options: argparse.Namespace) -> keras.Model:
    """ResNet50 with the head trained, and with epochs its top 50 layers too."""
    keras.utils.set_random_seed(0)
    model = network.build(options.image_size, options.weights)
    pixels = faces.images.astype(np.float32)
    features = keras.Model(model.input, model.get_layer(network.FEATURES).output).predict(pixels, 128, verbose=0)
    given = x = keras.Input(features.shape[1:])
    for name in network.HEAD_LAYERS:
        x = model.get_layer(name)(x)
    head = keras.Model(given, x)
    head.compile("adam", "sparse_categorical_crossentropy")
    head.fit(features, faces.labels, batch_size=64, epochs=12, verbose=0)
    if options.epochs:
        network.unfreeze_top(model, 50, "frozen")
        model.compile(keras.optimizers.Adam(1e-4), "sparse_categorical_crossentropy")
        model.fit(pixels, faces.labels, batch_size=64, epochs=options.epochs, verbose=2)
    return network.plain_copy(model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fer2013", type=Path, required=True, help="FER2013 as a zip file of folders")
    parser.add_argument("--weights", required=True, help="a ResNet50 notop file, imagenet or none")
    parser.add_argument("--image-size", type=int, default=36)
    parser.add_argument("--images", type=int, default=6000, help="that the model is trained on")
    parser.add_argument("--epochs", type=int, default=0, help="of fine-tuning")
    parser.add_argument("--compared", type=int, default=formats.COMPARED)
    options = parser.parse_args()
    model = trained(sample(options.fer2013, "train", options.images), options)
    with tempfile.TemporaryDirectory() as folder:
        formats.write_formats(formats.for_any_colour(model), Path(folder))
        measured = formats.measure(Path(folder), sample(options.fer2013, "test", options.compared))
    print(formats.table(measured).to_string())


if __name__ == "__main__":
    main()
