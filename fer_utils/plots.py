"""Figures of the notebooks and reports: each function returns a matplotlib Figure.

No scores are computed here, and no results are read or written.
"""

from collections.abc import Sequence
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
_AS_SHARES: dict[str, Any] = {"fmt": ".2f", "vmin": 0, "vmax": 1}
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


def faces(images: np.ndarray, titles: Sequence[str], columns: int, title: str = "") -> Figure:
    """A grid of grey faces, uint8 (n, 48, 48), each under its own title."""
    rows = [slice(start, start + columns) for start in range(0, len(images), columns)]
    return groups_of_faces([(images[row], titles[row]) for row in rows], title, columns, framed=False)


def batch(images: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """The images of a batch, (n, height, width, 1) of 0–255, with their labels: indices into CLASSES, or shares (n, 7) or (n, 14)."""
    codes = labels[:, : len(CLASSES)].argmax(axis=1) if labels.ndim == 2 else labels
    return faces(images[..., 0], [CLASSES[code] for code in codes], 6, title)


def groups_of_faces(
    groups: Sequence[tuple[np.ndarray, Sequence[str]]], title: str, columns: int = 9, framed: bool = True
) -> Figure:
    """Groups of faces that belong together, each in a frame, in rows of at most `columns` faces.

    groups: grey faces, uint8 (n, 48, 48), and a title for each; at least one group.
    """
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
    kinds = {True: "right", False: "wrong"}
    shown = {(row.label == row.predicted, row.label): place for place, row in enumerate(table.itertuples())}
    titles = [f"{row.predicted} {row.confidence:.2f}" for row in table.itertuples()]
    figure, grid = plt.subplots(4, len(CLASSES), figsize=(1.3 * len(CLASSES) + 1, 5.5), layout="constrained")
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        sns.despine(ax=axes, left=True, bottom=True)
    for axes, label in zip(grid[0], CLASSES, strict=True):
        axes.set_title(label, fontsize=9)
    for (kind, name), (above, below) in zip(kinds.items(), (grid[:2], grid[2:]), strict=True):
        above[0].set_ylabel(f"predicted {name}", fontsize=9)
        below[0].set_ylabel("Grad-CAM", fontsize=8, color="grey")
        for label, face, map_ in zip(CLASSES, above, below, strict=True):
            if (kind, label) not in shown:
                face.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
                face.text(0.5, 0.5, f"never {name}", fontsize=8, color="grey", ha="center", va="center")
                map_.set_visible(map_ is below[0])  # the first one has the row's name
                continue
            place = shown[kind, label]
            image, hot = images[place], heat[place].astype(np.float32)
            smooth = cv2.resize(hot, image.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
            face.imshow(image, **_GREY)
            face.set_xlabel(titles[place], fontsize=7)
            map_.imshow(image, **_GREY)
            map_.imshow(smooth, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.5 * smooth)
    return figure


def rows_of_faces(rows: dict[str, np.ndarray]) -> Figure:
    """Rows of faces, uint8 (n, 48, 48), each row with its title."""
    columns = max(map(len, rows.values()))
    # Not constrained layout: it would widen the first column to the width of the title.
    how: dict[str, Any] = {"squeeze": False, "gridspec_kw": {"wspace": 0.05, "hspace": 0.3}}
    figure, grid = plt.subplots(len(rows), columns, figsize=(columns, 1.2 * len(rows)), **how)
    for (title, images), row in zip(rows.items(), grid, strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image, **_GREY)
        row[0].set_title(title, fontsize=9, loc="left")
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and macro F1 of TRAIN and VAL over the epochs, with the change of phase and the best epoch marked."""
    figure, row = plt.subplots(1, len(_CURVES), figsize=(14, 4), layout="constrained")
    phases = history["phase"].unique()
    for axes, (name, label) in zip(row, _CURVES.items(), strict=True):
        axes.plot(history["epoch"], history[name], color=COLOURS["TRAIN"], marker=".", label="TRAIN_BALANCED")
        axes.plot(history["epoch"], history[f"val_{name}"], color=COLOURS["VAL"], marker=".", label="VAL")
        if len(phases) > 1:
            switch = history.loc[history["phase"] == phases[1], "epoch"].min() - 0.5
            axes.axvline(switch, color="grey", linestyle=":", label="backbone's top unfrozen")
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    best = history["val_loss"].idxmin()
    ring = {"mfc": "none", "ms": 10, "color": COLOURS["VAL"], "label": "lowest VAL loss"}
    row[0].plot(history["epoch"][best], history["val_loss"][best], "o", **ring)
    row[0].legend(fontsize=8)
    sns.despine(figure)
    return figure


def compared_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """VAL's loss, accuracy and macro F1 over the epochs, one line per run; dotted lines mark the end of phase 1."""
    figure, row = plt.subplots(1, len(_CURVES), figsize=(14, 4), layout="constrained")
    enough = len(histories) <= len(RUN_COLOURS)
    palette = RUN_COLOURS[: len(histories)] if enough else sns.color_palette("husl", len(histories))
    for axes, (name, label) in zip(row, _CURVES.items(), strict=True):
        for (run, history), colour in zip(histories.items(), palette, strict=True):
            axes.plot(history["epoch"], history[f"val_{name}"], color=colour, marker=".", label=_as_text(run))
            axes.axvline((history["phase"] == "head").sum() + 0.5, color=colour, linestyle=":", linewidth=0.8)
        axes.set(xlabel="epoch", title=f"VAL {label}")
        axes.xaxis.get_major_locator().set_params(integer=True)
    row[0].plot([], [], color="grey", linestyle=":", label="end of phase 1")
    row[0].legend(fontsize=8)
    sns.despine(figure)
    return figure


def compared_confusions(counts: dict[str, np.ndarray]) -> Figure:
    """Each run's (7, 7) confusion counts as shares of the true class, up to three side by side."""
    columns = min(3, len(counts))
    rows = -(-len(counts) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(5 * columns, 4.6 * rows), squeeze=False, layout="constrained")
    for axes in list(grid.flat)[len(counts) :]:
        axes.set_axis_off()
    for axes, (run, counts_of_run) in zip(grid.flat, counts.items(), strict=False):
        _confusion(axes, _shares(counts_of_run), _as_text(run), **_AS_SHARES, annot_kws={"fontsize": 7})
        axes.tick_params(labelsize=7)
        axes.tick_params("x", rotation=45)
    return figure


def _as_text(name: str) -> str:
    """A run's name as matplotlib shows it: `$` would begin a formula, and a label that begins with `_` would be hidden."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def rates(history: pd.DataFrame) -> Figure:
    """Learning rate, weight decay and their product, the share by which a step shrinks a weight, over the epochs."""
    figure, row = plt.subplots(1, 3, figsize=(14, 2.8), layout="constrained")
    rate, decay = history["learning_rate"], history["weight_decay"]
    titles = ("learning rate", "weight decay", "rate × decay")
    for axes, title, values in zip(row, titles, (rate, decay, rate * decay), strict=True):
        axes.plot(history["epoch"], values, drawstyle="steps-mid", color="#555555", marker=".")
        axes.set(title=title, xlabel="epoch", ylim=(0, max(values.max() * 1.1, 1e-12)))
        axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # there may be a single epoch
    sns.despine(figure)
    return figure


def confusion_matrix(counts: np.ndarray, title: str) -> Figure:
    """Two heat maps of (7, 7) counts: the counts, and each row as shares of its true class."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    _confusion(left, counts, "images", fmt=",d")
    _confusion(right, _shares(counts), "share of the true class", **_AS_SHARES)
    figure.suptitle(title)
    return figure


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _confusion(axes: Axes, values: np.ndarray, title: str, **style) -> None:
    names = {"xticklabels": CLASSES, "yticklabels": CLASSES}
    sns.heatmap(values, annot=True, ax=axes, square=True, **_HEAT, **names, **style)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.tick_params("y", rotation=0)


def label_agreement(counts: pd.DataFrame) -> Figure:
    """A heatmap of two label sets: the shares of each row's pictures, with the counts below; rows: FER2013's labels."""
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    texts = shares.map("{:.0%}\n".format) + counts.map("{:,}".format)
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    sns.heatmap(
        shares, annot=texts.where(counts > 0, ""), fmt="", vmin=0, vmax=1, ax=axes, annot_kws={"fontsize": 8}, **_HEAT
    )
    axes.axvline(len(CLASSES), color="black", linewidth=1)
    axes.set(title="What ten people say of the pictures of each label", xlabel="FER+ (majority)", ylabel="FER2013")
    axes.tick_params("y", rotation=0)
    axes.tick_params("x", rotation=0, labelsize=8)
    return figure


def corruptions(table: pd.DataFrame, accuracy: float) -> Figure:
    """Accuracy of TEST under each corruption at levels 1 to 5, beside that of the pictures as they are (level 0).

    table: columns corruption, level, accuracy, from fer_utils.evaluation.robustness.score.
    """
    kinds = list(dict.fromkeys(table["corruption"]))
    common: dict[str, Any] = {"sharex": True, "sharey": True, "layout": "constrained"}
    figure, grid = plt.subplots(2, -(-len(kinds) // 2), figsize=(12, 5.5), **common)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        rows = table[table["corruption"] == kind]
        axes.plot([0, *rows["level"]], [accuracy, *rows["accuracy"]], color=COLOURS["TEST"], marker=".")
        axes.axhline(accuracy, color="grey", linestyle=":", linewidth=0.8)
        axes.set_title(f"{kind}: {rows['accuracy'].mean():.3f}", fontsize=9)
        axes.set(ylim=(0, 1), xlim=(0, 5), xticks=range(6))
    figure.supxlabel("level (0: as it is)", fontsize=9)
    figure.supylabel("TEST accuracy; in the titles the mean of five levels", fontsize=9)
    sns.despine(figure)
    return figure


def pair_distances(pairs: pd.DataFrame, strangers: np.ndarray, line: float) -> Figure:
    """Histograms of the distances of copies, by kind, and of candidates that are none; `line` is the threshold."""
    figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
    finite = strangers[np.isfinite(strangers)]
    shown = {f"candidates that are no copies ({len(finite):,})": (finite, "#777777")}
    for kind, colour in (("re-encoded", "#66ccee"), ("cropped", "#ccbb44"), ("flipped", "#aa3377")):
        distances = pairs.loc[pairs["kind"] == kind, "distance"].to_numpy()
        if len(distances):
            shown[f"{kind} copies ({len(distances):,})"] = (distances, colour)
    end = np.ceil(100 * max(line + 0.05, *(values.max() for values, _ in shown.values() if len(values)))) / 100
    edges = np.arange(0, end + 0.005, 0.01)
    for label, (values, colour) in shown.items():
        axes.hist(
            values, edges.tolist(), histtype="stepfilled", facecolor=(colour, 0.35), edgecolor=colour, label=label
        )
    axes.axvline(line, color="black", linestyle=":", label=f"a copy: at most {line}")
    explained = "distance: what one picture does not explain of the other"
    axes.set(yscale="log", xlim=(0, end), xlabel=explained, ylabel="pairs")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(fontsize=8)
    sns.despine(figure)
    return figure


def reliability(bins: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence, and the number of images in each bin: bars side by side in bins of equal width.

    bins: name → table of `evaluation.scores.reliability`; a name begins with a split's. A second table of a split is hatched.
    """
    rows: dict[str, Any] = {"height_ratios": (2, 1), "sharex": True, "layout": "constrained"}
    figure, (above, below) = plt.subplots(2, 1, figsize=(10, 5.5), **rows)
    seen = set()
    for number, (name, table) in enumerate(bins.items()):
        split = name.split()[0].rstrip(",")
        bar = 0.84 * (table["high"] - table["low"]) / len(bins)
        middles = (table["low"] + table["high"]) / 2 + (number - (len(bins) - 1) / 2) * bar
        style = {"width": bar, "color": COLOURS[split], "edgecolor": "white", "hatch": _HATCH if split in seen else ""}
        seen.add(split)
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
