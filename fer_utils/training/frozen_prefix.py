"""Splits the network before its first trainable layer, and caches the activations of the frozen part."""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fer_utils import files
from fer_utils.training import devices, loop, network

import keras
import numpy as np
import psutil

CHECKSUMS = "checksums.npy"  # beside the activations: the CRC-32 of each of their files
SHARE = 0.5  # largest share of the free disk or memory; the rest is for training and other programs
# Largest difference of a probability from the whole network's. bfloat16 rounds 8 times as coarsely as float16 (8 and 11 bits).
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
FLOAT16_LIMIT = float(np.finfo(np.float16).max)


def split(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """(prefix, suffix), which share their layers with `model`: suffix(prefix(images)) equals model(images).

    The prefix takes raw images. Its outputs, a list if there are several, are the tensors that pass from layers before
    any trainable weight to the other layers. Trainable layers must be set before the call.
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
    inputs = [keras.Input(tensor.shape[1:], name=f"cut_{number}") for number, tensor in enumerate(outputs)]
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


@dataclass(frozen=True)
class Plan:
    """Where activations are kept (`disk`, `memory` or `none`), their float type, their bytes, and the reason."""

    place: str
    dtype: str
    n_bytes: int
    reason: str

    def __str__(self) -> str:
        size = f"{self.n_bytes / 1e9:.2f} GB as {self.dtype}"
        where = {"disk": f"kept on disk, {size}", "memory": f"kept in memory, {size}", "none": "not kept"}[self.place]
        return f"activations of the frozen layers: {where} ({self.reason})"


def plan(prefix: keras.Model, n_images: int, place: str, folder: Path, pictures_change: bool = False) -> Plan:
    """Decide where the activations of `n_images` are kept.

    place: `auto`, `disk`, `memory` or `none`. `auto` prefers float32, which is exact, and the disk, where the next run finds
    the activations, if they take at most SHARE of the free space; with a GPU only if they would also fit into memory, since
    computing the prefix is faster than reading from a disk. pictures_change: the pictures differ from epoch to epoch, so
    that activations cannot be kept, whatever `place` is.
    """
    if not prefix.weights:
        return Plan("none", "float32", 0, "training starts at the first layer: nothing is frozen before it")
    if pictures_change:
        refused = "" if place in ("auto", "none") else f", so `cache` cannot be {place}"
        return Plan("none", "float32", 0, f"augmentation or mixup gives other pictures each epoch{refused}")
    # In mixed precision float32 would not be more exact.
    dtypes = ("float16",) if prefix.outputs[0].dtype == "float16" else ("float32", "float16")
    sizes = {dtype: _bytes(prefix, n_images, dtype) for dtype in dtypes}
    if place != "auto":
        dtype, size = ("float32", 0) if place == "none" else next(iter(sizes.items()))
        return Plan(place, dtype, size, "as the parameter says")
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    removable = sum(file.stat().st_size for entry in _entries(folder) for file in entry.iterdir())
    disk = shutil.disk_usage(there).free + removable
    memory = free_memory()
    for dtype, size in sizes.items():
        if size <= SHARE * (min(disk, memory) if devices.has_gpu() else disk):
            return Plan("disk", dtype, size, f"{disk / 1e9:.0f} GB of disk are free")
        if size <= SHARE * memory:
            return Plan("memory", dtype, size, f"{memory / 1e9:.0f} GB of memory are free")
    free = f"{disk / 1e9:.0f} GB disk and {memory / 1e9:.0f} GB memory"
    return Plan("none", "float32", 0, f"{sizes['float16'] / 1e9:.1f} GB are more than {SHARE:.0%} of {free}")


def prepare(
    prefix: keras.Model,
    suffix: keras.Model,
    image_sets: Sequence[np.ndarray],
    place: str | Plan,
    folder: Path,
    pictures_change: bool = False,
) -> tuple[keras.Model, list]:
    """The model to train, and a list of its inputs for each of `image_sets`, raw images, uint8 (n, height, width, 1).

    place, folder, pictures_change: as for `plan`, whose decision is printed; or `place` is a Plan. If activations are kept,
    the model is `suffix` and they are its inputs; otherwise it is the whole network, for the images. Raises
    FloatingPointError if activations do not fit into float16.
    """
    chosen = place
    if not isinstance(chosen, Plan):
        chosen = plan(prefix, sum(map(len, image_sets)), chosen, folder, pictures_change)
        print(chosen)
    if chosen.place == "none":
        return joined(prefix, suffix), list(image_sets)
    if chosen.place == "memory":
        kept = [_filled(prefix, images, chosen.dtype) for images in image_sets]
    else:
        entries = [folder / _key(prefix, images, chosen.dtype) for images in image_sets]
        pairs = zip(image_sets, entries, strict=True)
        kept = [_on_disk(prefix, images, chosen.dtype, entry, entries) for images, entry in pairs]
    return suffix, [arrays[0] if len(arrays) == 1 else tuple(arrays) for arrays in kept]


def largest_difference(model: keras.Model, trained: keras.Model, images: np.ndarray, inputs, n: int = 64) -> float:
    """The largest difference of probabilities between the whole model and the trained one, on the first `n` images.

    inputs: the result of `prepare` for these images.
    """
    first = np.arange(min(n, len(images)))
    chosen = keras.tree.map_structure(lambda array: array[first], inputs)
    return float(abs(loop.predict(model, images[first]) - loop.predict(trained, chosen)).max())


def tolerance(model: keras.Model, inputs) -> float:
    """TOLERANCE of the coarser of two float types: that of `inputs`, as in largest_difference, and that of the computation."""
    computes_in = model.dtype_policy.compute_dtype
    if computes_in == "float32" and devices.has_gpu():
        computes_in = "float16"  # GPUs since Ampere round float32 to as many bits of mantissa (TensorFloat-32)
    kept = {str(array.dtype) for array in keras.tree.flatten(inputs)} & TOLERANCE.keys()  # images are exact
    return max(TOLERANCE[name] for name in {computes_in, *kept})


def free_memory() -> int:
    """Bytes of free memory, limited by the process's control group."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        return max(0, min(free, limit - int((group / "memory.current").read_text())))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return free


def _entries(folder: Path) -> list[Path]:
    """The caches in a folder that hold nothing else, least recently used first."""
    found = [file.parent for file in folder.glob(f"*/{CHECKSUMS}") if files.foreign(file.parent) is None]
    return sorted(found, key=lambda entry: entry.stat().st_mtime)


def _on_disk(
    prefix: keras.Model, images: np.ndarray, dtype: str, entry: Path, needed: Collection[Path]
) -> list[np.ndarray]:
    """Activations at `entry`, computed unless they are there; `needed`: entries that must not make room for them."""
    folder, waiting = entry.parent, "another process computes these activations; waiting"
    with files.one_at_a_time(folder.with_name(f"{folder.name}.locks") / entry.name, lambda: print(waiting)):
        for partial in folder.glob(f"{files.PARTIAL}*{entry.name}"):  # of a process that was killed
            files.remove(partial)
        try:
            arrays = _open(entry)
            os.utime(entry)
            print(f"activations of {len(images):,} images are there already: {entry}")
            return arrays
        except FileNotFoundError:
            pass
        except (OSError, ValueError, EOFError) as error:
            print(f"{entry} is not whole ({error}): computed again")
            files.require_own(entry, names_only=True)
            files.remove(entry)
        _make_room(folder, needed, _bytes(prefix, len(images), dtype))
        with files.replacing(entry) as temporary:
            temporary.mkdir()
            checksums = [zlib.crc32(array.data) for array in _filled(prefix, images, dtype, temporary)]
            np.save(temporary / CHECKSUMS, np.array(checksums, np.uint32))
        return _open(entry)


def _open(entry: Path) -> list[np.ndarray]:
    """The arrays at `entry`, mapped into memory. Raises OSError, ValueError or EOFError if they are not what was written."""
    arrays = []
    for number, checksum in enumerate(np.load(entry / CHECKSUMS)):
        arrays.append(np.asarray(np.load(entry / f"cut_{number}.npy", mmap_mode="r")))
        if zlib.crc32(arrays[-1].data) != checksum:  # 0.3 s a gigabyte
            raise ValueError(f"cut_{number}.npy is not what was written")
    return arrays


def _filled(prefix: keras.Model, images: np.ndarray, dtype: str, folder: Path | None = None) -> list[np.ndarray]:
    """The activations of the images, one array for each output of the prefix: in files `cut_N.npy` of a folder, or in memory."""
    arrays: list[np.ndarray] = []
    for number, tensor in enumerate(prefix.outputs):
        shape = len(images), *tensor.shape[1:]
        if folder is None:
            arrays.append(np.empty(shape, dtype))
            continue
        path = folder / f"cut_{number}.npy"
        arrays.append(np.lib.format.open_memmap(path, "w+", dtype, shape))
        if hasattr(os, "posix_fallocate"):  # a disk that fills up later would end the process without an error (SIGBUS)
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    done = 0
    for batch in _computed(prefix, images, dtype):
        for array, values in zip(arrays, batch, strict=True):
            array[done : done + len(values)] = values
        done += len(batch[0])
    return arrays


def _bytes(prefix: keras.Model, n_images: int, dtype: str) -> int:
    return sum(int(np.prod(t.shape[1:])) for t in prefix.outputs) * n_images * np.dtype(dtype).itemsize


def _make_room(folder: Path, kept: Collection[Path], n_bytes: int) -> None:
    """Delete caches but those in `kept`, least recently used first, while `n_bytes` are more than SHARE of the free disk."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in _entries(folder):
        if n_bytes <= SHARE * shutil.disk_usage(folder).free:
            break
        if old not in kept:
            print(f"making room: {old} deleted")
            files.remove(old)
    files.require_space(folder, n_bytes)


def _key(prefix: keras.Model, images: np.ndarray, dtype: str) -> str:
    """A digest of everything that determines the activations: images, weights, sizes, float types, versions."""
    digest = hashlib.blake2b(digest_size=12)
    sizes = [prefix.get_layer(network.PREPROCESSING).output.shape[1:], *(tensor.shape[1:] for tensor in prefix.outputs)]
    computed_in = [devices.has_gpu(), *(tensor.dtype for tensor in prefix.outputs)]
    digest.update(json.dumps([sizes, dtype, computed_in, list(images.shape), devices.versions()]).encode())
    digest.update(np.ascontiguousarray(images).data)
    for weight in prefix.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()


def _computed(prefix: keras.Model, images: np.ndarray, dtype: str) -> Iterator[list[np.ndarray]]:
    """The activations of each batch of images. Raises FloatingPointError for what `dtype` cannot hold."""
    for outputs in loop.in_batches(devices.compiled(prefix), images, "frozen layers"):
        batch = keras.tree.flatten(outputs)
        highest = max(float(np.abs(values).max()) for values in batch) if dtype == "float16" else 0.0
        if not highest <= FLOAT16_LIMIT:
            raise FloatingPointError(f"an activation of {highest:.3g} does not fit into float16: set cache to none")
        yield batch
