"""Training the suffix on what the prefix gave is training the whole network, whatever is frozen."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from fer_utils.training import frozen_prefix, loop, network, optimizers

import keras
import numpy as np
import pytest

SIZE = 32
STEPS, BATCH = 2, 16
# Adam divides a gradient by its own size: an epsilon above the rounding of gradients keeps it from training on rounding.
ADAM = {"learning_rate": 1e-5, "weight_decay": 0.01, "epsilon": 1e-3}


def _images(n: int = STEPS * BATCH) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    return random.integers(0, 256, (n, 48, 48, 1)).astype(np.uint8), random.integers(0, 7, n).astype(np.int32)


@pytest.fixture(scope="module")
def unfrozen() -> Callable[[int], keras.Model]:
    """unfrozen(n_layers): the network with its top layers trainable, and always the same weights.

    Its BatchNormalization knows the images, so that rounding is not all that differs between them. It is built once:
    whoever trains it must compile it first.
    """
    keras.utils.set_random_seed(3)
    model = network.build(SIZE, "none")
    network.unfreeze_top(model, 175, "trained")
    norms = [layer for layer in network.backbone_of(model).layers if "_bn" in layer.name]
    for norm in norms:
        norm.momentum = 0.0
        norm.gamma.assign(np.ones(norm.gamma.shape))  # else residual branches would add nothing
    model(_images()[0], training=True)
    weights = model.get_weights()

    def with_top(n_layers: int) -> keras.Model:
        model.set_weights(weights)
        network.unfreeze_top(model, n_layers, "frozen")
        return model

    return with_top


@pytest.mark.parametrize("n_layers", [0, 3, 50, 175])
def test_prefix_and_suffix_are_the_network_and_all_that_trains_is_in_the_suffix(n_layers, unfrozen):
    model = unfrozen(n_layers)
    prefix, suffix = frozen_prefix.split(model)
    images, _ = _images(6)
    assert np.array(suffix(prefix(images))) == pytest.approx(np.array(model(images)), abs=1e-6)
    assert {id(weight) for weight in suffix.trainable_weights} == {id(weight) for weight in model.trainable_weights}
    assert not prefix.trainable_weights


def test_the_top_50_are_cut_inside_block_5_of_stage_4(unfrozen):
    prefix, _ = frozen_prefix.split(unfrozen(50))
    assert sorted(tensor.shape[-1] for tensor in prefix.outputs) == [256, 1024]
    inside = {layer.name for layer in prefix.get_layer("frozen_layers").layers}
    assert {"conv4_block4_out", "conv4_block5_1_relu"} <= inside
    assert not {
        name for name in inside if name.startswith(("conv4_block5_2", "conv4_block5_3", "conv4_block6", "conv5"))
    }


@pytest.fixture(scope="module")
def trained(unfrozen) -> Callable:
    """trained(n_layers): what training through the whole network gives, (losses, changes of the weights).

    trained(n_layers, dtype, folder): the same on activations kept in the folder.
    """

    def train(n_layers: int, dtype: str = "", folder: Path | None = None) -> tuple[list[float], np.ndarray]:
        images, labels = _images()
        model = unfrozen(n_layers)
        before = [weight.numpy() for weight in model.trainable_weights]
        subject, inputs = model, images
        optimizer = keras.optimizers.AdamW(**ADAM)
        if folder:
            prefix, suffix = frozen_prefix.split(model)
            plan = frozen_prefix.Plan("disk", dtype, 0, "")
            subject, (inputs,) = frozen_prefix.prepare(prefix, suffix, [images], plan, folder)
            optimizer = optimizers.AdamW(**ADAM)
        keras.utils.set_random_seed(9)  # dropout's masks
        for layer in (model.get_layer(name) for name in network.HEAD_LAYERS):
            if isinstance(layer, keras.layers.Dropout):
                layer.seed_generator.state.assign([11, 0])
        loop.compile_for_training(subject, optimizer)
        batches = loop.Batches(inputs, labels, BATCH, seed=1)
        history = loop.fit(subject, batches, loop.Batches(inputs, labels, 64), "test", 0, 2)
        learned = [weight.numpy() - old for weight, old in zip(model.trainable_weights, before, strict=True)]
        return history["loss"].tolist() + history["val_loss"].tolist(), np.concatenate([w.ravel() for w in learned])

    return lru_cache(train)  # two float types are compared with one training through the whole network


@pytest.mark.parametrize(
    ("n_layers", "dtype", "of_losses", "of_updates"),
    [(0, "float32", 1e-3, 1e-2), (50, "float32", 1e-3, 1e-2), (50, "float16", 0.05, 0.3)],
)
def test_losses_and_weights_are_those_of_training_through_the_whole_network(
    n_layers, dtype, of_losses, of_updates, trained, tmp_path
):
    losses, learned = trained(n_layers)
    cached_losses, cached_learned = trained(n_layers, dtype, tmp_path)
    assert cached_losses == pytest.approx(losses, rel=of_losses)
    assert np.linalg.norm(cached_learned - learned) <= of_updates * np.linalg.norm(learned)
    assert losses[0] != losses[1]
