"""Either network preprocesses once, loads its own weights and no others, and moves only what should move."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from fer_utils import places
from fer_utils.pipeline import runner
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers
from fer_utils.training.network import RESNET50, SMALL
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
# Without top; ResNet50's as keras.io's table of applications and its summary give it.
WEIGHTS = {RESNET50: 23_587_712, SMALL: 1_722_256}
FEATURES = {RESNET50: 2048, SMALL: 208}
LAYERS = runner.BACKBONE_LAYERS
SOME = {RESNET50: 50, SMALL: 12}  # layers that train
LAST_NORM = {RESNET50: "_3_bn", SMALL: "_2_bn"}  # of each residual block

pytestmark = [
    pytest.mark.filterwarnings("ignore:Skipping nested container"),  # Keras 3.15's word for what our check then refuses
]


def _built(backbone: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = network.build(SIZE, "none", backbone)
    for layer in _last_norms(model):  # else residual branches would add nothing
        layer.gamma.assign(np.ones(layer.gamma.shape))
    return model


@pytest.fixture(scope="module")
def resnet50() -> keras.Model:
    return _built(RESNET50)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return _built(SMALL)


@pytest.fixture(params=[RESNET50, SMALL])
def model(request) -> keras.Model:
    """Each of the networks."""
    return request.getfixturevalue(request.param)


def _last_norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The last BatchNormalization of each residual block."""
    backbone = network.backbone_of(model)
    return [
        layer for layer in backbone.layers if "block" in layer.name and layer.name.endswith(LAST_NORM[backbone.name])
    ]


@pytest.fixture
def training_model(model):
    """The same model, put back as it was afterwards."""
    before = model.get_weights()
    yield model
    network.unfreeze_top(model, 0, "frozen")
    network.backbone_of(model).trainable = False
    model.set_weights(before)


@pytest.fixture(scope="module")
def files(resnet50, tmp_path_factory) -> dict[str, Path]:
    """ResNet50's own weights in both of Keras' formats."""
    folder, backbone = tmp_path_factory.mktemp("weights"), network.backbone_of(resnet50)
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


def _standardised(pictures: np.ndarray) -> np.ndarray:
    return (pictures - pictures.mean(axis=(1, 2, 3), keepdims=True)) / pictures.std(axis=(1, 2, 3), keepdims=True)


def test_raw_faces_are_preprocessed_exactly_once(model):
    faces, backbone = _faces().astype("float32"), network.backbone_of(model)
    coloured = np.repeat(faces, backbone.input_shape[3], axis=3)
    resized = tf.image.resize(coloured, (SIZE, SIZE), method="bilinear").numpy()
    if backbone.name == RESNET50:
        once = resized[..., ::-1] - np.array(CAFFE_MEAN_BGR, "float32")
        theirs = keras.applications.resnet50.preprocess_input(resized.copy())
        assert once == pytest.approx(theirs, abs=1e-3)
        wrongs = [resized, theirs / 255, keras.applications.resnet50.preprocess_input(theirs.copy())]
    else:
        theirs = _standardised(resized)
        wrongs = [resized, theirs / 255]  # a second time would change nothing

    def features_from(prepared: np.ndarray) -> np.ndarray:
        return np.array(backbone(prepared, training=False)).mean(axis=(1, 2))

    prefix, head = frozen_prefix.split(model)
    features = np.array(prefix(faces, training=False))
    scale = np.abs(features).max()
    assert scale > 0
    assert np.abs(features - features_from(theirs)).max() < 1e-4 * scale
    for wrong in wrongs:
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
    step = devices.compiled(model)
    for n in (4, 1):
        batch = np.full((n, 3), 2, np.float16), np.ones((n, 2), np.uint8)
        both, undropped = step(batch)
        assert np.array_equal(both, np.hstack(batch)) and np.array_equal(undropped, batch[0])


def test_an_image_size_below_resnets_is_refused():
    with pytest.raises(ValueError, match="image_size is 31, expected at least 32"):
        network.build(31, "none")


def test_the_small_network_is_small():
    layers = network.small(48).layers
    kernels = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
    multiply_adds = sum(np.prod(one.kernel.shape) * np.prod(one.output.shape[1:3]) for one in kernels)
    assert multiply_adds == 122_747_904 < 130e6
    assert sum(layer.count_params() for layer in layers) == WEIGHTS[SMALL] < 3e6


def test_the_small_network_takes_the_weights_of_a_small_model_alone(model, tmp_path):
    with pytest.raises(WeightsError, match="weights is 'imagenet': the backbone small has none"):
        network.build(SIZE, "imagenet", SMALL)
    other = tmp_path / "model.keras"
    model.save(other)
    if network.backbone_of(model).name == SMALL:
        expected = network.backbone_of(model).get_weights()
        found = network.backbone_of(network.build(SIZE, str(other), SMALL)).get_weights()
        assert all(map(np.array_equal, found, expected))
    else:
        with pytest.raises(WeightsError, match=r"model\.keras is a model with another backbone than small"):
            network.build(SIZE, str(other), SMALL)


def test_the_shipped_weights_are_those_of_the_shipped_model():
    shipped = network.backbone_of(network.load(places.SHIPPED)).get_weights()
    found = network.backbone_of(network.build(SIZE, "shipped", SMALL))
    assert all(map(np.array_equal, found.get_weights(), shipped)) and not found.trainable


def test_the_head_is_the_specified_one(model):
    dense, norm, dropout, out = (model.get_layer(name) for name in network.HEAD_LAYERS)
    assert (dense.units, dense.activation.__name__) == (32, "relu")
    assert isinstance(norm, keras.layers.BatchNormalization) and dropout.rate == 0.4
    assert (out.units, out.activation.__name__) == (7, "softmax")
    assert isinstance(model.get_layer(network.FEATURES), keras.layers.GlobalAveragePooling2D)


def test_at_first_the_head_alone_trains(model):
    counts, name = network.parameter_counts(model), network.backbone_of(model).name
    head = (FEATURES[name] * 32 + 32) + 4 * 32 + (32 * 7 + 7)
    assert model.name == f"fer_{name}" and counts["total"] == WEIGHTS[name] + head
    assert counts["trainable"] == head - 2 * 32  # the moving averages are not trained
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


@pytest.mark.filterwarnings("ignore:the backbone is random")
@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_the_small_network_is_cut_where_training_begins(batch_norm):
    """ResNet50's cut is tested in test_frozen_prefix.py."""
    model, faces = network.build(SIZE, "none", SMALL), _faces()
    for top, cut in ((1, [(208,)]), (12, [(4, 4, 208)] * 2), (LAYERS[SMALL], [(SIZE, SIZE, 1)])):
        network.unfreeze_top(model, top, batch_norm)
        prefix, suffix = frozen_prefix.split(model)
        assert [tensor.shape[1:] for tensor in prefix.outputs] == cut
        assert np.array(suffix(prefix(faces))) == pytest.approx(np.array(model(faces)), abs=1e-6)
        assert {*map(id, suffix.trainable_weights)} == {*map(id, model.trainable_weights)}
        assert not prefix.trainable_weights


def test_unfreezing_counts_layers_from_the_top(training_model):
    backbone = network.backbone_of(training_model)
    layers, every, some = backbone.layers, LAYERS[backbone.name], SOME[backbone.name]
    assert len(layers) == every

    def having(kind: type, top: int) -> int:
        return sum(isinstance(layer, kind) for layer in layers[len(layers) - top :])

    conv, norm = keras.layers.Conv2D, keras.layers.BatchNormalization
    assert having(conv, every) == having(norm, every) == {RESNET50: 53, SMALL: 14}[backbone.name]
    for top in (0, some, every):
        assert network.unfreeze_top(training_model, top, "frozen") == having(conv, top)
        assert not any(layer.trainable for layer in layers if isinstance(layer, norm))
        assert network.unfreeze_top(training_model, top, "trained") == having(conv, top) + having(norm, top)
        assert not any(layer.trainable for layer in layers[: len(layers) - top])
    assert having(conv, some) > 0
    assert network.unfreeze_top(training_model, 0, "trained") == 0


def test_more_layers_than_there_are_is_refused(model):
    name = network.backbone_of(model).name
    for n_layers in (-1, LAYERS[name] + 1):
        with pytest.raises(ValueError, match=f"is {n_layers}, the backbone {name} has {LAYERS[name]} layers"):
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
    backbone = network.backbone_of(training_model)
    network.unfreeze_top(training_model, SOME[backbone.name], batch_norm)
    top = {w.path for layer in backbone.layers[-SOME[backbone.name] :] if layer.trainable for w in layer.weights}
    moved = {name for name in _train_a_step(training_model) if _in_backbone(name)}
    assert moved and moved <= top
    learned = {name.rpartition("/")[2] for name in moved if "_bn" in name}
    assert learned == ({"gamma", "beta", "moving_mean", "moving_variance"} if batch_norm == "trained" else set())


@pytest.mark.parametrize(
    ("name", "n_blocks", "ends"),
    [
        (RESNET50, 3 + 4 + 6 + 3, [f"conv3_block{block}_out" for block in (1, 2, 3, 4)]),  # He et al. 2016, table 1
        (SMALL, 1 + 1 + 1 + 2, ["stage4_block1_out", "stage4_block2_out"]),
    ],
)
def test_a_random_backbone_starts_with_every_residual_block_as_its_shortcut(name, n_blocks, ends, capsys):
    model = network.build(SIZE, "none", name)
    said = "weights is none: the backbone is random, and only the layers that 04 unfreezes learn\n"
    assert capsys.readouterr().out == said
    backbone = network.backbone_of(model)
    assert len(_last_norms(model)) == n_blocks
    outputs = keras.Model(backbone.input, [backbone.get_layer(name).output for name in ends])(
        np.repeat(_faces(side=SIZE), backbone.input_shape[3], axis=3)
    )
    assert all(np.array_equal(outputs[0], later) for later in outputs[1:]) and np.ptp(outputs[0]) > 0
    silent = {layer.name for layer in backbone.layers if hasattr(layer, "gamma") and not layer.gamma.numpy().all()}
    assert silent == {layer.name for layer in _last_norms(model)}
    with pytest.warns(
        UserWarning, match=r"residual branches stay at zero and learn nothing\. Set batch_norm to 'trained'"
    ):
        network.unfreeze_top(model, SOME[name], "frozen")


def test_no_such_warning_of_weights_that_are_not_random(training_model, recwarn):
    network.unfreeze_top(training_model, SOME[network.backbone_of(training_model).name], "frozen")
    assert not [warning for warning in recwarn if "residual" in str(warning.message)]


@pytest.mark.usefixtures("into_spare")
@pytest.mark.parametrize("layout", ["older", "newer"])
def test_resnet50s_own_weights_load_from_both_formats(resnet50, files, layout):
    loaded = network.load_backbone(SIZE, str(files[layout]))
    own = network.backbone_of(resnet50).get_weights()
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


@pytest.mark.parametrize(
    ("name", "policy"), [(RESNET50, "mixed_float16"), (SMALL, "mixed_float16"), (SMALL, "mixed_bfloat16")]
)
def test_what_is_saved_of_a_model_in_mixed_precision_computes_in_float32_with_the_same_weights(name, policy):
    with precision(policy):
        mixed = network.build(SIZE, "none", name)
        network.unfreeze_top(mixed, SOME[name], "trained")
        saved = network.for_inference(mixed)
        assert keras.mixed_precision.dtype_policy().name == policy
    assert mixed.get_layer(network.PREPROCESSING).output.dtype == "float32"
    assert saved.name == mixed.name and network.backbone_of(saved).name == name
    assert {layer.compute_dtype for layer in saved._flatten_layers()} == {"float32"}
    assert all(np.array_equal(one, two) for one, two in zip(mixed.get_weights(), saved.get_weights(), strict=True))
    faces = _faces(8)
    assert np.array(saved(faces, training=False)) == pytest.approx(np.array(mixed(faces, training=False)), abs=0.02)


@pytest.mark.parametrize(
    ("name", "policy"), [(RESNET50, "mixed_bfloat16"), (SMALL, "float32"), (SMALL, "mixed_bfloat16")]
)
def test_two_outputs_train_as_one_model_and_are_saved_as_two_plain_ones(name, policy):
    with precision(policy):
        plain = network.build(SIZE, "none", name)
        both = network.with_votes_output(plain)
        both.get_layer(network.VOTES_LAYER).bias.assign(np.linspace(0, 1, 7))
        network.unfreeze_top(both, SOME[name], "trained")
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
