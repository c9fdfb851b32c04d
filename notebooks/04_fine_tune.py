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
# # 04 · Phase 2: fine-tune the top of the backbone
#
# **Question.** How much does ResNet50 gain when its top layers may look at faces?
#
# **In:** `TRAIN_BALANCED/`, `VAL/`, `head.weights.h5`. **Out:** `model.keras`, `model.weights.h5`,
# `history_fine_tune.csv`, learning curves over both phases.
#
# **Takes** most of the run's time: hours on a CPU with the full datasets, tens of minutes on a GPU.
#
# **Expect** VAL to rise at once and TRAIN to leave it behind after some epochs; then the rate falls, the weight decay
# rises, and early stopping takes the best weights back.

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
strategy: str = "auto"  # auto | none | mirrored; auto: mirrored where there are several GPUs
precision: str = "auto"  # auto | float32 | mixed_float16; auto: mixed on GPUs with tensor cores
epochs: int = 20  # >= 1; specification: further epochs, counted on from phase 1
unfreeze_top: int = 50  # >= 0; specification: layers of the backbone that train
batch_norm: str = "frozen"  # frozen | trained; specification is frozen; trained suits random weights
optimizer: str = "adamw"  # adamw | adam; specification
learning_rate: float = 8e-5  # > 0; specification
weight_decay: float = 0.01  # >= 0; AdamW only: a step shrinks a weight by learning_rate x weight_decay of itself
weight_decay_factor: float = 2.0  # >= 1; the decay rises by it when the rate drops
weight_decay_cap: float = 0.1  # > 0; the decay rises no higher
lr_factor: float = 0.5  # > 0, < 1; specification: the rate falls to this share on a plateau
lr_patience: int = 2  # >= 1; epochs without a lower VAL loss before the rate falls
stop_patience: int = 6  # >= 1; specification: epochs without a lower VAL loss before training stops
time_budget_minutes: float = 0.0  # >= 0; training stops in time for a session of so many, 0: never

# %% [markdown]
# ## Setup

# %%
import keras
import matplotlib.pyplot as plt
import pandas as pd

from fer_utils import activations, datasets, devices, files, frozen_prefix, paths, plots, stages, time_budget, training
from fer_utils import model as network
from fer_utils.checkpoint import TrainingCheckpoint

stage = stages.begin("fine_tune", globals())
folders = stage.folders
stage.require(folders.balanced, folders.manifest, folders.split("VAL"), folders.head_weights, folders.history_head)
devices.make_reproducible(seed)
print(f"computing on {devices.describe()} in {devices.choose_precision(precision)}")

# %% [markdown]
# ## Load
# The same images as in phase 1. TEST is not read here either.

# %%
manifest = datasets.read_table(folders.manifest, ("split", "label", "path"))
balanced = datasets.read_table(folders.balanced, ("label", "path"))
head_history = datasets.read_table(folders.history_head, ("epoch", "phase", "val_loss"))
train = datasets.load_faces(balanced, folders.data, limit_per_class, seed)
val = datasets.load_faces(manifest[manifest["split"] == "VAL"], folders.data, limit_per_class, seed)
print(f"{len(train):,} images to train on, {len(val):,} to validate on")

# %% [markdown]
# ## Model
# The network of phase 1 with its trained head; now the top layers of the backbone train too. With `batch_norm` frozen,
# every BatchNormalization of the backbone stays as it is: batches of faces would upset the statistics that its weights
# rely on.

# %%
replicas = devices.choose_strategy(strategy)
with devices.scope(replicas):
    model = network.build(image_size, weights)
    _, head = frozen_prefix.split(model)
    head.load_weights(folders.head_weights)
    n_training = network.unfreeze_top(model, unfreeze_top, batch_norm)
    prefix, suffix = frozen_prefix.split(model)
print(f"{n_training} layers of the backbone's top {unfreeze_top} train weights")

# %%
# NBVAL_CHECK_OUTPUT
pd.Series(network.parameter_counts(model), name="weights").to_frame()

# %% [markdown]
# ## Do
# What the frozen layers compute for an image never changes: it is computed once, and training begins where they end.

# %%
cache_folder = paths.cache_folder(cache_dir, outputs_dir)
plan = activations.plan(prefix, len(train) + len(val), cache, cache_dtype, cache_folder)
print(plan)
with devices.scope(replicas):
    trained, (train_inputs, val_inputs) = activations.prepare(
        prefix, suffix, (train.images, val.images), plan, cache_folder
    )
    training.compile_for_training(trained, training.make_optimizer(optimizer, learning_rate, weight_decay))

# %% [markdown]
# The rate halves when VAL's loss stands still; then `IncreaseWeightDecayOnLRDrop` raises the weight decay.

# %%
callbacks = [
    keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=lr_factor, patience=lr_patience),
    keras.callbacks.EarlyStopping(monitor="val_loss", patience=stop_patience, restore_best_weights=True),
    time_budget.TimeBudget("fine_tune", time_budget_minutes),
]
if optimizer == "adamw":
    callbacks.insert(1, training.IncreaseWeightDecayOnLRDrop(weight_decay_factor, weight_decay_cap))

history = training.fit(
    trained,
    training.Batches(train_inputs, train.labels, batch_size, seed, epoch=len(head_history)),
    training.Batches(val_inputs, val.labels, training.PREDICT_BATCH),
    "fine_tune",
    first_epoch=len(head_history),
    epochs=epochs,
    callbacks=callbacks,
    checkpoint=TrainingCheckpoint(folders.checkpoint("fine_tune"), stage.key_digest),
)
history.round(4)

# %% [markdown]
# ## Look
# Both phases on one axis, the switch marked.

# %%
both = pd.concat([head_history, history], ignore_index=True)
figure = plots.learning_curves(both)
plots.save(figure, folders.figure("learning_curves"))
plt.show()
best = history.loc[history["val_loss"].idxmin()]
print(
    f"lowest VAL loss {best['val_loss']:.3f} in epoch {best['epoch']:.0f} of {history['epoch'].max()}: accuracy {best['val_accuracy']:.3f}"
)
print(f"there TRAIN's accuracy is {best['accuracy']:.3f}, {best['accuracy'] - best['val_accuracy']:+.3f} against VAL")

# %% [markdown]
# What the callbacks did to the learning rate and the weight decay. A step shrinks a weight by their product.

# %%
figure = plots.rates(history)
plots.save(figure, folders.figure("rates"))
plt.show()
print(
    f"rate {history['learning_rate'].iloc[0]:.2g} → {history['learning_rate'].iloc[-1]:.2g}, decay {history['weight_decay'].iloc[0]:.2g} → {history['weight_decay'].iloc[-1]:.2g}"
)

# %% [markdown]
# ## Save and check
# The best weights are back in place, and the layers that trained are the whole network's own. The saved file holds layers
# of Keras alone, so it loads without this project.

# %%
plain = network.plain_copy(model)
with files.replacing(folders.model) as temporary:
    plain.save(temporary)
with files.replacing(folders.model_weights) as temporary:
    plain.save_weights(temporary)
files.write_csv(folders.history_fine_tune, history)

# %%
reloaded = keras.saving.load_model(folders.model, compile=False, safe_mode=True)
assert abs(training.predict(reloaded, val.images[:64]) - training.predict(model, val.images[:64])).max() < 1e-5

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=[folders.model, folders.model_weights, folders.history_fine_tune],
    figures={
        "epochs": len(history),
        "VAL accuracy": round(best["val_accuracy"], 4),
        "VAL macro F1": round(best["val_macro_f1"], 4),
    },
)
