"""The network preprocesses once, loads ResNet50's weights and no others, and moves only what should move."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from fer_utils.training import frozen_prefix, loop, network, optimizers
from fer_utils.training.weights import WeightsError

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from precision import precision

SIZE = 32
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)  # what ResNet50's weights were trained with: He et al. 2016
RESNET50_WEIGHTS = 23_587_712  # without top, as keras.io's table of applications and its summary give it
HEAD_WEIGHTS = (2048 * 32 + 32) + 4 * 32 + (32 * 7 + 7)

pytestmark = [
    pytest.mark.filterwarnings("ignore:weights is 'none'"),
    pytest.mark.filterwarnings("ignore:Skipping nested container"),  # Keras 3.15's word for what our check then refuses
]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network.build(SIZE, "none")
    for layer in _last_norms(model):  # else residual branches would add nothing
        layer.gamma.assign(np.ones(layer.gamma.shape))
    return model


def _last_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The last BatchNormalization of each residual block."""
    return [layer for layer in network.backbone_of(model).layers if layer.name.endswith("_3_bn")]


@pytest.fixture
def training_model(model):
    """The same model, put back as it was afterwards."""
    before = model.get_weights()
    yield model
    network.unfreeze_top(model, 0, "frozen")
    network.backbone_of(model).trainable = False
    model.set_weights(before)


@pytest.fixture(scope="module")
def files(model, tmp_path_factory) -> dict[str, Path]:
    """The backbone's own weights in both of Keras' formats."""
    folder, backbone = tmp_path_factory.mktemp("weights"), network.backbone_of(model)
    yield {"older": _save_older(backbone, folder / "own_notop.h5"), "newer": _save_newer(backbone, folder / "own")}
    shutil.rmtree(folder)  # 200 MB


def _save_older(backbone: keras.Model, path: Path) -> Path:
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, backbone)
    return path


def _save_newer(backbone: keras.Model, path: Path) -> Path:
    path = path.with_suffix(".weights.h5")
    backbone.save_weights(path)
    return path


def _faces(n: int = 6, side: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side, 1), dtype=np.uint8)


def _by_name(model: keras.Model) -> dict[str, np.ndarray]:
    return {weight.path: np.array(weight) for weight in model.weights}


def _moved(before: dict, after: dict) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_raw_faces_are_preprocessed_exactly_once(model):
    faces = _faces().astype("float32")
    resized = tf.image.resize(np.repeat(faces, 3, axis=3), (SIZE, SIZE), method="bilinear").numpy()
    once = resized[..., ::-1] - np.array(CAFFE_MEAN_BGR, "float32")
    theirs = keras.applications.resnet50.preprocess_input(resized.copy())
    assert once == pytest.approx(theirs, abs=1e-3)

    def features_from(prepared: np.ndarray) -> np.ndarray:
        return np.array(network.backbone_of(model)(prepared, training=False)).mean(axis=(1, 2))

    prefix, head = frozen_prefix.split(model)
    features = np.array(prefix(faces, training=False))
    scale = np.abs(features).max()
    assert scale > 0
    assert np.abs(features - features_from(theirs)).max() < 1e-4 * scale
    twice = keras.applications.resnet50.preprocess_input(theirs.copy())
    for wrong in (resized, twice, theirs / 255):
        assert np.abs(features - features_from(wrong)).max() > 1e-2 * scale
    whole = np.array(model(faces, training=False))
    assert whole == pytest.approx(np.array(head(features_from(theirs), training=False)), abs=1e-4)
    assert whole.shape == (6, 7) and whole.sum(axis=1) == pytest.approx(np.ones(6), abs=1e-5)


def test_bytes_and_floats_of_one_face_give_one_answer(model):
    prefix, _ = frozen_prefix.split(model)
    assert np.array_equal(prefix(_faces(2)), prefix(_faces(2).astype("float32")))


def test_faces_of_any_size_go_in(model):
    for side in (32, 48, 60):
        assert model(_faces(1, side)).shape == (1, 7)


def test_as_one_function_a_model_takes_batches_of_any_length_and_several_inputs():
    one, two = keras.Input((3,)), keras.Input((2,))
    model = keras.Model([one, two], [keras.layers.Concatenate()([one, two]), keras.layers.Dropout(0.5)(one)])
    step = network.compiled(model)
    for n in (4, 1):
        batch = np.full((n, 3), 2, np.float16), np.ones((n, 2), np.uint8)
        both, undropped = step(batch)
        assert np.array_equal(both, np.hstack(batch)) and np.array_equal(undropped, batch[0])


def test_an_image_size_below_resnets_is_refused():
    with pytest.raises(ValueError, match="image_size is 31, ResNet50 needs at least 32"):
        network.build(31, "none")


def test_the_head_is_the_specified_one(model):
    dense, norm, dropout, out = (model.get_layer(name) for name in network.HEAD_LAYERS)
    assert (dense.units, dense.activation.__name__) == (32, "relu")
    assert isinstance(norm, keras.layers.BatchNormalization) and dropout.rate == 0.4
    assert (out.units, out.activation.__name__) == (7, "softmax")
    assert isinstance(model.get_layer(network.FEATURES), keras.layers.GlobalAveragePooling2D)


def test_at_first_the_head_alone_trains(model):
    counts = network.parameter_counts(model)
    assert counts["total"] == RESNET50_WEIGHTS + HEAD_WEIGHTS
    assert counts["trainable"] == HEAD_WEIGHTS - 2 * 32  # the moving averages are not trained
    assert counts["frozen"] == counts["total"] - counts["trainable"]


def test_a_saved_model_answers_alike_and_needs_nothing_but_keras(model, tmp_path):
    loop.compile_for_training(model, optimizers.AdamW(1e-3, 0.1))
    path = tmp_path / "model.keras"
    network.plain_copy(model).save(path)
    with zipfile.ZipFile(path) as file:
        config = file.read("config.json").decode()
    assert "fer_utils" not in config and '"Lambda"' not in config
    again = keras.saving.load_model(path, safe_mode=True)
    path.unlink()
    assert np.array_equal(again(_faces(), training=False), model(_faces(), training=False))


def test_unfreezing_counts_layers_from_the_top(training_model):
    layers = network.backbone_of(training_model).layers
    assert len(layers) == 175

    def having(kind: type, top: int) -> int:
        return sum(isinstance(layer, kind) for layer in layers[len(layers) - top :])

    conv, norm = keras.layers.Conv2D, keras.layers.BatchNormalization
    assert (having(conv, 175), having(norm, 175)) == (53, 53)
    for top in (0, 50, 175):
        assert network.unfreeze_top(training_model, top, "frozen") == having(conv, top)
        assert not any(layer.trainable for layer in layers if isinstance(layer, norm))
        assert network.unfreeze_top(training_model, top, "trained") == having(conv, top) + having(norm, top)
        assert not any(layer.trainable for layer in layers[: len(layers) - top])
    assert having(conv, 50) > 0
    assert network.unfreeze_top(training_model, 0, "trained") == 0


@pytest.mark.parametrize("n_layers", [-1, 176])
def test_more_layers_than_there_are_is_refused(model, n_layers):
    with pytest.raises(ValueError, match="has 175 layers"):
        network.unfreeze_top(model, n_layers, "frozen")


def _train_a_step(model: keras.Model) -> set[str]:
    before = _by_name(model)
    loop.compile_for_training(model, keras.optimizers.Adam(1e-3))
    model.run_eagerly = True  # one step: tracing it would take ten times as long
    model.train_on_batch(_faces(7), np.arange(7))
    return _moved(before, _by_name(model))


def _in_backbone(name: str) -> bool:
    return not any(part in name for part in network.HEAD_LAYERS)


def test_phase_1_moves_the_head_alone(training_model):
    moved = _train_a_step(training_model)
    assert not [name for name in moved if _in_backbone(name)]
    assert any("head_batch_norm/moving_mean" in name for name in moved)


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_phase_2_moves_the_top_layers_and_their_batch_normalization_only_where_it_trains(training_model, batch_norm):
    network.unfreeze_top(training_model, 50, batch_norm)
    backbone = network.backbone_of(training_model)
    top = {weight.path for layer in backbone.layers[-50:] if layer.trainable for weight in layer.weights}
    moved = {name for name in _train_a_step(training_model) if _in_backbone(name)}
    assert moved and moved <= top
    learned = {name.rpartition("/")[2] for name in moved if "_bn" in name}
    assert learned == ({"gamma", "beta", "moving_mean", "moving_variance"} if batch_norm == "trained" else set())


def test_none_leaves_random_weights_and_warns_what_that_means():
    with pytest.warns(UserWarning, match="backbone is random. Its frozen layers stay random"):
        network.load_backbone(SIZE, "none")


def test_a_random_backbone_starts_with_every_residual_block_as_its_shortcut():
    model = network.build(SIZE, "none")
    backbone = network.backbone_of(model)
    assert len(_last_norms(model)) == 3 + 4 + 6 + 3  # He et al. 2016, table 1
    ends = [f"conv3_block{block}_out" for block in (1, 2, 3, 4)]
    outputs = keras.Model(backbone.input, [backbone.get_layer(name).output for name in ends])(
        _faces(side=SIZE)[..., [0, 0, 0]]
    )
    assert all(np.array_equal(outputs[0], later) for later in outputs[1:]) and np.ptp(outputs[0]) > 0
    silent = {layer.name for layer in backbone.layers if hasattr(layer, "gamma") and not layer.gamma.numpy().all()}
    assert silent == {layer.name for layer in _last_norms(model)}
    with pytest.warns(
        UserWarning, match=r"residual branches stay at zero and learn nothing\. Set batch_norm to 'trained'"
    ):
        network.unfreeze_top(model, 50, "frozen")


def test_no_such_warning_of_weights_that_are_not_random(training_model, recwarn):
    network.unfreeze_top(training_model, 50, "frozen")
    assert not [warning for warning in recwarn if "residual" in str(warning.message)]


@pytest.mark.usefixtures("into_spare")
@pytest.mark.parametrize("layout", ["older", "newer"])
def test_resnet50s_own_weights_load_from_both_formats(model, files, layout):
    loaded = network.load_backbone(SIZE, str(files[layout]))
    own = network.backbone_of(model).get_weights()
    assert len(own) == len(loaded.get_weights())
    assert all(np.array_equal(one, other) for one, other in zip(own, loaded.get_weights(), strict=True))
    assert not loaded.trainable_weights


@pytest.fixture(scope="module")
def others() -> dict[str, keras.Model]:
    how = {"include_top": False, "weights": None, "input_shape": (SIZE, SIZE, 3)}
    return {
        "MobileNetV2": keras.applications.MobileNetV2(alpha=0.35, **how),
        "ResNet50V2": keras.applications.ResNet50V2(**how),
    }


@pytest.mark.usefixtures("into_spare")
@pytest.mark.parametrize("save", [_save_older, _save_newer])
@pytest.mark.parametrize("name", ["MobileNetV2", "ResNet50V2"])
def test_weights_of_another_network_are_refused_by_name(others, tmp_path, name, save):
    path = save(others[name], tmp_path / "other.h5")
    with pytest.raises(WeightsError) as caught:
        network.load_backbone(SIZE, str(path))
    assert str(path) in str(caught.value)
    path.unlink()


def _end_early(share: float) -> Callable[[Path], None]:
    def end(path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(int(path.stat().st_size * share))

    return end


def _lose(name: str) -> Callable[[Path], None]:
    def lose(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            del file[name]

    return lose


def _add_top(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [*(str(name).encode() for name in file.attrs["layer_names"]), b"predictions"]
        file.create_group("predictions").attrs["weight_names"] = [b"kernel"]


def _spoil_a_number(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        group = file["conv1_conv"]
        weight = group[group.attrs["weight_names"][0]]
        weight[(0,) * weight.ndim] = np.nan


@pytest.mark.usefixtures("into_spare")
@pytest.mark.parametrize(
    ("layout", "harm", "says"),
    [
        ("older", _end_early(0.5), None),
        ("newer", _end_early(0), None),
        ("newer", _end_early(0.999), None),
        ("newer", _lose("layers/conv2d_7"), None),
        ("newer", _lose("layers"), None),
        ("older", _add_top, r"1 unknown \(such as \['predictions'\]\): take the `notop` file"),
        ("older", _spoil_a_number, "values that are no numbers"),
    ],
)
def test_a_file_that_is_damaged_or_has_the_top_is_refused_by_name(files, tmp_path, layout, harm, says):
    path = Path(shutil.copy(files[layout], tmp_path))
    harm(path)
    with pytest.raises(WeightsError, match=says) as caught:
        network.load_backbone(SIZE, str(path))
    assert str(path) in str(caught.value)
    path.unlink()


@pytest.mark.usefixtures("into_spare")
def test_a_missing_file_and_a_file_of_another_kind_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no file at .*absent\.h5; give `imagenet`, `none`"):
        network.load_backbone(SIZE, str(tmp_path / "absent.h5"))
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(WeightsError, match=r"page\.h5: not the weights of ResNet50"):
        network.load_backbone(SIZE, str(tmp_path / "page.h5"))


@pytest.mark.filterwarnings("ignore:weights is 'none'")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_what_is_saved_of_a_model_in_mixed_precision_computes_in_float32_with_the_same_weights(policy):
    with precision(policy):
        mixed = network.build(SIZE, "none")
        network.unfreeze_top(mixed, 50, "trained")
        saved = network.for_inference(mixed)
        assert keras.mixed_precision.dtype_policy().name == policy
    assert {layer.compute_dtype for layer in saved._flatten_layers()} == {"float32"}
    assert all(np.array_equal(one, two) for one, two in zip(mixed.get_weights(), saved.get_weights(), strict=True))
    faces = _faces(8)
    assert np.array(saved(faces, training=False)) == pytest.approx(np.array(mixed(faces, training=False)), abs=0.02)


@pytest.mark.filterwarnings("ignore:weights is 'none'")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_two_outputs_train_as_one_model_and_are_saved_as_two_plain_ones(policy):
    with precision(policy):
        plain = network.build(SIZE, "none")
        both = network.with_votes_output(plain)
        network.unfreeze_top(both, 50, "trained")
        label, votes = network.for_inference(both), network.for_inference(both, network.VOTES_LAYER)
    faces, tolerance = _faces(8), 1e-5 if policy == "float32" else 0.02
    rows = np.array(both(faces, training=False))
    assert rows.shape == (8, 14) and abs(rows[:, :7] - rows[:, 7:]).max() > 0.02  # the two outputs differ
    for model, columns in ((label, rows[:, :7]), (votes, rows[:, 7:])):
        assert np.array(model(faces, training=False)) == pytest.approx(columns, abs=tolerance)
        assert [layer.name for layer in model.layers] == [layer.name for layer in plain.layers]
        assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    prefix, suffix = frozen_prefix.split(both)
    assert np.array(suffix(prefix(faces), training=False)) == pytest.approx(rows, abs=tolerance)
