import shutil
from pathlib import Path

from fer_utils import files, images
from fer_utils.classes import CLASSES
from fer_utils.data import ferplus, loading
from fer_utils.data.sources import DatasetError

import numpy as np
import pandas as pd
import pytest
from PIL import Image

# path in TRAIN → label and votes, in the order of ferplus.ANSWERS
PICTURES = {
    "TRAIN/a.png": ("sad", "4 0 0 6 0 0 0 0 0 0"),
    "TRAIN/b.png": ("happy", ""),
    "VAL/c.png": ("fear", "0 0 9 1 0 0 0 0 0 0"),
}


@pytest.fixture
def written(tmp_path) -> tuple[pd.DataFrame, pd.DataFrame, Path]:
    """(balanced, manifest, folder): two pictures of TRAIN, an augmented copy of the first, and one picture of VAL."""
    copy = "TRAIN_BALANCED/a_1.png"
    for number, path in enumerate((*PICTURES, copy)):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((48, 48), number, np.uint8)).save(tmp_path / path)
    manifest = pd.DataFrame(
        [(path, path.split("/")[0], label, votes) for path, (label, votes) in PICTURES.items()],
        columns=["path", "split", "label", "votes"],
    )
    train = manifest[manifest["split"] == "TRAIN"].assign(train_path=lambda table: table["path"], copy=0)
    balanced = pd.concat([train, train.head(1).assign(path=copy, copy=1)])
    return balanced[["path", "label", "train_path", "copy"]], manifest, tmp_path


def test_an_augmented_copy_has_the_votes_of_its_original(written):
    train, val = loading.load_training(*written, 0, 0, votes_share=1.0)
    expected = np.zeros((3, 7))
    expected[[0, 2], CLASSES.index("neutral")], expected[[0, 2], CLASSES.index("sad")] = 0.4, 0.6
    expected[1, CLASSES.index("happy")] = 1
    assert train.targets == pytest.approx(expected)
    assert val.targets is val.labels and val.labels.tolist() == [CLASSES.index("fear")]


def test_votes_beside_the_labels_are_those_of_the_original_too(written):
    train, _ = loading.load_training(*written, 0, 0, votes_output=0.5)
    labels = [CLASSES.index(label) for label in ("sad", "happy", "sad")]
    assert (train.targets[:, :7] == np.eye(7)[labels]).all()
    assert train.targets[:, 7:].sum(axis=1) == pytest.approx([0.5, 0, 0.5])
    both, _ = loading.load_training(*written, 0, 0, votes_share=0.5, votes_output=0.5)
    votes = written[1]["votes"].iloc[[0, 1, 0]]
    assert (both.targets[:, :7] == ferplus.soft_targets(np.array(labels), votes, 0.5)).all()
    assert (both.targets[:, 7:] == train.targets[:, 7:]).all()


@pytest.mark.parametrize("wanted", ["votes_share", "votes_output"])
def test_votes_that_01_did_not_find_are_an_error_that_names_the_parameter(written, wanted):
    balanced, manifest, folder = written
    with pytest.raises(DatasetError, match=rf"{wanted} needs votes, and 01 found none: put fer2013new\.csv into data/"):
        loading.load_training(balanced, manifest.assign(votes=""), folder, 0, 0, **{wanted: 0.5})


def test_without_votes_the_targets_are_the_labels(written):
    train, _ = loading.load_training(*written, 0, 0)
    assert train.targets is train.labels


def test_a_picture_replaced_by_another_of_its_size_and_time_is_noticed(written):
    _, manifest, folder = written
    prints = [images.fingerprint(image) for image in images.load([folder / path for path in manifest["path"]])]
    manifest = manifest.assign(fingerprint=prints)
    assert len(loading.load_faces(manifest, folder)) == 3
    shutil.copy2(folder / "TRAIN/b.png", folder / "VAL/c.png")
    with pytest.raises(files.TornFile, match=r"1 images are not those that 01 wrote, such as VAL/c\.png: run 01 again"):
        loading.load_faces(manifest, folder)
