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
# **Question.** Which images are there, which of them are the same picture, and who trains on what?
#
# **In:** the two source datasets, read-only: FER2013 and Emotion Detection FER. **Out:** the folders `TRAIN/ VAL/ TEST/`
# with one folder per class, `manifest.csv` with one row per image, `leakage.json`.
#
# **Takes** under two minutes on the full datasets with two CPU cores, seconds on the demo; a GPU changes nothing.
#
# **Expect** the audit to find that the second dataset is the first one again, re-encoded: merged as specified, every
# picture of VAL and TEST also stands in TRAIN. The profiles `clean` and `demo` take those
# copies out again.

# %% tags=["parameters"]
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own
seed: int = 42  # >= 0; every random choice follows from it
fer2013: str = "auto"  # a folder, zip or csv; auto: data/ or Kaggle's mounts; demo: draw faces
emotion_detection: str = "auto"  # a folder or zip; auto: data/ or Kaggle's mounts; demo: draw faces
demo_images: int = 1500  # >= 350; faces drawn where the sources are demo
val_fraction: float = 0.25  # > 0, < 1; specification: share of FER2013's train images
test_usage: str = "all"  # all | private; which of FER2013's test images TEST holds
leakage: str = "keep"  # keep | drop | fail; specification is keep
train_copies: str = "one"  # one | all; copies of one picture left in TRAIN under drop
unreadable: str = "error"  # error | exclude; what to do with image files that cannot be read

# %% [markdown]
# ## Setup
# The values above are checked, and everything that this run uses is printed.

# %%
from contextlib import ExitStack

from fer_utils import files, plots, progress
from fer_utils.classes import CLASSES
from fer_utils.data import audit, demo, finding, near_duplicates, splits
from fer_utils.data.sources import open_source
from fer_utils.pipeline import stages

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display

stage = stages.begin("merge_split", globals())
folders = stage.folders

# %% [markdown]
# ## Load
# Where the sources are `demo`, faces are drawn first, in the layouts and spellings of the two real datasets.

# %%
names = {splits.FER2013: fer2013, splits.EMOTION_DETECTION: emotion_detection}
if "demo" in names.values():
    with files.replacing(folders.demo_sources) as temporary:
        demo.write_datasets(temporary, demo_images, seed)
    drawn = {splits.FER2013: "fer2013", splits.EMOTION_DETECTION: "emotion-detection-fer"}
found = {
    name: folders.demo_sources / drawn[name] if given == "demo" else finding.find_dataset(name, given)
    for name, given in names.items()
}
for name, place in found.items():
    print(f"{name}: {place}")

# %% [markdown]
# Every image is read and decoded now, before anything is written: a file that cannot be read stops the stage here.

# %%
with ExitStack() as stack:
    opened = [stack.enter_context(open_source(place, name)) for name, place in found.items()]
    merged = splits.read_all(opened, unreadable, lambda rows: progress.bar(rows, "reading images"))
    ignored = [file for source in opened for file in source.ignored]
print(f"{len(merged.table):,} images read")
if ignored:
    print(f"{len(ignored)} files that are no images left alone, such as {ignored[0]}")

# %%
# NBVAL_CHECK_OUTPUT
pd.crosstab(merged.table["label"], [merged.table["source"], merged.table["part"]]).loc[list(CLASSES)]

# %% [markdown]
# ## Look
# Some faces of each class, as the sources label them.

# %%
rng = np.random.default_rng(seed)
rows_of = {label: rng.permutation(np.flatnonzero(merged.table["label"] == label))[:10] for label in CLASSES}
figure = plots.rows_of_faces({label: merged.pixels[rows] for label, rows in rows_of.items()})
plots.save(figure, folders.figure("faces"))
plt.show()

# %% [markdown]
# ## Split
# TRAIN takes all of Emotion Detection FER and three quarters of FER2013's train images; VAL the other quarter of each
# class; TEST FER2013's test images.

# %%
table = merged.table.assign(split=splits.assign_splits(merged.table, val_fraction, test_usage, seed))
specified = splits.count_table(table)
specified

# %% [markdown]
# ## Audit
# Which images are the same picture? Hashes cannot tell, since the copies are re-encoded. A compact descriptor proposes
# pairs, their pixels confirm them; where they do not, one picture is moved onto the other and compared again, which finds
# other crops of one photograph.

# %%
bar = progress.bar(description="searching copies", total=len(table))
pairs = near_duplicates.find_pairs(merged.pixels, progress=lambda done, total: bar.update(done - bar.n))
bar.close()
table = audit.describe_copies(table, pairs)
as_specified = audit.cross_split_counts(table)
pd.Series(
    {" images with a copy in ".join(key.upper().split("_IMAGES_IN_")): count for key, count in as_specified.items()},
    name="under the split as specified",
).to_frame()

# %% [markdown]
# How clear is the line between a copy and a stranger? The distances of the pairs found, beside the distance of each
# picture of a sample to the nearest that was not found to be a copy.

# %%
strangers = near_duplicates.nearest_strangers(merged.pixels, table["group"].to_numpy(), sample=500, seed=seed)
figure = plots.pair_distances(pairs, strangers, near_duplicates.MAX_DISTANCE)
plots.save(figure, folders.figure("pair_distances"))
plt.show()
copies = pairs.loc[pairs["kind"] != "exact", "distance"]
print(f"copies: median {copies.median():.3f}, 99th percentile {copies.quantile(0.99):.3f}")
print(f"nearest others: 1st percentile {np.nanpercentile(strangers, 1):.3f}, median {np.nanmedian(strangers):.3f}")
missed = (strangers <= near_duplicates.MAX_DISTANCE).sum()
print(f"{missed} of the sample's {len(strangers)} pictures have a copy that was never proposed: a wider crop")

# %% [markdown]
# Pairs across splits: left the image of VAL or TEST, right its copy in TRAIN.

# %%
held_out = table.index[table["split"].isin(["VAL", "TEST"]) & audit.shares_group_with(table, "TRAIN")]
if len(held_out):
    shown = rng.permutation(held_out)[:9]
    in_train = table[table["split"] == "TRAIN"].drop_duplicates("group").reset_index().set_index("group")["index"]
    both = [[row, in_train[table["group"][row]]] for row in shown]
    titles = table["split"] + "\n" + table["label"]
    pairs_shown = [(merged.pixels[rows], list(titles[rows])) for rows in both]
    figure = plots.groups_of_faces(pairs_shown, "The same picture on both sides of the split")
    plots.save(figure, folders.figure("pairs_across_splits"))
    plt.show()
print(f"{len(held_out):,} images of VAL and TEST have a copy in TRAIN under the split as specified")

# %% [markdown]
# Copies of one picture under different labels: what the annotators did not agree on. One copy of each
# label is shown.

# %%
conflicts = table[table["label_conflict"]].drop_duplicates(["group", "label"])
chosen = rng.permutation(conflicts["group"].unique())[:9]
groups = [rows for _, rows in conflicts[conflicts["group"].isin(chosen)].groupby("group")]
if groups:
    shown = [(merged.pixels[rows.index], list(rows["label"])) for rows in groups]
    figure = plots.groups_of_faces(shown, "One picture, several labels")
    plots.save(figure, folders.figure("label_conflicts"))
    plt.show()
print(f"groups of copies whose labels disagree: {conflicts['group'].nunique():,}")
print(f"images in them: {table['label_conflict'].sum():,}")

# %% [markdown]
# ## Do
# The policy decides. `keep` leaves TRAIN as specified. `drop` takes every copy of a VAL or TEST picture out of TRAIN, and
# of a TEST picture out of VAL; of copies within TRAIN it leaves one.

# %%
table = audit.apply_policy(table, leakage, train_copies)
leaks = audit.summary(table, pairs, leakage)
if leaks["test_images_in_train"]:
    print(
        f"WARNING: {leaks['val_images_in_train']:,} VAL and {leaks['test_images_in_train']:,} TEST images have a copy in TRAIN."
    )
    print("Scores of this run measure memory as well as skill. params/clean.yaml avoids it.")
else:
    print(f"no picture stands in two splits; {leaks['dropped_leaks']:,} copies across splits were taken out")
    print(f"and {leaks['dropped_copies']:,} copies within TRAIN")

# %% [markdown]
# ## Check
# Each source image stands in the manifest once; these are the counts, and the flags that say what was noticed of an image:
# `blank`, repaired (`colour`, `resized`), `renamed`, or dropped by the policy.

# %%
manifest = splits.to_manifest(table)
assert len(manifest) == sum(len(source.table) for source in opened)
assert not manifest.loc[manifest["path"] != "", "path"].duplicated().any()

# %%
# NBVAL_CHECK_OUTPUT
splits.count_table(manifest)

# %%
figure = plots.class_counts(splits.count_table(manifest).drop("total"), "Images of each class in each split")
plots.save(figure, folders.figure("split_counts"))
plt.show()
flags = manifest.loc[manifest["flags"] != "", "flags"].value_counts()
display(flags.to_frame() if len(flags) else "no image needed a flag")

# %% [markdown]
# ## Save
# The image folders first, the manifest last: where there is a manifest, the folders are whole.

# %%
needed = sum(4096 * (1 + len(content) // 4096) for content in merged.data)
files.require_space(folders.data, needed)
folders.manifest.unlink(missing_ok=True)
splits.write_split_folders(manifest, merged.data, folders.data, lambda rows: progress.bar(rows, "writing images"))
files.write_json(folders.leakage, leaks)
files.write_csv(folders.manifest, manifest)

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=[folders.manifest, folders.leakage, *(folders.split(name) for name in splits.SPLITS)],
    figures={name: int((manifest["split"] == name).sum()) for name in splits.SPLITS}
    | {"TEST images with a copy in TRAIN": leaks["test_images_in_train"]},
)
