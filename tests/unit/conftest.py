"""A run's folder as five finished stages leave it, without what takes long; and a disk that is soon full."""

import subprocess

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.evaluation import scores
from fer_utils.pipeline import parameters, paths, runner, stages

import numpy as np
import pandas as pd
import pytest


class FakeRun:
    """A run whose stages begin and end as the notebooks do and write small files in between."""

    def __init__(self, outputs, name="demo", **overrides):
        profile = parameters.load_profile(parameters.profile_path("demo"))
        common = {"run": name, "outputs_dir": str(outputs), "profile": "none"}
        layers = [("demo", profile), ("test", overrides), ("test", {parameters.COMMON: common})]
        self.values = parameters.resolve(parameters.declared(), layers)
        self.folders: paths.RunFolders = runner.folders_of(self.values)
        files.write_json(self.folders.run / "run.json", {"profile": "demo", "parameters": self.values})

    def do(self, *names: str, content: str = "") -> "FakeRun":
        """Finish these stages, or all; `content` makes the outputs differ."""
        for name in names or parameters.STAGES:
            stage = stages.begin(name, dict(self.values[name]))
            outputs, figures = getattr(self, f"_{name}")(content)
            stage.finish(outputs, figures)
        return self

    def due(self) -> dict[str, list[str]]:
        """Stages that would run, and why."""
        reasons = {name: runner.reasons_to_run(name, self.values[name], self.folders) for name in parameters.STAGES}
        return {name: why for name, why in reasons.items() if why}

    def _pictures(self, name: str, content: str):
        with files.replacing(self.folders.split(name)) as temporary:
            for label in CLASSES:
                (temporary / label).mkdir(parents=True)
                (temporary / label / "a.png").write_text(f"{name} {label} {content}")
        return self.folders.split(name)

    def _merge_split(self, content):
        paths_of = [f"{split}/{label}/a.png" for split in ("TRAIN", "VAL", "TEST") for label in CLASSES]
        rows = [(path.split("/")[0], path.split("/")[1], path, f"{path}{content}") for path in paths_of]
        files.write_csv(self.folders.manifest, pd.DataFrame(rows, columns=["split", "label", "path", "fingerprint"]))
        files.write_json(self.folders.leakage, {"policy": "drop"})
        pictures = [self._pictures(split, content) for split in ("TRAIN", "VAL", "TEST")]
        return [self.folders.manifest, self.folders.leakage, *pictures], {"TRAIN": 7}

    def _balance(self, content):
        rows = [(label, f"TRAIN_BALANCED/{label}/a.png") for label in CLASSES]
        files.write_csv(self.folders.balanced, pd.DataFrame(rows, columns=["label", "path"]))
        return [self.folders.balanced, self._pictures("TRAIN_BALANCED", content)], {}

    def _history(self, path, phase, first, content):
        loss = 2 - len(content) / 10
        row = {"epoch": first, "phase": phase, "learning_rate": 1e-3, "weight_decay": 0.0, "seconds": 1.0}
        row |= {f"{part}{name}": loss for part in ("", "val_") for name in ("loss", "accuracy", "macro_f1")}
        files.write_csv(path, pd.DataFrame([row]))

    def _train_head(self, content):
        self._history(self.folders.history_head, "head", 1, content)
        files.write_json(self.folders.head_weights, ["weights", content])
        files.write_json(self.folders.trained_head, [content])
        return [self.folders.head_weights, self.folders.history_head, self.folders.trained_head], {"epochs": 1}

    def _fine_tune(self, content):
        self._history(self.folders.history_fine_tune, "fine_tune", 2, content)
        files.write_json(self.folders.model, ["model", content])
        files.write_json(self.folders.trained, [content])
        return [self.folders.model, self.folders.history_fine_tune, self.folders.trained], {"epochs": 1}

    def _evaluate(self, content):
        rng = np.random.default_rng(len(content))
        seen = {f"{split}_images_seen_in_training": 0 for split in ("val", "test")}
        metrics = {"leakage": {"policy": "drop", **seen}, "run": {}}
        for split in ("VAL", "TEST"):
            rows = [(f"{split}/{label}/a.png", label, "PublicTest", False) for label in CLASSES]
            table = pd.DataFrame(rows, columns=["path", "label", "usage", "seen_in_training"])
            predictions = scores.prediction_table(table, rng.dirichlet(np.ones(7), 7))
            files.write_csv(self.folders.for_split("predictions", split, ".csv"), predictions)
            metrics[split.lower()] = scores.overall(predictions)
        files.write_json(self.folders.metrics, metrics)
        return [self.folders.metrics], {}


@pytest.fixture
def fake_run(tmp_path):
    """Makes runs below a temporary outputs folder: fake_run("name", **{stage: {parameter: value}})."""
    return lambda name="demo", **overrides: FakeRun(tmp_path / "outputs", name, **overrides)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 kB; skips where mounting is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here; the monkeypatched test above stands in")
    yield folder
    subprocess.run(["umount", folder], check=True)
