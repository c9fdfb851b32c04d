"""The balance plan meets its targets whatever comes in, and augmentation follows from seed, path and copy alone."""

import hashlib
from collections import Counter
from pathlib import Path

from fer_utils import files, images, places
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation, balance
from fer_utils.data.demo import draw_face

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# TRAIN as specified on the real datasets: 2 × FER2013's train + its test − VAL's quarter.
REAL_TRAIN = dict(zip(CLASSES, (7949, 874, 8194, 14400, 9699, 6380, 9922), strict=True))

sizes = st.fixed_dictionaries({label: st.integers(1, 25) for label in CLASSES})
targets = st.fixed_dictionaries({label: st.integers(0, 60) for label in CLASSES})
maxima = st.integers(1, 50)
seeds = st.integers(0, 2**32 - 1)


def _table(counts: dict[str, int]) -> pd.DataFrame:
    rows = [(label, f"TRAIN/{label}/{i}.jpg") for label, n in counts.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["label", "path"])


@settings(max_examples=60, deadline=None)
@given(sizes, targets, maxima, seeds)
def test_every_class_reaches_its_target_and_stays_within_the_maximum(counts, target, maximum, seed):
    plan = balance.plan_balance(_table(counts), target, maximum, seed)
    found = plan["label"].value_counts()
    for label, n in counts.items():
        assert found[label] == min(max(n, target[label]), maximum)
        own = plan[plan["label"] == label]
        if n >= target[label]:
            assert (own["copy"] == 0).all()
        if max(n, target[label]) <= maximum:
            assert (own["copy"] == 0).sum() == n
            per_image = own["path"].value_counts()
            assert per_image.max() - per_image.min() <= 1  # images take turns
    assert not plan.duplicated(["path", "copy"]).any()
    assert set(plan["path"]) <= set(_table(counts)["path"])


@settings(max_examples=25, deadline=None)
@given(sizes, targets, maxima, seeds, st.randoms(use_true_random=False))
def test_the_plan_follows_from_seed_and_paths_not_from_the_order_of_rows(counts, target, maximum, seed, random):
    table = _table(counts)
    order = list(table.index)
    random.shuffle(order)
    plan = balance.plan_balance(table, target, maximum, seed)
    assert plan.equals(balance.plan_balance(table.iloc[order], target, maximum, seed))


def test_another_seed_makes_another_plan():
    table, target = _table(dict.fromkeys(CLASSES, 30)), dict.fromkeys(CLASSES, 40)
    assert not balance.plan_balance(table, target, 35, 1).equals(balance.plan_balance(table, target, 35, 2))


def test_a_class_without_images_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="no images of surprise"):
        balance.plan_balance(_table(dict.fromkeys(CLASSES, 2) | {"surprise": 0}), dict.fromkeys(CLASSES, 3), 9, 0)


def test_the_real_counts_after_balancing():
    target = dict.fromkeys(CLASSES, 7000) | {"disgust": 1200}
    plan = balance.plan_balance(_table(REAL_TRAIN), target, 9000, 42)
    expected = {"angry": 7949, "disgust": 1200, "fear": 8194, "surprise": 7000}
    expected |= dict.fromkeys(("happy", "sad", "neutral"), 9000)
    assert plan["label"].value_counts().to_dict() == expected
    assert (plan["copy"] > 0).sum() == (1200 - 874) + (7000 - 6380)


def test_an_augmentation_follows_from_seed_path_and_copy():
    face = draw_face("fear", np.random.default_rng(0))

    def made(path: str, copy: int, seed: int) -> np.ndarray:
        return augmentation.augmented_copy(face, path, copy, seed)

    one = made("TRAIN/fear/a.jpg", 1, 7)
    others = [made("TRAIN/fear/b.jpg", 1, 7), made("TRAIN/fear/a.jpg", 2, 7), made("TRAIN/fear/a.jpg", 1, 8)]
    assert one.shape == (48, 48) and one.dtype == np.uint8
    assert np.array_equal(one, made("TRAIN/fear/a.jpg", 1, 7))  # after others were made: no hidden state
    assert not any(np.array_equal(one, other) for other in others)


def test_each_step_of_the_pipeline_is_drawn_on_its_own():
    face = draw_face("happy", np.random.default_rng(0))
    made = [augmentation.augmented_copy(face, "a", copy, 0) for copy in range(1, 301)]
    # Neither rotated nor brightened: 0.1 × 0.2 of all, half of them mirrored. Tied draws would leave 1 in 10 as it was.
    alike = sum(np.array_equal(image, face) for image in made)
    mirrored = sum(np.array_equal(image, face[:, ::-1]) for image in made)
    assert alike + mirrored < 0.05 * len(made)
    assert len({image.tobytes() for image in made}) > 0.95 * len(made)


def test_the_pipeline_is_the_specified_one():
    names = Counter(type(step).__name__ for step in augmentation.offline_pipeline().transforms)
    assert names == Counter(["HorizontalFlip", "Affine", "RandomBrightnessContrast", "HueSaturationValue"])
    affine = augmentation.offline_pipeline().transforms[1]
    assert affine.rotate == (-15, 15) and set(affine.shear.values()) == {(-8, 8)}


def test_a_hue_shift_leaves_grey_as_it_is_and_would_move_colour():
    import albumentations as A  # noqa: N812

    shift = augmentation.offline_pipeline().transforms[3]
    always = A.Compose([A.HueSaturationValue(shift.hue_shift_limit, (0, 0), (0, 0), p=1)], seed=3)
    grey = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    red = np.full((4, 4, 3), (200, 40, 40), np.uint8)
    for _ in range(10):
        assert np.array_equal(always(image=grey)["image"], grey)
    assert any(not np.array_equal(always(image=red)["image"], red) for _ in range(10))


def _prepared(folder: Path) -> pd.DataFrame:
    rng = np.random.default_rng(4)
    rows = []
    for label in CLASSES:
        (folder / "TRAIN" / label).mkdir(parents=True)
        for i in range(3):
            path = f"TRAIN/{label}/{i}.png"
            (folder / path).write_bytes(images.encode_png(draw_face(label, rng)))
            rows.append((label, path))
    return pd.DataFrame(rows, columns=["label", "path"])


def _written(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_originals_are_copied_and_the_same_copies_are_made_again(tmp_path):
    table = _prepared(tmp_path)
    plan = balance.plan_balance(table, dict.fromkeys(CLASSES, 8), 9, 5)
    for folder in ("one", "two"):
        balance.write_balanced(plan, tmp_path, seed=5)
        (tmp_path / "TRAIN_BALANCED").rename(tmp_path / folder)
    one, two = (_written(tmp_path / folder) for folder in ("one", "two"))
    assert one == two
    names = [balance.balanced_name(path, copy) for path, copy in zip(plan["path"], plan["copy"], strict=True)]
    assert sorted(one) == sorted(names) and len(one) == 7 * 8
    for path in table["path"]:  # originals byte for byte
        assert one[path.removeprefix("TRAIN/")] == hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()
    assert len(set(one.values())) > 7 * 6  # copies are not one picture over and over


def test_issues_of_another_run_are_left_out_by_pixels_and_label(tmp_path, capsys):
    train = pd.DataFrame({"fingerprint": list("aabc"), "label": ["sad", "happy", "sad", "fear"], "path": list("1234")})
    rows = [("a", "sad", True), ("b", "sad", False), ("c", "sad", True)]
    file = tmp_path / "label_issues_train.csv"
    pd.DataFrame(rows, columns=["fingerprint", "label", "is_issue"]).to_csv(file, index=False)
    assert balance.without_issues(train, str(file))["path"].tolist() == ["2", "3", "4"]
    assert "1 images whose label label_issues_train.csv doubts are left out" in capsys.readouterr().out
    assert balance.without_issues(train, "") is train
    with pytest.raises(places.NotFoundHere, match=r"issues_file: nothing at .*03 writes it with find_label_issues"):
        balance.without_issues(train, str(tmp_path / "none.csv"))
    file.write_text("path,label\n1,sad\n")
    with pytest.raises(files.TornFile, match=r"lacks the column\(s\) fingerprint, is_issue"):
        balance.without_issues(train, str(file))
