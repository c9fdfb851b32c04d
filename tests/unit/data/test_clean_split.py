"""What params/clean.yaml promises, checked on the real datasets by a second method."""

from contextlib import ExitStack
from dataclasses import replace

from fer_utils.classes import CLASSES
from fer_utils.data import audit, near_duplicates, splits
from fer_utils.data.demo import draw_face
from fer_utils.data.sources import open_source
from fer_utils.images import is_blank
from fer_utils.pipeline import parameters

import cv2
import gradients
import numpy as np
import pandas as pd
import pytest

SAMPLE = {splits.FER2013: 12_000, splits.EMOTION_DETECTION: 3_000}  # images of each source
QUERIES = 1_000  # images of VAL and of TEST that are compared with everything


@pytest.fixture(scope="module")
def sample(real_data) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """A random sample of both datasets without blanks, split and audited as 01 does.

    (table, pixels, their descriptors).
    """
    with ExitStack() as stack:
        sources = []
        for name, n in SAMPLE.items():
            source = stack.enter_context(open_source(real_data[name], name))
            sources.append(replace(source, table=source.table.sample(n, random_state=13).sort_index()))
        merged = splits.read_all(sources, "error")
    seen = np.array([not is_blank(picture) for picture in merged.pixels])
    table, pixels = merged.table[seen].reset_index(drop=True), merged.pixels[seen]
    table["split"] = splits.assign_splits(table, 0.25, "all", 42)
    table = audit.describe_copies(table, near_duplicates.find_pairs(pixels))
    return table, pixels, gradients.descriptors(pixels)


def _policy() -> dict:
    declared = parameters.declared()
    profile = parameters.load_profile(parameters.profile_path("clean"))
    return parameters.resolve(declared, [("clean.yaml", profile)])["merge_split"]


def _nearest(
    table: pd.DataFrame, pixels: np.ndarray, described: np.ndarray, queries: str, pool: str
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of up to QUERIES random images of one split, and the cosine of each to its nearest image of another."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(table["split"] == queries))[:QUERIES]
    in_pool = (table["split"] == pool).to_numpy()
    return rows, gradients.nearest(pixels[rows], pixels[in_pool], described[in_pool])[1]


@pytest.mark.parametrize(("queries", "pool"), [("TEST", "TRAIN"), ("VAL", "TRAIN"), ("VAL", "TEST")])
def test_clean_leaves_no_picture_in_two_splits(sample, queries, pool):
    table, pixels, described = sample
    policy = _policy()
    clean = audit.apply_policy(table, policy["leakage"], policy["train_copies"])
    rows, cosine = _nearest(clean, pixels, described, queries, pool)
    assert len(rows) == QUERIES
    assert (cosine >= gradients.SAME).sum() == 0
    assert (cosine >= gradients.ALIKE).mean() < 0.005


def test_the_second_method_sees_the_leak_where_nothing_is_dropped(sample):
    table, pixels, described = sample
    rows, cosine = _nearest(table, pixels, described, "TEST", "TRAIN")
    leaked = audit.shares_group_with(table, "TRAIN").to_numpy()[rows]
    copied = leaked & np.isin(table["relation"].to_numpy()[rows], ["exact", "re-encoded"])
    assert copied.sum() > 100
    assert (cosine[copied] >= gradients.SAME).mean() > 0.9
    assert not (cosine[~leaked] >= gradients.SAME).any()


def test_second_method_finds_copies_and_mirror_images_and_no_strangers():
    rng = np.random.default_rng(7)
    faces = np.stack([draw_face(CLASSES[i % 7], rng) for i in range(40)])
    coded = [cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0) for x in faces[:20]]
    position, cosine = gradients.nearest(np.concatenate([coded, faces[20:, :, ::-1]]), faces)
    assert position.tolist() == list(range(40)) and (cosine >= gradients.SAME).all()
    assert (gradients.nearest(faces[:20], faces[20:])[1] < gradients.SAME).all()


def test_emotion_detection_is_fer2013_again(real_data):
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(path, name)) for name, path in real_data.items()]
        parts = [x.table.query("part == 'test' and label in ('angry', 'disgust', 'surprise')") for x in sources]
        few = [replace(x, table=part.reset_index(drop=True)) for x, part in zip(sources, parts, strict=True)]
        merged = splits.read_all(few, "error")
    groups = near_duplicates.group(len(merged.pixels), near_duplicates.find_pairs(merged.pixels))
    first = (merged.table["source"] == splits.FER2013).to_numpy()
    known = set(zip(groups[first], merged.table["label"][first], strict=True))
    found = [row in known for row in zip(groups[~first], merged.table["label"][~first], strict=True)]
    assert sum(found) >= len(found) - 5  # the blank ones
