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
# # 05 · Evaluate
#
# **Question.** How good is the model, on which faces does it fail, and can the score be believed?
#
# **In:** `model.keras`, `trained.csv`, `VAL/`, `TEST/`, `manifest.csv`. **Out:** `metrics.json`, predictions,
# classification reports and confusion matrices of VAL and TEST, `report.html`.
#
# **Takes** one pass of VAL and TEST through the model: minutes on a CPU at 96 px, seconds on a GPU.
#
# **Expect** on FER2013 happy and surprise to be easy, fear and sad to be taken for each other. Published accuracies lie
# between 0.65 and 0.76, human annotators near 0.65 (Goodfellow et al. 2013); a score far above says more about leakage.
# The demo's drawn faces are far easier: a high score on them shows that the pipeline works.

# %% tags=["parameters"]
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own
seed: int = 42  # >= 0; every random choice follows from it
limit_per_class: int = 0  # >= 0; images of each class to evaluate, 0: all
leave_out: str = "none"  # none | conflicts | blanks | both; images kept out of every score
n_mistakes: int = 24  # >= 0; wrong predictions shown
n_confused: int = 6  # >= 0; pairs of classes most often confused, shown with faces
test_time_augmentation: str = "none"  # none | flip | ten_crop; views of an image whose predictions are averaged
picture: str = ""  # a photograph to try the model on, from the project's root; empty: none

# %% [markdown]
# ## Setup

# %%
from fer_utils import files, images, places, plots
from fer_utils.classes import CLASSES
from fer_utils.data import audit, loading
from fer_utils.evaluation import grad_cam, report, scores
from fer_utils.evaluation.test_time_augmentation import predict_with_views
from fer_utils.pipeline import records, stages
from fer_utils.predict import photographs
from fer_utils.training import devices, loop

import keras
import matplotlib.pyplot as plt
from IPython.display import Markdown, display

stage = stages.begin("evaluate", globals())
folders = stage.folders
stage.require(folders.model, folders.trained, folders.manifest, folders.leakage)
stage.require(folders.split("VAL"), folders.split("TEST"))
photograph = photographs.load(places.place(picture)) if picture else None
devices.make_reproducible(seed)

# %% [markdown]
# ## Load
# The model takes raw images; TEST is read here for the first time. A picture counts as seen in training where the model
# was trained on a copy of it.

# %%
manifest = loading.read_table(folders.manifest, ("split", "label", "path", "usage", "group", "label_conflict", "flags"))
trained = loading.read_table(folders.trained, ("train_path",))
manifest["seen_in_training"] = audit.seen_in_training(manifest, trained["train_path"])
scored = scores.leave_out(manifest, leave_out)
faces = {
    split: loading.load_faces(scored[scored["split"] == split], folders.data, limit_per_class, seed)
    for split in ("VAL", "TEST")
}
model = keras.saving.load_model(folders.model, compile=False, safe_mode=True)
print({split: len(of) for split, of in faces.items()})

# %% [markdown]
# ## Do
# Seven probabilities for every image.

# %%
predictions = {split: scores.prediction_table(of.table, loop.predict(model, of.images)) for split, of in faces.items()}

# %% [markdown]
# With test-time augmentation, the same from several views of each image: a score beside the plain one, never instead of it.

# %%
augmented = {}
if test_time_augmentation != "none":
    augmented = {
        split: scores.prediction_table(of.table, predict_with_views(model, of.images, test_time_augmentation))
        for split, of in faces.items()
    }

# %% [markdown]
# ## Scores
# Precision, recall and F1 are macro averages: every class counts the same, however rare. TEST also in its Public and
# Private parts, where the source tells them apart: published scores are of Private. The intervals say how far accuracy and
# macro F1 would move with other images of the same kind (95 % bootstrap). Macro precision and recall are in `metrics.json`.

# %%
leaks = {
    f"{split.lower()}_images_seen_in_training": int(of.table["seen_in_training"].sum()) for split, of in faces.items()
}
metrics = {split.lower(): scores.scores_with_parts(of) for split, of in predictions.items()}
metrics |= {"leakage": {"policy": files.read_json(folders.leakage)["policy"], **leaks}}
if augmented:
    metrics["test_time_augmentation"] = {"kind": test_time_augmentation} | {
        split.lower(): scores.scores_with_parts(of) for split, of in augmented.items()
    }
display(Markdown(f"**{report.honesty_line(metrics)}**"))
report.score_table(metrics).drop(columns=["macro_precision", "macro_recall"]).round(4)

# %% [markdown]
# ## Class by class

# %%
reports = {split: scores.class_report(of) for split, of in predictions.items()}
reports["TEST"].round(3)

# %%
of_classes = reports["TEST"].iloc[:7].set_index("class")["f1"]
print(
    f"easiest: {of_classes.idxmax()} (F1 {of_classes.max():.3f}); hardest: {of_classes.idxmin()} (F1 {of_classes.min():.3f})"
)

# %% [markdown]
# ## Confusion matrices
# Left the counts, right the share of each true class: what is taken for what?

# %%
for split, of in predictions.items():
    score = metrics[split.lower()]
    title = f"{split}: accuracy {score['accuracy']:.3f}, macro F1 {score['macro_f1']:.3f}\n{report.leak_note(metrics, split)}"
    figure = plots.confusion_matrix(scores.confusion(of), title)
    plots.save(figure, folders.for_split("confusion_matrix", split, ".png"))
    plt.show()

# %% [markdown]
# What is most often taken for what on TEST, and its most confident mistakes of each kind: are the labels right?

# %%
confused = scores.most_confused(predictions["TEST"], n_confused)
display(confused.round(3))
surest = scores.surest(predictions["TEST"])
rows = {}
for pair in confused.itertuples():
    of_pair = surest[(surest["label"] == pair.label) & (surest["predicted"] == pair.predicted)].head(10)
    title = f"{pair.label} taken for {pair.predicted}: {pair.n:,} images, {pair.share:.0%} of {pair.label}"
    rows[title] = images.load([folders.data / path for path in of_pair["path"]])
if rows:
    figure = plots.rows_of_faces(rows)
    plots.save(figure, folders.figure("confused_pairs"))
    plt.show()
    n_wrong = (surest["label"] != surest["predicted"]).sum()
    print(f"these {len(confused)} pairs are {confused['n'].sum() / n_wrong:.0%} of all mistakes")

# %% [markdown]
# ## Can its confidence be trusted?
# Of the predictions with a confidence of 80 %, 80 % should be right. Bars below the diagonal: the model is overconfident.
# Below, how many images each bin holds; a bin with few says little.

# %%
figure = plots.reliability({split: scores.reliability(of) for split, of in predictions.items()})
plots.save(figure, folders.figure("reliability"))
plt.show()
print(
    f"expected calibration error: VAL {metrics['val']['calibration_error']:.3f}, TEST {metrics['test']['calibration_error']:.3f}"
)

# %% [markdown]
# A temperature that divides the scores before softmax can mend a confidence that is too high or too low throughout, and
# changes no prediction. It is fitted on VAL; what it is worth, TEST says.

# %%
temperature = scores.fit_temperature(predictions["VAL"])
metrics["temperature_scaling"] = {"temperature": temperature} | {
    split.lower(): scores.scores_at(of, temperature) for split, of in predictions.items()
}
figure = plots.reliability(
    {
        "TEST as it is": scores.reliability(predictions["TEST"]),
        f"TEST at temperature {temperature:.2f}": scores.reliability(
            scores.at_temperature(predictions["TEST"], temperature)
        ),
    }
)
plots.save(figure, folders.figure("temperature"))
plt.show()
report.calibration_table(metrics).round(4)

# %% [markdown]
# ## Where does it look?
# Grad-CAM: the parts of a face that speak for the class that the model predicted. For each class, the most confident right
# prediction on TEST and the most confident wrong one, with the predicted class and its probability. Heat on hair or
# background means that the model learned something else than expressions.

# %%
extremes = scores.surest_of_each_class(predictions["TEST"])
pictures = images.load([folders.data / path for path in extremes["path"]])
heat = grad_cam.grad_cam(model, pictures[..., None], extremes["predicted"].map(CLASSES.index).to_numpy())
titles = [f"{row.predicted} {row.confidence:.2f}" for row in extremes.itertuples()]
places = [(int(row.label != row.predicted), CLASSES.index(row.label)) for row in extremes.itertuples()]
rows = {"predicted right": "never right", "predicted wrong": "never wrong"}
figure = plots.heat_on_faces(pictures, heat, titles, places, rows)
plots.save(figure, folders.figure("grad_cam"))
plt.show()
print(f"heat maps of {heat.shape[1]} × {heat.shape[2]} squares, drawn smoothly")

# %% [markdown]
# ## The worst mistakes
# The most confident wrong predictions on TEST: the predicted class, its probability, and the label.

# %%
worst = scores.worst_mistakes(predictions["TEST"], n_mistakes)
if len(worst):
    pictures = images.load([folders.data / path for path in worst["path"]])
    titles = [f"{row.predicted} {row.confidence:.2f}\nlabel: {row.label}" for row in worst.itertuples()]
    figure = plots.faces(pictures, titles, 8)
    plots.save(figure, folders.figure("worst_mistakes"))
    plt.show()
    print(f"the most confident mistake has a probability of {worst['confidence'].iloc[0]:.3f}")

# %% [markdown]
# ## On a picture of your choice
# With `picture` set: each face found in it, and what the model reads there.

# %%
if picture:  # imported here: who sets none needs no face detector
    from fer_utils.predict import detection, reader

    (reading,) = reader.Reader(folders.model, detection.Detector()).read([photograph])
    plt.imshow(reading.drawn())
    plt.axis("off")
    plt.show()
    print(
        f"{reader.counted(len(reading.faces), 'face')} found: {', '.join(face.label for face in reading.faces) or 'none'}"
    )

# %% [markdown]
# ## Save
# Tables, `metrics.json` and the report.

# %%
for split, of in predictions.items():
    files.write_csv(folders.for_split("predictions", split, ".csv"), of)
    files.write_csv(folders.for_split("classification_report", split, ".csv"), reports[split])
records = records.read(folders)
metrics["per_class"] = {split.lower(): table.to_dict("records") for split, table in reports.items()}
metrics["run"] = {
    "params": {name: record["parameters"] for name, record in records.items()} | {"evaluate": stage.parameters},
    "versions": records.versions(),
    "seed": seed,
    "seconds_per_stage": {name: record["seconds"] for name, record in records.items()} | {"evaluate": stage.seconds()},
}
files.write_json(folders.metrics, metrics)

# %%
report.write_report(folders, metrics)
print(f"report: {folders.report}")

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=[folders.metrics, folders.report, folders.for_split("confusion_matrix", "TEST", ".png")],
    figures={
        "TEST accuracy": round(metrics["test"]["accuracy"], 4),
        "TEST macro F1": round(metrics["test"]["macro_f1"], 4),
    }
    | leaks,
)
print(report.honesty_line(metrics))
