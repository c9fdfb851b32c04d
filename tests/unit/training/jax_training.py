"""Trainings with JAX on two logical CPU devices: `jax_training.py FOLDER` prints what they gave as JSON.

KERAS_BACKEND is `jax`, XLA_FLAGS names two devices. test_devices.py runs it, and has put into FOLDER what TensorFlow wrote:
a model of each backbone such as `small.keras`, and `faces.npz`.

`histories`, by number of devices and precision: BatchNormalization, soft labels, clipped gradients, a cosine, averaged weights,
so that what those need is shared too. `stopped`: one of them in two goes. `resnet50`, `small`: what TensorFlow's networks give here.
`first_epoch`: the losses of one epoch of the small one's top layers.
"""

import json
import sys
from pathlib import Path

from fer_utils.data.augmentation import Changes
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import keras
import numpy as np

SAMPLES, BATCH, EPOCHS = 70, 16, 3  # 70 rows fill four batches
TOP_LAYERS = 12


def small_model() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(16, activation="relu"),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.Dropout(0.4),
        keras.layers.Dense(7, activation="softmax", dtype="float32"),
    ]
    return keras.Sequential([keras.Input((12,)), *layers])


def rows() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    return random.normal(size=(SAMPLES, 12)).astype(np.float32), random.integers(0, 7, SAMPLES).astype(np.int32)


def train(precision: str, epochs: int = EPOCHS, checkpoint: Path | None = None) -> tuple[keras.Model, dict]:
    devices.choose_precision(precision)
    model, (features, labels) = small_model(), rows()
    rate = optimizers.make_rate("cosine", 0.02, SAMPLES // BATCH, EPOCHS, 1.0)
    # The parts of a batch have other gradients than the batch: clipping each would train something else.
    loop.compile_for_training(model, optimizers.make_optimizer("adamw", rate, 0.1, clip_norm=0.2))
    table = loop.fit(
        model,
        loop.Batches(features, labels, BATCH, seed=3, changes=Changes(label_smoothing=0.1)),
        loop.Batches(features[:49], labels[:49], 32),
        "test",
        first_epoch=0,
        epochs=epochs,
        callbacks=[optimizers.WeightAveraging(0.9)],
        checkpoint=(checkpoint, "key") if checkpoint else None,
    )
    return model, table.drop(columns=["phase", "seconds"]).to_dict("list")


def stopped(folder: Path) -> dict:
    train("mixed_float16", EPOCHS - 1, folder / "stopped.npz")
    model, resumed = train("mixed_float16", EPOCHS, folder / "stopped.npz")
    features, labels = rows()
    given = loop.predict(model, features[:49])
    return {"resumed": resumed, "itself": float(-np.log(given[np.arange(49), labels[:49]]).mean())}


def first_epoch(model: keras.Model, faces: np.ndarray, labels: np.ndarray) -> dict:
    """One epoch of the top layers on cached activations, without dropout's noise."""
    model.get_layer("head_dropout").rate = 0.0
    network.unfreeze_top(model, TOP_LAYERS, "trained")
    prefix, suffix = frozen_prefix.split(model)
    plan = frozen_prefix.Plan("memory", "float32", 0, "")
    trained, (inputs,) = frozen_prefix.prepare(prefix, suffix, [faces], plan, Path())
    loop.compile_for_training(trained, optimizers.make_optimizer("adamw", 1e-3, 0.01))
    batches = loop.Batches(inputs, labels, 8, seed=3), loop.Batches(inputs, labels, 16)
    return loop.fit(trained, *batches, "test", 0, 1)[["loss", "val_loss"]].to_dict("list")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with np.load(folder / "faces.npz") as file:
        faces, labels = file["faces"], file["labels"]
    found = {}
    for backbone in (network.RESNET50, network.SMALL):
        model = keras.saving.load_model(folder / f"{backbone}.keras", compile=False, safe_mode=True)
        found |= {backbone: loop.predict(model, faces).tolist()}
    found |= {
        "first_epoch": first_epoch(model, faces, labels),
        "histories": {"1 float32": train("float32")[1]},
    }
    network.for_inference(model).save(folder / "from_jax.keras")
    found["from_jax"] = loop.predict(model, faces).tolist()
    said = devices.share_batches()
    for precision in ("float32", "mixed_float16", "mixed_bfloat16"):
        found["histories"][f"{devices.n_sharing()} {precision}"] = train(precision)[1]
    print(json.dumps(found | {"stopped": stopped(folder), "said": said}))
