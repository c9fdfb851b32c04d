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
# **Takes** under half a minute on the full datasets. A GPU makes no difference.
#
# **Expect** `disgust` to stay far smaller than the rest. It has so few faces that many copies of each would be learned by
# heart, so its target is lower.

# %% tags=["parameters"]
# What the specification names
seed: int = 42  # >= 0, < 4294967296; every random choice follows from it
target: int = 7000  # >= 0; specification: images that a smaller class is filled up to
target_disgust: int = 1200  # >= 0; specification: the same for disgust
max_per_class: int = 9000  # >= 1; specification: larger classes are thinned to it
# Beyond it
leave_out: str = "none"  # none | conflicts | blanks | conflicts_and_blanks | not_a_face | all; images kept out
issues_file: str = ""  # label_issues_train.csv of another run: its issues are kept out; empty: none
# The machine
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own

# %% [markdown]
# ## Setup

# %%
from fer_utils import images, plots
from fer_utils.classes import CLASSES
from fer_utils.data import augmentation, balance, loading
from fer_utils.pipeline import stages

import numpy as np

stage = stages.begin("balance", globals())

# %% [markdown]
# ## Load
# TRAIN as the manifest lists it.

# %%
manifest = stage.read("manifest.csv")
train = loading.leave_out(manifest[manifest["split"] == "TRAIN"], leave_out)
train = balance.without_issues(train, issues_file)[["label", "path"]]
print(f"TRAIN has {len(train):,} images")

# %% [markdown]
# ## Look
# One face beside several of its augmentations: flip, rotation, shear, brightness, contrast, hue shift. The specification
# names the hue shift; a grey picture has no hue, and the shift does not change it.

# %%
example = train["path"].iloc[0]
original = images.load([stage.images / example])[0]
copies = np.stack([augmentation.augmented_copy(original, example, copy, seed) for copy in range(1, 12)])
titles = ["original"] + [f"copy {copy}" for copy in range(1, 12)]
shown = np.stack([original, *copies])
stage.show(plots.faces(shown, titles, 6, "One face and its augmented copies"), "augmentations")
change = np.abs(copies.astype(int) - original).mean()
print(f"an augmented copy differs from its original by {change:.0f} of 255 grey levels on average")

# %% [markdown]
# ## Do
# First the plan, which images and which copies of them. Then the files.

# %%
targets = dict.fromkeys(CLASSES, target) | {"disgust": target_disgust}
plan = balance.plan_balance(train, targets, max_per_class, seed)
stage.require_space(len(plan))
stage.discard("balanced.csv")
balance.write_balanced(plan, stage.images, seed)

# %% [markdown]
# ## Check
# The distribution before and after, and how many images of each class are augmented copies.

# %% tags=["nbval-check-output"]
counts = balance.count_table(train, plan)
counts

# %%
before, after = counts["TRAIN"], counts["TRAIN_BALANCED"]
figure = plots.class_counts(counts[["TRAIN", "TRAIN_BALANCED"]], "Images of each class before and after balancing")
stage.show(figure, "balance")
ratios = before.max() / before.min(), after.max() / after.min()
print(f"largest to smallest class: {ratios[0]:.1f} to 1 before, {ratios[1]:.1f} to 1 after")

# %% [markdown]
# ## Save

# %%
balanced = balance.to_table(plan)
assert all((stage.images / path).is_file() for path in balanced["path"])
stage.save(balanced, "balanced.csv")

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=["balanced.csv", "images/TRAIN_BALANCED"],
    figures={"TRAIN_BALANCED": len(balanced), "augmented": int((balanced["copy"] > 0).sum())},
)
