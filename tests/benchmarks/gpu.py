"""What a GPU gives: the specification's two phases beside plain Keras, then a training by `params/strong.yaml` in what is left
of eight minutes, scored as 05 scores. For a machine with a GPU and JAX, without TensorFlow, Jupyter and network.

On a machine with the whole environment, about two minutes:

    python tests/benchmarks/gpu.py prepare --fer2013 ZIP --emotion ZIP --votes CSV faces.tar

`prepare` runs 01 with the profile `strong` and packs the pictures of TRAIN, VAL and TEST with their rows of manifest.csv, at
most 60 MB. 02 is done where the tar is read. With the tar and a copy of this project on the machine with the GPU:

    PYTHONPATH=. KERAS_BACKEND=jax python tests/benchmarks/gpu.py run faces.tar --out FOLDER --deterministic no

It needs numpy, scipy, pandas, scikit-learn, opencv-python-headless, albumentations, pillow, h5py, tqdm, psutil, pyyaml, keras and
jax[cuda12]; `pip download` fetches their wheels beforehand. FOLDER gets figures.json and figures.md after each step, and at the
end model.keras, metrics.json, history.csv and the predictions of VAL and TEST. The same command continues what was broken
off: finished steps are not repeated, and the training goes on after its last finished epoch. `--toy` does all of it in small, for a
CPU. `-p mixup=0 -p batch_size=256` changes parameters of 04 for `strong`.

    taskset -c 0 python tests/benchmarks/gpu.py input

prints how many pictures a second reach the network at most: changed ones, and kept activations.
"""

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Read when JAX is imported: what XLA compiled before a stop is there afterwards.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fer_gpu_xla"))

from fer_utils import files, images, places
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation, balance, loading
from fer_utils.data.augmentation import Changes
from fer_utils.evaluation import inference, scores
from fer_utils.pipeline import parameters
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import compare
import keras
import numpy as np
import pandas as pd
import psutil

LIMIT = 60e6  # bytes of the tar
BEGAN = time.monotonic() - (time.time() - psutil.Process().create_time())
SEED, BATCH, UNFREEZE_TOP = compare.SEED, compare.BATCH, compare.UNFREEZE_TOP
EPOCHS = {1: compare.HEAD_EPOCHS, 2: compare.FINE_TUNE_EPOCHS}
MEASURED_EPOCHS = 3  # the first one compiles
PROBE_STEPS = 40
WANTED_EPOCHS = 30  # of `strong`: the largest picture size at which so many should fit is chosen
START = 60  # seconds kept for building, compiling and saving, beside what the scoring takes
# Dense products in float16 with sums in float32, TFLOP/s, by the beginning of JAX's `device_kind`: NVIDIA's data sheets of H200,
# H100, A100, L4, V100 and T4 (half of the figure "with sparsity" where only that is given).
PEAKS = {
    "NVIDIA H200": 989,
    "NVIDIA H100 PCIe": 756,
    "NVIDIA H100": 989,
    "NVIDIA A100": 312,
    "NVIDIA L4": 121,
    "Tesla V100": 125,
    "Tesla T4": 65,
}


@dataclass(frozen=True)
class Scale:
    """How large everything is: side and number of the pictures that are timed, sizes for `strong`, its epochs at most, and
    pictures of each class (0: all)."""

    size: int
    n: int
    strong_sizes: tuple[int, ...]
    max_epochs: int
    per_class: int


FULL = Scale(224, 25 * loop.PREDICT_BATCH, (224, 192, 160, 128, 96, 64), 60, 0)
TOY = Scale(32, 128, (32,), 4, 24)


@dataclass(frozen=True)
class Pictures:
    """The manifest of a tar, with a row for each picture, and the pictures, uint8 (n, 48, 48)."""

    manifest: pd.DataFrame
    grey: np.ndarray

    def split(self, name: str, per_class: int) -> loading.Faces:
        """The faces of VAL or TEST."""
        table = self.manifest.assign(row=np.arange(len(self.manifest)))
        table = table[table["split"] == name]
        table = loading.take_per_class(table, per_class, SEED) if per_class else table.reset_index(drop=True)
        return _faces(self.grey[table["row"]], table)

    def balanced(self, values: dict, per_class: int) -> loading.Faces:
        """What 02 makes of TRAIN with these parameters."""
        train = self.manifest[self.manifest["split"] == "TRAIN"]
        targets = dict.fromkeys(CLASSES, values["target"]) | {"disgust": values["target_disgust"]}
        table = balance.to_table(balance.plan_balance(train, targets, values["max_per_class"], values["seed"]))
        table = loading.take_per_class(table, per_class, SEED) if per_class else table
        row_of = {path: row for row, path in enumerate(self.manifest["path"])}
        grey = self.grey[table["train_path"].map(row_of)]
        for place in np.flatnonzero(table["copy"]):
            path, copy = table.at[place, "train_path"], int(table.at[place, "copy"])
            grey[place] = augmentation.augmented_copy(grey[place], path, copy, values["seed"])
        return _faces(grey, table)


def _faces(grey: np.ndarray, table: pd.DataFrame) -> loading.Faces:
    labels = scores.class_codes(table["label"]).astype(np.int32)
    return loading.Faces(grey[..., None], labels, table, labels)


def prepare(options: argparse.Namespace) -> None:
    """Run 01 and pack what it wrote."""
    given = {"fer2013": options.fer2013, "emotion_detection": options.emotion, "votes": options.votes}
    with tempfile.TemporaryDirectory() as outputs:
        command = [sys.executable, "run_all.py", "--params", "strong", "--run", "faces", "--outputs-dir", outputs]
        for name, value in given.items():
            place = Path(value).absolute() if Path(value).exists() else value  # `demo`, `none`
            command += ["-p", f"merge_split.{name}={place}"]
        subprocess.run([*command, "--only", "merge_split"], cwd=places.source_root(), check=True)
        pack(Path(outputs) / "faces", options.tar)


def pack(run: Path, tar: Path) -> None:
    """Write the manifest's rows of TRAIN, VAL and TEST, and the bytes of their files, one behind the other."""
    manifest = loading.read_table(run / "manifest.csv", loading.COLUMNS["manifest.csv"])
    manifest = manifest[manifest["split"] != ""]
    data = [(run / "images" / path).read_bytes() for path in manifest["path"]]
    table = manifest.assign(n_bytes=[len(one) for one in data]).to_csv(index=False)
    with files.replacing(tar) as temporary, tarfile.open(temporary, "w") as file:
        for name, content in (("manifest.csv.gz", gzip.compress(table.encode())), ("faces.bin", b"".join(data))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    print(
        f"{tar}: {len(manifest):,} pictures, {tar.stat().st_size / 1e6:.1f} MB, {manifest['split'].value_counts().to_dict()}"
    )
    if tar.stat().st_size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:.0f} MB")


def unpack(tar: Path) -> Pictures:
    with tarfile.open(tar) as file:
        manifest = pd.read_csv(
            file.extractfile("manifest.csv.gz"), compression="gzip", keep_default_na=False, low_memory=False
        )
        data = file.extractfile("faces.bin").read()
    ends = manifest["n_bytes"].cumsum()
    parts = zip(ends - manifest["n_bytes"], ends, manifest["path"], strict=True)
    return Pictures(manifest, np.stack([images.decode(data[begin:end], path)[0] for begin, end, path in parts]))


class Clock(keras.callbacks.Callback):
    """When epochs began and how long each took, in seconds; ends the call before one that would end too late."""

    STATE = ()  # for TrainingCheckpoint

    def __init__(self, deadline: float = float("inf")):
        super().__init__()
        self.deadline, self.began, self.seconds = deadline, [], []

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self.began.append(time.monotonic())
        if len(self.began) > 1 and 2 * self.began[-1] - self.began[-2] > self.deadline:
            raise KeyboardInterrupt  # the loop says what is kept

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self.seconds.append(time.monotonic() - self.began[-1])


def time_phase(side: str, phase: int, faces: loading.Faces, scale: Scale, weights: str) -> dict:
    """Pictures a second of one phase of the specification, `ours` or `plain`, and operations a picture in either part.

    pass: through the frozen layers, once. epoch: of training, validated on one batch. compiling: what the first epoch and the
    first batch of the pass take more than others.
    """
    keras.backend.clear_session()
    model = network.build(scale.size, weights)
    if phase == 2:
        network.unfreeze_top(model, UNFREEZE_TOP, "frozen")
    below, above = compare.operations(model)
    measured = {"below": below, "above": above, "compiling": 0.0}
    n, shown, labels = len(faces), faces.images, faces.labels
    few = min(n, loop.PREDICT_BATCH)
    if side == "ours":
        prefix, suffix = frozen_prefix.split(model)
        began = time.monotonic()
        devices.compiled(prefix)(shown[:few])
        first = time.monotonic() - began
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            trained, inputs = frozen_prefix.prepare(
                prefix, suffix, (shown, shown[:few]), "auto", Path(folder) / "cache"
            )
            measured["pass"] = (n + few) / (time.monotonic() - began)
            adam = optimizers.make_optimizer("adam", 5e-4, 0.0)
            optimizer = adam if phase == 1 else optimizers.make_optimizer("adamw", 8e-5, 0.01)
            loop.compile_for_training(trained, optimizer, loop.HEAD_STEPS if phase == 1 else 1)
            batches = loop.Batches(inputs[0], labels, BATCH, SEED)
            validated = loop.Batches(inputs[1], labels[:few], loop.PREDICT_BATCH)
            seconds = list(loop.fit(trained, batches, validated, f"phase {phase}", 0, MEASURED_EPOCHS)["seconds"])
        measured["compiling"] = max(0.0, first - few / measured["pass"])
    else:
        optimizer = keras.optimizers.Adam(5e-4) if phase == 1 else keras.optimizers.AdamW(8e-5, weight_decay=0.01)
        model.compile(
            optimizer,
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
            jit_compile=devices.compiles_with_xla(),
        )
        clock, validated = Clock(), (shown[:few], labels[:few])
        model.fit(
            shown,
            labels,
            BATCH,
            MEASURED_EPOCHS,
            verbose=0,
            callbacks=[clock],
            validation_data=validated,
            validation_batch_size=few,
        )
        seconds = clock.seconds
    best = min(seconds[1:])
    return measured | {"epoch": n / best, "compiling": measured["compiling"] + max(0.0, seconds[0] - best)}


class Strong:
    """The training by params/strong.yaml: pictures, parameters, and where its files are."""

    def __init__(self, options: argparse.Namespace, pictures: Pictures, values: dict, scale: Scale):
        self.options, self.pictures, self.scale, self.own = options, pictures, scale, values["fine_tune"]
        self.views = values["evaluate"]["test_time_augmentation"]
        self.policy = values["merge_split"]["leakage"]
        self.train = pictures.balanced(values["balance"], scale.per_class)
        self.val = pictures.split("VAL", scale.per_class)
        self.deadline = BEGAN + 60 * options.minutes

    def model(self, size: int) -> keras.Model:
        keras.backend.clear_session()
        keras.utils.set_random_seed(SEED)
        model = network.build(size, self.options.weights)
        network.unfreeze_top(model, self.own["unfreeze_top"], self.own["batch_norm"])
        return model

    def fit(
        self,
        model: keras.Model,
        train: loading.Faces,
        val: loading.Faces,
        epochs: int,
        clock: Clock,
        file: Path,
        key: str,
    ):
        """Phase 2 as 04 runs it, from a random head: one trained before gained nothing (docs/recipe.md)."""
        own = self.own
        changes = Changes(own["augmentation"], own["mixup"], own["label_smoothing"])
        prefix, suffix = frozen_prefix.split(model)
        trained, inputs = frozen_prefix.prepare(prefix, suffix, (train.images, val.images), "none", file.parent)
        batches = loop.Batches(inputs[0], train.labels, own["batch_size"], SEED, 0, changes)
        warm_up = min(own["warmup_epochs"], epochs / 4)
        rate = optimizers.make_rate(own["schedule"], own["learning_rate"], len(batches), epochs, warm_up)
        optimizer = optimizers.make_optimizer(own["optimizer"], rate, own["weight_decay"], own["clip_norm"])
        loop.compile_for_training(trained, optimizer)
        best = keras.callbacks.EarlyStopping(
            monitor="val_loss", patience=own["stop_patience"], restore_best_weights=True
        )
        averaging = [optimizers.WeightAveraging(own["weight_averaging"])] if own["weight_averaging"] else []
        validated = loop.Batches(inputs[1], val.labels, loop.PREDICT_BATCH)
        return loop.fit(trained, batches, validated, "strong", 0, epochs, [clock, *averaging, best], (file, key))

    def choose(self, achieved: float) -> dict:
        """Size and number of epochs that fit the time left. achieved: operations a second, measured in phase 2 at scale.size."""
        n = len(self.train) + len(self.val) / 3
        left = self.deadline - time.monotonic() - START
        a_picture = 3 * sum(compare.operations(network.build(self.scale.size, "none")))
        fitting = [
            size
            for size in self.scale.strong_sizes
            if WANTED_EPOCHS * n * a_picture * (size / self.scale.size) ** 2 / achieved < left
        ]
        size = self.options.size or (fitting or self.scale.strong_sizes[-1:])[0]
        steps = min(PROBE_STEPS, len(self.train) // self.own["batch_size"])
        few = _first(self.train, steps * self.own["batch_size"])
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            model, checkpoint = self.model(size), Path(folder) / "probe.npz"
            history = self.fit(model, few, _first(self.val, loop.PREDICT_BATCH), MEASURED_EPOCHS, clock, checkpoint, "")
        a_picture = history["seconds"].iloc[1:].min() / len(few)
        an_epoch = n * a_picture + max(0.0, clock.began[2] - clock.began[1] - clock.seconds[1])  # and the checkpoint
        views = len(self.val) + (self.pictures.manifest["split"] == "TEST").sum()
        left = self.deadline - time.monotonic() - START - 11 * views * a_picture * 2 / 3
        epochs = self.options.epochs or int(np.clip(left / an_epoch, 1, self.scale.max_epochs))
        total = sum(compare.operations(model))
        return {"size": size, "epochs": epochs, "epoch": 1 / a_picture, "an_epoch_seconds": an_epoch, "above": total}

    def run(self, chosen: dict, out: Path) -> dict:
        """Train, save the model and score it, in float32, as 05 does."""
        key = json.dumps([self.own, chosen["size"], chosen["epochs"], self.options.weights, len(self.train)])
        model, clock = self.model(chosen["size"]), Clock(self.deadline)
        history = self.fit(model, self.train, self.val, chosen["epochs"], clock, out / "strong.npz", key)
        with files.replacing(out / "model.keras") as temporary:
            network.for_inference(model).save(temporary)
        files.write_csv(out / "history.csv", history)
        keras.backend.clear_session()
        model = keras.saving.load_model(out / "model.keras", compile=False, safe_mode=True)
        manifest = scores.mark_seen(self.pictures.manifest, loading.originals(self.train.table))
        seen = Pictures(manifest, self.pictures.grey)
        plain, augmented = {}, {}
        for split in ("VAL", "TEST"):
            faces = seen.split(split, self.scale.per_class)
            plain[split] = inference.predict(model, faces)
            augmented[split] = inference.predict(model, faces, self.views)
            files.write_csv(out / f"predictions_{split.lower()}.csv", plain[split])
        metrics = scores.metrics(plain, self.policy, augmented, self.views)
        if scores.has_votes(plain):
            metrics["label_sets"] = scores.against_both(plain)
        metrics["temperature_scaling"] = scores.temperature_scaling(plain, scores.fit_temperature(plain["VAL"]))
        metrics["per_class"] = {
            name.lower(): scores.class_report(table).to_dict("records") for name, table in plain.items()
        }
        metrics["run"] = {"device": devices.describe(), "fine_tune": self.own, **chosen}
        files.write_json(out / "metrics.json", metrics)
        rows = [(f"{split}, one view", metrics[split.lower()]) for split in ("VAL", "TEST")]
        rows += [
            (f"{split}, {self.views}", metrics["test_time_augmentation"][split.lower()]) for split in ("VAL", "TEST")
        ]
        rows += [(f"{name}, private", part["private"]) for name, part in rows if "private" in part]
        kept = ("n", "accuracy", "accuracy_interval", "macro_f1")
        trained = {"epochs": len(history), "seconds": float(history["seconds"].sum())}
        return trained | {"scores": {name: {column: part[column] for column in kept} for name, part in rows}}


def _first(faces: loading.Faces, n: int) -> loading.Faces:
    return loading.Faces(faces.images[:n], faces.labels[:n], faces.table[:n], faces.targets[:n])


def run(options: argparse.Namespace) -> None:
    """All steps, each once; figures.json says which are done."""
    scale, out = (TOY if options.toy else FULL), options.out
    devices.set_up(SEED, options.deterministic, "auto")
    out.mkdir(parents=True, exist_ok=True)
    given = {"fine_tune": dict(one.split("=", 1) for one in options.p)}
    layers = [("strong", parameters.load_profile(parameters.profile_path("strong"))), ("-p", given)]
    values = parameters.resolve(parameters.declared(), layers)
    of = {
        "device": devices.describe(),
        "precision": keras.mixed_precision.dtype_policy().name,
        "deterministic": options.deterministic,
        "weights": Path(options.weights).name,
        "tar": options.tar.stat().st_size,
        "size": scale.size,
    }
    figures = files.read_json(out / "figures.json") if (out / "figures.json").is_file() else {"of": of}
    if figures["of"] != of:
        raise SystemExit(f"{out / 'figures.json'} is of {figures['of']}, this is {of}: give another folder")

    def once(name: str, compute: Callable[[], dict]) -> dict:
        if name not in figures:
            print(f"{time.monotonic() - BEGAN:.0f} s: {name}", flush=True)
            figures[name] = compute()
            print(figures[name], flush=True)
            files.write_json(out / "figures.json", figures)
            files.write_text(out / "figures.md", report(figures))
        return figures[name]

    pictures = unpack(options.tar)
    train = pictures.manifest.index[pictures.manifest["split"] == "TRAIN"]
    timed = pictures.manifest.loc[np.resize(np.random.default_rng(SEED).permutation(train), scale.n)]
    timed = _faces(pictures.grey[timed.index], timed)
    for phase in EPOCHS:
        for side in ("ours", "plain"):
            once(
                f"{side} {phase}", lambda side=side, phase=phase: time_phase(side, phase, timed, scale, options.weights)
            )
    strong = Strong(options, pictures, values, scale)
    once("counts", lambda: {"train": len(strong.train), "val": len(strong.val)})
    plain = figures["plain 2"]
    chosen = once("chosen", lambda: strong.choose((plain["below"] + 3 * plain["above"]) * plain["epoch"]))
    try:
        once("strong", lambda: strong.run(chosen, out))
    except loop.Interrupted as stopped:
        raise SystemExit(f"{stopped}\nThe time is over: the same command goes on from there.") from None
    files.remove(out / "strong.npz")  # half a gigabyte
    print(report(figures))


def report(figures: dict) -> str:
    """The figures so far, in Markdown."""
    of = figures["of"]
    peak = next((tera for name, tera in PEAKS.items() if of["device"].startswith(name)), None)
    peak = peak if of["precision"] == "mixed_float16" else None
    lines = [
        f"{of['device']}, {of['precision']}, deterministic: {of['deterministic']}; {of['size']} px, batches of {BATCH}, top "
        f"{UNFREEZE_TOP} layers. Peak: {f'{peak} TFLOP/s' if peak else 'not known'}.\n",
        "| | pictures a second | TFLOP/s | share of the peak | seconds of compiling |",
        "|---|---|---|---|---|",
    ]

    def add(name: str, rate: float, operations: float, compiling: float | None = None) -> None:
        reached = rate * operations / 1e12
        share = f"{reached / peak:.0%}" if peak and operations else "–"
        lines.append(
            f"| {name} | {rate:,.0f} | {f'{reached:.3g}' if operations else '–'} | {share} | "
            f"{'' if compiling is None else f'{compiling:.0f}'} |"
        )

    for phase in EPOCHS:
        if ours := figures.get(f"ours {phase}"):
            add(f"phase {phase}, this project: one pass through the frozen layers", ours["pass"], ours["below"])
            add(f"phase {phase}, this project: an epoch on it", ours["epoch"], 3 * ours["above"], ours["compiling"])
        if plain := figures.get(f"plain {phase}"):
            both = plain["below"] + 3 * plain["above"]
            add(f"phase {phase}, plain Keras: an epoch", plain["epoch"], both, plain["compiling"])
    if chosen := figures.get("chosen"):
        add(f"`strong`, {chosen['size']} px, all layers", chosen["epoch"], 3 * chosen["above"])
    if counts := figures.get("counts"):
        n, with_val = counts["train"], counts["train"] + counts["val"]
        sums = {"ours": 0.0, "plain": 0.0}
        for phase, epochs in EPOCHS.items():
            for side in sums:
                measured = figures[f"{side} {phase}"]
                once = with_val / measured["pass"] if "pass" in measured else 0.0
                sums[side] += once + epochs * n / measured["epoch"] + measured["compiling"]
        lines.append(
            f"\nThe specification's {EPOCHS[1]} + {EPOCHS[2]} epochs on {n:,} pictures, computed from these, validation left "
            f"out: {sums['ours']:,.0f} s, plain Keras {sums['plain']:,.0f} s, {sums['plain'] / sums['ours']:.2f} times as long."
        )
    if strong := figures.get("strong"):
        lines += [
            f"\n`strong` at {chosen['size']} px: {strong['epochs']} epochs in {strong['seconds']:,.0f} s.\n",
            "| | pictures | accuracy (95 %) | macro F1 |",
            "|---|---|---|---|",
        ]
        for name, part in strong["scores"].items():
            low, high = part["accuracy_interval"]
            lines.append(
                f"| {name} | {part['n']:,} | {part['accuracy']:.3f} ({low:.3f}–{high:.3f}) | {part['macro_f1']:.3f} |"
            )
    return "\n".join(lines) + "\n"


def input_side(options: argparse.Namespace) -> None:
    """Print pictures a second of Batches: raw pictures with each strength of changes, and kept activations."""
    rng = np.random.default_rng(SEED)
    shown = rng.integers(0, 256, (4096, 12, 12, 1)).repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)
    labels = np.arange(4096) % 7

    def measure(name: str, batches: loop.Batches) -> None:
        seconds = []
        for epoch in range(4):
            batches.begin_epoch(epoch)
            began = time.process_time()
            for index in range(len(batches)):
                batches[index]
            seconds.append(time.process_time() - began)
        print(f"| {name} | {len(batches) * BATCH / min(seconds):,.0f} |", flush=True)

    print("| batches of 64 | pictures a CPU second |\n|---|---|")
    for changes in (Changes(), Changes("light"), Changes("heavy"), Changes("heavy", mixup=0.2, label_smoothing=0.1)):
        measure(f"48 px, {changes}", loop.Batches(shown, labels, BATCH, SEED, 0, changes))
    with tempfile.TemporaryDirectory() as folder:
        kept = np.ones((1024, 14, 14, 1024), np.float16)  # what phase 2 keeps of a picture of 224 px
        np.save(Path(folder) / "kept.npy", kept)
        measure("kept activations in memory", loop.Batches(kept, labels[:1024], BATCH, SEED))
        mapped = np.load(Path(folder) / "kept.npy", mmap_mode="r")
        measure("kept activations on disk", loop.Batches(mapped, labels[:1024], BATCH, SEED))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("prepare", help="run 01 and make the tar")
    packing.add_argument("--fer2013", required=True, help="zip or folder, or `demo`")
    packing.add_argument("--emotion", required=True, help="zip or folder, or `demo`")
    packing.add_argument("--votes", default="none", help="fer2013new.csv of FER+")
    packing.add_argument("tar", type=Path)
    packing.set_defaults(do=prepare)
    running = commands.add_parser("run", help="measure and train")
    running.add_argument("tar", type=Path)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--minutes", type=float, default=8.0, help="of this call")
    running.add_argument("--weights", default="none", help="a ResNet50 notop file, or none")
    running.add_argument("--deterministic", default="auto", choices=("auto", "yes", "no"))
    running.add_argument("--size", type=int, help="of `strong`, in place of what fits")
    running.add_argument("--epochs", type=int, help="of `strong`, in place of what fits")
    running.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter of 04 for `strong`")
    running.add_argument("--toy", action="store_true", help="everything in small")
    running.set_defaults(do=run)
    commands.add_parser("input", help="what the input side delivers").set_defaults(do=input_side)
    options = parser.parse_args()
    options.do(options)


if __name__ == "__main__":
    main()
