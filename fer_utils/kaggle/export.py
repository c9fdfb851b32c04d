"""Writes a folder for `kaggle kernels push`: a notebook that contains all stages and this package, and its metadata.

Kaggle has no checkout of this project and often no internet, so the notebook contains everything that it needs.
"""

import base64
import hashlib
import importlib.metadata
import io
import json
import re
import tarfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_utils import files, places
from fer_utils.data import addresses
from fer_utils.pipeline import keys, parameters, runner

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TITLE, SLUG = "FER ResNet50", "fer-resnet50"  # Kaggle makes the slug of the title
MAX_BYTES = 900_000  # Kaggle's limit for a notebook's source is 1,000,000
MACHINE = "NvidiaTeslaT4"  # the machine with T4 GPUs, as spelled by Kaggle's client
WEIGHTS = "keras/resnet50"  # Keras' dataset on Kaggle with ResNet50's ImageNet weights
_NO_PATH = ("", "auto", "none", "demo", "imagenet")  # values that name no file; for `shipped` the notebook has no room
# Deletes the variables of the previous stage. `%reset` would also delete `__main__.__spec__`, which pools of spawned
# processes need.
_FORGET = "%reset_selective -f ."

_UNPACK = '''\
# The helper package fer_utils, compressed. It is unpacked into a folder: to read, and for tracebacks with its lines.
import base64, hashlib, io, os, sys, tarfile
from pathlib import Path

PACKAGE = """
{encoded}
"""
data = base64.b64decode(PACKAGE)
digest = hashlib.sha256(data).hexdigest()
if digest != "{digest}":
    raise ValueError("the package in this cell is damaged: export the notebook again")
home = Path(os.environ.get("FER_KAGGLE_ROOT", "/kaggle")) / "temp" / f"fer_utils-{{digest[:12]}}"
tarfile.open(fileobj=io.BytesIO(data)).extractall(home, filter="data")
sys.path.insert(0, str(home))
print(f"fer_utils {version}, sha256 {{digest}}, in {{home}}")
for module in sorted(home.glob("fer_utils/**/*.py")):
    headline = module.read_text().splitlines()[0].strip('"')
    print(f"  {{str(module.relative_to(home / 'fer_utils')):36}} {{headline}}")
from fer_utils.kaggle import session
print(session.choose_backend())'''

_TOP = """\
# Facial expression recognition with ResNet50

Five stages in one notebook, first to last cell.

{contents}
- [Results](#results)

The cell below holds the helper package `fer_utils` and lists its modules; to read one, put `from fer_utils.training
import network` in a new cell below it, and `network??` in the next."""


class ExportError(parameters.ParameterError):
    """The arguments do not give notebooks that Kaggle accepts."""


def export(folder: Path, values: Mapping[str, Mapping[str, Any]], owner: str, weights: str) -> Path:
    """Write a folder for one notebook with all five stages into `folder`; print the next command; return it.

    values: stage → parameter → value, written into the parameters cells. owner: the user name on Kaggle. weights: the
    dataset (`owner/slug`) or model version (`owner/model/framework/variation/version`) with a ResNet50 notop file, or
    empty. Raises ExportError for values that Kaggle or its client would reject.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", owner):
        expected = "letters, digits and dashes, as in your profile's URL"
        raise ExportError(f"the Kaggle user name is {owner!r}, expected {expected}")
    if not re.fullmatch(r"|[\w.-]+/[\w.-]+|[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+/\d+", weights):
        expected = f"a dataset such as {WEIGHTS} or a model version such as owner/model/keras/variation/1"
        raise ExportError(f"the source of the weights is {weights!r}, expected {expected}")
    if not all(stage_values["data_dir"] for stage_values in values.values()):
        raise ExportError("data_dir is empty: on Kaggle the image folders need a folder outside the results")
    for stage, (name, value) in ((stage, item) for stage, own in values.items() for item in own.items()):
        paths = [path.strip() for path in value.split(";")] if name in keys.NAMING_INPUTS else []
        if here := [path for path in paths if path not in _NO_PATH and not path.startswith("/kaggle/")]:
            raise ExportError(
                f"{stage}.{name} is {here[0]!r}, which stays on this machine: make it a dataset on Kaggle, attach that to the "
                f"notebook, and give its path there, as -p {stage}.{name}=/kaggle/input/…"
            )
    notebook = new_notebook(
        cells=[NotebookNode(cell, id=f"cell-{number:03}") for number, cell in enumerate(_all_stages(values))],
        metadata={
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    if (size := len(text.encode())) > MAX_BYTES:
        raise ExportError(f"{TITLE}: the notebook has {size:,} bytes, Kaggle takes less than {MAX_BYTES:,}")
    target = folder / SLUG
    with files.replacing(target) as temporary:
        temporary.mkdir()
        (temporary / f"{SLUG}.ipynb").write_text(text, encoding="utf-8")
        metadata = json.dumps(_metadata(owner, weights), indent=2)
        (temporary / "kernel-metadata.json").write_text(metadata + "\n", encoding="utf-8")
    if any(own.get(name) not in (None, 0, "fer2013") for own in values.values() for name in runner.WITH_VOTES):
        print(f"it needs FER+'s votes: attach a dataset with {addresses.VOTES_FILE} to the notebook")
    print(f"{target}  {size / 1000:,.0f} kB\n\nto run it on Kaggle: kaggle kernels push -p {target}")
    return target


def _metadata(owner: str, weights: str) -> dict[str, Any]:
    is_model = weights.count("/") > 1
    datasets = [owner_slug for owner_slug, _ in addresses.DATASETS.values()]
    return {
        "id": f"{owner}/{SLUG}",
        "title": TITLE,
        "code_file": f"{SLUG}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": MACHINE,
        "dataset_sources": datasets + ([weights] if weights and not is_model else []),
        "competition_sources": [],
        "kernel_sources": [],
        "model_sources": [weights] if is_model else [],
    }


def _package() -> NotebookNode:
    """The cell that holds this package, the notebooks' source and the profiles, unpacks them, and chooses a backend."""
    root = places.source_root()
    buffer = io.BytesIO()
    kinds = ("fer_utils/**/*.py", "fer_utils/**/*.yaml", "fer_utils/**/*.xz", "notebooks/*.py", "params/*.yaml")
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as packed:
        for path in (path for kind in kinds for path in sorted(root.glob(kind))):
            data = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())  # no date: equal sources give equal hashes
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    data = buffer.getvalue()
    source = _UNPACK.format(
        encoded="\n".join(textwrap.wrap(base64.b64encode(data).decode(), 120)),
        digest=hashlib.sha256(data).hexdigest(),
        version=importlib.metadata.version("fer-resnet50"),
    )
    return new_code_cell(source, metadata={"_kg_hide-input": True, "jupyter": {"source_hidden": True}})


def _all_stages(values: Mapping[str, Mapping[str, Any]]) -> list[NotebookNode]:
    contents = []
    joined: list[NotebookNode] = []
    for stage, stage_values in values.items():
        cells = jupytext.read(places.source_root() / "notebooks" / parameters.STAGES[stage]).cells
        (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
        cell.source = parameters.with_values(cell.source, stage_values)
        cell.metadata["tags"] = [f"parameters-{stage}"]  # papermill allows one `parameters` cell
        headline = cells[0].source.splitlines()[0].lstrip("# ")
        contents.append(f"- [{headline}](#{stage})")
        cells[0].source = f'<a id="{stage}"></a>\n\n{cells[0].source}'
        joined += [new_code_cell(_FORGET), *cells] if joined else cells
    top = new_markdown_cell(_TOP.format(contents="\n".join(contents)))
    end = '<a id="results"></a>\n\n# Results\n\nConfusion matrices, scores, report and model, and one zip of the rest.'
    last = new_code_cell("from fer_utils.kaggle import session\n\nsession.deliver(stage.run);")
    return [top, _package(), *joined, new_markdown_cell(end), last]
