"""What a finished run leaves on Kaggle: results, and one zip of the rest."""

import zipfile

from fer_utils.kaggle import results
from fer_utils.pipeline import runs


def test_results_lie_beside_one_zip_of_the_rest(tmp_path, monkeypatch):
    monkeypatch.setenv("FER_KAGGLE_ROOT", str(tmp_path))
    of = runs.run_named("r", "/kaggle/working", "/kaggle/content/images")
    names = ("metrics.json", "report.html", "model.keras", "confusion_matrix_val.png", "confusion_matrix_test.png")
    best, picture = [of.path(name) for name in names], of.path("images/VAL/happy/b.png")
    for path in (*best, of.path("manifest.csv"), of.figure("faces"), of.path(".stage.lock"), picture):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    left = results.deliver(of)
    assert {path.name for path in (tmp_path / "working").iterdir()} == {path.name for path in best} | {"r.zip"}
    assert sorted(left) == sorted((tmp_path / "working").iterdir())
    assert (tmp_path / "working/metrics.json").read_text() == "metrics.json"
    with zipfile.ZipFile(tmp_path / "working/r.zip") as packed:
        assert sorted(packed.namelist()) == ["run/figures/faces.png", "run/manifest.csv"]  # no lock, no picture
    assert picture.is_file()
