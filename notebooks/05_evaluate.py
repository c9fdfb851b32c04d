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
# **In:** `model.keras`, `trained.csv`, `VAL/`, `TEST/`, `manifest.csv`; `model_votes.keras`, if there is one. **Out:**
# `metrics.json`, predictions, classification reports and confusion matrices of VAL and TEST, `report.html`.
#
# **Takes** one pass of VAL and TEST through the model. After the first batches the notebook says how long that takes.
#
# **Expect** on FER2013 happy and surprise to be easy, fear and sad to be taken for each other. Human annotators reach about
# 0.65 (Goodfellow et al. 2013), single networks at most some 0.74 (`docs/published_numbers.md`). A score far above says more
# about leakage.
# The demo's drawn faces are far easier: a high score on them shows that the pipeline works.

# %% tags=["parameters"]
# What the specification names
seed: int = 42  # >= 0, < 4294967296; every random choice follows from it
# Beyond it
limit_per_class: int = 0  # >= 0; images of each class to evaluate, 0: all
leave_out: str = "none"  # none | conflicts | blanks | conflicts_and_blanks | not_a_face | all; images kept out
find_label_issues: bool = False  # lists labels that are probably wrong; needs cleanlab, an extra
n_mistakes: int = 24  # >= 0; wrong predictions shown
n_confused: int = 6  # >= 0; pairs of classes most often confused, shown with faces
test_time_augmentation: str = "none"  # none | flip | ten_crop; views of an image whose predictions are averaged
also: str = ""  # folders, zips or tables of pictures to score the model on too, separated by ;
also_classes: str = ""  # class of each folder, as joy=happy,unsure=; affectnet, fer2013 or raf-db for their numbers
also_columns: str = ""  # PICTURE:LABEL, the columns of a table to take instead of folders, as pth:label
also_faces: str = "whole"  # whole | detect; pictures of also as they are, or the one face found in each
also_groups: str = ""  # CSV with file names and attributes of pictures of also, to score by group
corruptions: bool = False  # scores TEST under eight corruptions in five strengths: 40 passes more
picture: str = ""  # a photograph to try the model on, from the project's root; empty: none
# The machine
profile: str = "auto"  # none, a profile's name in params/, or auto: the one that suits this machine
run: str = "auto"  # name of the run's folder; auto takes the profile's name
outputs_dir: str = "outputs"  # folder of all runs, from the project's root
data_dir: str = ""  # folder of the image folders; empty: the run's own

# %% [markdown]
# ## Setup

# %%
from fer_utils import plots
from fer_utils.data import loading
from fer_utils.evaluation import inference, label_issues, report, scores
from fer_utils.pipeline import stages
from fer_utils.predict import reader
from fer_utils.training import devices

import keras
from IPython.display import Markdown, display

stage = stages.begin("evaluate", globals())
devices.set_up(seed)
photograph = reader.load_if_given(picture)  # one that cannot be read stops the stage here

# %% [markdown]
# ## Load
# The model takes raw images. 03 and 04 have not read TEST. A picture counts as seen in training where the model
# was trained on a copy of it.

# %%
manifest = scores.mark_seen(stage.read("manifest.csv"), stage.read("trained.csv"))
faces = loading.load_scored(loading.leave_out(manifest, leave_out), stage.images, limit_per_class, seed)
model = keras.saving.load_model(stage.path("model.keras"), compile=False, safe_mode=True)

# %% [markdown]
# ## Do
# Seven probabilities for every image. With test-time augmentation, the same from several views of each image: a score
# beside the plain one, never instead of it.

# %%
predictions, augmented = {}, {}
for split, shown in faces.items():
    predictions[split] = inference.predict(model, shown)
    if test_time_augmentation != "none":
        augmented[split] = inference.predict(model, shown, test_time_augmentation)

# %% [markdown]
# ## Scores
# F1 is the macro average: every class counts the same, however rare. TEST has rows for its Public and Private parts too,
# where the source has them; published scores are those of Private. The intervals are 95 % bootstrap intervals of accuracy
# and macro F1: the range to expect with other pictures of the same kind. Copies of one picture are drawn together. Macro
# precision and recall are in `metrics.json`.

# %%
policy = stage.read("leakage.json")["policy"]
metrics = scores.metrics(predictions, policy, augmented, test_time_augmentation) | {"run": stage.about_run()}
display(Markdown(f"**{report.honesty_line(metrics)}**"))
report.score_table(metrics).drop(columns=["macro_precision", "macro_recall"]).round(4)

# %% [markdown]
# Against both label sets, where FER+'s votes are there: FER2013's label, and the majority of ten people. How many of the
# mistakes are on pictures where the two differ? With a second output that learned the votes (`votes_output` of 04), its
# answers are scored against the majority too.

# %%
if scores.has_votes(predictions):
    second = {}
    if stage.has("model_votes.keras"):
        votes_model = keras.saving.load_model(stage.path("model_votes.keras"), compile=False, safe_mode=True)
        second = {split: inference.predict(votes_model, shown) for split, shown in faces.items()}
    metrics["label_sets"] = scores.against_both(predictions, second)
    display(report.label_set_table(metrics).round(4))
    print(report.disagreement_line(metrics, "TEST"))

# %% [markdown]
# ## Class by class

# %%
class_reports = {split: scores.class_report(table) for split, table in predictions.items()}
class_reports["TEST"].round(3)

# %%
f1 = class_reports["TEST"].iloc[:7].set_index("class")["f1"]
print(f"easiest: {f1.idxmax()} (F1 {f1.max():.3f}); hardest: {f1.idxmin()} (F1 {f1.min():.3f})")

# %% [markdown]
# ## Confusion matrices
# On the left the counts, on the right the share of each true class: what is taken for what?

# %%
for split, table in predictions.items():
    figure = plots.confusion_matrix(scores.confusion(table), report.confusion_title(metrics, split))
    stage.show(figure, f"confusion_matrix_{split.lower()}")

# %% [markdown]
# The pairs of classes most often confused on TEST, and the most confident mistakes of each: are the labels right?

# %%
confused = scores.most_confused(predictions["TEST"], n_confused)
display(confused.round(3))
rows = scores.surest_of_pairs(predictions["TEST"], confused)
if rows:
    shown = {title: faces["TEST"].grey(numbers) for title, numbers in rows.items()}
    stage.show(plots.rows_of_faces(shown), "confused_pairs")
    n_wrong = (predictions["TEST"]["label"] != predictions["TEST"]["predicted"]).sum()
    print(f"these {len(confused)} pairs are {confused['n'].sum() / n_wrong:.0%} of all mistakes")

# %% [markdown]
# ## Can its confidence be trusted?
# Of the predictions with a confidence of 80 %, 80 % should be right. Where bars stay below the diagonal, the model is
# overconfident. The lower figure shows the number of images in each bin: a bin with few images says little.

# %%
stage.show(plots.reliability({split: scores.reliability(table) for split, table in predictions.items()}), "reliability")
errors = {split: f"{metrics[split.lower()]['calibration_error']:.3f}" for split in predictions}
print(f"expected calibration error: VAL {errors['VAL']}, TEST {errors['TEST']}")

# %% [markdown]
# Temperature scaling divides the scores before softmax by one number. It corrects a confidence that is too high or too
# low throughout, and changes no prediction. The temperature is fitted on VAL; TEST shows whether it helps.

# %%
temperature = scores.fit_temperature(predictions["VAL"])
metrics["temperature_scaling"] = scores.temperature_scaling(predictions, temperature)
scaled = scores.at_temperature(predictions["TEST"], temperature)
bins = {
    "TEST as it is": scores.reliability(predictions["TEST"]),
    f"TEST at temperature {temperature:.2f}": scores.reliability(scaled),
}
stage.show(plots.reliability(bins), "temperature")
report.calibration_table(metrics).round(4)

# %% [markdown]
# ## Grad-CAM
# Which parts of a face raise the score of the predicted class? For each class, the figure shows the most confident right
# prediction on TEST and the most confident wrong one, with the predicted class and its probability. Heat on hair or
# background means that the model uses something other than the expression. In a picture without heat no part raises the
# score.

# %%
extremes = scores.surest_of_each_class(predictions["TEST"])
pictures = faces["TEST"].grey(extremes.index)
heat = inference.grad_cam(model, pictures[..., None], scores.class_codes(extremes["predicted"]))
stage.show(plots.heat_on_faces(pictures, heat, extremes), "grad_cam")
print(f"heat maps of {heat.shape[1]} × {heat.shape[2]} squares, drawn smoothly")

# %% [markdown]
# ## The worst mistakes
# The most confident wrong predictions on TEST: the predicted class, its probability, and the label.

# %%
worst = scores.worst_mistakes(predictions["TEST"], n_mistakes)
if len(worst):
    titles = [f"{row.predicted} {row.confidence:.2f}\nlabel: {row.label}" for row in worst.itertuples()]
    stage.show(plots.faces(faces["TEST"].grey(worst.index), titles, 8), "worst_mistakes")
    print(f"the most confident mistake has a probability of {worst['confidence'].iloc[0]:.3f}")

# %% [markdown]
# ## Optional: other test sets
# With `also`: your own pictures, RAF-DB, AffectNet. They are not part of TEST. How many of them the model has seen in
# training is counted as for TEST, by copies. With `also_groups` the table has the scores of each group of people too.

# %%
finder, trained = reader.face_finder(also_faces), stage.read("trained.csv")
others = loading.load_other_sets(also, also_classes, finder, trained, stage.images, also_columns, also_groups)
for name, shown in others.items():
    table = inference.predict(model, shown)
    metrics["also"] = metrics.get("also", {}) | {name: scores.scores_of_set(table)}
    figure = plots.confusion_matrix(scores.confusion(table), report.other_title(metrics, name))
    stage.show(figure, f"confusion_matrix_also_{name}")
    stage.save(table, f"predictions_also_{name}.csv")
if others:
    display(report.other_sets_table(metrics).round(4))

# %% [markdown]
# ## Optional: harder pictures
# With `corruptions`: TEST under blur, noise, JPEG compression, low light, low resolution, rotation, a covered mouth and
# covered eyes, each in five strengths. The mean accuracy over all of them is one number for comparing runs.

# %%
if corruptions:
    stage.show(plots.rows_of_faces(inference.corruption_examples(faces["TEST"].images[0], seed)), "corruption_examples")
    harder = inference.score_corrupted(model, faces["TEST"], seed)
    stage.save(harder, "corruptions_test.csv")
    metrics["corruptions"] = inference.corruption_summary(harder)
    stage.show(plots.corruptions(harder, metrics["test"]["accuracy"]), "corruptions")
    display(
        harder.pivot_table("accuracy", "corruption", "level", sort=False, margins=True, margins_name="mean").round(3)
    )

# %% [markdown]
# ## Optional: wrong labels
# With `find_label_issues`: confident learning (cleanlab) lists labels that the model's probabilities contradict. The model
# did not train on these pictures, unless copies were left in TRAIN. FER+'s votes show how often the list is right.

# %%
for split, table in predictions.items() if find_label_issues else ():
    issues = label_issues.find_in_predictions(table)
    stage.save(issues, f"label_issues_{split.lower()}.csv")
    worst = issues.head(16)
    shown = label_issues.titles(worst)
    figure = plots.faces(faces[split].grey(worst.index), shown, 8, f"{split}: labels that are probably wrong")
    stage.show(figure, f"label_issues_{split.lower()}")
    print(f"{split}: {issues['is_issue'].sum():,} of {len(issues):,} labels are probably wrong")
    worth = label_issues.worth(issues)
    if len(worth):
        display(worth.round(3))

# %% [markdown]
# ## Optional: a picture of your choice
# With `picture`: each face found in it, and what this run's model predicts for it, beside the model that comes with the
# project.

# %%
if photograph:
    for number, (name, reading) in enumerate(reader.read_photograph(stage.path("model.keras"), photograph).items()):
        stage.show(reading.figure(), f"picture_{number}" if number else "picture")
        print(f"{name}, faces found: {len(reading.faces)}; {', '.join(face.label for face in reading.faces)}")

# %% [markdown]
# ## Save
# Tables, `metrics.json` and the report.

# %%
for split, table in predictions.items():
    stage.save(table, f"predictions_{split.lower()}.csv")
    stage.save(class_reports[split], f"classification_report_{split.lower()}.csv")
metrics["per_class"] = {split.lower(): table.to_dict("records") for split, table in class_reports.items()}
metrics["run"] = stage.about_run()
stage.save(metrics, "metrics.json")
stage.save(report.page(metrics, run, stage.run.figure, stage.executed_notebooks()), "report.html")
print(f"report: {stage.path('report.html')}")

# %% [markdown]
# ## Summary

# %%
stage.finish(
    outputs=["metrics.json", "report.html", "confusion_matrix_test.png"],
    figures={
        "TEST accuracy": round(metrics["test"]["accuracy"], 4),
        "TEST macro F1": round(metrics["test"]["macro_f1"], 4),
    }
    | scores.seen_counts(predictions),
)
print(report.honesty_line(metrics))
