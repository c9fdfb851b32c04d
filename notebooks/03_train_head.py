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
# **Question.** How far do the features take us that ResNet50 brings along?
#
# **In:** `TRAIN_BALANCED/`, `VAL/`. **Out:** `head.weights.h5`, `history_head.csv`, `trained_head.csv`, learning curves.
#
# **Takes** one pass of all images through ResNet50, then seconds: the backbone is frozen and the augmentation already on
# disk, so what it computes for an image never changes, and is computed once instead of once an epoch.
#
# **Expect** a modest score. With weights from ImageNet the features describe objects; with random ones (`weights` is
# `none`, as in the demo) they describe little, and the score stays near chance. Phase 2 learns to tell expressions apart.

# %% tags=["parameters"]
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own
seed: int = 42  # >= 0; every random choice follows from it
image_size: int = 224  # >= 32; pixels a side that ResNet50 sees; the cpu profile takes 96
weights: str = "imagenet"  # imagenet, a path to a ResNet50 notop .h5, or none
batch_size: int = 64  # >= 1; specification
limit_per_class: int = 0  # >= 0; images of each class that train and validate, 0: all
cache: str = "auto"  # auto | disk | memory | none; where the frozen layers' activations are kept
cache_dtype: str = "auto"  # auto | float32 | float16; auto takes float16 where float32 finds no room
cache_dir: str = ""  # folder of activations on disk, for all runs; empty: .cache in outputs_dir
strategy: str = "auto"  # auto | none | mirrored; auto: mirrored over several GPUs where a step has work for them
precision: str = "auto"  # auto | float32 | mixed_float16; auto: mixed on GPUs with tensor cores
deterministic: str = "auto"  # auto | yes | no; auto: yes on GPUs, so that runs repeat exactly; no is faster there
epochs: int = 10  # >= 1; specification
learning_rate: float = 5e-4  # > 0; specification, Adam
time_budget_minutes: float = 0.0  # >= 0; training stops in time for a session of so many, 0: never

# %% [markdown]
# ## Setup

# %%
from fer_utils import files, plots
from fer_utils.data import loading
from fer_utils.pipeline import paths, stages
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers, time_budget
from fer_utils.training.checkpoint import TrainingCheckpoint

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

stage = stages.begin("train_head", globals())
folders = stage.folders
stage.require(folders.balanced, folders.manifest, folders.split("TRAIN_BALANCED"), folders.split("VAL"))
kernels = "deterministic" if devices.make_reproducible(seed, deterministic) else "default"
print(f"computing on {devices.describe()} in {devices.choose_precision(precision)} with {kernels} kernels")

# %% [markdown]
# ## Load
# Every image is decoded once and stays in memory, 2.3 kB each. TEST is not read here: choices are made on VAL.

# %%
manifest = loading.read_table(folders.manifest, ("split", "label", "path"))
balanced = loading.read_table(folders.balanced, ("label", "path", "train_path"))
train = loading.load_faces(balanced, folders.data, limit_per_class, seed)
val = loading.load_faces(manifest[manifest["split"] == "VAL"], folders.data, limit_per_class, seed)
print(f"{len(train):,} images to train on, {len(val):,} to validate on")

# %% [markdown]
# ## Model
# Raw grey images go in; the model itself makes them RGB, resizes them and applies ResNet50's own preprocessing. The head
# is the specification's: global average pooling, 32 units, batch normalisation, dropout, seven probabilities.

# %%
# NBVAL_CHECK_OUTPUT
replicas = devices.choose_strategy(strategy)
with devices.scope(replicas):
    model = network.build(image_size, paths.weights_source(weights))
    prefix, head = frozen_prefix.split(model)
pd.Series(network.parameter_counts(model), name="weights").to_frame()

# %% [markdown]
# ## Do
# One pass through the frozen backbone, unless an earlier run left its features; then the head trains on them. The table
# leaves out precision and recall; they are in `history_head.csv`.

# %%
cache_folder = paths.cache_folder(cache_dir, outputs_dir)
plan = frozen_prefix.plan(prefix, len(train) + len(val), cache, cache_dtype, cache_folder)
print(plan)
with devices.scope(replicas):
    trained, (train_inputs, val_inputs) = frozen_prefix.prepare(
        prefix, head, (train.images, val.images), plan, cache_folder
    )
    loop.compile_for_training(
        trained, optimizers.make_optimizer("adam", learning_rate, 0.0), steps_per_execution=loop.HEAD_STEPS
    )

# %%
budget = time_budget.TimeBudget("head", time_budget_minutes)
history = loop.fit(
    trained,
    loop.Batches(train_inputs, train.labels, batch_size, seed),
    loop.Batches(val_inputs, val.labels, loop.PREDICT_BATCH),
    "head",
    first_epoch=0,
    epochs=epochs,
    callbacks=[budget],
    checkpoint=TrainingCheckpoint(folders.checkpoint("train_head"), stage.key_digest),
)
history[["epoch", "seconds", "learning_rate", *loop.SCORES]].round(loop.SHOWN_DIGITS)

# %% [markdown]
# ## Look
# Training's own curve is measured with dropout on, VAL's without.

# %%
figure = plots.learning_curves(history)
plots.save(figure, folders.figure("learning_curves_head"))
plt.show()
best = history.loc[history["val_loss"].idxmin()]
print(
    f"lowest VAL loss {best['val_loss']:.3f} in epoch {best['epoch']:.0f}: accuracy {best['val_accuracy']:.3f}, macro F1 {best['val_macro_f1']:.3f}"
)

# %% [markdown]
# ## Check and save
# What the whole model says of VAL images is what training said of them. Which images trained is saved with the weights.

# %%
some = np.arange(min(64, len(val)))
whole = model(val.images[some], training=False).numpy()
difference = abs(whole - loop.predict(trained, val_inputs[some])).max()
assert difference < frozen_prefix.TOLERANCE[plan.dtype], difference
with files.replacing(folders.head_weights) as temporary:
    network.plain_copy(head).save_weights(temporary)
files.write_csv(folders.history_head, history)
files.write_csv(folders.trained_head, loading.originals(train.table))

# %% [markdown]
# ## Summary

# %%
last = history.iloc[-1]
stage.finish(
    outputs=[folders.head_weights, folders.history_head, folders.trained_head],
    figures={
        "epochs": len(history),
        "ended by": budget.ended_by(len(history), epochs),
        "VAL accuracy": round(last["val_accuracy"], 4),
        "VAL macro F1": round(last["val_macro_f1"], 4),
    },
)
