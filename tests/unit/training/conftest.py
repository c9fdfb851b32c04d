"""Graphs as notebooks trace them on a CPU, garbage collected at once, and a network for tests that only load files into it."""

import gc
from collections.abc import Iterator

from fer_utils.training import devices, network

import keras
import pytest
import tensorflow as tf


@pytest.fixture(scope="module", autouse=True)
def _as_in_notebooks() -> Iterator[None]:
    """Without TensorFlow's graph optimizer on a CPU, as the notebooks train; the tests of other folders keep it."""
    name = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(name, False)
    devices.skip_graph_optimizer()
    yield
    tf.config.optimizer.set_experimental_options({name: before})


@pytest.fixture(scope="session")
def _imports_are_kept() -> None:
    """What has been imported is never garbage: the collector need not look at it after each test."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_garbage_for_later(_imports_are_kept) -> Iterator[None]:
    """Collect what a test leaves, while it is young.

    An iterator of tf.data that a training did not read to its end waits, when it is destroyed, for a thread that sleeps for
    about as long as the iterator exists. Found half a minute later, it would hold up another test for as long.
    """
    yield
    gc.collect()


@pytest.fixture(scope="session")
def spare() -> keras.Model:
    """A ResNet50 for 32 px that any test may load into."""
    return network.random_backbone(32, network.RESNET50)


@pytest.fixture
def into_spare(spare, monkeypatch) -> None:
    """Weights go into the spare network, since building one takes longer than loading a file.

    Whatever was in it is gone before a file is read: `weights.load_file` first fills the network with NaN.
    """

    def same(image_size: int, name: str) -> keras.Model:
        assert spare.input_shape == (None, image_size, image_size, 3)
        return spare

    monkeypatch.setattr(network, "random_backbone", same)
