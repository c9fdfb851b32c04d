"""What is exported is what Kaggle's client takes, and says what was asked for."""

import ast
import base64
import json
import re
import subprocess
import sys
from pathlib import Path

from fer_utils.kaggle import export
from fer_utils.kaggle.export import ExportError
from fer_utils.pipeline import parameters
from fer_utils.pipeline.parameters import STAGES

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ALL = "fer-resnet50"


def values(**common) -> dict[str, dict]:
    profile = parameters.load_profile(parameters.profile_path("kaggle"))
    layers = [("kaggle", profile), ("test", {"common": {"profile": "none", "run": "kaggle", **common}})]
    return parameters.resolve(parameters.declared(), layers)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    export.export(folder, values(seed=7), "jane", export.WEIGHTS)
    return folder


def notebook(folder: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(folder / name / f"{name}.ipynb", as_version=4)


def metadata(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "kernel-metadata.json").read_text())


class Stopped(Exception):
    """Instead of a request to Kaggle."""


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Kaggle's own client, that collects the request it would send."""
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path))  # no one's credentials
    extended = pytest.importorskip("kaggle.api.kaggle_api_extended", reason="needs the package kaggle")
    requests = []

    class Recorder:
        kernels = property(lambda self: self)
        kernels_api_client = property(lambda self: self)
        save_kernel = staticmethod(requests.append)
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731

    api = extended.KaggleApi()
    monkeypatch.setattr(api, "build_kaggle_client", Recorder)
    api.requests = requests
    return api


def test_kaggles_client_takes_the_folder(client, exported, capsys):
    client.kernels_push(str(exported / ALL))
    assert capsys.readouterr().out == ""  # it prints where title and slug disagree
    (request,) = client.requests
    assert request.slug == f"jane/{ALL}"
    assert request.is_private and request.enable_gpu and not request.enable_internet
    assert request.machine_shape == "NvidiaTeslaT4"
    assert len(request.text) < 1_000_000
    client.set_config_value("username", "jane", quiet=True)
    template = json.loads(Path(client.kernels_initialize(str(exported.parent))).read_text())
    assert set(metadata(exported, ALL)) == set(template)


def test_the_client_refuses_a_weights_source_that_it_does_not_know(client, exported, tmp_path):
    """So the test above can fail."""
    broken = metadata(exported, ALL) | {"model_sources": ["keras/resnet50"]}
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(broken))
    (tmp_path / f"{ALL}.ipynb").write_text((exported / ALL / f"{ALL}.ipynb").read_text())
    with pytest.raises(ValueError, match="Model instance version"):
        client.kernels_push(str(tmp_path))


def test_the_datasets_and_the_weights_are_attached(exported):
    found = metadata(exported, ALL)
    assert found["dataset_sources"] == ["msambare/fer2013", "ananthu017/emotion-detection-fer", "keras/resnet50"]
    assert found["kernel_sources"] == []


def test_a_model_as_source_of_the_weights(client, tmp_path):
    export.export(tmp_path, values(), "jane", "someone/resnet/keras/notop/2")
    client.kernels_push(str(tmp_path / ALL))
    assert client.requests[0].model_data_sources == ["someone/resnet/keras/notop/2"]
    assert "someone/resnet" not in str(client.requests[0].dataset_data_sources)


def parameters_cells(book: nbformat.NotebookNode) -> list:
    return [cell for cell in book.cells if any("parameters" in tag for tag in cell.metadata.get("tags", []))]


def test_the_combined_notebook_has_one_parameters_cell_a_stage(exported):
    cells = parameters_cells(notebook(exported, ALL))
    assert [cell.metadata.tags for cell in cells] == [[f"parameters-{stage}"] for stage in STAGES]
    assert all("seed: int = 7  #" in cell.source for cell in cells)
    assert all('outputs_dir: str = "/kaggle/working"  #' in cell.source for cell in cells)


def test_every_stage_is_in_the_contents(exported):
    cells = notebook(exported, ALL).cells
    links = re.findall(r"\]\(#(\w+)\)", cells[0].source)
    assert links == [*STAGES, "results"]
    assert all(any(f'<a id="{link}">' in cell.source for cell in cells) for link in links)


def test_the_cells_hold_the_values_asked_for(exported):
    for cell, (stage, wanted) in zip(parameters_cells(notebook(exported, ALL)), values(seed=7).items(), strict=True):
        assigned = {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}
        assert assigned == wanted, stage


def test_nothing_was_run_and_one_source_gives_one_file(exported, tmp_path):
    export.export(tmp_path, values(seed=7), "jane", export.WEIGHTS)
    book = notebook(exported, ALL)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells)
    assert (tmp_path / ALL / f"{ALL}.ipynb").read_bytes() == (exported / ALL / f"{ALL}.ipynb").read_bytes()


def unpack(cell: str, folder: Path) -> subprocess.CompletedProcess:
    code = (
        f"{cell}\nassert not {{'keras', 'tensorflow', 'jax'}} & set(sys.modules)\n"
        "from fer_utils import places\nprint(places.__file__, places.source_root())"
    )
    environment = {"FER_KAGGLE_ROOT": str(folder), "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-"], input=code, cwd=folder, env=environment, capture_output=True, text=True
    )


def test_the_package_unpacks_to_files_and_says_its_hash(exported, tmp_path):
    (cell,) = [cell for cell in notebook(exported, ALL).cells if "PACKAGE" in cell.source]
    done = unpack(cell.source, tmp_path)
    assert done.returncode == 0, done.stderr
    (home,) = (tmp_path / "temp").iterdir()
    *_, chosen, package = done.stdout.splitlines()
    assert chosen == "Keras computes with tensorflow. GPUs: 0. JAX for CUDA: not installed."
    assert package == f"{home}/fer_utils/places.py {home}"
    for path in ROOT.glob("fer_utils/**/*.py"):
        assert (home / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
        assert f"  {path.relative_to(ROOT / 'fer_utils')} " in done.stdout


IMAGE_HAS = {  # the versions' file, and what its packages require
    *("cv2", "albumentations", "keras", "tensorflow", "h5py", "numpy", "pandas", "scipy", "sklearn", "matplotlib"),
    *("seaborn", "PIL", "yaml", "jinja2", "markupsafe", "tqdm", "psutil", "IPython"),
}


def test_notebooks_import_nothing_at_once_that_kaggles_image_may_lack():
    runners = [
        ROOT / "fer_utils/kaggle/export.py",
        ROOT / "fer_utils/pipeline/runner.py",
    ]  # imported by run_all.py alone
    sources = [path for path in ROOT.glob("fer_utils/**/*.py") if path not in runners]
    for path in [*sources, *ROOT.glob("notebooks/*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - {"fer_utils", "__future__"}:
                assert name in IMAGE_HAS | sys.stdlib_module_names, f"{path.name} imports {name}"


def test_the_first_cell_chooses_a_backend(exported):
    first = next(cell for cell in notebook(exported, ALL).cells if cell.cell_type == "code")
    assert first.source.endswith("print(session.choose_backend())")


def test_a_damaged_package_is_refused(exported, tmp_path):
    (cell,) = [cell for cell in notebook(exported, ALL).cells if "PACKAGE" in cell.source]
    text = re.search(r'"""\n(.*?)\n"""', cell.source, re.DOTALL)[1]
    data = bytearray(base64.b64decode(text))
    data[1000] ^= 1
    done = unpack(cell.source.replace(text, base64.b64encode(bytes(data)).decode()), tmp_path)
    assert done.returncode == 1 and "damaged: export the notebook again" in done.stderr
    assert not (tmp_path / "temp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"owner": "jane doe"}, "Kaggle user name is 'jane doe'"),
        ({"weights": "resnet50"}, "source of the weights is 'resnet50'"),
        ({"weights": "owner/model/keras/variation"}, "expected a dataset such as keras/resnet50 or a model version"),
        ({"values": values(data_dir="")}, "data_dir is empty"),
        (
            {"values": values(weights="shipped", backbone="small")},
            "train_head.weights is 'shipped', which stays on this",
        ),
        (
            {"values": values(also="/kaggle/input/a; b.zip")},
            r"evaluate.also is 'b.zip', .* as -p evaluate.also=/kaggle/input/",
        ),
    ],
)
def test_what_kaggle_would_refuse_is_refused_here(tmp_path, change, message):
    arguments = {"values": values(), "owner": "jane", "weights": "", **change}
    with pytest.raises(ExportError, match=message):
        export.export(tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_votes_that_the_profile_needs_are_asked_for(exported, tmp_path, capsys):
    export.export(tmp_path, values(votes_output=1.0, issues_file="/kaggle/input/issues.csv"), "jane", "")
    assert "attach a dataset with fer2013new.csv to the notebook" in capsys.readouterr().out


def test_a_notebook_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 10_000)
    with pytest.raises(
        ExportError, match=r"FER ResNet50: the notebook has [\d,]+ bytes, Kaggle takes less than 10,000"
    ):
        export.export(tmp_path, values(), "jane", "")


def test_profile_and_overrides_reach_the_parameters_cells(answer, tmp_path):
    chosen = ["--params", "clean", "-p", "fine_tune.epochs=8", "-p", "common.run=a \"b\" 'c' #1"]
    status, _, errors = answer("--export-kaggle", str(tmp_path), "--kaggle-user", "jane", *chosen)
    assert status == 0, errors
    clean = yaml.safe_load((ROOT / "params/clean.yaml").read_text())["merge_split"]
    cells = dict(zip(STAGES, parameters_cells(notebook(tmp_path, ALL)), strict=True))
    assigned = {
        stage: {line.target.id: ast.literal_eval(line.value) for line in ast.parse(cell.source).body}
        for stage, cell in cells.items()
    }
    assert clean.items() <= assigned["merge_split"].items()
    assert (assigned["train_head"]["epochs"], assigned["fine_tune"]["epochs"]) == (10, 8)
    assert assigned["evaluate"]["run"] == "a \"b\" 'c' #1"
    assert assigned["evaluate"]["data_dir"] == "/kaggle/content/fer2013_by_usage_1"
