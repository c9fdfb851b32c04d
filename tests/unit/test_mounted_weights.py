"""`imagenet` takes what is mounted on Kaggle, if it is ResNet50 without top, and says what it took."""

import hashlib

from fer_utils import model as network
from fer_utils.model import WeightsError

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

SIZE = 32


@pytest.fixture(scope="module")
def backbone() -> keras.Model:
    keras.utils.set_random_seed(3)
    return keras.applications.ResNet50(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3))


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Kaggle's input folder, and no internet."""

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", refuse)
    folder = tmp_path / "input/datasets/someone/weights"
    folder.mkdir(parents=True)
    yield folder
    for path in folder.iterdir():  # 100 MB each
        path.unlink()


def save(backbone: keras.Model, path) -> None:
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, backbone)


def test_a_mounted_file_is_loaded_and_named(backbone, inputs, capsys):
    save(backbone, inputs / "resnet50_notop.h5")
    (inputs / "a_notop.h5").write_text("<html>")
    loaded = network.load_backbone(SIZE, "imagenet")
    pairs = zip(backbone.get_weights(), loaded.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert f"weights from {inputs}/resnet50_notop.h5 (NOT Keras' ImageNet file" in capsys.readouterr().out


def test_keras_own_file_is_known_by_its_checksum(backbone, inputs, capsys, monkeypatch):
    path = inputs / "any_name.h5"
    save(backbone, path)
    checksum = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(network, "_published_weights", lambda: ("https://host/x_notop.h5", checksum))
    network.load_backbone(SIZE, "imagenet")
    assert f"weights from {path} (ImageNet's, as Keras publishes them)" in capsys.readouterr().out


def test_files_that_do_not_fit_are_named_when_nothing_else_is_left(backbone, inputs):
    save(backbone, inputs / "flat_notop.h5")
    with h5py.File(inputs / "flat_notop.h5", "r+") as file:
        # Scales and shifts of 0 in all branches of the last stage: no picture gets through.
        for layer in ("conv5_block1_0_bn", *(f"conv5_block{block}_3_bn" for block in (1, 2, 3))):
            for name in file[layer].attrs["weight_names"]:
                file[layer][name][...] = 0
    (inputs / "other.h5").write_text("<html>")
    with pytest.raises(WeightsError) as caught:
        network.load_backbone(SIZE, "imagenet")
    said = str(caught.value)
    assert f"{inputs}/flat_notop.h5: ResNet50 with these weights computes no features" in said
    assert f"{inputs}/other.h5: not the weights of ResNet50" in said
    assert "no route to host" in said and "attach a dataset with that file" in said
