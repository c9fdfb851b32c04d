"""Scores of predictions, computed from tables of labels and probabilities."""

from collections.abc import Mapping

from fer_utils.classes import CLASSES, PROBABILITIES
from fer_utils.data import attributes, audit, ferplus
from fer_utils.data.archives import natural_key

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import rel_entr, softmax
from scipy.stats import binomtest
from sklearn.metrics import classification_report, confusion_matrix, precision_recall_fscore_support

KEPT_COLUMNS = (
    "path", "label", "usage", "seen_in_training", "group", "label_conflict", "flags", "fingerprint", "fer2013_label",
    "votes", "ferplus_label",
)  # fmt: skip
SMALLEST_GROUP = 30  # pictures; scores of fewer say little, and their bootstrap intervals are too narrow
NOT_KNOWN = "not known"  # the group of pictures without the attribute
RESAMPLES = 2000  # of the bootstrap; with so many, an interval's ends vary in the third digit only
CALIBRATION_BINS = 15  # as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
TEMPERATURES = (0.05, 20.0)  # range of the search
SMALLEST_PROBABILITY = 1e-7  # as keras.config.epsilon(), so that the loss stays finite for a probability of 0
Predictions = Mapping[str, pd.DataFrame]  # split → prediction_table


def mark_seen(manifest: pd.DataFrame, trained: pd.DataFrame) -> pd.DataFrame:
    """The manifest with `seen_in_training`: whether the model trained on the image or a copy of it. Raises as audit does."""
    return manifest.assign(seen_in_training=audit.seen_in_training(manifest, trained["train_path"]))


def prediction_table(table: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """One row per image: its KEPT_COLUMNS and attributes, the predicted class, and all seven probabilities, (n, 7)."""
    predicted = [CLASSES[code] for code in probabilities.argmax(axis=1)]
    rows = table[[*filter(table.__contains__, KEPT_COLUMNS), *table.filter(like=attributes.COLUMN)]].assign(
        predicted=predicted
    )
    return pd.concat([rows, pd.DataFrame(probabilities.round(7), table.index, PROBABILITIES)], axis=1)


def overall(predictions: pd.DataFrame) -> dict[str, float | list[float]]:
    """n, loss (sparse categorical cross-entropy, nats), accuracy, macro precision, recall and F1 (zero_division 0), 95 %
    bootstrap intervals of accuracy and macro F1, and calibration_error.
    """
    true, predicted = predictions["label"], predictions["predicted"]
    macro = precision_recall_fscore_support(true, predicted, labels=CLASSES, average="macro", zero_division=0)
    return {
        "n": len(predictions),
        "loss": _loss(predictions),
        "accuracy": float((true == predicted).mean()),
        **{f"macro_{name}": float(value) for name, value in zip(("precision", "recall", "f1"), macro[:3], strict=True)},
        **bootstrap_intervals(predictions),
        "calibration_error": calibration_error(reliability(predictions)),
    }


def _loss(predictions: pd.DataFrame) -> float:
    true = class_codes(predictions["label"])
    chosen = predictions[list(PROBABILITIES)].to_numpy()[np.arange(len(true)), true]
    return float(-np.log(np.clip(chosen, SMALLEST_PROBABILITY, 1)).mean())


def bootstrap_intervals(predictions: pd.DataFrame, seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile intervals of accuracy and macro F1 under resampling of pictures with replacement (cluster bootstrap).

    Images with the same `group`, if there is that column, are copies of one picture: they are drawn together, since their
    predictions depend on each other. Both scores depend on a picture only through its confusion counts, and few kinds of
    these differ. How often each kind is drawn has a multinomial distribution: equivalent to drawing pictures, and much faster.
    """
    side = len(CLASSES)
    cells = class_codes(predictions["label"]) * side + class_codes(predictions["predicted"])
    pictures = predictions["group"].to_numpy() if "group" in predictions else np.arange(len(cells))
    counts = pd.crosstab(pictures, cells).reindex(columns=range(side**2), fill_value=0)
    kinds, times = np.unique(counts, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(times.sum(), times / times.sum(), RESAMPLES) @ kinds
    confusions = drawn.reshape(-1, side, side)
    hits = np.diagonal(confusions, axis1=1, axis2=2)
    called = confusions.sum(axis=1) + confusions.sum(axis=2)
    f1 = np.divide(2 * hits, called, out=np.zeros(hits.shape), where=called > 0).mean(axis=1)
    draws = {"accuracy_interval": hits.sum(axis=1) / drawn.sum(axis=1), "macro_f1_interval": f1}
    return {name: np.percentile(values, [2.5, 97.5]).tolist() for name, values in draws.items()}


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the predictions by confidence: one row for each non-empty bin; bins have equal width.

    Columns: low and high, the bin's ends; n; mean confidence and accuracy.
    """
    confidence = predictions[list(PROBABILITIES)].max(axis=1)
    right = predictions["label"] == predictions["predicted"]
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    table = pd.DataFrame({"n": 1, "confidence": confidence, "accuracy": right.astype(float)}).groupby(bins)
    table = table.agg({"n": "sum", "confidence": "mean", "accuracy": "mean"})
    low, high = (np.asarray(table.index + step) / CALIBRATION_BINS for step in (0, 1))
    return table.assign(low=low, high=high).reset_index(drop=True)


def calibration_error(bins: pd.DataFrame) -> float:
    """Expected calibration error: |accuracy - confidence|, averaged over the bins of `reliability` by their n (Guo et al. 2017)."""
    return float(((bins["accuracy"] - bins["confidence"]).abs() * bins["n"]).sum() / bins["n"].sum())


def fit_temperature(predictions: pd.DataFrame) -> float:
    """The temperature that minimises the loss when the scores before softmax are divided by it (Guo et al. 2017, section 4.2).

    Above 1 the model is overconfident, below 1 underconfident. The predicted classes stay the same.
    """
    found = minimize_scalar(lambda log: _loss(at_temperature(predictions, np.exp(log))), bounds=np.log(TEMPERATURES))
    return float(np.exp(found.x))


def scores_at(predictions: pd.DataFrame, temperature: float) -> dict[str, float]:
    """Loss and calibration_error, as `overall` defines them, of probabilities at a temperature."""
    scaled = at_temperature(predictions, temperature)
    return {"loss": _loss(scaled), "calibration_error": calibration_error(reliability(scaled))}


def at_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """The predictions with probabilities softmax(log(p) / temperature); log(p) equals the scores up to a constant."""
    logits = np.log(predictions[list(PROBABILITIES)].clip(SMALLEST_PROBABILITY, 1)) / temperature
    return predictions.assign(**pd.DataFrame(softmax(logits, axis=1), predictions.index, PROBABILITIES))


def mcnemar(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """McNemar's exact test of two models' predictions for the same images.

    Returns n (images in both tables), only_first and only_second (images that only that model gets right) and the two-sided
    p_value: the probability of a split at least as uneven if both were equally good. ValueError if no image is in both.
    """
    both = first.merge(second, on="path", suffixes=("_1", "_2"))
    if not len(both):
        raise ValueError("the two tables of predictions have no image in common")
    right = [both[f"label_{run}"] == both[f"predicted_{run}"] for run in (1, 2)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    p_value = float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    return {"n": len(both), "only_first": only_first, "only_second": only_second, "p_value": p_value}


def scores_with_parts(predictions: pd.DataFrame) -> dict:
    """`overall` as in metrics.json, and that of the parts public, private and unseen, the images without a copy in training.

    An empty part is left out, and so is `unseen` if it would be all images.
    """
    usage, seen = predictions["usage"], predictions["seen_in_training"]
    parts = {"public": predictions[usage == "PublicTest"], "private": predictions[usage == "PrivateTest"]}
    if seen.any():
        parts["unseen"] = predictions[~seen]
    return overall(predictions) | {part: overall(rows) for part, rows in parts.items() if len(rows)}


def scores_of_set(predictions: pd.DataFrame) -> dict:
    """The scores of another test set with its counts and, if it has some, `groups`. Macro scores count absent classes as 0."""
    groups = scores_by_group(predictions)
    return scores_with_parts(predictions) | _counts(predictions) | ({"groups": groups} if groups else {})


def _counts(predictions: pd.DataFrame) -> dict[str, int]:
    return {"classes": predictions["label"].nunique(), "seen_in_training": int(predictions["seen_in_training"].sum())}


def scores_by_group(predictions: pd.DataFrame) -> dict[str, dict[str, dict]]:
    """Attribute → group → `overall` and counts of its pictures; of a group under SMALLEST_GROUP only n and the counts."""
    found: dict[str, dict[str, dict]] = {}
    for column in predictions.filter(like=attributes.COLUMN):
        groups = found[column.removeprefix(attributes.COLUMN)] = {}
        for value, rows in sorted(predictions.groupby(column), key=lambda group: natural_key(group[0])):
            whole = overall(rows) if len(rows) >= SMALLEST_GROUP else {"n": len(rows)}
            groups[value or NOT_KNOWN] = whole | _counts(rows)
    return found


def seen_counts(predictions: Predictions) -> dict[str, int]:
    """The number of images of VAL and of TEST with a copy in training, under the names in metrics.json."""
    return {
        f"{split.lower()}_images_seen_in_training": int(table["seen_in_training"].sum())
        for split, table in predictions.items()
    }


def metrics(predictions: Predictions, policy: str, augmented: Predictions, views: str) -> dict:
    """The scores of VAL and TEST as in metrics.json, with the number of images seen in training.

    policy: the leakage policy of 01. augmented: predictions with test-time augmentation by `views`, or empty.
    """
    found = {split.lower(): scores_with_parts(table) for split, table in predictions.items()}
    found["leakage"] = {"policy": policy, **seen_counts(predictions)}
    if augmented:
        parts = {split.lower(): scores_with_parts(table) for split, table in augmented.items()}
        found["test_time_augmentation"] = {"kind": views, **parts}
    return found


def temperature_scaling(predictions: Predictions, temperature: float) -> dict:
    """The temperature, and loss and calibration error of VAL and TEST at it, as in metrics.json."""
    scaled = {split.lower(): scores_at(table, temperature) for split, table in predictions.items()}
    return {"temperature": temperature, **scaled}


def class_codes(labels: pd.Series) -> np.ndarray:
    """Labels as indices into CLASSES, int (n,)."""
    return labels.map(CLASSES.index).to_numpy()


def class_report(predictions: pd.DataFrame) -> pd.DataFrame:
    """Precision, recall, F1 and support: one row per class, then macro and weighted averages."""
    true, predicted = predictions["label"], predictions["predicted"]
    report = classification_report(true, predicted, labels=CLASSES, output_dict=True, zero_division=0)
    table = pd.DataFrame({name: report[name] for name in (*CLASSES, "macro avg", "weighted avg")}).T
    table = table.rename(columns={"f1-score": "f1"}).astype({"support": int})
    return table.rename_axis("class").reset_index()


def confusion(predictions: pd.DataFrame) -> np.ndarray:
    """Counts, shape (7, 7): rows are true classes, columns predicted classes, in order of CLASSES."""
    return confusion_matrix(predictions["label"], predictions["predicted"], labels=CLASSES)


def surest(predictions: pd.DataFrame) -> pd.DataFrame:
    """The predictions with their `confidence`, the highest probability, most confident first."""
    confidence = predictions[list(PROBABILITIES)].max(axis=1)
    return predictions.assign(confidence=confidence).sort_values(["confidence", "path"], ascending=[False, True])


def worst_mistakes(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` wrong predictions with the highest confidence, most confident first."""
    return surest(predictions[predictions["label"] != predictions["predicted"]]).head(n)


def surest_of_each_class(predictions: pd.DataFrame) -> pd.DataFrame:
    """The most confident right and the most confident wrong prediction of each label, where they exist."""
    right = (predictions["label"] == predictions["predicted"]).rename("right")
    return surest(predictions).groupby(["label", right], sort=False).head(1)


def most_confused(predictions: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` pairs of classes most often confused: label, predicted, n images, share of the label's images."""
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    pairs = wrong.groupby(["label", "predicted"]).size().sort_values(ascending=False, kind="stable").head(n)
    table = pairs.rename("n").reset_index()
    return table.assign(share=table["n"] / table["label"].map(predictions["label"].value_counts()))


def surest_of_pairs(predictions: pd.DataFrame, pairs: pd.DataFrame, n: int = 10) -> dict[str, list[int]]:
    """For each pair of `most_confused`: a description → the rows of its `n` most confident mistakes."""
    ranked = surest(predictions).groupby(["label", "predicted"]).groups
    return {
        f"{label} taken for {said}: {count:,} images, {share:.0%} of {label}": list(ranked[label, said][:n])
        for label, said, count, share in pairs.itertuples(index=False)
    }


def has_votes(predictions: Predictions) -> bool:
    """Whether FER+'s votes give a class to pictures of each of these splits, so that there is something to score."""
    return all(
        "votes" in table and ((table["votes"] != "") & (table["ferplus_label"] != "")).any()
        for table in predictions.values()
    )


def against_both(predictions: Predictions, votes_output: Predictions | None = None) -> dict[str, dict]:
    """The scores of VAL and TEST against FER2013's label and against FER+'s, as in metrics.json.

    For each split `fer2013` and `ferplus`, scores with parts and `per_class` F1 (`ferplus`: of the pictures to which
    ferplus.RULE gives a class); see `divergence`; `disagreement`: how many pictures both sets have a class for, on how many
    of these they differ, and how many of the model's errors against FER2013's label are there.

    votes_output: the predictions of a second output that learned the votes. Its scores against FER+'s labels are added under the
    same name.
    """
    found = {split.lower(): _against_both(table) for split, table in predictions.items()}
    for split, table in (votes_output or {}).items():
        found[split.lower()]["votes_output"] = _against(table, "ferplus")
    return found


def with_labels(predictions: pd.DataFrame, label_set: str) -> pd.DataFrame:
    """The predictions of pictures with a class in a label set, `fer2013` or `ferplus`, with these labels."""
    labelled = predictions.assign(label=predictions[f"{label_set}_label"])
    return labelled[labelled["label"] != ""]


def _against(table: pd.DataFrame, label_set: str) -> dict:
    labelled = with_labels(table, label_set)
    f1 = class_report(labelled).iloc[: len(CLASSES)].set_index("class")["f1"]
    return scores_with_parts(labelled) | {"per_class": {label: float(value) for label, value in f1.items()}}


def _against_both(table: pd.DataFrame) -> dict:
    found = {name: _against(table, name) for name in ferplus.LABEL_SETS}
    both = table[table["ferplus_label"] != ""]
    differ, wrong = both["fer2013_label"] != both["ferplus_label"], both["fer2013_label"] != both["predicted"]
    found["disagreement"] = {
        "n": len(both),
        "differ": int(differ.sum()),
        "errors": int(wrong.sum()),
        "errors_where_they_differ": int((wrong & differ).sum()),
        "of_them_ferplus_label": int((wrong & differ & (both["ferplus_label"] == both["predicted"])).sum()),
    }
    return found | {"divergence": divergence(table)}


def divergence(predictions: pd.DataFrame) -> dict[str, float]:
    """Mean Kullback-Leibler divergence, in nats, of the probabilities from the distribution of the votes, and its n."""
    votes = ferplus.distribution(ferplus.from_text(predictions["votes"])).astype(float)
    has_class = votes.sum(axis=1) > 0
    model = np.clip(predictions[list(PROBABILITIES)].to_numpy(float), SMALLEST_PROBABILITY, 1)
    each = rel_entr(votes, model)[has_class].sum(axis=1)
    return {"n": int(has_class.sum()), "mean": float(each.mean())}
