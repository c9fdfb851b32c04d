"""Saves the state of a training after each epoch, and resumes from it in a later process.

The state is weights, optimiser, random seeds, callbacks and history.
"""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_utils import files
from fer_utils.training import devices

import keras
import numpy as np

# State of Keras' callbacks between epochs; this project's callbacks declare theirs in `STATE`.
_STATES = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


class TrainingCheckpoint(keras.callbacks.Callback):
    """Saves the state of a training atomically, as epoch 0 at its start and after each epoch; resumes from it.

    Unlike `keras.callbacks.BackupAndRestore` it restores the callbacks and the states of dropout's seed generators too, so
    that the rest of the history is the same as without an interruption. The order of the batches depends on the number of
    the epoch alone, and is not saved.

    path: the file, an .npz without pickles. key: identifies the training; a file with another key is replaced. This
    callback must come after those whose state it saves.
    """

    def __init__(self, path: Path, key: str):
        super().__init__()
        self.path, self.key = path, key
        self.rows: list[dict[str, float]] = []  # the logs of each finished epoch
        self.is_stopped = False  # training had ended before its last epoch
        self._callbacks: Sequence[keras.callbacks.Callback] = ()
        self._found: dict[str, np.ndarray] = {}

    def resume(self, callbacks: Sequence[keras.callbacks.Callback]) -> int:
        """Read the file, if it exists and has this key; return the number of finished epochs.

        The state is assigned to model, optimiser and `callbacks` when training begins; the optimiser must be built then.
        Raises TornFile for a damaged file, ValueError for one of another backend, whose seeds and optimiser state mean
        something else, TypeError for a callback without STATE.
        """
        self._callbacks = callbacks
        for callback in callbacks:
            _state_of(callback)
        if not self.path.is_file():
            return 0
        found, state = _read(self.path)
        if (backend := state["backend"]) != devices.BACKEND:
            raise ValueError(
                f"{self.path} holds a training on {backend}, this is {devices.BACKEND}: set KERAS_BACKEND={backend} to go on "
                "with it, or remove the file to start again"
            )
        if state["key"] != self.key:
            print(f"{self.path.name} is of other parameters, code or inputs: training starts from its first epoch")
            return 0
        self.rows, self.is_stopped, self._found = state["rows"], state["is_stopped"], found
        print(f"going on after {len(self.rows)} finished epochs, from {self.path.name}")
        return len(self.rows)

    def on_train_begin(self, logs=None) -> None:
        if not self._found:
            self._save()
            return
        pairs: list[tuple[keras.Variable, np.ndarray]] = []
        for name, variables in self._variables().items():
            values = self._saved(name)
            if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
                raise files.TornFile(
                    f"{self.path} holds {len(values)} {name} arrays that do not fit the {len(variables)} here: remove it, "
                    "and training starts from its first epoch"
                )
            pairs += zip(variables, values, strict=True)
        for variable, value in pairs:  # only now, so that a file that does not fit changes nothing
            variable.assign(value)
        scalars = json.loads(str(self._found["state"]))["callbacks"]
        for number, callback in enumerate(self._callbacks):
            for name in _state_of(callback):
                setattr(callback, name, self._saved(f"callback{number}.{name}") or scalars[number].get(name))
        self._found = {}

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        logs = {name: float(value) for name, value in (logs or {}).items()}
        if not np.isfinite([logs.get("loss", 0.0), logs.get("val_loss", 0.0)]).all():
            return  # the state is useless
        self.rows.append(logs)
        self._save()

    def _save(self) -> None:
        lists = {name: [variable.numpy() for variable in variables] for name, variables in self._variables().items()}
        scalars: list[dict[str, Any]] = [{} for _ in self._callbacks]
        for number, callback in enumerate(self._callbacks):
            for name in _state_of(callback):
                value = getattr(callback, name)
                if isinstance(value, list):
                    lists[f"callback{number}.{name}"] = value
                else:
                    scalars[number][name] = value.item() if isinstance(value, np.generic) else value
        state = {"backend": devices.BACKEND, "key": self.key, "rows": self.rows, "callbacks": scalars}
        state["is_stopped"] = bool(self.model.stop_training)
        arrays = {f"{name}.{number}": value for name, values in lists.items() for number, value in enumerate(values)}
        with files.replacing(self.path) as temporary:
            np.savez(temporary, state=np.array(json.dumps(state)), **arrays)

    def _variables(self) -> dict[str, list[keras.Variable]]:
        return {"model": self.model.variables, "optimizer": self.model.optimizer.variables}

    def _saved(self, name: str) -> list[np.ndarray]:
        """The arrays of a list in the file that was found."""
        n = sum(key.startswith(f"{name}.") for key in self._found)
        return [self._found[f"{name}.{number}"] for number in range(n)]


def _state_of(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    names = getattr(callback, "STATE", _STATES.get(type(callback)))
    if names is None:
        raise TypeError(f"{type(callback).__name__} does not say what it remembers: give it STATE, names of attributes")
    return names


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file, and its state."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        state = json.loads(str(found["state"]))
        state["key"], state["backend"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise files.TornFile(
            f"{path} is not a whole checkpoint ({error}): remove it, and training starts from its first epoch"
        ) from error
    return found, state
