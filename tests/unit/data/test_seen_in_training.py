"""A score says how many of its pictures the model was trained on: what trained is counted, not what TRAIN holds."""

from fer_utils import images
from fer_utils.classes import CLASSES
from fer_utils.data import audit, balance, loading

import numpy as np
import pandas as pd
import pytest

N = 10  # images of each class in TRAIN and in TEST; the k-th of TEST is a copy of the k-th of TRAIN


def _manifest() -> pd.DataFrame:
    rows = [
        (split, label, f"{split}/{label}/{k}.png", f"{label} {k}")
        for split in ("TRAIN", "TEST")
        for label in CLASSES
        for k in range(N)
    ]
    return pd.DataFrame(rows, columns=["split", "label", "path", "group"])


def _balanced(manifest: pd.DataFrame, target: int, max_per_class: int) -> pd.DataFrame:
    """balanced.csv as 02 writes it."""
    train = manifest.loc[manifest["split"] == "TRAIN", ["label", "path"]]
    plan = balance.plan_balance(train, dict.fromkeys(CLASSES, target), max_per_class, seed=42)
    names = [balance.balanced_name(path, copy) for path, copy in zip(plan["path"], plan["copy"], strict=True)]
    return plan.rename(columns={"path": "train_path"}).assign(path=[f"TRAIN_BALANCED/{name}" for name in names])


def _seen(manifest: pd.DataFrame, *trained: pd.DataFrame) -> set[str]:
    """The TEST images that count as seen."""
    seen = audit.seen_in_training(manifest, loading.originals(*trained)["train_path"])
    return set(manifest.loc[seen & (manifest["split"] == "TEST"), "path"])


def _copies_of(balanced: pd.DataFrame) -> set[str]:
    return {path.replace("TRAIN/", "TEST/") for path in balanced["train_path"]}


def test_what_thinning_takes_out_of_training_is_not_seen():
    manifest = _manifest()
    balanced = _balanced(manifest, target=0, max_per_class=6)
    assert audit.shares_group_with(manifest, "TRAIN").all()
    assert _seen(manifest, balanced) == _copies_of(balanced)
    assert len(_seen(manifest, balanced)) == 6 * len(CLASSES)


def test_an_augmented_copy_stands_for_its_original():
    manifest = _manifest()
    balanced = _balanced(manifest, target=3 * N, max_per_class=N)
    originals_alone = balanced[balanced["copy"] == 0]
    assert _seen(manifest, originals_alone) < _seen(manifest, balanced) == _copies_of(balanced)


def test_a_picture_of_another_class_in_the_group_is_seen_too():
    manifest = _manifest()
    manifest.loc[manifest["path"] == "TEST/sad/0.png", "group"] = "angry 0"
    assert _seen(manifest, pd.DataFrame({"train_path": ["TRAIN/angry/0.png"]})) == {
        "TEST/angry/0.png",
        "TEST/sad/0.png",
    }


@pytest.fixture
def pictures(tmp_path):
    """balanced.csv of a thinned TRAIN whose pictures are below a folder: (table, folder)."""
    balanced = _balanced(_manifest(), target=0, max_per_class=6)
    for path in balanced["path"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(images.encode_png(np.zeros((48, 48), np.uint8)))
    return balanced, tmp_path


def test_a_limit_draws_what_trains_and_both_phases_count(pictures):
    balanced, folder = pictures
    head = loading.load_faces(balanced, folder, limit_per_class=4, seed=1).table
    fine = loading.load_faces(balanced, folder, limit_per_class=2, seed=42).table
    assert len(_seen(_manifest(), head)) == 4 * len(CLASSES)
    assert len(_seen(_manifest(), fine)) == 2 * len(CLASSES)
    either = _seen(_manifest(), fine, loading.originals(head))  # as 04 joins them
    assert either == _copies_of(head) | _copies_of(fine) > _copies_of(head)


def test_originals_stand_once_and_in_order():
    table = pd.DataFrame({"train_path": ["TRAIN/sad/b.png", "TRAIN/sad/a.png", "TRAIN/sad/b.png"]})
    assert loading.originals(table, table).to_dict("list") == {"train_path": ["TRAIN/sad/a.png", "TRAIN/sad/b.png"]}


@pytest.mark.parametrize("path", ["TRAIN/sad/none.png", "TEST/sad/0.png"])
def test_training_on_what_is_not_in_train_is_an_error(path):
    with pytest.raises(ValueError, match=rf"trained on {path}, which manifest.csv does not list in TRAIN: run 02"):
        _seen(_manifest(), pd.DataFrame({"train_path": [path]}))
