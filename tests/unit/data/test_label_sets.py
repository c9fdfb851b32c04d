"""Each picture gets its row and its votes; a run trains on FER2013's label or on FER+'s."""

import csv
import shutil

from fer_utils import images
from fer_utils.classes import CLASSES, CSV_CODES
from fer_utils.data import addresses, audit, ferplus, finding, label_sets, near_duplicates, splits
from fer_utils.data.sources import DatasetError
from fer_utils.data.splits import EMOTION_DETECTION, FER2013

import numpy as np
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def audited(drawn):
    """The drawn datasets, read and audited: (table, pixels, file of votes)."""
    return _audited(dict(zip((FER2013, EMOTION_DETECTION), drawn, strict=True))), drawn[0].parent / "ferplus"


def _audited(places):
    merged = splits.read_sources(places, "error")
    table = merged.table.assign(split=splits.assign_splits(merged.table, 0.25, "all", 0))
    return audit.describe_copies(table, near_duplicates.find_pairs(merged.pixels)), merged.pixels


def _labelled(audited, labels="fer2013"):
    (table, pixels), folder = audited
    return label_sets.choose(label_sets.add_votes(table, pixels, folder / addresses.VOTES_FILE), labels)


def test_every_picture_gets_its_row(audited):
    table = _labelled(audited)
    assert (table["row"] != "").all() and table["flags"].str.contains("blank").sum() == 2  # these too
    votes = ferplus.read(audited[1] / addresses.VOTES_FILE)
    matched = table[table["row"] != ""]
    rows = matched["row"].astype(int)
    assert (votes.labels[rows] == matched["label"]).all()
    assert (ferplus.from_text(matched["votes"]) == votes.counts[rows]).all()
    for _, of_source in rows.groupby(matched["source"]):
        assert of_source.is_unique  # no row twice in a source


def test_both_copies_of_a_picture_get_the_same_row_also_where_the_picture_repeats(audited):
    """Pixels decide: the row of a re-encoded picture is that of the PNG nearest to it, not of another one of its group."""
    (_, pixels), _ = audited
    table = _labelled(audited)
    of_row = table[table["row"] != ""].groupby("row")
    pairs = of_row.filter(lambda rows: len(rows) == 2)
    assert len(pairs) == 2 * 350
    first, second = (pairs.drop_duplicates("row", keep=keep).sort_values("row").index for keep in ("first", "last"))
    assert np.abs(pixels[first].astype(int) - pixels[second]).mean(axis=(1, 2)).max() < 6
    repeated = table[(table["source"] == FER2013) & (table.groupby(["group", "source"])["row"].transform("size") > 1)]
    assert len(repeated) >= 6  # the demo repeats some train pictures in its test part


def test_rows_are_found_in_a_csv_by_its_row_numbers(audited, drawn, tmp_path):
    (_, pixels), folder = audited
    matched = _labelled(audited)
    votes = ferplus.read(folder / addresses.VOTES_FILE)
    in_order = matched[(matched["source"] == EMOTION_DETECTION)].assign(row=lambda rows: rows["row"].astype(int))
    in_order = in_order.sort_values("row")
    with (tmp_path / "fer2013.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["emotion", "pixels", "Usage"])
        for place, row in zip(in_order.index, in_order["row"], strict=True):
            text = " ".join(map(str, pixels[place].ravel()))
            writer.writerow([CSV_CODES.index(in_order["label"][place]), text, votes.usages[row]])
    places = {FER2013: tmp_path / "fer2013.csv", EMOTION_DETECTION: drawn[1]}
    found = _labelled((_audited(places), folder))
    of_csv = found[found["source"] == FER2013]
    assert (of_csv["row"].astype(int) == of_csv["source_path"].str.split("#").str[1].astype(int)).all()
    assert len(of_csv) == 350
    text = (tmp_path / "fer2013.csv").read_text().replace("\n3,", "\n4,", 1)
    (tmp_path / "fer2013.csv").write_text(text)
    with pytest.raises(DatasetError, match=r"fer2013.csv#\d+ has another label than FER2013's row of that number"):
        _labelled((_audited(places), folder))


def test_without_prefixes_in_file_names_the_parts_stand_for_usages(audited):
    (table, pixels), folder = audited
    told = _labelled(audited)
    blind = table.assign(usage=np.where(table["source"] == FER2013, "", table["usage"]))
    assert (_labelled(((blind, pixels), folder))["row"] == told["row"]).mean() > 0.99


def test_a_file_name_that_is_no_number_has_no_row(audited):
    (table, pixels), folder = audited
    place = table.index[table["source"] == EMOTION_DETECTION][7]
    path = table["source_path"].mask(table.index == place, "train/angry/face.png")
    rows = label_sets.find_rows(table.assign(source_path=path), pixels, ferplus.read(folder / addresses.VOTES_FILE))
    assert rows[place] == label_sets.NO_ROW


def test_files_numbered_from_one_are_refused(audited):
    (table, pixels), folder = audited
    is_fear = (table["source"] == EMOTION_DETECTION) & (table["label"] == "fear") & (table["part"] == "test")
    numbers = table.loc[is_fear, "source_path"].str.extract(r"im(\d+)")[0].astype(int) + 1
    path = table["source_path"].copy()
    path[is_fear] = "test/fearful/im" + numbers.astype(str) + ".png"
    expected = rf"im{is_fear.sum()}.png: FER2013 has {is_fear.sum()} fear rows in its test part, numbered from 0"
    with pytest.raises(DatasetError, match=expected):
        label_sets.find_rows(table.assign(source_path=path), pixels, ferplus.read(folder / addresses.VOTES_FILE))


def test_ferplus_labels_leave_out_what_has_no_class_and_count_it(audited):
    before, after = _labelled(audited), _labelled(audited, "ferplus")
    kept = after["split"] != ""
    assert (after.loc[kept, "label"] == before.loc[kept, "ferplus_label"]).all()
    assert (after["fer2013_label"] == before["label"]).all()
    left_out = after[~kept]
    assert len(left_out) and left_out["flags"].str.contains(label_sets.NO_LABEL).all()
    assert set(label_sets.outcomes(left_out)) <= {"no majority", "not a face", "contempt", "unknown", "blank"}
    assert (after.loc[kept, "split"] == before.loc[kept, "split"]).all()  # the same pictures in the same splits
    counts = label_sets.count_outcomes(after)
    assert counts.loc["total", "total"] == len(after)
    assert counts.loc[counts.index.isin(CLASSES), "total"].sum() == kept.sum()


def test_moved_pictures_never_share_a_path(audited):
    manifest = splits.to_manifest(_labelled(audited, "ferplus"))
    paths = manifest.loc[manifest["path"] != "", "path"]
    assert paths.str.casefold().is_unique
    moved = manifest[(manifest["path"] != "") & (manifest["label"] != manifest["fer2013_label"])]
    assert len(moved)
    for row in moved.itertuples():
        assert row.path.split("/")[1] == row.label and row.path.split("/")[2].startswith(row.fer2013_label)


def test_conflicts_are_of_the_labels_in_use(audited):
    before, after = _labelled(audited), _labelled(audited, "ferplus")
    for table in (before, after):
        several = table.groupby("group")["label"].nunique()
        assert (table["label_conflict"] == (table["group"].map(several) > 1)).all()
    assert before["label_conflict"].any()


def test_without_votes_the_columns_are_empty_and_ferplus_is_refused(audited):
    (table, pixels), _ = audited
    without = label_sets.add_votes(table, pixels, None)
    assert (without[["row", "votes", "ferplus_label"]] == "").all().all()
    assert label_sets.choose(without, "fer2013") is without
    with pytest.raises(DatasetError, match=r"there are no votes: put fer2013new.csv into data/"):
        label_sets.choose(without, "ferplus")


def test_votes_with_folders_of_fer2013_alone_are_no_error_and_reach_no_picture(audited, drawn):
    """As in params/own.yaml beside data/fer2013new.csv; the way out under `ferplus` is to give the second dataset."""
    table, pixels = _audited({FER2013: drawn[0]})
    voted = label_sets.add_votes(table, pixels, audited[1] / addresses.VOTES_FILE)
    assert (voted["votes"] == "").all()
    with pytest.raises(DatasetError, match=r"if it is there, add Emotion Detection FER, or give fer2013\.csv"):
        label_sets.choose(voted, "ferplus")


def test_the_rows_of_another_table_are_no_rows_of_fer2013(audited):
    (table, pixels), folder = audited
    place = table.index[table["label"] == "sad"][0]
    for number in (0, 999_999):
        other = table.assign(source=table["source"].mask(table.index == place, "ckextended"))
        other["source_path"] = other["source_path"].mask(table.index == place, f"ckextended.csv#{number}")
        rows = label_sets.find_rows(other, pixels, ferplus.read(folder / addresses.VOTES_FILE))
        assert rows[place] == label_sets.NO_ROW


def test_agreement_counts_each_row_once(audited):
    table = _labelled(audited)
    counts = label_sets.agreement(table)
    assert counts.to_numpy().sum() == 350
    assert list(counts.index) == list(CLASSES) and list(counts.columns) == list(ferplus.OUTCOMES)
    assert 0.8 < label_sets.share_agreeing(counts) < 1


def test_labels_that_nobody_gave_are_found(audited):
    table = _labelled(audited)
    place = table.index[(table["row"] != "") & (table["label"] == "angry")][0]
    clear = ferplus.as_text(np.eye(10, dtype=int)[[ferplus.ANSWERS.index("happy")]] * 10)[0]
    same_row = table["row"] == table["row"][place]
    table = table.assign(
        votes=table["votes"].mask(same_row, clear), ferplus_label=table["ferplus_label"].mask(same_row, "happy")
    )
    found = label_sets.given_by_nobody(table)
    assert place in found.index and not found["row"].duplicated().any()
    assert label_sets.titles(found.loc[[place]]) == ["label: angry\nvotes: happy 10"]


def test_blank_pictures_are_flagged_as_no_face(audited):
    table = _labelled(audited)
    flagged = table[table["flags"].str.contains(ferplus.NO_FACE)]
    assert flagged["source"].tolist() == [FER2013, EMOTION_DETECTION]  # exact copies of each other
    assert len(label_sets.without_face(table)) == 1


def test_votes_are_found_drawn_given_in_data_or_not_at_all(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(finding.places, "project_root", lambda: tmp_path)
    assert finding.find_votes("auto", {}) is None
    (tmp_path / "data").mkdir()
    placed = shutil.copy(drawn[0].parent / "ferplus" / addresses.VOTES_FILE, tmp_path / "data")
    assert str(finding.find_votes("auto", {})) == placed
    assert finding.find_votes("none", {}) is None
    places = finding.find_or_draw({FER2013: "demo", EMOTION_DETECTION: "demo"}, 350, 1, tmp_path / "images")
    assert finding.find_votes("auto", places) == tmp_path / "images/demo_sources/ferplus" / addresses.VOTES_FILE
    with pytest.raises(finding.places.NotFoundHere, match=addresses.VOTES_ADDRESS):
        finding.find_votes("elsewhere.csv", {})


def test_real_pictures_get_the_rows_that_are_known(real_data, tmp_path):
    """The numbers of the whole real data; Emotion Detection FER's files are numbered by class and part."""
    votes_file = real_data[FER2013].parent / "ferplus" / addresses.VOTES_FILE
    if not votes_file.is_file():
        pytest.skip(f"no real votes: {votes_file} not found")
    merged = splits.read_sources({EMOTION_DETECTION: real_data[EMOTION_DETECTION]}, "error")
    table = merged.table.assign(group=np.arange(len(merged.table)))
    votes = ferplus.read(votes_file)
    rows = label_sets.find_rows(table, merged.pixels, votes)
    assert sorted(rows) == list(range(35_887))
    known = pd.read_csv(votes_file.with_name("emotion_detection_fer_to_row.csv.gz"), index_col="image")["row"]
    assert (known[table["source_path"]].to_numpy() == rows.to_numpy()).all()
    assert merged.pixels.shape == (35_887, images.SIZE, images.SIZE)
