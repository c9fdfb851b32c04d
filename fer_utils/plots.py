"""Figures of the notebooks and reports: each function returns a matplotlib Figure.

No scores are computed here, and no results are read or written.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from fer_utils.classes import CLASSES

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Paul Tol's bright and muted colour schemes, safe for colour-blind readers. A split has the same colour in every figure.
COLOURS = {"TRAIN": "#4477aa", "VAL": "#cc6677", "TEST": "#228833"}
RUN_COLOURS = ("#ee7733", "#aa3377", "#33bbee", "#222222", "#999933", "#882255")  # different from the splits' colours
_HATCH = "////"  # for a changed version of a split: balanced, or at another temperature
_GREY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
_HEAT: dict[str, Any] = {"cmap": "Blues", "linewidths": 0.5, "cbar": False}
Faces = np.ndarray | Sequence[np.ndarray]
_CURVES = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro F1"}


def class_counts(counts: pd.DataFrame, title: str) -> Figure:
    """Bars of the number of images of each class (rows) for each column, a split's name or TRAIN_BALANCED."""
    figure, axes = plt.subplots(figsize=(12, 4), layout="constrained")
    counts.plot.bar(ax=axes, width=0.9, rot=0, color=[COLOURS[name.split("_")[0]] for name in counts])
    groups: list[Any] = axes.containers  # of bars
    for name, bars in zip(counts, groups, strict=True):
        if name not in COLOURS:
            plt.setp(bars, hatch=_HATCH, edgecolor="white")
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=1)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set(title=title, xlabel="", ylabel="images")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    sns.despine(figure)
    return figure


def faces(images: Faces, titles: Sequence[str], columns: int, title: str = "") -> Figure:
    """A grid of faces, grey, uint8 (48, 48), or RGB, 0 to 1, each under its own title."""
    rows = [slice(start, start + columns) for start in range(0, len(images), columns)]
    return groups_of_faces([(images[row], titles[row]) for row in rows], title, columns, framed=False)


def batch(images: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """The images of a batch, (n, height, width, 1) of 0–255, with their labels: indices into CLASSES, or shares (n, 7) or (n, 14)."""
    codes = labels[:, : len(CLASSES)].argmax(axis=1) if labels.ndim == 2 else labels
    return faces(images[..., 0], [CLASSES[code] for code in codes], 6, title)


def groups_of_faces(
    groups: Sequence[tuple[Faces, Sequence[str]]], title: str, columns: int = 9, framed: bool = True
) -> Figure:
    """Groups of faces, at least one, with a title for each face, in rows of at most `columns` faces. framed: each in a frame."""
    # in faces: from face to face, between groups, around a group
    step, gap, frame = (1.05, 0.25, 0.06) if framed else (1.15, 0.05, 0.0)
    head = 0.06 + 0.115 * max(text.count("\n") + 1 for _, titles in groups for text in titles)  # room for titles
    figure, axes = plt.subplots(layout="constrained")
    left = top = width = 0.0
    for images, titles in groups:
        if left and left + step * len(images) > columns:
            left, top = 0.0, top + 1 + head + gap
        size = step * (len(images) - 1) + 1 + 2 * frame, 1 + head + 2 * frame
        if framed:
            axes.add_patch(plt.Rectangle((left - frame, top - frame), *size, color="#e4e4e4", zorder=-1))
        for image, text in zip(images, titles, strict=True):
            axes.imshow(image, **_GREY, extent=(left, left + 1, top + head + 1, top + head))
            axes.text(left + 0.5, top + head - 0.04, text, fontsize=7, ha="center", va="bottom")
            left += step
        width = max(width, left)
        left += gap
    height = top + 1 + head
    figure.set_size_inches(max(1.2 * width, 3), 1.2 * height + (0.35 if title else 0))
    axes.set(xlim=(-2 * frame, width + 2 * frame), ylim=(height + 2 * frame, -2 * frame), aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return figure


def heat_on_faces(images: np.ndarray, heat: np.ndarray, table: pd.DataFrame) -> Figure:
    """Grey faces, uint8 (n, 48, 48), each with its heat map below it: one column per class, right predictions on top.

    heat: (n, squares, squares), 0 to 1; higher values cover more of the face. table: label, predicted and
    confidence of each face, at most one right and one wrong prediction of each label.
    """
    shown = {}
    for face, hot, row in zip(images, heat, table.itertuples(), strict=True):
        kind = "right" if row.label == row.predicted else "wrong"
        title = f"{row.label}\nas {row.predicted} {row.confidence:.2f}"
        shown[kind, row.label] = (face, title), (covered(face, hot), "Grad-CAM")
    nothing = np.ones((*images.shape[1:], 3))
    cells = []
    for kind in ("right", "wrong"):
        missing = [((nothing, f"{label}\nnever {kind}"), (nothing, "")) for label in CLASSES]
        columns = [shown.get((kind, label), none) for label, none in zip(CLASSES, missing, strict=True)]
        cells += [above for above, _ in columns] + [below for _, below in columns]
    pictures, titles = zip(*cells, strict=True)
    return faces(pictures, titles, len(CLASSES), "Right predictions above, wrong ones below")


def covered(face: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The face in RGB, 0 to 1, under its heat map."""
    smooth = cv2.resize(heat.astype(np.float32), face.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
    share = 0.15 + 0.5 * smooth[..., None]
    return (1 - share) * face[..., None] / 255 + share * plt.get_cmap("inferno")(smooth)[..., :3]


def rows_of_faces(rows: dict[str, np.ndarray]) -> Figure:
    """Rows of faces, uint8 (n, 48, 48), each row with its title."""
    columns = max(map(len, rows.values()))
    figure, grid = plt.subplots(len(rows), figsize=(columns, 1.2 * len(rows)), squeeze=False, layout="constrained")
    for axes, (title, images) in zip(grid.flat, rows.items(), strict=True):
        row = np.pad(images, ((0, columns - len(images)), (0, 0), (0, 3)), constant_values=255)
        axes.imshow(np.hstack(list(row)), **_GREY)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_axis_off()
    return figure


def _over_epochs(titles: Iterable[str], height: float = 4) -> tuple[Figure, Sequence[Axes]]:
    """A figure with a row of axes, one for each title, whose horizontal axes are epochs."""
    figure, row = plt.subplots(1, len(_CURVES), figsize=(14, height), layout="constrained")
    for axes, title in zip(row, titles, strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # there may be a single epoch
    sns.despine(figure)
    return figure, row


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and macro F1 of TRAIN and VAL over the epochs, with the change of phase and the best epoch marked."""
    figure, row = _over_epochs(_CURVES.values())
    phases = history["phase"].unique()
    for axes, name in zip(row, _CURVES, strict=True):
        axes.plot(history["epoch"], history[name], color=COLOURS["TRAIN"], marker=".", label="TRAIN_BALANCED")
        axes.plot(history["epoch"], history[f"val_{name}"], color=COLOURS["VAL"], marker=".", label="VAL")
        if len(phases) > 1:
            switch = history.loc[history["phase"] == phases[1], "epoch"].min() - 0.5
            axes.axvline(switch, color="grey", linestyle=":", label="backbone's top unfrozen")
    best = history.loc[history["phase"] == phases[-1], "val_loss"].idxmin()  # the weights of this epoch are kept
    ring: dict[str, Any] = {"mfc": "none", "ms": 10, "color": COLOURS["VAL"], "label": "lowest VAL loss"}
    row[0].plot(history["epoch"][best], history["val_loss"][best], "o", **ring)
    row[0].legend(fontsize=8)
    return figure


def compared_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """VAL's loss, accuracy and macro F1 over the epochs, one line per run; dotted lines mark the end of phase 1."""
    figure, row = _over_epochs([f"VAL {label}" for label in _CURVES.values()])
    enough = len(histories) <= len(RUN_COLOURS)
    palette = RUN_COLOURS[: len(histories)] if enough else sns.color_palette("husl", len(histories))
    for axes, name in zip(row, _CURVES, strict=True):
        for (run, history), colour in zip(histories.items(), palette, strict=True):
            axes.plot(history["epoch"], history[f"val_{name}"], color=colour, marker=".", label=_as_text(run))
            axes.axvline((history["phase"] == "head").sum() + 0.5, color=colour, linestyle=":", linewidth=0.8)
    row[0].plot([], [], color="grey", linestyle=":", label="end of phase 1")
    row[0].legend(fontsize=8)
    return figure


def compared_confusions(counts: dict[str, np.ndarray]) -> Figure:
    """Each run's (7, 7) confusion counts as shares of the true class, up to three side by side."""
    columns = min(3, len(counts))
    rows = -(-len(counts) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 4.6 * rows), squeeze=False, layout="constrained")
    for axes in list(grid.flat)[len(counts) :]:
        axes.set_axis_off()
    for axes, (run, counts_of_run) in zip(grid.flat, counts.items(), strict=False):
        _confusion(axes, counts_of_run, _as_text(run), as_shares=True, annot_kws={"fontsize": 7})
        axes.tick_params(labelsize=7)
        axes.tick_params("x", rotation=45)
    return figure


def _as_text(name: str) -> str:
    """A run's name as matplotlib shows it: `$` would begin a formula, and a label that begins with `_` would be hidden."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def rates(history: pd.DataFrame) -> Figure:
    """Learning rate, weight decay and their product, the share by which a step shrinks a weight, over the epochs."""
    figure, row = _over_epochs(("learning rate", "weight decay", "rate × decay"), 2.8)
    rate, decay = history["learning_rate"], history["weight_decay"]
    for axes, values in zip(row, (rate, decay, rate * decay), strict=True):
        axes.plot(history["epoch"], values, drawstyle="steps-mid", color="#555555", marker=".")
        axes.set(ylim=(0, max(values.max() * 1.1, 1e-12)))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    return figure


def confusion_matrix(counts: np.ndarray, title: str) -> Figure:
    """Two heat maps of (7, 7) counts: the counts, and each row as shares of its true class."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    _confusion(left, counts, "images")
    _confusion(right, counts, "share of the true class", as_shares=True)
    figure.suptitle(title)
    return figure


def _confusion(axes: Axes, counts: np.ndarray, title: str, as_shares: bool = False, **style) -> None:
    names = {"xticklabels": CLASSES, "yticklabels": CLASSES}
    style |= {"fmt": ".2f", "vmin": 0, "vmax": 1} if as_shares else {"fmt": ",d"}
    values = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if as_shares else counts
    sns.heatmap(values, annot=True, ax=axes, square=True, **_HEAT, **names, **style)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.tick_params("y", rotation=0)


def label_agreement(counts: pd.DataFrame) -> Figure:
    """A heatmap of two label sets: the shares of each row's pictures, with the counts below; rows: FER2013's labels."""
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    texts = shares.map("{:.0%}\n".format) + counts.map("{:,}".format)
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    style = _HEAT | {
        "annot": texts.where(counts > 0, ""),
        "annot_kws": {"fontsize": 8},
        "fmt": "",
        "vmin": 0,
        "vmax": 1,
    }
    sns.heatmap(shares, ax=axes, **style)
    axes.axvline(len(CLASSES), color="black", linewidth=1)
    axes.set(title="What ten people say of the pictures of each label", xlabel="FER+ (majority)", ylabel="FER2013")
    axes.tick_params("y", rotation=0)
    axes.tick_params("x", rotation=0, labelsize=8)
    return figure


def corruptions(table: pd.DataFrame, accuracy: float) -> Figure:
    """Accuracy of TEST under each corruption at levels 1 to 5, with its mean; a line shows that of the pictures as they are.

    table: columns corruption, level, accuracy, from fer_utils.evaluation.inference.score_corrupted.
    """
    means = table.groupby("corruption")["accuracy"].transform("mean")
    shown = table.assign(title=table["corruption"] + means.map(", mean {:.3f}".format))
    style: dict[str, Any] = {"kind": "line", "marker": "o", "color": COLOURS["TEST"]}
    grid = sns.relplot(shown, x="level", y="accuracy", col="title", col_wrap=4, height=2.7, **style)
    grid.refline(y=accuracy).set_titles("{col_name}").set(ylim=(0, 1), xticks=range(1, 6))
    grid.set_axis_labels("level", f"TEST accuracy (as it is: {accuracy:.3f})")
    return grid.figure


def pair_distances(pairs: pd.DataFrame, strangers: np.ndarray, line: float) -> Figure:
    """Histograms of the distances of copies, by kind, and of candidates that are none; `line` is the threshold."""
    figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
    shown = {"candidates that are no copies": (strangers[np.isfinite(strangers)], "#777777")}
    for kind, colour in (("re-encoded", "#66ccee"), ("cropped", "#ccbb44"), ("flipped", "#aa3377")):
        shown[f"{kind} copies"] = pairs.loc[pairs["kind"] == kind, "distance"].to_numpy(), colour
    end = np.ceil(100 * max(line + 0.05, *(values.max(initial=0) for values, _ in shown.values()))) / 100
    for name, (values, colour) in shown.items():
        how: dict[str, Any] = {"facecolor": (colour, 0.35), "edgecolor": colour, "label": f"{name} ({len(values):,})"}
        axes.hist(values, np.arange(0, end + 0.005, 0.01).tolist(), histtype="stepfilled", **how)
    axes.axvline(line, color="black", linestyle=":", label=f"a copy: at most {line}")
    axes.set(
        yscale="log", xlim=(0, end), ylabel="pairs", xlabel="distance: what one picture does not explain of the other"
    )
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize=8)
    sns.despine(figure)
    return figure


def reliability(bins: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence, and the number of images in each bin: bars side by side in bins of equal width.

    bins: name → table of `evaluation.scores.reliability`. A name begins with a split's; a second one that says more is hatched.
    """
    rows: dict[str, Any] = {"height_ratios": (2, 1), "sharex": True, "layout": "constrained"}
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5.5), **rows)
    for number, (name, table) in enumerate(bins.items()):
        bar = 0.84 * (table["high"] - table["low"]) / len(bins)
        middles = (table["low"] + table["high"]) / 2 + (number - (len(bins) - 1) / 2) * bar
        hatch = _HATCH if name not in COLOURS and number else ""
        style = {"width": bar, "color": COLOURS[name.split()[0]], "edgecolor": "white", "hatch": hatch}
        above.bar(middles, table["accuracy"], label=f"{name} ({table['n'].sum():,} images)", **style)
        below.bar_label(below.bar(middles, table["n"], **style), fmt="{:,.0f}", fontsize=6, rotation=90, padding=2)
    above.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfectly calibrated")
    above.set(xlim=(min(table["low"].min() for table in bins.values()), 1), ylim=(0, 1), ylabel="share that is right")
    below.set(xlabel="confidence", ylabel="images")
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.margins(y=0.35)
    # Inside the axes the legend would cover bars.
    above.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(bins) + 1)
    sns.despine(figure)
    return figure
