"""What a figure shows: colours of splits, places of bars and faces, names, ends of axes."""

import itertools

from fer_utils import plots
from fer_utils.classes import CLASSES
from fer_utils.evaluation import scores

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def _history(epochs: int, head: int) -> pd.DataFrame:
    table = pd.DataFrame({"epoch": range(1, epochs + 1), "phase": ["head"] * head + ["fine_tune"] * (epochs - head)})
    scores = {f"{part}{name}": np.linspace(1, 2, epochs) for part in ("", "val_") for name in plots._CURVES}
    return table.assign(**scores)


def _colours_by_label(axes) -> dict[str, str]:
    return {text.get_text(): _colour(handle) for handle, text in _legend(axes)}


def _legend(axes):
    return zip(axes.get_legend().legend_handles, axes.get_legend().get_texts(), strict=True)


def _colour(handle) -> str:
    return to_hex(handle.get_facecolor() if isinstance(handle, Rectangle) else handle.get_color())


def _bins(*confidences: float) -> pd.DataFrame:
    """The bins of predictions of these confidences, all of them right."""
    probabilities = np.repeat((1 - np.array(confidences)[:, None]) / 6, len(CLASSES), axis=1)
    probabilities[:, CLASSES.index("happy")] = confidences
    table = pd.DataFrame({"label": ["happy"] * len(confidences)})
    return scores.reliability(scores.prediction_table(table, probabilities))


def test_a_split_has_one_colour_in_all_figures():
    counts = pd.DataFrame({name: range(1, 8) for name in plots.COLOURS}, index=CLASSES)
    assert _colours_by_label(plots.class_counts(counts, "").axes[0]) == plots.COLOURS
    balanced = counts[["TRAIN"]].assign(TRAIN_BALANCED=counts["TRAIN"])
    both = _colours_by_label(plots.class_counts(balanced, "").axes[0])
    assert both == dict.fromkeys(("TRAIN", "TRAIN_BALANCED"), plots.COLOURS["TRAIN"])
    curves = _colours_by_label(plots.learning_curves(_history(3, 2)).axes[0])
    assert (curves["TRAIN_BALANCED"], curves["VAL"]) == (plots.COLOURS["TRAIN"], plots.COLOURS["VAL"])
    bars = _colours_by_label(plots.reliability({"VAL": _bins(0.5), "TEST": _bins(0.5)}).axes[0])
    assert bars["VAL (1 images)"] == plots.COLOURS["VAL"] and bars["TEST (1 images)"] == plots.COLOURS["TEST"]
    assert not set(plots.RUN_COLOURS) & set(plots.COLOURS.values())


def test_the_ring_marks_the_epoch_whose_weights_are_kept():
    history = _history(5, 2)
    history["val_loss"] = [1.2, 1.0, 1.4, 1.3, 1.35]  # the lowest is of phase 1
    ring = {line.get_label(): line for line in plots.learning_curves(history).axes[0].lines}["lowest VAL loss"]
    assert ring.get_xdata().tolist() == [4]


def test_balanced_counts_are_told_apart_by_their_hatch():
    counts = pd.DataFrame({"TRAIN": range(1, 8), "TRAIN_BALANCED": range(2, 9)}, index=CLASSES)
    before, after = plots.class_counts(counts, "").axes[0].containers
    assert not before[0].get_hatch() and after[0].get_hatch()


def test_reliability_has_bins_of_equal_width_side_by_side_with_counts():
    bins = {"VAL": _bins(0.42, 0.42, 0.9), "TEST": _bins(0.42, 0.9, 0.9)}
    above, below = plots.reliability(bins).axes
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for shown in above.containers for bar in shown)
    assert len(bars) == 4 and all(end <= begin + 1e-9 for (_, end), (begin, _) in itertools.pairwise(bars))
    assert np.ptp([end - begin for begin, end in bars]) == pytest.approx(0, abs=1e-12)
    for low, pair in ((6 / 15, bars[:2]), (13 / 15, bars[2:])):
        assert low < pair[0][0] and pair[1][1] < low + 1 / 15
    assert [text.get_text() for text in below.texts] == ["2", "1", "1", "2"]
    assert above.get_xlim() == (pytest.approx(6 / 15), 1)


def test_a_second_series_of_a_split_is_hatched():
    above = plots.reliability({"TEST as it is": _bins(0.5), "TEST at temperature 1.20": _bins(0.4)}).axes[0]
    plain, scaled = above.containers
    assert not plain[0].get_hatch() and scaled[0].get_hatch()


def test_grad_cam_is_below_each_face_and_says_where_a_class_was_never_right():
    faces = np.full((8, 48, 48), 200, np.uint8)
    right = [CLASSES[column] for column in (0, 2, 3, 4, 5, 6)]
    table = pd.DataFrame({"label": [*right, *CLASSES[:2]], "predicted": [*right, *CLASSES[1::-1]], "confidence": 0.5})
    heat = np.zeros((8, 5, 5))
    heat[:, 0, 0] = 1
    axes = plots.heat_on_faces(faces, heat, table).axes[0]
    titles = np.array([text.get_text() for text in axes.texts]).reshape(4, 7)
    wrong = ["angry\nas disgust 0.50", "disgust\nas angry 0.50", *(f"{label}\nnever wrong" for label in CLASSES[2:])]
    assert titles[2].tolist() == wrong
    assert titles[0].tolist() == [
        f"{label}\nas {label} 0.50" if label in right else f"{label}\nnever right" for label in CLASSES
    ]
    pictures = [image.get_array() for image in axes.images[14:21]]
    assert all((picture == 200).all() for picture in pictures[:2])  # the two wrong predictions
    assert all((picture == 1).all() for picture in pictures[2:])  # white
    warm = np.array([image.get_array() for image in axes.images[21:23]])
    assert (np.ptp(warm[:, 0, 0], axis=-1) > 0.2).all() and warm.shape == (2, 48, 48, 3)
    lefts, bottoms = (np.array([image.get_extent()[end] for image in axes.images]).reshape(4, 7) for end in (0, 2))
    assert (lefts == lefts[0]).all() and (np.diff(bottoms, axis=0) > 1).all()


def test_groups_of_faces_keep_to_their_frames_and_to_the_rows_width():
    sizes = [2, 3, 2, 4, 2, 9, 1]
    groups = [(np.zeros((size, 48, 48), np.uint8), ["happy"] * size) for size in sizes]
    axes = plots.groups_of_faces(groups, "").axes[0]
    frames = [frame.get_bbox() for frame in axes.patches]
    assert len(frames) == len(sizes) and len(axes.images) == len(axes.texts) == sum(sizes)
    for place, frame in enumerate(frames):
        assert not any(frame.overlaps(other) for other in frames[place + 1 :])
        inside = [image for image in axes.images if _is_inside(image.get_extent(), frame)]
        assert len(inside) == sizes[place]
    assert max(frame.x1 for frame in frames) <= axes.get_xlim()[1]
    assert axes.get_xlim()[1] < 10.5 and len({frame.y0 for frame in frames}) == 4


def _is_inside(extent, frame) -> bool:
    left, right, bottom, top = extent
    return frame.x0 <= left and right <= frame.x1 and frame.y0 <= min(bottom, top) and max(bottom, top) <= frame.y1


def test_a_single_group_fills_its_figure():
    axes = plots.groups_of_faces([(np.zeros((2, 48, 48), np.uint8), ["sad", "angry"])], "").axes[0]
    assert np.ptp(axes.get_xlim()) < 3


def test_names_of_classes_are_horizontal_on_the_y_axis():
    for figure in (plots.confusion_matrix(np.eye(7, dtype=int), ""), plots.compared_confusions({"a": np.eye(7)})):
        figure.canvas.draw()
        for axes in figure.axes:
            labels = axes.get_yticklabels()
            assert [label.get_text() for label in labels] == list(CLASSES)
            assert {label.get_rotation() for label in labels} == {0}


def test_the_axis_of_distances_ends_where_the_distances_end():
    pairs = pd.DataFrame({"kind": ["re-encoded", "flipped"], "distance": [0.01, 0.1]})
    axes = plots.pair_distances(pairs, np.array([0.4, 0.613, np.inf]), 0.2).axes[0]
    assert axes.get_xlim() == (0, pytest.approx(0.62))
    alone = plots.pair_distances(pairs, np.array([np.inf]), 0.2).axes[0]
    assert alone.get_xlim() == (0, pytest.approx(0.25))


def test_the_line_at_the_end_of_phase_1_has_a_legend():
    axes = plots.compared_curves({"a": _history(4, 2), "b": _history(5, 3)}).axes[0]
    assert [text.get_text() for _, text in _legend(axes)] == ["a", "b", "end of phase 1"]


def test_many_runs_have_a_colour_each():
    axes = plots.compared_curves({str(number): _history(2, 1) for number in range(9)}).axes[0]
    assert len({to_hex(line.get_color()) for line in axes.lines if line.get_marker() == "."}) == 9


@pytest.mark.parametrize("name", ["$^$", "a_$x", "$\\frac$", "_hidden", "a$b$c"])
def test_a_runs_name_is_no_formula(name):
    curves, matrices = plots.compared_curves({name: _history(4, 2)}), plots.compared_confusions({name: np.eye(7)})
    for figure in (curves, matrices):
        figure.canvas.draw()
    (shown, _) = curves.axes[0].get_legend().get_texts()
    for text in (shown.get_text(), matrices.axes[0].get_title()):
        assert text.replace("\\$", "$").strip() == name
