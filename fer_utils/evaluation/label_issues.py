"""Finds pictures whose label is probably wrong, by confident learning with cleanlab.

Northcutt et al. 2021 (arXiv:1911.00068): probabilities from a model that never saw a picture, compared with its label.
"""

from collections.abc import Sequence

from fer_utils.classes import CLASSES, PROBABILITIES
from fer_utils.data import ferplus

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

FOLDS = 5
# Principal components that the probe sees, and its inverse regularisation. Of 256 and 512, and 0.1, 0.01 and 0.001, these
# have the lowest loss out of sample against the labels themselves: 1.589 nats on 17,920 pictures of FER2013 at 48 px.
COMPONENTS, PROBE_C = 256, 0.001
MOST_STEPS = 200  # of the probe's solver, which takes 11 there
TOPS = (500, 1000, 2000)  # numbers of the first issues that `worth` gives precision and recall of
COLUMNS = ("path", "label", "suggested", "quality", "is_issue", "fingerprint", "ferplus_label", "votes", "row_in_train")


def probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Out-of-sample probabilities of the seven classes, float (n, 7), by cross-validation of a linear probe.

    features: (n, d), from a frozen backbone. labels: int (n,). groups: pictures of one group are copies of one picture, and
    never in different folds. The probe (Alain & Bengio 2017, arXiv:1610.01644) is logistic regression on whitened principal
    components, on which it converges in a few steps. Raises ValueError for a class with fewer groups than folds.
    """
    for code, label in enumerate(CLASSES):
        if (n_groups := len(set(groups[labels == code]))) < FOLDS:
            raise ValueError(f"TRAIN has {n_groups} different pictures of {label}; {FOLDS} folds need as many")
    n_components = min(COMPONENTS, len(labels) // 2, features.shape[1])  # every fit has more than half of the pictures
    components = PCA(n_components, whiten=True, svd_solver="covariance_eigh")  # exact, and fast for many pictures
    model = make_pipeline(components, LogisticRegression(C=PROBE_C, max_iter=MOST_STEPS))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(model, features, labels, groups=groups, cv=folds, method="predict_proba")


def find(pictures: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """The pictures with what confident learning says of their labels, the most doubtful first.

    pictures: column label, and those of COLUMNS that are kept. probabilities: (n, 7), out of sample. Adds `suggested`, the
    likeliest class; `quality`, 0 to 1, cleanlab's normalized margin: below 0.5 where another class is likelier (by the label's
    probability alone, rare classes would come first); `is_issue`, by `prune_by_noise_rate`. Raises ImportError.
    """
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise ImportError(
            "label issues need cleanlab 2.9 or newer: `pip install cleanlab`, or the extra `labels`"
        ) from error
    codes = pictures["label"].map(CLASSES.index).to_numpy(int)
    rows = pictures[[column for column in COLUMNS if column in pictures]].assign(
        suggested=[CLASSES[code] for code in probabilities.argmax(axis=1)],
        quality=get_label_quality_scores(codes, probabilities, method="normalized_margin").round(6),
        is_issue=find_label_issues(codes, probabilities, filter_by="prune_by_noise_rate", n_jobs=1),
    )
    return rows.sort_values(["is_issue", "quality"], ascending=[False, True], kind="stable")


def find_in_training(pictures: pd.DataFrame, features, seed: int) -> pd.DataFrame:
    """`find` for pictures of TRAIN, with the probe's probabilities.

    pictures: from loading.originals_of. features: of all images that train, (n, d), indexed by `row_in_train`.
    """
    codes = pictures["label"].map(CLASSES.index).to_numpy(int)
    chosen = np.asarray(features[pictures["row_in_train"].to_numpy()], np.float32)
    return find(pictures, probe(chosen, codes, pictures["group"].to_numpy(), seed))


def titles(issues: pd.DataFrame) -> list[str]:
    """For each picture its label and the class that the probabilities suggest, for a figure."""
    return [f"label: {row.label}\nsuggested: {row.suggested}" for row in issues.itertuples()]


def find_in_predictions(predictions: pd.DataFrame) -> pd.DataFrame:
    """`find` for VAL or TEST: the model, which did not train on them, gives the probabilities."""
    probabilities = predictions[list(PROBABILITIES)].to_numpy(float)
    return find(predictions, probabilities / probabilities.sum(axis=1, keepdims=True))


def worth(issues: pd.DataFrame, tops: Sequence[int] = TOPS) -> pd.DataFrame:
    """How often FER+ contradicts the labels that `find` doubts: one row for its own threshold and for each of `tops`.

    Only pictures on which FER+ has a majority count. Columns: pictures, precision (share of them that FER+ contradicts),
    recall (share of all contradicted pictures), chance (the precision of pictures drawn at random), times chance.
    issues: from `find`, in its order, with the column votes. Empty if FER+ contradicts no label.
    """
    said = pd.Series(ferplus.outcome(ferplus.from_text(issues["votes"])), issues.index)
    judged = issues.assign(wrong=said != issues["label"])[(issues["votes"] != "") & (said != ferplus.NO_MAJORITY)]
    chance, n_wrong = judged["wrong"].mean(), judged["wrong"].sum()
    if not n_wrong:  # FER+'s own labels, or no votes
        return pd.DataFrame()
    flagged = {"cleanlab's own threshold": judged[judged["is_issue"]]}
    flagged |= {f"first {n:,}": judged.head(n) for n in tops if n < len(judged)}
    wrong = {name: found["wrong"].agg(["size", "mean", "sum"]) for name, found in flagged.items() if len(found)}
    table = pd.DataFrame(wrong, ["size", "mean", "sum"]).T.set_axis(["pictures", "precision", "recall"], axis=1)
    times = {"chance": chance, "times chance": table["precision"] / chance}
    return table.assign(recall=table["recall"] / n_wrong, **times).astype({"pictures": int})
