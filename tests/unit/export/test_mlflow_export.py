"""What an MLflow store holds after an export is what the run's files say, each run once."""

import importlib.util
import shutil

import run_all
from fer_utils import files
from fer_utils.export import mlflow_export
from fer_utils.export.mlflow_export import MLflowError
from fer_utils.pipeline import runs
from fer_utils.places import NotFoundHere

import pandas as pd
import pytest

HAS_MLFLOW = all(importlib.util.find_spec(name) for name in mlflow_export.PACKAGES)
needs_mlflow = pytest.mark.skipif(not HAS_MLFLOW, reason="mlflow-skinny, in the extra `mlflow`, is not installed")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """One store for all tests of this file, since MLflow takes seconds to make its tables."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def done(fake_run, request):
    """A finished run with figures, named after the test."""
    fake = fake_run(request.node.name).do()
    (fake.folders.folder / "figures").mkdir()
    for file in (
        fake.folders.figure("rates"),
        fake.folders.figure("confusion_matrix_test"),
        fake.folders.path("report.html"),
    ):
        file.write_text(f"drawn: {file.name}")
    return fake


def _client(store: str):
    from mlflow import MlflowClient

    return MlflowClient(store)


def _in_store(store: str, name: str) -> list:
    client = _client(store)
    experiment = client.get_experiment_by_name("fer").experiment_id
    return [found for found in client.search_runs([experiment]) if found.data.tags["fer.run"] == name]


def _export(fake, store: str) -> str:
    (run_id,) = mlflow_export.export([runs.read(fake.folders.folder)], store).values()
    return run_id


@needs_mlflow
def test_parameters_scores_history_and_files_arrive(done, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_id = _export(done, store)
    (found,) = _in_store(store, done.folders.folder.name)
    assert found.info.run_id == run_id and found.info.status == "FINISHED"
    wanted = {f"{stage}.{name}": str(value) for stage, own in done.values.items() for name, value in own.items()}
    assert found.data.params == wanted
    metrics = files.read_json(done.folders.path("metrics.json"))
    for split in ("val", "test"):
        for score in ("accuracy", "macro_f1"):
            low, high = metrics[split][f"{score}_interval"]
            stored = [found.data.metrics[f"{split}_{score}{end}"] for end in ("", "_low", "_high")]
            assert stored == [metrics[split][score], low, high]
        assert found.data.metrics[f"leakage_{split}_images_seen_in_training"] == 0
    history = _client(store).get_metric_history(run_id, "history/val_loss")
    tables = [
        pd.read_csv(path)
        for path in (done.folders.path("history_head.csv"), done.folders.path("history_fine_tune.csv"))
    ]
    expected = pd.concat(tables)[["epoch", "val_loss"]].to_numpy().tolist()
    assert [[point.step, point.value] for point in history] == expected
    copied = tmp_path / "copied"
    copied.mkdir()
    _client(store).download_artifacts(run_id, "", str(copied))
    for name in ("model.keras", "metrics.json", "report.html", "history_head.csv"):
        assert (copied / name).read_bytes() == (done.folders.folder / name).read_bytes()
    assert sorted(path.name for path in (copied / "figures").iterdir()) == ["confusion_matrix_test.png", "rates.png"]
    assert not (tmp_path / "mlruns").exists()  # where MLflow puts things unless told otherwise


@needs_mlflow
def test_a_run_that_is_exported_again_replaces_itself_and_no_other(done, fake_run, store):
    other = _export(fake_run("a run beside it's").do(), store)
    first = _export(done, store)
    done.do("fine_tune", "evaluate", content="x")
    second = _export(done, store)
    name = done.folders.folder.name
    assert second != first and [found.info.run_id for found in _in_store(store, name)] == [second]
    assert [found.info.run_id for found in _in_store(store, "a run beside it's")] == [other]


@needs_mlflow
def test_a_run_of_the_same_name_in_another_outputs_folder_is_another(done, store, tmp_path):
    first = _export(done, store)
    elsewhere = shutil.copytree(done.folders.folder, tmp_path / "elsewhere" / done.folders.folder.name)
    mlflow_export.export([runs.read(elsewhere)], store)
    assert first in [found.info.run_id for found in _in_store(store, elsewhere.name)]


@needs_mlflow
@pytest.mark.parametrize("step", ["log_batch", "log_artifact"])
def test_an_interrupted_export_is_done_again_and_its_remains_go(done, store, monkeypatch, step):
    from mlflow import MlflowClient

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            _export(done, store)
    assert [found.info.status for found in _in_store(store, done.folders.folder.name)] == ["RUNNING"]
    _export(done, store)
    assert [found.info.status for found in _in_store(store, done.folders.folder.name)] == ["FINISHED"]


@needs_mlflow
def test_the_command_takes_several_runs_and_a_store_seen_from_where_the_user_stands(
    fake_run, tmp_path, monkeypatch, capsys
):
    outputs = fake_run("one").do().folders.folder.parent
    fake_run("two").do()
    monkeypatch.chdir(tmp_path)
    arguments = ["--outputs-dir", str(outputs), "--to-mlflow", "one", "two", "--tracking-uri", "sqlite:///here.db"]
    assert run_all.main(arguments) == 0
    assert "one: written as" in capsys.readouterr().out and (tmp_path / "here.db").is_file()
    monkeypatch.chdir(tmp_path)
    assert run_all.main(arguments) == 0
    assert capsys.readouterr().out.count("written as") == 2


@needs_mlflow
def test_a_store_that_cannot_be_opened_is_named(done, tmp_path):
    (tmp_path / "broken.db").write_text("this is no database" * 100)
    with pytest.raises(MLflowError, match=r"broken\.db"):
        _export(done, f"sqlite:///{tmp_path / 'broken.db'}")


def test_an_unfinished_run_is_refused_before_anything_is_written(fake_run, tmp_path):
    found = [runs.read(fake.folders.folder) for fake in (fake_run("whole").do(), fake_run("half").do("merge_split"))]
    with pytest.raises(NotFoundHere, match=r"half \(next: balance\)"):
        mlflow_export.export(found, f"sqlite:///{tmp_path / 'never.db'}")
    assert not (tmp_path / "never.db").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fake: fake.do("balance", content="x"), r"done \(next: train_head\)"),
        (lambda fake: fake.do("fine_tune", content="x"), r"done \(next: evaluate\)"),
        (
            lambda fake: fake.folders.path("model.keras").write_text("another"),
            r"metrics\.json does not hold the scores of",
        ),
    ],
)
def test_a_run_with_the_scores_of_another_model_is_refused(fake_run, tmp_path, change, said, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # it is refused before MLflow is imported
    fake = fake_run("done").do()
    change(fake)
    with pytest.raises(NotFoundHere, match=said):
        mlflow_export.export([runs.read(fake.folders.folder)], f"sqlite:///{tmp_path / 'never.db'}")
    assert not (tmp_path / "never.db").exists()


def test_without_mlflow_the_message_names_the_extra(done, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outputs, name = done.folders.folder.parent, done.folders.folder.name
    assert run_all.main(["--outputs-dir", str(outputs), "--to-mlflow", name]) == 2
    assert "extra `mlflow`" in " ".join(capsys.readouterr().err.split())
    assert not (outputs / "mlflow.db").exists()


def test_a_tracking_uri_alone_is_refused(capsys):
    assert run_all.main(["--tracking-uri", "sqlite:///x.db"]) == 2
    assert "--to-mlflow" in capsys.readouterr().err
