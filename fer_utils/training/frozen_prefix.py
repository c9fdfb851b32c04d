"""Splits the network before its first trainable layer, and caches the activations of the frozen part.

The activations are kept on disk, in memory, or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_utils import files
from fer_utils.training import devices, loop, network
from fer_utils.training.network import PREPROCESSING, compiled

import keras
import numpy as np
import psutil

CHECKSUMS = "checksums.npy"  # beside the activations: one row for each of their files
SHARE = 0.5  # largest share of the free disk or memory; the rest is for training and other programs
# Largest difference of a probability from the whole network's. bfloat16 rounds 8 times as coarsely as float16 (8 and 11 bits).
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
FLOAT16_LIMIT = float(np.finfo(np.float16).max)


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(prefix, suffix), which share their layers with `model`: suffix(prefix(images)) equals model(images).

    The prefix takes raw images. Its outputs, a list if there are several, are the tensors that pass from layers before
    any trainable weight to the other layers; they are the inputs of the suffix. Trainable layers must be set before the
    call. Training the suffix trains `model`.
    """
    backbone, pooling = network.backbone_of(model), model.get_layer(network.FEATURES)
    preprocessed = model.get_layer(network.PREPROCESSING)(model.input)
    cut = _cut(backbone)
    if cut:
        frozen = keras.Model(backbone.input, cut, name="frozen_layers")
        outputs = keras.tree.flatten(frozen(preprocessed, training=False))
        trained = keras.Model(cut, backbone.output, name="trained_layers")
    else:
        outputs = [pooling(backbone(preprocessed, training=False))]
    inputs = [keras.Input(tensor.shape[1:], name=f"cut_{place}") for place, tensor in enumerate(outputs)]
    if len(inputs) == 1:
        (outputs,), (inputs,) = outputs, inputs
    x = pooling(trained(inputs)) if cut else inputs
    suffix = keras.Model(inputs, network.apply_head(model, x), name="suffix")
    return keras.Model(model.input, outputs, name="prefix"), suffix


def joined(prefix: keras.Model, suffix: keras.Model) -> keras.Model:
    """Both parts as one model from raw images to probabilities, for training without cached activations."""
    return keras.Model(prefix.input, suffix(prefix(prefix.input)), name="whole")


def _cut(backbone: keras.Model) -> list:
    """The tensors that pass from frozen layers to trained ones; none if every layer of the backbone is frozen."""
    trained, cut = set(), {}
    for layer in backbone.layers:
        inputs = layer.input if isinstance(layer.input, list) else [layer.input]
        if layer.trainable_weights or any(id(tensor) in trained for tensor in inputs):
            cut.update({id(tensor): tensor for tensor in inputs if id(tensor) not in trained})
            trained.add(id(layer.output))
    return list(cut.values())


class Rows:
    """The rows of a `.npy` file, read on demand; indexed with an array of row numbers.

    Each row that is read is compared with its checksum, a CRC-32: 0.3 s for a gigabyte.
    """

    def __init__(self, path: Path, checksums: np.ndarray):
        self.path, self._checksums = path, checksums
        self._rows = np.asarray(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        rows = self._rows[chosen]
        for row, values in zip(chosen, rows, strict=True):
            if zlib.crc32(values) != self._checksums[row]:
                raise OSError(f"{self.path}: row {row} is not what was written; delete {self.path.parent}")
        return rows


@dataclass(frozen=True)
class Plan:
    """Where activations are kept (`disk`, `memory` or `none`), their float type, their bytes, and the reason."""

    place: str
    dtype: str
    n_bytes: int
    reason: str

    def __str__(self) -> str:
        size = f"{self.n_bytes / 1e9:.2f} GB as {self.dtype}"
        where = {"disk": f"kept on disk, {size}", "memory": f"kept in memory, {size}", "none": "not kept"}
        return f"activations of the frozen layers: {where[self.place]} ({self.reason})"


def plan(
    prefix: keras.Model, n_images: int, place: str, dtype: str, folder: Path, pictures_change: bool = False
) -> Plan:
    """Decide where the activations of `n_images` are kept.

    place: `auto`, `disk`, `memory` or `none`; dtype: `auto`, `float32` or `float16`. Values other than `auto` are used
    unchanged. `auto` prefers float32, which is exact, and the disk, where the next run finds them, if they take at most
    SHARE of the free space. With a GPU the disk is used only if they would also fit into memory, since computing the
    prefix is faster than reading from a disk. pictures_change: the pictures differ from epoch to epoch, so that
    activations cannot be kept, whatever `place` is.
    """
    if not prefix.weights:
        return Plan("none", "float32", 0, "training starts at the first layer: nothing is frozen before it")
    if pictures_change:
        refused = "" if place in ("auto", "none") else f", so `cache` cannot be {place}"
        return Plan("none", "float32", 0, f"augmentation or mixup gives other pictures each epoch{refused}")
    sizes = {name: _bytes(prefix, n_images, name) for name in ("float32", "float16")}
    if place == "none":
        return Plan("none", "float32", 0, "as the parameter says")
    if place != "auto":
        dtype = "float32" if dtype == "auto" else dtype
        return Plan(place, dtype, sizes[dtype], "as the parameter says")
    disk, memory = _free_disk(folder), free_memory()
    half = prefix.outputs[0].dtype == "float16"  # mixed precision: float32 would not be more exact
    candidates = (dtype,) if dtype != "auto" else ("float16",) if half else ("float32", "float16")
    for name in candidates:
        if sizes[name] <= SHARE * disk and (not devices.has_gpu() or sizes[name] <= SHARE * memory):
            return Plan("disk", name, sizes[name], f"{disk / 1e9:.0f} GB of disk are free")
        if sizes[name] <= SHARE * memory:
            return Plan("memory", name, sizes[name], f"{memory / 1e9:.0f} GB of memory are free")
    wanted = sizes[candidates[-1]] / 1e9
    return Plan(
        "none",
        "float32",
        0,
        f"{wanted:.1f} GB are more than {SHARE:.0%} of {disk / 1e9:.0f} GB disk and {memory / 1e9:.0f} GB memory",
    )


def prepare(
    prefix: keras.Model, suffix: keras.Model, image_sets: Sequence[np.ndarray], chosen: Plan, folder: Path
) -> tuple[keras.Model, list]:
    """The model to train and its inputs: (model, inputs), with an entry of `inputs` for each of `image_sets`.

    image_sets: raw images, uint8 (n, height, width, 1). If activations are kept, the model is `suffix` and an entry has
    the activations for its inputs; otherwise the model is the whole network and an entry has the images. Raises
    FloatingPointError if activations do not fit into float16.
    """
    if chosen.place == "none":
        return joined(prefix, suffix), list(image_sets)
    step = compiled(prefix)
    if chosen.place == "disk":
        keys = [_key(prefix, images, chosen.dtype) for images in image_sets]
        needed = {folder / key for key in keys}
        kept = [
            _on_disk(prefix, step, images, chosen.dtype, folder / key, needed)
            for images, key in zip(image_sets, keys, strict=True)
        ]
    else:
        kept = [_in_memory(prefix, step, images, chosen.dtype) for images in image_sets]
    return suffix, [arrays[0] if len(arrays) == 1 else arrays for arrays in kept]


def largest_difference(model: keras.Model, trained: keras.Model, images: np.ndarray, inputs, n: int = 64) -> float:
    """The largest difference of probabilities between the whole model and the trained one, on the first `n` images.

    inputs: the result of `prepare` for these images. More than `tolerance` means an error.
    """
    first = np.arange(min(n, len(images)))
    chosen = keras.tree.map_structure(lambda array: array[first], inputs)
    return float(abs(loop.predict(model, images[first]) - loop.predict(trained, chosen)).max())


def tolerance(model: keras.Model, plan: Plan) -> float:
    """TOLERANCE of the coarser of two float types: that of the kept activations, and that in which the model computes."""
    computes_in = model.dtype_policy.compute_dtype
    if computes_in == "float32" and devices.rounds_to_tensor_float_32():
        computes_in = "float16"  # as many bits of mantissa
    return max(TOLERANCE[plan.dtype], TOLERANCE[computes_in])


def free_memory() -> int:
    """Bytes of free memory, limited by the process's control group."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free


def _free_disk(folder: Path) -> int:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free + sum(_size(entry) for entry in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    """The caches in a folder that hold nothing else, least recently used first."""
    found = [file.parent for file in folder.glob(f"*/{CHECKSUMS}") if files.foreign(file.parent) is None]
    return sorted(found, key=lambda entry: entry.stat().st_mtime)


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.iterdir())


def _in_memory(prefix: keras.Model, step: Callable, images: np.ndarray, dtype: str) -> tuple[np.ndarray, ...]:
    arrays = tuple(np.empty((len(images), *tensor.shape[1:]), dtype) for tensor in prefix.outputs)
    done = 0
    for batch in _computed(step, images, dtype):
        for array, values in zip(arrays, batch, strict=True):
            array[done : done + len(values)] = values
        done += len(batch[0])
    return arrays


def _on_disk(
    prefix: keras.Model, step: Callable, images: np.ndarray, dtype: str, entry: Path, needed: Collection[Path]
) -> tuple[Rows, ...]:
    """Activations at `entry`, computed unless they are there; `needed`: entries that must not make room for them."""
    folder = entry.parent
    with files.one_at_a_time(
        folder.with_name(f"{folder.name}.locks") / entry.name,
        lambda: print("another process computes these activations; waiting"),
    ):
        for partial in folder.glob(f"{files.PARTIAL}*{entry.name}"):  # of a process that was killed
            files.remove(partial)
        try:
            rows = _open(entry)
            os.utime(entry)
            print(f"activations of {len(images):,} images are there already: {entry}")
            return rows
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            print(f"{entry} is not whole ({error}): computed again")
            files.require_own(entry, names_only=True)
            files.remove(entry)
        _make_room(folder, needed, _bytes(prefix, len(images), dtype))
        with files.replacing(entry) as temporary:
            _write(temporary, prefix, step, images, dtype)
        return _open(entry)


def _write(entry: Path, prefix: keras.Model, step: Callable, images: np.ndarray, dtype: str) -> None:
    """Write a file of activations for each output of the prefix, batch by batch, and the checksums of their rows."""
    entry.mkdir()
    checksums: list[list[int]] = [[] for _ in prefix.outputs]
    with contextlib.ExitStack() as stack:
        outputs = []
        for place, tensor in enumerate(prefix.outputs):
            outputs.append(stack.enter_context((entry / f"cut_{place}.npy").open("wb")))
            header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (len(images), *tensor.shape[1:])}
            np.lib.format.write_array_header_1_0(outputs[-1], header)
        for batch in _computed(step, images, dtype):
            for output, values, of_rows in zip(outputs, batch, checksums, strict=True):
                output.write(values)
                of_rows += [zlib.crc32(row) for row in values]
    np.save(entry / CHECKSUMS, np.array(checksums, np.uint32))


def _open(entry: Path) -> tuple[Rows, ...]:
    checksums = np.load(entry / CHECKSUMS)
    return tuple(Rows(entry / f"cut_{place}.npy", of_rows) for place, of_rows in enumerate(checksums))


def _bytes(prefix: keras.Model, n_images: int, dtype: str) -> int:
    return sum(int(np.prod(t.shape[1:])) for t in prefix.outputs) * n_images * np.dtype(dtype).itemsize


def _make_room(folder: Path, kept: Collection[Path], n_bytes: int) -> None:
    """Delete caches but those in `kept`, least recently used first, while `n_bytes` are more than SHARE of the free disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in _entries(folder):
        if n_bytes <= SHARE * shutil.disk_usage(folder).free:
            break
        if old not in kept:
            print(f"making room: {old} deleted, {_size(old) / 1e9:.2f} GB")
            files.remove(old)
    files.require_space(folder, n_bytes)


def _key(prefix: keras.Model, images: np.ndarray, dtype: str) -> str:
    """A digest of everything that determines the activations: images, weights, sizes, float types, versions."""
    digest = hashlib.blake2b(digest_size=12)
    sizes = [prefix.get_layer(PREPROCESSING).output.shape[1:], *(tensor.shape[1:] for tensor in prefix.outputs)]
    computed_in = [devices.rounds_to_tensor_float_32(), *(tensor.dtype for tensor in prefix.outputs)]
    digest.update(json.dumps([sizes, dtype, computed_in, list(images.shape), devices.versions()]).encode())
    digest.update(np.ascontiguousarray(images).data)
    for weight in prefix.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()


def _computed(step: Callable, images: np.ndarray, dtype: str) -> Iterator[list[np.ndarray]]:
    for outputs in loop.in_batches(step, images, "frozen layers"):
        values = keras.tree.flatten(outputs)
        if dtype == "float16":
            highest = max(float(np.abs(value).max()) for value in values)
            if not highest <= FLOAT16_LIMIT:
                raise FloatingPointError(f"an activation of {highest:.3g} does not fit into float16: set float32")
        yield [np.ascontiguousarray(value, dtype) for value in values]
