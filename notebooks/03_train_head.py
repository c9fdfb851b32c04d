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
# # 03 · Phase 1: train the head
#
# **Question.** How well can a small head tell expressions apart from ResNet50's features as they are?
#
# **In:** `TRAIN_BALANCED/`, `VAL/`. **Out:** `head.weights.h5`, `history_head.csv`, `trained_head.csv`, learning curves.
#
# **Takes** one pass of all images through ResNet50, then seconds. The backbone is frozen and the augmented copies are
# files, so that the features of an image never change. They are computed once instead of once an epoch.
#
# **Expect** a modest score. With weights from ImageNet the features describe objects. With random ones (`weights` is
# `none`, as in the demo) they describe little, and the score stays near chance. Phase 2 learns to tell expressions apart.

# %% tags=["parameters"]
# What the specification names
seed: int = 42  # >= 0, < 4294967296; every random choice follows from it
image_size: int = 224  # >= 32; pixels a side that the backbone sees; the cpu profile takes 96
backbone: str = "resnet50"  # resnet50 | small; specification is resnet50
weights: str = "imagenet"  # imagenet, a path to a notop .h5, or none; for small: shipped, a model's file, or none
batch_size: int = 64  # >= 1; specification
epochs: int = 10  # >= 1; specification
learning_rate: float = 5e-4  # > 0; specification, Adam
# Beyond it
limit_per_class: int = 0  # >= 0; images of each class that train and validate, 0: all
votes_share: float = 0.0  # >= 0, <= 1; share of each target that is FER+'s votes; the rest is the label
find_label_issues: bool = False  # lists labels that are probably wrong; needs cleanlab, an extra
# The machine
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own
cache: str = "auto"  # auto | disk | memory | none; where the frozen layers' activations are kept
precision: str = "auto"  # auto | float32 | mixed_float16 | mixed_bfloat16; auto: float16 on GPUs with tensor cores
deterministic: str = "auto"  # auto | yes | no; auto: yes on GPUs, so that runs repeat exactly; no is faster there
time_budget_minutes: float = 0.0  # >= 0; training stops in time for a session of so many, 0: never
tensorboard: bool = False  # writes event files for TensorBoard, which must be installed

# %% [markdown]
# ## Setup

# %%
from fer_utils import plots
from fer_utils.data import loading
from fer_utils.evaluation import label_issues
from fer_utils.pipeline import stages
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import pandas as pd
from IPython.display import display

stage = stages.begin("train_head", globals())
devices.set_up(seed, deterministic, precision)

# %% [markdown]
# ## Load
# Every image is decoded once and stays in memory, 2.3 kB each. TEST is not read here: choices are made on VAL.

# %%
balanced, manifest = stage.read("balanced.csv"), stage.read("manifest.csv")
train, val = loading.load_training(balanced, manifest, stage.images, limit_per_class, seed, votes_share)

# %% [markdown]
# ## Model
# Raw grey images go in. The model itself resizes them and applies the preprocessing that its backbone needs, ResNet50's own
# or each picture's mean and variance. The head is the specification's: global average pooling, 32 units, batch
# normalisation, dropout, seven probabilities.

# %% tags=["nbval-check-output"]
model = network.build(image_size, weights, backbone)
prefix, head = frozen_prefix.split(model)
pd.Series(network.parameter_counts(model), name="weights").to_frame()

# %% [markdown]
# ## Do
# One pass through the frozen backbone computes the features, unless an earlier run kept them. Then the head trains on them.
# The table leaves out precision and recall, which are in `history_head.csv`.

# %%
image_sets = train.images, val.images
trained, (train_inputs, val_inputs) = frozen_prefix.prepare(prefix, head, image_sets, cache, stage.cache_folder)

# %%
adam = optimizers.make_optimizer("adam", learning_rate, weight_decay=0.0)
loop.compile_for_training(trained, adam, steps_per_execution=loop.HEAD_STEPS)
history = loop.fit(
    trained,
    loop.Batches(train_inputs, train.targets, batch_size, seed),
    loop.Batches(val_inputs, val.labels, loop.PREDICT_BATCH),
    "head",
    first_epoch=0,
    epochs=epochs,
    checkpoint=stage.checkpoint,
    time_budget_minutes=time_budget_minutes,
    tensorboard=stage.tensorboard_folder,
)
loop.shown(history)

# %% [markdown]
# ## Look
# TRAIN's own curve is measured with dropout on, VAL's without.

# %%
stage.show(plots.learning_curves(history), "learning_curves_head")
best = history.loc[history["val_loss"].idxmin()]
print(f"lowest VAL loss {best['val_loss']:.3f} in epoch {best['epoch']:.0f}")
print(f"there VAL's accuracy is {best['val_accuracy']:.3f}, its macro F1 {best['val_macro_f1']:.3f}")

# %% [markdown]
# ## Which labels are probably wrong?
# With `find_label_issues` a linear probe predicts the class of each picture from the features of phase 1; it is fitted
# without that picture and its copies. Confident learning (cleanlab) lists the labels that contradict the predictions. Where
# FER+ has votes, a table compares how often they reject a listed label and the label of a picture drawn at random. To train
# without the listed labels, set `issues_file` of 02 to the file in another run.

# %%
if find_label_issues:
    originals, features = loading.originals_of(train, manifest), train_inputs
    if trained is not head:  # no features were kept
        features = loop.predict(prefix, train.images)
    issues = label_issues.find_in_training(originals, features, seed)
    stage.save(issues, "label_issues_train.csv")
    print(f"{issues['is_issue'].sum():,} of {len(issues):,} labels of TRAIN are probably wrong")
    worst = issues.head(24)
    shown = label_issues.titles(worst)
    stage.show(
        plots.faces(train.grey(worst["row_in_train"]), shown, 8, "Labels that are probably wrong"), "label_issues"
    )
    worth = label_issues.worth(issues)
    if len(worth):
        display(worth.round(3))

# %% [markdown]
# ## Check and save
# The whole model and the part that was trained give the same probabilities for images of VAL, up to rounding. Which images
# trained is saved with the weights.

# %%
difference = frozen_prefix.largest_difference(model, trained, val.images, val_inputs)
assert difference < frozen_prefix.tolerance(model, val_inputs), difference
stage.save(network.plain_copy(head).save_weights, "head.weights.h5")
stage.save(history, "history_head.csv")
stage.save(loading.originals(train.table), "trained_head.csv")

# %% [markdown]
# ## Summary

# %%
kept = history.iloc[-1]  # phase 1 saves the weights of its last epoch
stage.finish(
    outputs=["head.weights.h5", "history_head.csv", "trained_head.csv"],
    figures={
        "epochs": len(history),
        "ended by": history.attrs["ended_by"],
        "VAL accuracy": round(kept["val_accuracy"], 4),
        "VAL macro F1": round(kept["val_macro_f1"], 4),
    },
)
