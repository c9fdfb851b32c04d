"""`imagenet` takes what is mounted on Kaggle, if it is ResNet50 without top, and says what it took."""

import hashlib

from fer_utils.training import network
from fer_utils.training import weights as weights_files
from fer_utils.training.weights import WeightsError

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

SIZE = 32
pytestmark = pytest.mark.usefixtures("into_spare")


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


def test_a_mounted_file_is_loaded_and_named_and_keras_own_known_by_its_checksum(backbone, inputs, capsys, monkeypatch):
    path = inputs / "any_name.h5"
    save(backbone, path)
    (inputs / "a_notop.h5").write_text("<html>")
    loaded = network.load_backbone(SIZE, "imagenet")
    pairs = zip(backbone.get_weights(), loaded.get_weights(), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    assert f"weights from {path} (NOT Keras' ImageNet file" in capsys.readouterr().out
    monkeypatch.setattr(weights_files, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    network.load_backbone(SIZE, "imagenet")
    assert f"weights from {path} (ImageNet's, as Keras publishes them)" in capsys.readouterr().out


def _features(model: keras.Model) -> np.ndarray:
    """Pooled features of two random pictures."""
    pictures = np.random.default_rng(4).uniform(-120, 120, (2, SIZE, SIZE, 3)).astype(np.float32)
    return np.array(model(pictures, training=False)).mean(axis=(1, 2))


@pytest.mark.parametrize("number", ["", "_1"])
def test_one_set_of_weights_in_both_layouts_computes_the_same_features(
    backbone, inputs, capsys, write_older_weights, monkeypatch, number
):
    # Two kernels of one shape, which loading by position would swap without an error.
    swapped = [backbone.get_layer(f"conv2_block1_{branch}_conv").kernel.numpy() for branch in (0, 3)]
    assert swapped[0].shape == swapped[1].shape and not np.array_equal(*swapped)
    path = inputs / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
    write_older_weights(backbone, path, number)
    if number:
        with h5py.File(path) as file:  # as public code reads ImageNet's
            assert {"conv1/conv1_W_1:0", "bn_conv1/bn_conv1_running_std_1:0", "res2a_branch1/res2a_branch1_b_1:0"} <= {
                f"{layer}/{weight}" for layer in file for weight in file[layer]
            }
    loaded = network.load_backbone(SIZE, "imagenet")
    assert _features(loaded) == pytest.approx(_features(backbone), abs=1e-6)
    assert f"weights from {path} (NOT Keras' ImageNet file" in capsys.readouterr().out
    monkeypatch.setattr(weights_files, "OLDER_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    loaded = network.load_backbone(SIZE, str(path))
    assert _features(loaded) == pytest.approx(_features(backbone), abs=1e-6)
    network.load_backbone(SIZE, "imagenet")
    assert f"weights from {path} (ImageNet's, as Keras publishes them)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda file: file["res2a_branch1"].move("res2a_branch1_W:0", "lost"),
            "not the weights of ResNet50 without top .*conv2_block1_0_conv",
        ),
        (lambda file: file.attrs.__setitem__("layer_names", file.attrs["layer_names"][:-1]), "1 missing"),
    ],
)
def test_a_file_of_the_older_layout_is_never_loaded_in_part(backbone, inputs, write_older_weights, change, says):
    path = inputs / "damaged_notop.h5"
    write_older_weights(backbone, path)
    with h5py.File(path, "r+") as file:
        change(file)
        if "lost" in file["res2a_branch1"]:
            file["res2a_branch1"].attrs["weight_names"] = [b"res2a_branch1_b:0"]
    with pytest.raises(WeightsError, match=says):
        network.load_backbone(SIZE, str(path))


def test_files_that_do_not_fit_are_named_when_nothing_else_is_left(backbone, inputs):
    save(backbone, inputs / "short_notop.h5")
    with h5py.File(inputs / "short_notop.h5", "r+") as file:
        file.attrs["layer_names"] = [name for name in file.attrs["layer_names"] if "conv5_block3_3_bn" not in str(name)]
    (inputs / "other.h5").write_text("<html>")
    with pytest.raises(WeightsError) as caught:
        network.load_backbone(SIZE, "imagenet")
    said = str(caught.value)
    assert f"{inputs}/short_notop.h5: its layers are not ResNet50's without top; 1 missing" in said
    assert f"{inputs}/other.h5: not the weights of ResNet50" in said
    assert "no route to host" in said and "notop.h5 and set weights to its path" in said
    assert "attach a dataset with that file" in said
