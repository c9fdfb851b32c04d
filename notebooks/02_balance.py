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
# # 02 · Balance TRAIN
#
# **Question.** How do we keep the large classes from drowning the small ones?
#
# **In:** `TRAIN/`, `manifest.csv`. **Out:** `TRAIN_BALANCED/`, `balanced.csv` with one row per image, distributions before
# and after.
#
# **Takes** about half a minute on the full datasets with two CPU cores; a GPU changes nothing.
#
# **Expect** `disgust` to stay far smaller than the rest: a handful of faces, repeated many times over, would be learned
# by heart, so its target is lower.

# %% tags=["parameters"]
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own
seed: int = 42  # >= 0; every random choice follows from it
target: int = 7000  # >= 0; specification: images that a smaller class is filled up to
target_disgust: int = 1200  # >= 0; specification: the same for disgust
max_per_class: int = 9000  # >= 1; specification: larger classes are thinned to it
workers: int = 0  # >= 0; processes that augment, 0: one a core where there is enough to do

# %% [markdown]
# ## Setup

# %%
from fer_utils import files, images, plots, progress
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation, balance, loading
from fer_utils.pipeline import stages

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

stage = stages.begin("balance", globals())
folders = stage.folders
stage.require(folders.manifest, folders.split("TRAIN"))

# %% [markdown]
# ## Load
# TRAIN as the manifest lists it.

# %%
manifest = loading.read_table(folders.manifest, ("split", "label", "path"))
train = manifest.loc[manifest["split"] == "TRAIN", ["label", "path"]]
print(f"TRAIN has {len(train):,} images")

# %% [markdown]
# ## Look
# One face beside several of its augmentations: flip, rotation, shear, brightness, contrast, hue shift. The hue shift is in
# the pipeline because the specification names it; a grey picture has no hue, and it leaves it as it is.

# %%
example = train["path"].iloc[0]
original = images.load([folders.data / example])[0]
variants = np.stack([original, *(augmentation.augmented_copy(original, example, copy, seed) for copy in range(1, 12))])
figure = plots.faces(
    variants, ["original"] + [f"copy {copy}" for copy in range(1, 12)], 6, "One face and what training may see of it"
)
plots.save(figure, folders.figure("augmentations"))
plt.show()
change = np.abs(variants[1:].astype(int) - original).mean()
print(f"an augmented copy differs from its original by {change:.0f} of 255 grey levels on average")

# %% [markdown]
# ## Do
# First the plan, which images and which copies of them; then the files.

# %%
targets = dict.fromkeys(CLASSES, target) | {"disgust": target_disgust}
plan = balance.plan_balance(train, targets, max_per_class, seed)
needed = 4096 * len(plan)
files.require_space(folders.data, needed)
folders.balanced.unlink(missing_ok=True)
with files.replacing(folders.split("TRAIN_BALANCED")) as temporary:
    balance.write_balanced(
        plan, folders.data, temporary, seed, workers, lambda rows: progress.bar(rows, "writing images")
    )

# %% [markdown]
# ## Check
# The distribution before and after, and how many images of each class are augmented copies.

# %%
# NBVAL_CHECK_OUTPUT
counts = (
    pd.DataFrame(
        {
            "TRAIN": train["label"].value_counts(),
            "TRAIN_BALANCED": plan["label"].value_counts(),
            "of them augmented": plan.loc[plan["copy"] > 0, "label"].value_counts(),
        }
    )
    .reindex(CLASSES)
    .fillna(0)
    .astype(int)
    .rename_axis(None)
)
counts

# %%
figure = plots.class_counts(counts[["TRAIN", "TRAIN_BALANCED"]], "Images of each class before and after balancing")
plots.save(figure, folders.figure("balance"))
plt.show()
before, after = counts["TRAIN"], counts["TRAIN_BALANCED"]
print(
    f"largest to smallest class: {before.max() / before.min():.1f} to 1 before, {after.max() / after.min():.1f} to 1 after"
)

# %% [markdown]
# ## Save

# %%
names = [balance.balanced_name(path, copy) for path, copy in zip(plan["path"], plan["copy"], strict=True)]
balanced = plan.rename(columns={"path": "train_path"}).assign(path=[f"TRAIN_BALANCED/{name}" for name in names])
assert all((folders.data / path).is_file() for path in balanced["path"])
files.write_csv(folders.balanced, balanced[["label", "path", "train_path", "copy"]])

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=[folders.balanced, folders.split("TRAIN_BALANCED")],
    figures={"TRAIN_BALANCED": len(balanced), "augmented": int((balanced["copy"] > 0).sum())},
)
