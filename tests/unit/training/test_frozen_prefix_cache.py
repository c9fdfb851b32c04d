"""Activations are computed once, found again, and computed anew where the file is torn or of something else."""

import time
from concurrent.futures import ThreadPoolExecutor

from fer_utils import files
from fer_utils.training import frozen_prefix, network

import keras
import numpy as np
import pytest
from precision import precision


@pytest.fixture(scope="module")
def prefix() -> keras.Model:
    """A small stand-in with the two things that the cache asks of a prefix: `preprocessing` and outputs."""
    raw = keras.Input((8, 8, 1))
    x = keras.Sequential([keras.layers.Rescaling(0.1)], name="preprocessing")(raw)
    x = keras.layers.Conv2D(4, 3, strides=2, trainable=False)(x)
    return keras.Model(raw, [x, keras.layers.GlobalAveragePooling2D()(x)])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (300, 8, 8, 1)).astype(np.uint8)


def _kept(prefix, images, folder, dtype="float32", place="disk"):
    plan = frozen_prefix.Plan(place, dtype, 0, "")
    _, (inputs,) = frozen_prefix.prepare(prefix, prefix, [images], plan, folder)
    return inputs


def _never(*_, **__):
    raise AssertionError("computed again")


def test_rows_come_back_in_the_order_asked_for(prefix, images, tmp_path):
    expected = prefix(images, training=False)
    chosen = np.array([299, 0, 7, 7])
    for place in ("disk", "memory"):
        inputs = _kept(prefix, images, tmp_path / place, place=place)
        for rows, whole in zip(inputs, expected, strict=True):
            assert len(rows) == 300
            assert rows[chosen] == pytest.approx(np.array(whole)[chosen], abs=1e-6)


def test_the_second_time_nothing_is_computed(prefix, images, tmp_path, monkeypatch, capsys):
    _kept(prefix, images, tmp_path)
    monkeypatch.setattr(frozen_prefix, "_computed", _never)
    _kept(prefix, images, tmp_path)
    assert "are there already" in capsys.readouterr().out


def test_the_network_is_traced_once_for_all_images(images, tmp_path):
    traces = []
    raw = keras.Input((8, 8, 1))
    x = keras.Sequential([keras.layers.Rescaling(0.1)], name="preprocessing")(raw)
    x = keras.layers.Conv2D(4, 3, trainable=False)(x)
    counted = keras.Model(raw, keras.layers.Lambda(lambda y: traces.append(y) or y)(x))
    traces.clear()
    _, kept = frozen_prefix.prepare(counted, counted, [images, images[:150]], "memory", tmp_path)
    assert [len(arrays) for arrays in kept] == [300, 150] and len(traces) == 1
    assert kept[1] == pytest.approx(kept[0][:150])


@pytest.fixture
def kernel(prefix):
    """The prefix's kernel, put back as it was afterwards."""
    before = prefix.weights[0].numpy()
    yield prefix.weights[0]
    prefix.weights[0].assign(before)


def test_other_images_weights_or_floats_are_other_activations(prefix, kernel, images, tmp_path):
    _kept(prefix, images, tmp_path)
    _kept(prefix, images[::-1], tmp_path)
    _kept(prefix, images, tmp_path, "float16")
    kernel.assign(kernel + 1)
    _kept(prefix, images, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def _network_in(policy: str) -> keras.Model:
    with precision(policy):
        keras.utils.set_random_seed(1)
        raw = keras.Input((8, 8, 1))
        x = keras.Sequential([keras.layers.Rescaling(0.1)], name="preprocessing")(raw)
        return keras.Model(raw, keras.layers.Conv2D(4, 3, trainable=False)(x))


def test_another_precision_of_the_same_network_is_other_activations(images, tmp_path):
    """What bfloat16 computed may be kept as float32, and is no float32 result all the same."""
    coarse, fine = _network_in("mixed_bfloat16"), _network_in("float32")
    assert all((a.numpy() == b.numpy()).all() for a, b in zip(coarse.weights, fine.weights, strict=True))
    kept = _kept(coarse, images, tmp_path)[np.arange(300)]
    assert _kept(fine, images, tmp_path)[np.arange(300)] == pytest.approx(np.array(fine(images)), abs=1e-6)
    assert len(list(tmp_path.iterdir())) == 2 and abs(kept - np.array(fine(images))).max() > 1e-3


@pytest.mark.parametrize(
    ("policy", "kept", "coarser"),
    [("float32", "float16", "float16"), ("mixed_bfloat16", "float32", "bfloat16"), ("float32", "float32", "float32")],
)
def test_the_coarser_float_type_decides_how_far_probabilities_may_differ(policy, kept, coarser):
    model = _network_in(policy)
    inputs = (np.zeros(1, kept), np.zeros(1, np.uint8))
    assert frozen_prefix.tolerance(model, inputs) == frozen_prefix.TOLERANCE[coarser]


@pytest.mark.parametrize(
    ("name", "left"),
    [("cut_0.npy", -10), ("cut_1.npy", 0), ("checksums.npy", -1), ("checksums.npy", 3), ("cut_1.npy", None)],
)
def test_a_torn_cache_is_computed_again(name, left, prefix, images, tmp_path, capsys):
    _kept(prefix, images, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = (entry / name).read_bytes()
    (entry / name).unlink()
    if left is not None:
        (entry / name).write_bytes(content[:left])
    inputs = _kept(prefix, images, tmp_path)
    assert inputs[1][np.arange(300)] == pytest.approx(np.array(prefix(images)[1]), abs=1e-6)
    assert ("computed again" in capsys.readouterr().out) == (left is not None)
    assert [path.name for path in tmp_path.iterdir()] == [entry.name]


def test_one_flipped_bit_is_noticed_and_all_is_computed_again(prefix, images, tmp_path, capsys):
    _kept(prefix, images, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = bytearray((entry / "cut_1.npy").read_bytes())
    content[-1] ^= 1  # of the last row
    (entry / "cut_1.npy").write_bytes(content)
    inputs = _kept(prefix, images, tmp_path)
    assert f"{entry} is not whole (cut_1.npy is not what was written): computed again" in capsys.readouterr().out
    assert inputs[1][np.arange(300)] == pytest.approx(np.array(prefix(images)[1]), abs=1e-6)
    assert (entry / "cut_1.npy").read_bytes()[-1] == content[-1] ^ 1


@pytest.mark.parametrize("part", ["keras", "tensorflow"])
def test_another_version_computes_other_activations(prefix, images, monkeypatch, part):
    before = frozen_prefix._key(prefix, images, "float32")
    monkeypatch.setattr(f"{part}.__version__", "0.0")
    assert frozen_prefix._key(prefix, images, "float32") != before


def test_an_interrupted_pass_leaves_nothing(prefix, images, tmp_path, monkeypatch):
    def breaks(*_):
        yield [np.zeros((10, 3, 3, 4), np.float32), np.zeros((10, 4), np.float32)]
        raise KeyboardInterrupt

    monkeypatch.setattr(frozen_prefix, "_computed", breaks)
    with pytest.raises(KeyboardInterrupt):
        _kept(prefix, images, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_float16_cannot_hold_is_refused(prefix, kernel, images, tmp_path):
    kernel.assign(kernel * 1e6)
    with pytest.raises(FloatingPointError, match="does not fit into float16: set cache to none"):
        _kept(prefix, images, tmp_path, "float16")


@pytest.mark.parametrize(
    ("disk", "memory", "gpu", "expected"),
    [
        (1e12, 1e12, False, ("disk", "float32")),
        (1e3, 1e12, False, ("memory", "float32")),
        (50e3, 1e3, False, ("disk", "float16")),
        (1e3, 50e3, False, ("memory", "float16")),
        (1e3, 1e3, False, ("none", "float32")),
        (1e12, 1e3, True, ("none", "float32")),  # beside a GPU the disk takes no more than memory would
    ],
)
def test_the_budget_decides(prefix, disk, memory, gpu, expected, monkeypatch, tmp_path):
    usage = frozen_prefix.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(frozen_prefix.shutil, "disk_usage", lambda folder: usage._replace(free=disk))
    monkeypatch.setattr(frozen_prefix, "free_memory", lambda: memory)
    monkeypatch.setattr(frozen_prefix.devices, "has_gpu", lambda: gpu)
    plan = frozen_prefix.plan(prefix, 300, "auto", tmp_path)  # 300 × (36 + 4) numbers: 48 kB or 24 kB
    assert (plan.place, plan.dtype) == expected
    assert ("not kept" in str(plan)) == (plan.place == "none")


def test_the_oldest_caches_make_room(prefix, images, tmp_path, monkeypatch):
    _kept(prefix, images, tmp_path)
    (old,) = tmp_path.iterdir()
    usage = frozen_prefix.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        frozen_prefix.shutil, "disk_usage", lambda folder: usage._replace(free=60_000 if old.exists() else 10**9)
    )
    _kept(prefix, images[::-1], tmp_path)
    assert not old.exists() and len(list(tmp_path.iterdir())) == 1


def test_caches_make_room_only_where_they_hold_nothing_else(prefix, images, tmp_path):
    for name in ("ours", "added", "theirs"):
        _kept(prefix, images[: 10 + len(name)], tmp_path / name)
    (added,), (theirs,), (ours,) = ((tmp_path / name).iterdir() for name in ("added", "theirs", "ours"))
    (added / "notes.txt").write_text("mine")
    (theirs / files.WRITTEN).unlink()
    assert [frozen_prefix._entries(entry.parent) for entry in (added, theirs, ours)] == [[], [], [ours]]
    (added / "cut_0.npy").write_text("torn")
    with pytest.raises(files.OutputError, match=r"holds notes\.txt"):
        _kept(prefix, images[:15], added.parent)
    assert (added / "notes.txt").read_text() == "mine"


def test_val_does_not_make_room_for_itself_by_deleting_train(prefix, images, tmp_path, monkeypatch):
    _kept(prefix, images[:100], tmp_path)
    (old,) = tmp_path.iterdir()
    usage = frozen_prefix.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(frozen_prefix.shutil, "disk_usage", lambda folder: usage._replace(free=60_000))
    monkeypatch.setattr(frozen_prefix.files, "require_space", lambda folder, n_bytes: None)
    frozen_prefix.prepare(prefix, prefix, [images[:200], images[200:]], "disk", tmp_path)
    assert not old.exists() and len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_process_left_of_the_same_activations_is_removed(prefix, images, tmp_path):
    _kept(prefix, images, tmp_path)
    (entry,) = tmp_path.iterdir()
    left = [tmp_path / f"{frozen_prefix.files.PARTIAL}12345678-{name}" for name in (entry.name, "another")]
    for folder in left:
        folder.mkdir()
        (folder / "cut_0.npy").write_bytes(b"begun")
    _kept(prefix, images, tmp_path)
    assert [folder.exists() for folder in left] == [False, True]  # another process may be writing the second


def test_where_everything_trains_there_is_nothing_to_keep(tmp_path):
    model = network.build(32, "none")
    network.unfreeze_top(model, 175, "trained")
    prefix, suffix = frozen_prefix.split(model)
    assert frozen_prefix.plan(prefix, 10, "auto", tmp_path).place == "none"
    subject, (inputs,) = frozen_prefix.prepare(prefix, suffix, [np.zeros((2, 48, 48, 1), np.uint8)], "auto", tmp_path)
    assert np.array(subject(inputs)) == pytest.approx(np.array(model(inputs)), abs=1e-6)


@pytest.mark.parametrize("place", ["auto", "disk", "memory", "none"])
def test_nothing_is_kept_for_pictures_that_change_and_the_plan_says_why(prefix, images, tmp_path, place):
    plan = frozen_prefix.plan(prefix, len(images), place, tmp_path, pictures_change=True)
    assert plan.place == "none" and "augmentation or mixup gives other pictures each epoch" in str(plan)
    assert (f"`cache` cannot be {place}" in str(plan)) == (place in ("disk", "memory"))


def test_who_comes_second_waits_for_the_same_activations(prefix, images, tmp_path, monkeypatch, capsys):
    computed, calls = frozen_prefix._computed, []

    def slowly(*arguments):
        calls.append(arguments)
        time.sleep(0.5)
        return computed(*arguments)

    monkeypatch.setattr(frozen_prefix, "_computed", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: _kept(prefix, images, tmp_path / "cache"), range(2))
    assert len(calls) == 1 and "another process computes these activations; waiting" in capsys.readouterr().out
    assert all((one[np.arange(300)] == other[np.arange(300)]).all() for one, other in zip(first, second, strict=True))
    assert len(list((tmp_path / "cache").iterdir())) == 1
