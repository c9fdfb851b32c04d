"""A run's folder as five finished stages leave it, without what takes long."""

from fer_utils import files
from fer_utils.classes import CLASSES
from fer_utils.evaluation import scores
from fer_utils.pipeline import parameters, runner, runs, stages

import numpy as np
import pandas as pd


class FakeRun:
    """A run whose stages begin and end as the notebooks do and write small files in between."""

    def __init__(self, outputs, name="demo", **overrides):
        profile = parameters.load_profile(parameters.profile_path("demo"))
        common = {"run": name, "outputs_dir": str(outputs), "profile": "none"}
        layers = [("demo", profile), ("test", overrides), ("test", {parameters.COMMON: common})]
        self.values = parameters.resolve(parameters.declared(), layers)
        self.folders: runs.Run = runner.run_of(self.values)
        files.write_json(self.folders.folder / "run.json", {"profile": "demo", "parameters": self.values})

    def do(self, *names: str, content: str = "") -> "FakeRun":
        """Finish these stages, or all; `content` makes the outputs differ."""
        for name in names or parameters.STAGES:
            stage = stages.begin(name, dict(self.values[name]))
            self.finish(stage, content)
        return self

    def finish(self, stage: stages.Stage, content: str = "") -> None:
        """Write what a stage under way writes, and finish it."""
        outputs, figures = getattr(self, f"_{stage.name}")(stage, content)
        stage.finish(outputs, figures)

    def due(self) -> dict[str, list[str]]:
        """Stages that would run, and why."""
        reasons = {name: runner.reasons_to_run(name, self.values[name], self.folders) for name in parameters.STAGES}
        return {name: why for name, why in reasons.items() if why}

    def _pictures(self, stage: stages.Stage, name: str, content: str) -> str:
        def write(folder):
            for label in CLASSES:
                (folder / label).mkdir(parents=True)
                (folder / label / "a.png").write_text(f"{name} {label} {content}")

        stage.save(write, f"images/{name}")
        return f"images/{name}"

    def _merge_split(self, stage, content):
        paths_of = [f"{split}/{label}/a.png" for split in ("TRAIN", "VAL", "TEST") for label in CLASSES]
        rows = [(path.split("/")[0], path.split("/")[1], path, f"{path}{content}") for path in paths_of]
        stage.save(pd.DataFrame(rows, columns=["split", "label", "path", "fingerprint"]), "manifest.csv")
        stage.save({"policy": "drop"}, "leakage.json")
        pictures = [self._pictures(stage, split, content) for split in ("TRAIN", "VAL", "TEST")]
        return ["manifest.csv", "leakage.json", *pictures], {"TRAIN": 7}

    def _balance(self, stage, content):
        rows = [(label, f"TRAIN_BALANCED/{label}/a.png") for label in CLASSES]
        stage.save(pd.DataFrame(rows, columns=["label", "path"]), "balanced.csv")
        return ["balanced.csv", self._pictures(stage, "TRAIN_BALANCED", content)], {}

    def _history(self, stage, name, phase, first, content):
        loss = 2 - len(content) / 10
        row = {"epoch": first, "phase": phase, "learning_rate": 1e-3, "weight_decay": 0.0, "seconds": 1.0}
        row |= {f"{part}{name}": loss for part in ("", "val_") for name in ("loss", "accuracy", "macro_f1")}
        stage.save(pd.DataFrame([row]), name)

    def _train_head(self, stage, content):
        self._history(stage, "history_head.csv", "head", 1, content)
        stage.save(["weights", content], "head.weights.h5")
        stage.save([content], "trained_head.csv")
        return ["head.weights.h5", "history_head.csv", "trained_head.csv"], {"epochs": 1}

    def _fine_tune(self, stage, content):
        self._history(stage, "history_fine_tune.csv", "fine_tune", 2, content)
        stage.save(["model", content], "model.keras")
        stage.save([content], "trained.csv")
        return ["model.keras", "history_fine_tune.csv", "trained.csv"], {"epochs": 1}

    def _evaluate(self, stage, content):
        rng = np.random.default_rng(len(content))
        seen = {f"{split}_images_seen_in_training": 0 for split in ("val", "test")}
        metrics = {"leakage": {"policy": "drop", **seen}, "run": {"params": {}}}
        for split in ("VAL", "TEST"):
            rows = [(f"{split}/{label}/a.png", label, "PublicTest", False) for label in CLASSES]
            table = pd.DataFrame(rows, columns=["path", "label", "usage", "seen_in_training"])
            predictions = scores.prediction_table(table, rng.dirichlet(np.ones(7), 7))
            stage.save(predictions, f"predictions_{split.lower()}.csv")
            metrics[split.lower()] = scores.overall(predictions)
        stage.save(metrics, "metrics.json")
        return ["metrics.json"], {}
