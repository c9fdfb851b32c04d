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
# **Question.** How much does ResNet50 gain when its top layers train on faces too?
#
# **In:** `TRAIN_BALANCED/`, `VAL/`, `head.weights.h5`. **Out:** `model.keras`, `model.weights.h5`,
# `history_fine_tune.csv`, `trained.csv`, learning curves over both phases; `model_votes.keras` with `votes_output`.
#
# **Takes** most of the run's time. After the first steps the notebook says how long an epoch takes here.
#
# **Expect** VAL's scores to rise at first, and TRAIN's to overtake them after some epochs. With `schedule` `plateau` the
# rate then falls and the weight decay rises; with `cosine` the rate falls from step to step. At the end the weights with
# the lowest VAL loss are restored. From random weights (`weights` is `none`) VAL may fall in the first epoch.

# %% tags=["parameters"]
# What the specification names
seed: int = 42  # >= 0, < 4294967296; every random choice follows from it
image_size: int = 224  # >= 32; pixels a side that the backbone sees; the cpu profile takes 96
backbone: str = "resnet50"  # resnet50 | small; specification is resnet50
weights: str = "imagenet"  # imagenet, a path to a notop .h5, or none; for small: shipped, a model's file, or none
batch_size: int = 64  # >= 1; specification
epochs: int = 20  # >= 1; specification: further epochs, counted on from phase 1
unfreeze_top: int = 50  # >= 0; specification: layers of the backbone that train; resnet50 has 175, small 45
batch_norm: str = "frozen"  # frozen | trained; specification is frozen; trained suits random weights
optimizer: str = "adamw"  # adamw | adam; specification
learning_rate: float = 8e-5  # > 0; specification
weight_decay: float = 0.01  # >= 0; AdamW only: a step shrinks a weight by learning_rate x weight_decay of itself
weight_decay_factor: float = 2.0  # >= 1; the decay is multiplied by it when the rate drops
weight_decay_cap: float = 0.1  # > 0; the decay rises no higher
lr_factor: float = 0.5  # > 0, < 1; specification: the rate falls to this share on a plateau
lr_patience: int = 2  # >= 1; epochs without a lower VAL loss before the rate falls
stop_patience: int = 6  # >= 1; specification: epochs without a lower VAL loss before training stops
# Beyond it
limit_per_class: int = 0  # >= 0; images of each class that train and validate, 0: all
votes_share: float = 0.0  # >= 0, <= 1; share of each target that is FER+'s votes; the rest is the label
schedule: str = "plateau"  # plateau | cosine; specification is plateau; cosine falls to 0 at the last step
warmup_epochs: float = 0.0  # >= 0; cosine only: epochs in which the rate rises to learning_rate
clip_norm: float = 0.0  # >= 0; gradients of a larger norm over all weights are scaled down to it, 0: off
augmentation: str = "none"  # none | light | heavy; on the fly, on top of the copies that 02 made
mixup: float = 0.0  # >= 0; alpha of the Beta distribution that pictures are mixed by, 0: off; 0.2 is common
label_smoothing: float = 0.0  # >= 0, < 1; share of each TRAIN label spread over all classes
weight_averaging: float = 0.0  # >= 0, < 1; decay of the weights' average that VAL scores and that is saved, 0: off
votes_output: float = 0.0  # >= 0; weight of the loss of a second output that learns FER+'s votes, 0: no such output
logit_adjustment: bool = False  # raises the scores of classes with few pictures, as far as VAL's macro F1 gains
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
from fer_utils.data.augmentation import Changes
from fer_utils.pipeline import stages
from fer_utils.training import devices, frozen_prefix, loop, network, optimizers

import keras
import pandas as pd

stage = stages.begin("fine_tune", globals())
devices.set_up(seed, deterministic, precision)

# %% [markdown]
# ## Load
# The same images as in phase 1. TEST is not read here either.

# %%
balanced, manifest = stage.read("balanced.csv"), stage.read("manifest.csv")
train, val = loading.load_training(balanced, manifest, stage.images, limit_per_class, seed, votes_share, votes_output)
head_history = stage.read("history_head.csv")

# %% [markdown]
# ## Model
# The network of phase 1 with its trained head. Now the top layers of the backbone train too. With `batch_norm` frozen,
# every BatchNormalization of the backbone stays as it is: batches of faces would upset the statistics that its weights
# rely on.

# %%
model = network.build(image_size, weights, backbone)
_, head = frozen_prefix.split(model)
head.load_weights(stage.path("head.weights.h5"))
if votes_output:
    model = network.with_votes_output(model)
n_training = network.unfreeze_top(model, unfreeze_top, batch_norm)
prefix, suffix = frozen_prefix.split(model)
print(f"of the backbone's top {unfreeze_top} layers {n_training} have weights that train")

# %% tags=["nbval-check-output"]
pd.Series(network.parameter_counts(model), name="weights").to_frame()

# %% [markdown]
# ## Look at what training sees
# The first batch as it reaches the network. As specified it is what 02 wrote. With `augmentation` every epoch shows other
# pictures, with `mixup` two in one.

# %%
changes = Changes(augmentation, mixup, label_smoothing)
first_epoch = len(head_history)
raw_batches = loop.Batches(train.images, train.targets, batch_size, seed, first_epoch, changes)
shown, targets = raw_batches[0]
stage.show(plots.batch(shown[:12], targets[:12], "What training sees"), "batch")
print(
    f"{len(raw_batches):,} steps an epoch; grey levels {shown.min():.0f} to {shown.max():.0f} of 255, the mean {shown.mean():.0f}"
)

# %% [markdown]
# ## Do
# The output of the frozen layers for an image never changes, unless the image itself does. It is computed once, and
# training begins with the first layer that is not frozen.

# %%
rate = optimizers.make_rate(schedule, learning_rate, len(raw_batches), epochs, warmup_epochs)
trained, (train_inputs, val_inputs) = frozen_prefix.prepare(
    prefix, suffix, (train.images, val.images), cache, stage.cache_folder, changes.of_pictures
)
batches = loop.Batches(train_inputs, train.targets, batch_size, seed, first_epoch, changes)
loop.compile_for_training(trained, optimizers.make_optimizer(optimizer, rate, weight_decay, clip_norm))

# %% [markdown]
# On the schedule `plateau` the rate is multiplied by `lr_factor` when VAL's loss no longer falls. Then
# `IncreaseWeightDecayOnLRDrop` raises the weight decay. With `weight_averaging` VAL scores the average of the weights, and
# the best average is kept.

# %%
callbacks = [optimizers.WeightAveraging(weight_averaging)] if weight_averaging else []
if schedule == "plateau":
    callbacks.append(keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=lr_factor, patience=lr_patience))
    if optimizer == "adamw":
        callbacks.append(optimizers.IncreaseWeightDecayOnLRDrop(weight_decay_factor, weight_decay_cap))
callbacks.append(keras.callbacks.EarlyStopping(monitor="val_loss", patience=stop_patience, restore_best_weights=True))

# %% [markdown]
# VAL's loss is always the plain cross-entropy, so that runs can be compared. TRAIN's scores are of the pictures as training
# sees them. Under `mixup` the larger share of a label counts as the right answer. With `votes_output` TRAIN's loss is
# the sum of both outputs' losses; all else, VAL's loss too, is of the output for the labels. The table leaves out precision,
# recall and weight decay, which are in `history_fine_tune.csv`.

# %%
history = loop.fit(
    trained,
    batches,
    loop.Batches(val_inputs, val.labels, loop.PREDICT_BATCH),
    "fine_tune",
    first_epoch=first_epoch,
    epochs=epochs,
    callbacks=callbacks,
    checkpoint=stage.checkpoint,
    time_budget_minutes=time_budget_minutes,
    tensorboard=stage.tensorboard_folder,
)
loop.shown(history)

# %% [markdown]
# ## Look
# Both phases on one axis, with the switch marked.

# %%
stage.show(plots.learning_curves(pd.concat([head_history, history], ignore_index=True)), "learning_curves")
best = history.loc[history["val_loss"].idxmin()]
accuracies = best["val_accuracy"], best["accuracy"]
print(f"lowest VAL loss {best['val_loss']:.3f} in epoch {best['epoch']:.0f} of {history['epoch'].max()}")
print(f"there VAL's accuracy is {accuracies[0]:.3f}, TRAIN's {accuracies[1]:.3f}")

# %% [markdown]
# The learning rate and the weight decay of each epoch. With AdamW a step shrinks a weight by their product.

# %%
stage.show(plots.rates(history), "rates")
ends = history[["learning_rate", "weight_decay"]].iloc[[0, -1]].to_numpy().T
print(f"rate {ends[0, 0]:.2g} → {ends[0, 1]:.2g}, decay {ends[1, 0]:.2g} → {ends[1, 1]:.2g}")

# %% [markdown]
# A model prefers the classes that are frequent in TRAIN. With `logit_adjustment` the scores before softmax are lowered by a
# strength times the logarithm of the class's share in TRAIN_BALANCED (Menon et al. 2021, arXiv:2007.07314). The strength with
# VAL's highest macro F1 is taken.

# %%
plain = network.for_inference(model)
val_accuracy, val_macro_f1 = best[["val_accuracy", "val_macro_f1"]]
if logit_adjustment:
    plain, strengths = network.with_adjusted_logits(plain, loop.predict(plain, val.images), val.labels, train.labels)
    val_accuracy, val_macro_f1 = strengths.loc[strengths["macro_f1"].idxmax()]
    print(strengths.round(4).to_string())

# %% [markdown]
# ## Save and check
# The best weights are restored. The trained layers belong to the whole network, which is saved. The file
# holds layers of Keras alone: it loads without this project, and computes in float32 whatever it was trained in. It also
# says what it was trained on, drawn faces or photographs. `trained.csv` lists the images that either phase trained on; 05
# reports for every score how many of its pictures are among them. With `votes_output` there is a second file,
# `model_votes.keras`: the same network with the second output instead of the first.

# %%
sources = stage.about_run()["params"].get("merge_split")
stage.discard("model_votes.keras")  # an earlier training may have left one
stage.save(lambda path: network.save(plain, path, sources), "model.keras")
stage.save(plain.save_weights, "model.weights.h5")
if votes_output:
    votes = network.for_inference(model, network.VOTES_LAYER)
    stage.save(lambda path: network.save(votes, path, sources), "model_votes.keras")
stage.save(history, "history_fine_tune.csv")
stage.save(loading.originals(train.table, stage.read("trained_head.csv")), "trained.csv")

# %%
reloaded = keras.saving.load_model(stage.path("model.keras"), compile=False, safe_mode=True)
some = val.images[:64]
assert abs(loop.predict(reloaded, some) - loop.predict(plain, some)).max() < 1e-5

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=["model.keras", "model.weights.h5", "history_fine_tune.csv", "trained.csv"],
    figures={
        "epochs": len(history),
        "ended by": history.attrs["ended_by"],
        "VAL accuracy": round(val_accuracy, 4),
        "VAL macro F1": round(val_macro_f1, 4),
    },
)
