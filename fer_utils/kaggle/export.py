"""Writes folders for `kaggle kernels push`: a notebook that contains this package, and its metadata.

Kaggle has no checkout of this project and often no internet, so a notebook contains everything that it needs.
"""

import base64
import hashlib
import importlib.metadata
import io
import json
import re
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fer_utils import files, places
from fer_utils.data import addresses
from fer_utils.kaggle import handover
from fer_utils.pipeline import parameters

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TITLE = "FER ResNet50"
MAX_BYTES = 900_000  # Kaggle's limit for a notebook's source is 1,000,000
MACHINE = "NvidiaTeslaT4"  # the machine with T4 GPUs, as spelled by Kaggle's client
WEIGHTS = "keras/resnet50"  # Keras' dataset on Kaggle with ResNet50's ImageNet weights
NEEDS_WEIGHTS = ("train_head", "fine_tune")
# Deletes the variables of the previous stage. `%reset` would also delete `__main__.__spec__`, which pools of spawned
# processes need.
_FORGET = "%reset_selective -f ."
_EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest date, so that equal sources give equal hashes

_UNPACK = '''\
# The helper package fer_utils, compressed. It is unpacked into a folder: to read, and for tracebacks that show its lines.
import base64, hashlib, io, os, sys, zipfile
from pathlib import Path

PACKAGE = """
{encoded}
"""
data = base64.b64decode(PACKAGE)
digest = hashlib.sha256(data).hexdigest()
if digest != "{digest}":
    raise ValueError("the package in this cell is damaged: export the notebook again")
home = Path(os.environ.get("FER_KAGGLE_ROOT", "/kaggle")) / "temp" / f"fer_utils-{{digest[:12]}}"
zipfile.ZipFile(io.BytesIO(data)).extractall(home)
sys.path.insert(0, str(home))
print(f"fer_utils {version}, sha256 {{digest}}, in {{home}}")
for module in sorted(home.glob("fer_utils/**/*.py")):
    print(f"  {{str(module.relative_to(home / 'fer_utils')):36}} {{module.read_text().split(chr(10))[0].strip(chr(34))}}")
from fer_utils.kaggle import backend
print(backend.choose())'''


class ExportError(parameters.ParameterError):
    """The arguments do not give notebooks that Kaggle accepts."""


def print_exported(folder: Path, values: Mapping[str, Mapping[str, Any]], user: str, weights: str) -> None:
    """Export as `export` does, and print what was written and the next command."""
    for written in export(folder, values, user, weights):
        size = sum(path.stat().st_size for path in written.iterdir())
        print(f"{written}  {size / 1000:,.0f} kB")
    print(f"\nto run it all on Kaggle: kaggle kernels push -p {folder / slug(TITLE)}")


def export(folder: Path, values: Mapping[str, Mapping[str, Any]], owner: str, weights: str) -> list[Path]:
    """Write a folder for one notebook with all five stages, and a folder for each single stage; return them.

    values: stage → parameter → value, written into the parameters cells. owner: the user name on Kaggle. weights: the
    dataset (`owner/slug`) or model version (`owner/model/framework/variation/version`) with a ResNet50 notop file, or
    empty. Raises ExportError for values that Kaggle or its client would reject.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", owner):
        raise ExportError(
            f"the Kaggle user name is {owner!r}, expected letters, digits and dashes, as in your profile's URL"
        )
    _check_weights_source(weights)
    if not all(stage_values["data_dir"] for stage_values in values.values()):
        raise ExportError("data_dir is empty: on Kaggle the image folders need a place outside the results")
    package = _package()
    written = [_write(folder, TITLE, _all_stages(values, package), _metadata(owner, TITLE, weights, kernels=[]))]
    previous = []
    for stage, file in parameters.STAGES.items():
        title = f"{TITLE} {Path(file).stem.replace('_', ' ')}"
        source = weights if stage in NEEDS_WEIGHTS else ""
        metadata = _metadata(owner, title, source, previous, datasets=stage == "merge_split")
        written.append(_write(folder, title, _one_stage(stage, values, package), metadata))
        previous = [metadata["id"]]
    return written


def _check_weights_source(weights: str) -> None:
    if not re.fullmatch(r"|[\w.-]+/[\w.-]+|[\w.-]+/[\w.-]+/[\w.-]+/[\w.-]+/\d+", weights):
        raise ExportError(
            f"the source of the weights is {weights!r}, expected a dataset such as {WEIGHTS} or a model version such as "
            "owner/model/keras/variation/1"
        )


def slug(title: str) -> str:
    """Kaggle's slug for a title: lower case, dashes for spaces."""
    return title.lower().replace(" ", "-")


def _metadata(owner: str, title: str, weights: str, kernels: list[str], datasets: bool = True) -> dict[str, Any]:
    is_model = weights.count("/") > 1
    sources = [owner_slug for owner_slug, _ in addresses.DATASETS.values()] if datasets else []
    return {
        "id": f"{owner}/{slug(title)}",
        "title": title,
        "code_file": f"{slug(title)}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": MACHINE,
        "dataset_sources": sources + ([weights] if weights and not is_model else []),
        "competition_sources": [],
        "kernel_sources": kernels,
        "model_sources": [weights] if is_model else [],
    }


def _package() -> NotebookNode:
    """The cell that contains this package, the notebooks' source and the profiles, unpacks them, and chooses Keras' backend."""
    root = places.source_root()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for pattern in (
            "fer_utils/**/*.py",
            "fer_utils/**/*.xz",
            "fer_utils/**/*.yaml",
            "notebooks/*.py",
            "params/*.yaml",
        ):
            for path in sorted(root.glob(pattern)):
                entry = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
                packed.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED, compresslevel=9)
    data = buffer.getvalue()
    source = _UNPACK.format(
        encoded="\n".join(textwrap.wrap(base64.b64encode(data).decode(), 120)),
        digest=hashlib.sha256(data).hexdigest(),
        version=importlib.metadata.version("fer-resnet50"),
    )
    return new_code_cell(source, metadata={"_kg_hide-input": True, "jupyter": {"source_hidden": True}})


def _all_stages(values: Mapping[str, Mapping[str, Any]], package: NotebookNode) -> list[NotebookNode]:
    cells_of = {stage: _stage_cells(stage, stage_values) for stage, stage_values in values.items()}
    contents = "\n".join(f"- [{_headline(cells[0].source)}](#{stage})" for stage, cells in cells_of.items())
    top = (
        f"# Facial expression recognition with ResNet50\n\nFive stages in one notebook, first to last cell.\n\n{contents}\n"
        "- [Results](#results)\n\nEach stage has its own parameters cell; stages pass state through files alone. "
        f"{_how_to_read()}"
    )
    joined = [new_markdown_cell(top), package]
    for stage, cells in cells_of.items():
        cells[0].source = f'<a id="{stage}"></a>\n\n{cells[0].source}'
        _parameters_cell(cells).metadata["tags"] = [f"parameters-{stage}"]  # papermill allows one `parameters` cell
        if joined[-1] is not package:
            joined.append(new_code_cell(_FORGET))
        joined += cells
    end = '<a id="results"></a>\n\n# Results\n\nThe output: confusion matrices, scores, report and model, and one zip of the rest.'
    return [*joined, new_markdown_cell(end), new_code_cell(_code("handover.deliver(stage.folders)", "kaggle.handover"))]


def _one_stage(stage: str, values: Mapping[str, Mapping[str, Any]], package: NotebookNode) -> list[NotebookNode]:
    cells = _stage_cells(stage, values[stage])
    if stage != next(iter(parameters.STAGES)):
        restore = f'handover.restore("{stage}", runs.run_folders(run, outputs_dir, data_dir))'
        text = new_markdown_cell("## Input\nThe output of the previous notebook, attached to this one.")
        place = cells.index(_parameters_cell(cells)) + 1
        cells[place:place] = [text, new_code_cell(_code(restore, "kaggle.handover", "pipeline.runs"))]
    images = handover.images_left(stage, values["evaluate"]["also"])
    end = f"handover.pack(stage.folders, {images!r})" if images else "handover.deliver(stage.folders)"
    text = new_markdown_cell(
        "## Output\nFew files, for the next notebook to attach." if images else "## Output\nFew files."
    )
    return [
        cells[0],
        new_markdown_cell(_how_to_read()),
        package,
        *cells[1:],
        text,
        new_code_cell(_code(end, "kaggle.handover")),
    ]


def _code(line: str, *modules: str) -> str:
    rooms = [module.rpartition(".") for module in modules]
    return "\n".join([*(f"from fer_utils.{room} import {name}" for room, _, name in rooms), "", f"{line};"])


def _how_to_read() -> str:
    return (
        "The cell below holds the helper package `fer_utils` and lists its modules; to read one, put "
        "`from fer_utils.training import network` in a new cell below it, and `network??` in the next."
    )


def _headline(markdown: str) -> str:
    return next(line.lstrip("# ") for line in markdown.splitlines() if line.startswith("#"))


def _stage_cells(stage: str, values: Mapping[str, Any]) -> list[NotebookNode]:
    cells = jupytext.read(places.source_root() / "notebooks" / parameters.STAGES[stage]).cells
    cell = _parameters_cell(cells)
    cell.source = parameters.with_values(cell.source, values)
    return cells


def _parameters_cell(cells: list[NotebookNode]) -> NotebookNode:
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def _write(folder: Path, title: str, cells: list[NotebookNode], metadata: dict[str, Any]) -> Path:
    notebook = new_notebook(
        cells=[NotebookNode(cell, id=f"cell-{place:03}") for place, cell in enumerate(cells)],
        metadata={
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    if len(text.encode()) > MAX_BYTES:
        raise ExportError(
            f"{title}: the notebook has {len(text.encode()):,} bytes, Kaggle takes less than {MAX_BYTES:,}"
        )
    target = folder / slug(title)
    with files.replacing(target) as temporary:
        temporary.mkdir()
        (temporary / metadata["code_file"]).write_text(text, encoding="utf-8")
        (temporary / "kernel-metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    return target
