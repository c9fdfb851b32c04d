# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Merge the datasets and split them
#
# **Question.** Which images are there, which of them show the same picture, and which are for training, validation and test?
#
# **In:** the two source datasets, read-only: FER2013 and Emotion Detection FER. **Out:** the folders `TRAIN/ VAL/ TEST/`
# with one folder per class, `manifest.csv` with one row per image, `leakage.json`.
#
# **Takes** under two minutes on the full datasets with two CPU cores, seconds on the demo. A GPU makes no difference.
#
# **Expect** the audit to find that the second dataset holds the pictures of the first one, re-encoded. Merged as
# specified, TRAIN holds a copy of every picture of VAL and TEST. With `leakage` = `drop`, as in the profiles `demo`
# and `clean`, those copies are removed.

# %% tags=["parameters"]
# What the specification names
seed: int = 42  # >= 0, < 4294967296; every random choice follows from it
fer2013: str = "auto"  # a folder, zip or csv; auto: data/ or Kaggle's mounts; demo: draw faces
emotion_detection: str = "auto"  # a folder or zip; auto: data/ or Kaggle's mounts; demo: draw faces; none: without it
val_fraction: float = 0.25  # > 0, < 1; specification: share of FER2013's train images
# Beyond it
demo_images: int = 1500  # >= 350; faces drawn where the sources are demo
test_usage: str = "all"  # all | private; which of FER2013's test images TEST holds
leakage: str = "keep"  # keep | drop | fail; specification is keep
labels: str = "fer2013"  # fer2013 | ferplus; specification is fer2013; ferplus: the majority of ten people's votes
votes: str = "auto"  # fer2013new.csv of FER+; auto: data/ or Kaggle's mounts, where it is there; none: no votes
extra: str = ""  # folders, zips or tables of pictures for TRAIN, separated by ;
extra_classes: str = ""  # class of each folder, as joy=happy,unsure=; affectnet, fer2013 or raf-db for their numbers
extra_columns: str = ""  # PICTURE:LABEL, the columns of a table to take instead of folders, as pth:label
extra_faces: str = "whole"  # whole | detect; pictures of extra as they are, or the one face found in each
train_copies: str = "one"  # one | all; copies of one picture left in TRAIN under drop
unreadable: str = "error"  # error | exclude; what to do with image files that cannot be read
# The machine
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own

# %% [markdown]
# ## Setup
# The values above are checked, and everything that this run uses is printed.

# %%
from fer_utils import plots
from fer_utils.classes import CLASSES
from fer_utils.data import audit, finding, label_sets, near_duplicates, splits
from fer_utils.pipeline import stages
from fer_utils.predict import detection

import numpy as np
import pandas as pd
from IPython.display import display

stage = stages.begin("merge_split", globals())

# %% [markdown]
# ## Load
# The datasets are found. Where they are `demo`, faces are drawn in the layouts and spellings of the real ones.

# %%
found = finding.find_or_draw(
    {splits.FER2013: fer2013, splits.EMOTION_DETECTION: emotion_detection}, demo_images, seed, stage.images
)
for name, path in found.items():
    print(f"{name}: {path}")

# %% [markdown]
# Every image is decoded before TRAIN, VAL and TEST are written. A file that cannot be read stops the stage here, or is left
# out with `unreadable` = `exclude`. With `extra`, pictures of your own, RAF-DB or AffectNet join TRAIN.

# %%
merged = splits.read_sources(found, unreadable, extra, extra_classes, detection.face_finder(extra_faces), extra_columns)
print(f"{len(merged.table):,} images read")
if merged.ignored:
    print(f"{len(merged.ignored)} files that are no images left alone, such as {merged.ignored[0]!r}")

# %% tags=["nbval-check-output"]
pd.crosstab(merged.table["label"], [merged.table["source"], merged.table["part"]]).loc[list(CLASSES)]

# %% [markdown]
# ## Look
# Some faces of each class, as the sources label them.

# %%
rng = np.random.default_rng(seed)
examples = {label: rng.permutation(np.flatnonzero(merged.table["label"] == label))[:10] for label in CLASSES}
stage.show(plots.rows_of_faces({label: merged.pixels[rows] for label, rows in examples.items()}), "faces")

# %% [markdown]
# ## Split
# TRAIN takes all of Emotion Detection FER and FER2013's train images, except the share `val_fraction` of each class, which
# is VAL. TEST takes FER2013's test images, all of them or the private half (`test_usage`). Pictures of `extra` go to TRAIN.

# %%
table = merged.table.assign(split=splits.assign_splits(merged.table, val_fraction, test_usage, seed))
splits.count_table(table)

# %% [markdown]
# ## Audit
# Which images are the same picture? The copies are re-encoded, so hashes of the files differ. Pairs with similar descriptors
# are candidates, and their pixels are compared. Where these differ too much, one picture is aligned with the other and
# compared again: this finds other crops of one photograph.

# %%
unread = np.flatnonzero(splits.has_flag(table, "unreadable"))
pairs, others = near_duplicates.compare(merged.pixels, {*unread})
table = audit.describe_copies(table, pairs)
pd.Series(audit.cross_split_counts(table)).to_frame("under the split as specified")

# %% [markdown]
# How well are copies and other pictures separated? The figure shows the distances of the pairs found, and of the candidates
# whose pixels did not confirm that they are copies.

# %%
distances = others["distance"]
stage.show(plots.pair_distances(pairs, distances.to_numpy(), near_duplicates.MAX_DISTANCE), "pair_distances")
copies = pairs.loc[pairs["kind"] != "exact", "distance"]
print(f"copies: median {copies.median():.3f}, 99th percentile {copies.quantile(0.99):.3f}")
print(f"other candidates: 1st percentile {distances.quantile(0.01):.3f}, median {distances.median():.3f}")

# %% [markdown]
# Pairs across splits: on the left the image of VAL or TEST, on the right its copy in TRAIN.

# %%
across = audit.pairs_across_splits(table)
titles = table["split"] + "\n" + table["label"]
chosen = [across[pair] for pair in rng.permutation(len(across))[:9]]
if chosen:
    groups = [(merged.pixels[rows], list(titles[rows])) for rows in chosen]
    stage.show(plots.groups_of_faces(groups, "The same picture on both sides of the split"), "pairs_across_splits")
print(f"{len(across):,} images of VAL and TEST have a copy in TRAIN under the split as specified")

# %% [markdown]
# Copies of one picture under different labels, on which the annotators disagreed. One copy of each label is shown.

# %%
conflicts = audit.groups_with_conflicting_labels(table)
chosen = [conflicts[group] for group in rng.permutation(len(conflicts))[:9]]
if chosen:
    groups = [(merged.pixels[rows], list(table["label"][rows])) for rows in chosen]
    stage.show(plots.groups_of_faces(groups, "One picture, several labels"), "label_conflicts")
print(f"groups of copies whose labels disagree: {len(conflicts):,}")
print(f"images in them: {table['label_conflict'].sum():,}")

# %% [markdown]
# ## Labels
# FER2013's labels are known to be noisy. For FER+ ten people voted on each of its pictures. A picture gets its votes by its
# row in the original CSV: Emotion Detection FER's file names tell it, and FER2013's pictures take it from their copies. The
# majority rule is FER+'s own: single votes dropped, more than half of the rest. Drawn faces have drawn votes.

# %%
table = label_sets.add_votes(table, merged.pixels, finding.find_votes(votes, found))
has_votes = (table["votes"] != "").any()
if has_votes:
    counts = label_sets.agreement(table)
    stage.show(plots.label_agreement(counts), "label_agreement")
    share = label_sets.share_agreeing(counts)
    print(
        f"of the pictures that FER+'s majority gives one of the seven classes, {share:.1%} have the same label in FER2013"
    )
else:
    print("no votes of FER+: fer2013new.csv was not found, no picture is one of its rows, or `votes` is none")

# %% [markdown]
# The first figure shows pictures whose label none of ten people gave, while nine or ten agreed on another class. The second
# shows pictures in which most of them found no face, such as placeholders of web pages. With `leave_out` = `not_a_face` 02
# and 05 leave the second group out.

# %%
if has_votes:
    nobody, no_face = label_sets.given_by_nobody(table), label_sets.without_face(table)
    for name, rows in (("labels_by_nobody", nobody), ("not_a_face", no_face)):
        if len(rows):
            shown = rows.sample(min(16, len(rows)), random_state=seed)
            stage.show(plots.faces(merged.pixels[shown.index], label_sets.titles(shown), 8), name)
    print(f"rows of FER2013 with a label that nobody gave: {len(nobody):,}; without a face: {len(no_face):,}")

# %% [markdown]
# What FER+ says of the pictures of each source. Under `ferplus` a picture without a class is left out of its split.

# %%
table = label_sets.choose(table, labels)
if labels == "ferplus":
    left_out = label_sets.outcomes(table)[table["flags"].str.contains(label_sets.NO_LABEL)].value_counts()
    print(f"{left_out.sum():,} images have no class and are left out: {left_out.to_dict()}")
if has_votes:
    display(label_sets.count_outcomes(table))

# %% [markdown]
# ## Do
# The parameter `leakage` decides. `keep` leaves TRAIN as specified. `drop` takes every copy of a VAL or TEST picture out of TRAIN, and
# every copy of a TEST picture out of VAL. Of copies within TRAIN it leaves one.

# %%
table = audit.apply_policy(table, leakage, train_copies)
audit.require_filled(table)
leaks = audit.summary(table, pairs, leakage)
if leaks["test_images_in_train"]:
    seen = f"{leaks['val_images_in_train']:,} VAL and {leaks['test_images_in_train']:,} TEST images"
    print(f"WARNING: {seen} have a copy in TRAIN.")
    print("Scores of this run measure memory as well as skill. params/clean.yaml avoids it.")
else:
    print(f"no picture stands in two splits; {leaks['dropped_leaks']:,} copies across splits were taken out")
    print(
        f"and {leaks['dropped_copies']:,} copies within TRAIN; across splits by source: {leaks['dropped_leaks_by_source']}"
    )

# %% [markdown]
# ## Check
# Each source image stands in the manifest once. The flags say what was noticed of an image: `blank`, repaired (`colour`,
# `resized`), `renamed`, or dropped by the policy.

# %%
manifest = splits.to_manifest(table)
assert len(manifest) == len(merged.table)
assert not manifest.loc[manifest["path"] != "", "path"].duplicated().any()

# %% tags=["nbval-check-output"]
counts = splits.count_table(manifest)
counts

# %%
stage.show(plots.class_counts(counts.drop("total"), "Images of each class in each split"), "split_counts")
flags = manifest.loc[manifest["flags"] != "", "flags"].value_counts()
display(flags.to_frame() if len(flags) else "no image needed a flag")

# %% [markdown]
# ## Save
# The image folders are written first and the manifest last, so that a manifest always has complete folders.

# %%
stage.require_space(len(manifest))
stage.discard("manifest.csv")
splits.write_split_folders(manifest, merged.data, stage.images)
stage.save(leaks, "leakage.json")
stage.save(manifest, "manifest.csv")

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=["manifest.csv", "leakage.json", "images/TRAIN", "images/VAL", "images/TEST"],
    figures={name: int((manifest["split"] == name).sum()) for name in splits.SPLITS}
    | {"TEST images with a copy in TRAIN": leaks["test_images_in_train"]},
)
