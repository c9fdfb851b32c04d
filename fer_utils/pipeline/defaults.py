"""The shipped defaults of the parameters cells, used to recognise values that a user typed.

A cell that was edited and saved no longer has its default. A test keeps these values equal to the cells.
"""

from collections.abc import Mapping
from typing import Any

from fer_utils.pipeline.parameters import Parameter

_EVERY_STAGE = {"profile": "auto", "run": "auto", "outputs_dir": "outputs", "data_dir": "", "seed": 42}
_TRAINING = {
    **_EVERY_STAGE,
    "image_size": 224,
    "backbone": "resnet50",
    "weights": "imagenet",
    "batch_size": 64,
    "limit_per_class": 0,
    "votes_share": 0.0,
    "cache": "auto",
    "cache_dtype": "auto",
    "cache_dir": "",
    "precision": "auto",
    "deterministic": "auto",
    "time_budget_minutes": 0.0,
    "tensorboard_dir": "",
}
DEFAULTS = {
    "merge_split": {
        **_EVERY_STAGE,
        "fer2013": "auto",
        "emotion_detection": "auto",
        "demo_images": 1500,
        "val_fraction": 0.25,
        "test_usage": "all",
        "leakage": "keep",
        "labels": "fer2013",
        "votes": "auto",
        "extra": "",
        "extra_classes": "",
        "extra_columns": "",
        "extra_faces": "whole",
        "train_copies": "one",
        "unreadable": "error",
    },
    "balance": {
        **_EVERY_STAGE,
        "target": 7000,
        "target_disgust": 1200,
        "max_per_class": 9000,
        "leave_out": "none",
        "issues_file": "",
        "workers": 0,
    },
    "train_head": {**_TRAINING, "epochs": 10, "learning_rate": 5e-4, "find_label_issues": False},
    "fine_tune": {
        **_TRAINING,
        "epochs": 20,
        "unfreeze_top": 50,
        "batch_norm": "frozen",
        "optimizer": "adamw",
        "learning_rate": 8e-5,
        "weight_decay": 0.01,
        "weight_decay_factor": 2.0,
        "weight_decay_cap": 0.1,
        "lr_factor": 0.5,
        "lr_patience": 2,
        "stop_patience": 6,
        "schedule": "plateau",
        "warmup_epochs": 0.0,
        "clip_norm": 0.0,
        "augmentation": "none",
        "mixup": 0.0,
        "label_smoothing": 0.0,
        "weight_averaging": 0.0,
        "votes_output": 0.0,
        "logit_adjustment": False,
    },
    "evaluate": {
        **_EVERY_STAGE,
        "limit_per_class": 0,
        "leave_out": "none",
        "also": "",
        "also_classes": "",
        "also_columns": "",
        "also_faces": "whole",
        "also_groups": "",
        "corruptions": False,
        "find_label_issues": False,
        "n_mistakes": 24,
        "n_confused": 6,
        "test_time_augmentation": "none",
        "picture": "",
    },
}


def typed(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stage that a user typed: those that differ from the recorded default."""
    return {name: value for name, value in values.items() if value != DEFAULTS[stage].get(name, value)}


def typed_in_cells(declared: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, Any]]:
    """Values that a user typed in the parameters cells of these stages and saved: stage → name → value."""
    cells = {stage: {name: parameter.default for name, parameter in cell.items()} for stage, cell in declared.items()}
    return {stage: typed(stage, values) for stage, values in cells.items()}
