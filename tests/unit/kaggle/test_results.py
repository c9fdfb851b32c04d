"""What a finished run leaves on Kaggle: results, and one zip of the rest."""

import zipfile

from fer_utils.kaggle import results
from fer_utils.pipeline import paths


def test_results_lie_beside_one_zip_of_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path))
    of = paths.run_folders("r", "/kaggle/working", "/kaggle/content/images")
    best = [of.metrics, of.report, of.model, *(of.for_split("confusion_matrix", s, ".png") for s in ("VAL", "TEST"))]
    for path in (*best, of.manifest, of.figure("faces"), of.run / ".stage.lock", of.split("VAL") / "happy/b.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    left = results.deliver(of)
    assert {path.name for path in (tmp_path / "working").iterdir()} == {path.name for path in best} | {"r.zip"}
    assert sorted(left) == sorted((tmp_path / "working").iterdir())
    assert (tmp_path / "working/metrics.json").read_text() == "metrics.json"
    with zipfile.ZipFile(tmp_path / "working/r.zip") as packed:
        assert sorted(packed.namelist()) == ["run/figures/faces.png", "run/manifest.csv"]  # no lock, no picture
    assert (of.split("VAL") / "happy/b.png").is_file()
