"""The specification's two phases the obvious way, in plain Keras: pictures read from their folders every epoch, `fit`
twice through the whole network. What `compare.py` measures this project against.

python tests/benchmarks/naive.py JOB.json: JOB is what compare.py writes; prints one JSON line.
"""

import json
import resource
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from keras import layers
from PIL import Image
from sklearn.metrics import f1_score


class Folder(keras.utils.PyDataset):
    """Batches of the pictures that a table names, decoded as they are asked for, in an order by (seed, epoch)."""

    def __init__(self, table: pd.DataFrame, batch_size: int, seed: int | None, epoch: int = 0):
        super().__init__()
        self.table, self.batch_size, self.seed = table, batch_size, seed
        self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        n = len(self.table)
        self.order = np.arange(n) if self.seed is None else np.random.default_rng([self.seed, epoch]).permutation(n)

    def __len__(self) -> int:
        full, rest = divmod(len(self.table), self.batch_size)
        return full + (rest > 0 and self.seed is None)  # what does not fill a batch is left out of training, as in ours

    def __getitem__(self, index: int):
        rows = self.table.iloc[self.order[index * self.batch_size : (index + 1) * self.batch_size]]
        pictures = [np.asarray(Image.open(path).convert("L")) for path in rows["file"]]
        return np.stack(pictures)[..., None], rows["code"].to_numpy(np.int32)


def measured(
    began: float, phase_1: float, phase_2: float, done: float, probabilities: np.ndarray, labels: np.ndarray
) -> dict:
    """What either side reports: seconds of each part, scores of the probabilities (n, 7), and its peak of memory."""
    predicted = probabilities.argmax(axis=1)
    return {
        "phase 1": phase_1 - began,
        "phase 2": phase_2 - phase_1,
        "evaluation": done - phase_2,
        "accuracy": float((predicted == labels).mean()),
        "macro F1": float(f1_score(labels, predicted, average="macro")),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(job: dict) -> dict:
    keras.utils.set_random_seed(job["seed"])
    train, val, test = (pd.read_csv(job[name]) for name in ("train", "val", "test"))
    began = time.monotonic()
    side = job["image_size"]
    raw = keras.Input((None, None, 1))
    x = layers.Concatenate()([raw, raw, raw])
    x = layers.Resizing(side, side)(x)
    x = keras.applications.resnet50.preprocess_input(x)
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(side, side, 3))
    backbone.load_weights(job["weights"])
    backbone.trainable = False
    x = backbone(x, training=False)
    x = layers.GlobalAveragePooling2D()(x)
    head = [
        layers.Dense(32, activation="relu"),
        layers.BatchNormalization(momentum=job["momentum"]),
        layers.Dropout(0.4, seed=job["seed"]),
        layers.Dense(7, activation="softmax"),
    ]
    for layer in head:
        x = layer(x)
    model = keras.Model(raw, x)
    start = np.load(job["start"], allow_pickle=False)
    for place, layer in enumerate(head):
        layer.set_weights([start[f"{place}_{i}"] for i in range(len(layer.weights))])
    head[2].seed_generator.state.assign(start["dropout"])

    def compile_with(optimizer) -> None:
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)

    def fit(first: int, epochs: int, callbacks=()) -> None:
        shown = Folder(train, job["batch_size"], job["seed"], first)
        in_order = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: shown.begin_epoch(epoch))
        model.fit(
            shown,
            validation_data=Folder(val, job["batch_size"], None),
            initial_epoch=first,
            epochs=first + epochs,
            shuffle=False,  # the order is the data's own, the same on both sides
            callbacks=[in_order, *callbacks],
            verbose=0,
        )

    compile_with(keras.optimizers.Adam(5e-4))
    fit(0, job["head_epochs"])
    phase_1 = time.monotonic()
    backbone.trainable = True
    for place, layer in enumerate(backbone.layers):
        is_top = place >= len(backbone.layers) - job["unfreeze_top"]
        layer.trainable = is_top and not isinstance(layer, layers.BatchNormalization)
    compile_with(keras.optimizers.AdamW(8e-5, weight_decay=0.01))
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=2)
    fit(job["head_epochs"], job["fine_tune_epochs"], [plateau])
    phase_2 = time.monotonic()
    probabilities = model.predict(Folder(test, job["batch_size"], None), verbose=0)
    return measured(began, phase_1, phase_2, time.monotonic(), probabilities, test["code"].to_numpy())


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
