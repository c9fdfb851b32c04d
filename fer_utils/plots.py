"""Figures, each a function that returns a matplotlib Figure.

Knows how to show tables and pictures; computes nothing that a test would want to see, reads and writes no results.
"""

from collections.abc import Sequence
from pathlib import Path

from fer_utils import files
from fer_utils.classes import CLASSES

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

TRAIN_COLOUR, VAL_COLOUR, NEUTRAL_COLOUR = (
    "#4477aa",
    "#cc6677",
    "#bbbbbb",
)  # Paul Tol's bright and muted sets: told apart by all
_CURVES = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro F1"}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, 120 dots an inch, atomically."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")


def class_counts(counts: pd.DataFrame, title: str) -> Figure:
    """Bars of images a class (rows) for each column, numbers on top."""
    figure, axes = plt.subplots(figsize=(10, 4))
    counts.plot.bar(ax=axes, width=0.8, rot=0, color=[NEUTRAL_COLOUR, TRAIN_COLOUR, VAL_COLOUR][-len(counts.columns) :])
    for bars in axes.containers:
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=1)
    axes.set(title=title, xlabel="", ylabel="images")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    sns.despine(figure)
    return figure


def faces(
    images: np.ndarray, titles: list[str], columns: int, title: str = "", colours: list[str] | None = None
) -> Figure:
    """A grid of grey faces, uint8 (n, 48, 48), each under its own title."""
    rows = -(-len(images) // columns)
    height = 1.25 * rows + 0.35 * (title.count("\n") + 1 if title else 0)
    figure, grid = plt.subplots(rows, columns, figsize=(1.15 * columns, height), squeeze=False, layout="constrained")
    for place, axes in enumerate(grid.flat):
        axes.set_axis_off()
        if place < len(images):
            axes.imshow(images[place], cmap="gray", vmin=0, vmax=255)
            axes.set_title(titles[place], fontsize=7, color=colours[place] if colours else "black")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def heat_on_faces(images: np.ndarray, heat: np.ndarray, titles: list[str], cells: Sequence[int]) -> Figure:
    """Grey faces, uint8 (n, 48, 48), under their titles, each above itself under its heat map; a column a class.

    heat: (n, squares, squares), 0 to 1; the hotter, the less of the face shows through. cells: where each face goes,
    counted along the rows.
    """
    columns = len(CLASSES)
    rows = max(cells) // columns + 1
    figure, grid = plt.subplots(2 * rows, columns, figsize=(1.3 * columns, 2.9 * rows), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    for image, hot, title, cell in zip(images, heat, titles, cells, strict=True):
        row, column = divmod(cell, columns)
        for axes in grid[2 * row : 2 * row + 2, column]:
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        grid[2 * row, column].set_title(title, fontsize=7)
        smooth = cv2.resize(hot.astype(np.float32), image.shape[::-1], interpolation=cv2.INTER_CUBIC).clip(0, 1)
        grid[2 * row + 1, column].imshow(smooth, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.5 * smooth)
    return figure


def rows_of_faces(rows: dict[str, np.ndarray]) -> Figure:
    """Rows of faces, uint8 (n, 48, 48), each under its title."""
    columns = max(map(len, rows.values()))
    # No constrained layout: it would keep a title's width free in the first column alone.
    figure, grid = plt.subplots(
        len(rows),
        columns,
        figsize=(columns, 1.2 * len(rows)),
        squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.3},
    )
    for (title, images), row in zip(rows.items(), grid, strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
        row[0].set_title(title, fontsize=9, loc="left")
    return figure


def learning_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy and macro F1 of TRAIN and VAL over the epochs, the switch of phases and the best epoch marked."""
    figure, row = plt.subplots(1, len(_CURVES), figsize=(14, 4), layout="constrained")
    phases = history["phase"].unique()
    for axes, (name, label) in zip(row, _CURVES.items(), strict=True):
        axes.plot(history["epoch"], history[name], color=TRAIN_COLOUR, marker=".", label="TRAIN_BALANCED")
        axes.plot(history["epoch"], history[f"val_{name}"], color=VAL_COLOUR, marker=".", label="VAL")
        if len(phases) > 1:
            switch = history.loc[history["phase"] == phases[1], "epoch"].min() - 0.5
            axes.axvline(switch, color="grey", linestyle=":", label="backbone's top unfrozen")
        axes.set(xlabel="epoch", title=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    best = history["val_loss"].idxmin()
    row[0].plot(
        history["epoch"][best],
        history["val_loss"][best],
        "o",
        mfc="none",
        ms=10,
        color=VAL_COLOUR,
        label="lowest VAL loss",
    )
    row[0].legend(fontsize=8)
    sns.despine(figure)
    return figure


def compared_curves(histories: dict[str, pd.DataFrame]) -> Figure:
    """VAL's loss, accuracy and macro F1 over the epochs, a line a run; dotted where phase 1 ends."""
    figure, row = plt.subplots(1, len(_CURVES), figsize=(14, 4), layout="constrained")
    palette = sns.color_palette("colorblind", len(histories))
    for axes, (name, label) in zip(row, _CURVES.items(), strict=True):
        for (run, history), colour in zip(histories.items(), palette, strict=True):
            axes.plot(history["epoch"], history[f"val_{name}"], color=colour, marker=".", label=run)
            axes.axvline((history["phase"] == "head").sum() + 0.5, color=colour, linestyle=":", linewidth=0.8)
        axes.set(xlabel="epoch", title=f"VAL {label}")
        axes.xaxis.get_major_locator().set_params(integer=True)
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
    for axes, (run, of) in zip(grid.flat, counts.items(), strict=False):
        shares = of / np.maximum(of.sum(axis=1, keepdims=True), 1)
        style = {"cmap": "Blues", "square": True, "linewidths": 0.5, "cbar": False, "annot_kws": {"fontsize": 7}}
        sns.heatmap(shares, annot=True, fmt=".2f", vmin=0, vmax=1, ax=axes, **style)
        axes.set_xticklabels(CLASSES, rotation=45, fontsize=7)
        axes.set_yticklabels(CLASSES, rotation=0, fontsize=7)
        axes.set(title=run, xlabel="predicted", ylabel="true")
    return figure


def rates(history: pd.DataFrame) -> Figure:
    """Learning rate, weight decay and their product, the share of itself that a weight loses a step, over the epochs."""
    figure, row = plt.subplots(1, 3, figsize=(14, 2.8), layout="constrained")
    product = history["learning_rate"] * history["weight_decay"]
    columns = {
        "learning rate": history["learning_rate"],
        "weight decay": history["weight_decay"],
        "rate × decay": product,
    }
    for axes, (title, values) in zip(row, columns.items(), strict=True):
        axes.step(history["epoch"], values, where="mid", color=TRAIN_COLOUR)
        axes.set(title=title, xlabel="epoch", ylim=(0, max(values.max() * 1.1, 1e-12)))
        axes.xaxis.get_major_locator().set_params(integer=True)
    sns.despine(figure)
    return figure


def confusion_matrix(counts: np.ndarray, title: str) -> Figure:
    """Two heatmaps of (7, 7) counts: the counts, and each row as shares of its true class."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), layout="constrained")
    common = {"cmap": "Blues", "xticklabels": CLASSES, "yticklabels": CLASSES, "square": True, "linewidths": 0.5}
    sns.heatmap(counts, annot=True, fmt=",d", ax=left, **common)
    sns.heatmap(shares, annot=True, fmt=".2f", vmin=0, vmax=1, ax=right, **common)
    left.set(title="images", xlabel="predicted", ylabel="true")
    right.set(title="share of the true class", xlabel="predicted", ylabel="true")
    figure.suptitle(title)
    return figure


def pair_distances(pairs: pd.DataFrame, strangers: np.ndarray, line: float) -> Figure:
    """Histograms of the distances of copies, kind by kind, and of nearest strangers; the line between them marked."""
    figure, axes = plt.subplots(figsize=(10, 3.5), layout="constrained")
    finite = strangers[np.isfinite(strangers)]
    edges = np.linspace(0, max(1.0, line, *finite[:1]), 101)
    for kind, colour in (("re-encoded", TRAIN_COLOUR), ("cropped", "#CCBB44"), ("flipped", "#228833")):
        distances = pairs.loc[pairs["kind"] == kind, "distance"]
        if len(distances):
            axes.hist(distances, edges, color=colour, alpha=0.8, label=f"{kind} copies ({len(distances):,})")
    axes.hist(
        np.clip(finite, 0, edges[-1]),
        edges,
        color=VAL_COLOUR,
        alpha=0.8,
        label=f"nearest others (sample of {len(finite):,})",
    )
    axes.axvline(line, color="black", linestyle=":", label=f"line: {line}")
    axes.set(yscale="log", xlabel="distance: what one picture does not explain of the other", ylabel="pairs")
    axes.legend(fontsize=8)
    sns.despine(figure)
    return figure


def reliability(bins: dict[str, pd.DataFrame]) -> Figure:
    """Accuracy against confidence, one panel a split; bins as `evaluation.reliability` gives them."""
    figure, row = plt.subplots(1, len(bins), figsize=(10, 4), sharey=True, layout="constrained")
    for axes, (split, table) in zip(row, bins.items(), strict=True):
        axes.bar(table["confidence"], table["accuracy"], width=0.05, color=TRAIN_COLOUR, label="share that is right")
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", label="perfectly calibrated")
        axes.set(title=f"{split}, {table['n'].sum():,} images", xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
    row[0].set_ylabel("accuracy")
    row[0].legend(fontsize=8)
    sns.despine(figure)
    return figure
