"""Writes what a training does epoch by epoch for TensorBoard: the history's columns and VAL's confusion matrix.

It reads what Keras has computed anyway and changes nothing: no pass over the pictures, no random number.
"""

import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fer_utils import plots
from fer_utils.training.metrics import MacroScores

import keras
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

try:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "tensorboard_dir needs TensorBoard, which is not installed: `pip install tensorboard`, or leave tensorboard_dir empty"
    ) from error

MARK = ".fer"  # the end of the names of event files that are written here; no other is removed


class TensorBoardLog(keras.callbacks.Callback):
    """Writes scalars and an image an epoch to event files in `folder`.

    finished: the logs of epochs that an earlier process finished. Without any, the training begins, and event files of an
    earlier one in `folder` are removed: TensorBoard would draw both as one curve. With some, and no event files, theirs are
    written first. Steps are the history's `epoch`, which counts from 1 over both phases; the first here is `first_epoch` + 1.
    The image shows how VAL's pictures were classified after the epoch, (7, 7) counts and shares.
    """

    def __init__(self, folder: Path, first_epoch: int = 0, finished: Sequence[Mapping[str, float]] = ()):
        super().__init__()
        self.folder, self.first_epoch, self.finished = folder, first_epoch, finished

    def on_train_begin(self, logs=None) -> None:
        earlier = list(self.folder.glob(f"events.out.tfevents*{MARK}"))
        if not self.finished:
            for file in earlier:
                file.unlink()
        self._writer = EventFileWriter(str(self.folder), filename_suffix=MARK)
        if not earlier:
            for epoch, row in enumerate(self.finished, self.first_epoch + 1):
                self._write(epoch, row.items())

    def on_epoch_end(self, epoch: int, logs=None) -> None:
        self._write(epoch + 1, (logs or {}).items())
        drawn = _drawn(_counts(self.model), f"VAL after epoch {epoch + 1}")
        width, height = Image.open(io.BytesIO(drawn)).size
        picture = Summary.Image(encoded_image_string=drawn, width=width, height=height)
        self._add(epoch + 1, Summary.Value(tag="VAL confusion matrix", image=picture))
        self._writer.flush()

    def on_train_end(self, logs=None) -> None:
        self._writer.close()

    def _write(self, epoch: int, row: Iterable[tuple[str, float]]) -> None:
        self._add(epoch, *(Summary.Value(tag=name, simple_value=float(value)) for name, value in row))

    def _add(self, epoch: int, *values) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=epoch, summary=Summary(value=values)))


def _counts(model: keras.Model) -> np.ndarray:
    """The confusion counts of the pass that was scored last, at an epoch's end VAL's: int (7, 7)."""
    metrics = [inner for metric in model.metrics for inner in getattr(metric, "metrics", [metric])]  # Keras wraps them
    (macro,) = (metric for metric in metrics if isinstance(metric, MacroScores))
    return keras.ops.convert_to_numpy(macro.counts).astype(np.int64)


def _drawn(counts: np.ndarray, title: str) -> bytes:
    """The confusion matrix as a PNG file."""
    figure, file = plots.confusion_matrix(counts, title), io.BytesIO()
    figure.savefig(file, dpi=80)
    plt.close(figure)  # else the notebook shows it
    return file.getvalue()
