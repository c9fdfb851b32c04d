"""Runs stages headless: decides which are due, executes their notebooks, and reports what happened.

papermill and Jupytext are imported only when a notebook runs, so that a run with nothing to do ends quickly.
"""

import contextlib
import importlib.util
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fer_utils import digests, entry, files, places, progress
from fer_utils.data import addresses, finding
from fer_utils.pipeline import keys, parameters, runs, terminal
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.runs import Run

BACKBONE_LAYERS = {"resnet50": 175, "small": 45}  # a test counts them; Keras takes seconds to import

_NEEDED = {"tensorboard": "tensorboard", "find_label_issues": "cleanlab"}  # parameter → the package that it needs
WITH_VOTES = ("labels", "votes_share", "votes_output")  # need FER+'s votes, unless they are 0 or fer2013


class StageFailed(entry.Failed):
    """A stage did not finish."""


def layers(
    params: str | None = None,
    run: str | None = None,
    outputs_dir: str | None = None,
    overrides: Sequence[str] = (),
    for_kaggle: bool = False,
) -> tuple[str, list[tuple[str, dict]]]:
    """The profile as --params takes it, and what gives values to parameters, as `parameters.resolve` takes it.

    Without `params` it is the profile that the run was made with, or the one for this machine. The profile is followed by
    what a person typed in the parameters cells and saved, as in JupyterLab, and by the command line.
    """
    typed = parameters.typed_in_cells(parameters.declared())
    given: list[tuple[str, dict]] = [("notebooks/", typed)]
    for text in overrides:
        stage, name, value = parameters.parse_override(text)
        given.append((f"-p {text}", {stage: {name: value}}))
    named = {name: value for name, value in (("run", run), ("outputs_dir", outputs_dir)) if value}
    given.append(("the command line", {parameters.COMMON: named}))
    if not params and not for_kaggle:
        values = dict(item for _, by in given for section in by.values() for item in section.items())
        params, reason = _profile_of_run(values) or parameters.choose_profile()
        print(f"profile {params}: {reason}")
    path = parameters.profile_path(params or "kaggle")
    for stage, name, value in ((stage, *item) for stage, values in typed.items() for item in values.items()):
        note = ", which counts in JupyterLab alone: here, give --params" if name == "profile" else ""
        print(f"{name} = {value!r} typed in notebooks/{STAGES[stage]}{note}")
    files_of = dict.fromkeys([parameters.profile_path("kaggle"), path] if for_kaggle else [path])
    profiles = [(str(file), parameters.load_profile(file)) for file in files_of]
    is_named = parameters.profile_path(path.stem).resolve() == path.resolve()
    return path.stem if is_named else str(path), [*profiles, *given]


def _profile_of_run(given: Mapping[str, Any]) -> tuple[str, str] | None:
    """The profile that the run of these parameters was last made with, and the reason to take it; None for a new run."""
    name, outputs = given.get("run", ""), given.get("outputs_dir", "outputs")
    folder = runs.run_named(name, outputs, "").folder if name else None
    if folder is None or not (folder / "run.json").is_file():
        return None
    profile = runs.description(folder, {"profile": str})["profile"]
    return None if profile == "none" else (profile, f"the run {name} was made with it")  # none: a notebook made the run


def resolve(profile: str, layers: Sequence[tuple[str, Mapping]]) -> dict[str, dict]:
    """The checked parameters of all stages, as papermill injects them. Raises ParameterError."""
    values = parameters.resolve(parameters.declared(), layers)
    for own in values.values():
        own |= {"profile": "none", "run": Path(profile).stem if own["run"] == "auto" else own["run"]}
    for name in ("run", "outputs_dir", "data_dir"):
        found = {own[name] for own in values.values()}
        if len(found) > 1:
            raise ParameterError(f"{name} differs between stages ({', '.join(sorted(found))}): set common.{name}")
    run_of(values)  # a name that no folder can have is refused here
    return values


def run_of(values: Mapping[str, Mapping[str, Any]]) -> Run:
    """The run whose stages have these parameters; its folders are the same for all stages.

    Raises ParameterError for a run name that is no plain folder name, and for a folder inside a source.
    """
    run = runs.run_named(*(values["merge_split"][name] for name in ("run", "outputs_dir", "data_dir")))
    given = [values["merge_split"][name] for name in addresses.DATASETS]
    sources = [places.place(path) for path in given if path not in ("auto", "demo")]
    sources += [places.place(f"data/{local}") for _, local in addresses.DATASETS.values()]
    sources += finding.extra_places(f"{values['merge_split']['extra']};{values['evaluate']['also']}").values()
    for path, source in itertools.product((run.folder, run.data), sources):
        if path.resolve().is_relative_to(source.resolve()):
            raise ParameterError(f"{path} lies in {source}, a source, which is only read: choose another folder")
    return run


def run(
    profile: str,
    chosen: Sequence[str],
    values: Mapping[str, Mapping],
    repeat: bool = False,
    verbose: bool = False,
    is_shared: bool = False,
    is_afresh: bool = False,
) -> int:
    """Run the chosen stages that are due, or all chosen stages with `repeat`; return how many ran.

    is_afresh: their training starts from the first epoch. is_shared: outputs of a due stage are taken over from another run
    of the outputs folder that finished it with the same key; if another process computes such a stage now, this one waits.
    Holds the run's lock. Prints for each stage whether it runs and why. Raises StageFailed, RunIsBusy, OutputError.
    """
    target = run_of(values)
    common = _checked_inputs(chosen, values)

    def key(stage: str) -> dict[str, Any]:
        return keys.key_of(stage, values[stage], target, target.all_records(), common[stage])

    for stage in chosen:
        require_inputs(stage, target, chosen)
        if repeat or reasons_to_run(stage, values[stage], target, key(stage)):
            target.require_own_images(stage)
    n_ran, shown = 0, terminal.Shown(verbose)
    with target.held_by_runner():
        target.clear_leftovers()
        files.remove_partials(target.path("notebooks"))
        target.describe(profile, values)
        for stage in chosen if is_afresh else ():
            target.checkpoint(stage).unlink(missing_ok=True)
        terminal.say(f"run {target.name}: {', '.join(chosen)} → {target.folder}, with {keys.backend()}")
        for stage in chosen:
            reasons = ["asked for"] if repeat else reasons_to_run(stage, values[stage], target, key(stage))
            if not reasons:
                _say(stage, reasons)
                continue
            says = partial(terminal.say, f"{stage}: another process computes it; waiting")
            lock = target.folder.parent / ".stages" / f"{keys.digest(key(stage))}.lock" if is_shared else None
            with files.one_at_a_time(lock, says) if lock else contextlib.nullcontext():
                donors = _donors(stage, target) if is_shared else ()
                if not any(take_over(stage, values[stage], target, donor, key(stage)) for donor in donors):
                    _say(stage, reasons)
                    execute(stage, values[stage], target, shown)
                    n_ran += 1
    return n_ran


def _donors(stage: str, run: Run) -> Iterator[Run]:
    """The other runs of the outputs folder that have finished a stage. One with damage is none: its own run says so."""
    for record in sorted(run.folder.parent.glob(f"*/stages/{stage}.json")):
        with contextlib.suppress(files.TornFile, OSError):
            if (donor := runs.read(record.parents[1])) != run:
                yield donor


def take_over(stage: str, values: Mapping[str, Any], run: Run, donor: Run, key: dict) -> bool:
    """Take over a stage's outputs from another run that finished it with this key; return whether it did.

    Pictures become hard links if the file system supports them. This is safe since no file is changed in place.
    """
    if reasons_to_run(stage, values, donor, key):
        return False
    record = donor.all_records()[stage]
    executed = f"notebooks/{Path(STAGES[stage]).stem}.ipynb"
    for name in [*record["outputs"], *([executed] if donor.path(executed).is_file() else [])]:
        files.place_copy(donor.path(name), run.path(name))
    files.write_json(run.stage_record(stage), record | {"parameters": dict(values), "taken_from": donor.name})
    terminal.say(f"{stage} ({STAGES[stage]}): taken over from run {donor.name}")
    return True


def print_plan(chosen: Sequence[str], values: Mapping[str, Mapping], repeat: bool = False) -> None:
    """Print what `run` would do, and with which parameters. Raises NotFoundHere if an input of a chosen stage is missing."""
    run = run_of(values)
    check_network(values["train_head"], values["fine_tune"])
    due: list[str] = []
    for stage in chosen:
        require_inputs(stage, run, chosen)
        reasons = ["asked for"] if repeat else reasons_to_run(stage, values[stage], run)
        changed = [name for name, writer in keys.inputs_of(stage, {}).items() if writer in due]
        if changed and not reasons:
            reasons = [f"{', '.join(changed)} will be written again; if that changes nothing, it is skipped"]
        due += [stage] if reasons else []
        _say(stage, reasons)
        for name, value in values[stage].items():
            print(f"  {name} = {value!r}")


def _say(stage: str, reasons: Sequence[str]) -> None:
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    what = f"run: {shown}" if reasons else "skip: done, and nothing that it depends on changed"
    terminal.say(f"{stage} ({STAGES[stage]}): {what}")


def reasons_to_run(stage: str, values: Mapping[str, Any], run: Run, key: dict[str, Any] | None = None) -> list[str]:
    """The reasons why a stage has to run; empty if its outputs are complete and nothing that they depend on changed.

    key: the stage's key, if it is known; computing it takes seconds. A figure only has to exist: notebooks draw it again.
    """
    records = run.all_records()
    if stage not in records:
        return ["it has not run yet"]
    recorded, now = records[stage], key or keys.key_of(stage, values, run, records)
    changed = [*recorded.get("by_hand", []), *keys.differences(recorded["key"], now)]
    drawn = {name for name in recorded["outputs"] if name.startswith("figures/") and run.path(name).is_file()}
    checked = {run.path(name): found for name, found in recorded["outputs"].items() if name not in drawn}
    return changed or [*filter(None, (digests.damage(path, found) for path, found in checked.items()))]


def _checked_inputs(chosen: Sequence[str], values: Mapping[str, Mapping]) -> dict[str, dict]:
    """Each chosen stage's common_key_of. Raises ParameterError or NotFoundHere for what one needs and what is not there."""
    common = {stage: keys.common_key_of(stage, values[stage]) for stage in chosen}
    if common.get("merge_split", {"inputs": {}})["inputs"].get("votes") == "none":
        given = {f"{stage}.{name}": values[stage].get(name) for stage in chosen for name in WITH_VOTES}
        if wanted := [name for name, value in given.items() if value not in (None, 0, "fer2013")]:
            raise places.NotFoundHere(
                f"{', '.join(wanted)}: FER+'s votes are needed, and none are there: put {addresses.VOTES_FILE} into data/ "
                f"(`python run_all.py --download` fetches it, from {addresses.VOTES_ADDRESS})"
            )
    for stage, (name, package) in itertools.product(chosen, _NEEDED.items()):
        if values[stage].get(name) and importlib.util.find_spec(package) is None:
            raise ParameterError(f"{stage}.{name} is set, but {package} is not installed: `pip install {package}`")
    own = values["evaluate"]
    for name, path in finding.extra_places(own["also"]).items() if "evaluate" in chosen else ():
        from fer_utils.data import sources  # pandas and OpenCV take a while to import

        try:
            with sources.open_extra(path, name, "test", own["also_classes"], columns=own["also_columns"]):
                pass
        except ValueError as error:
            raise ParameterError(f"evaluate.also: {error}") from error
    check_network(values["train_head"], values["fine_tune"])
    return common


def require_inputs(stage: str, run: Run, chosen: Sequence[str] = ()) -> None:
    """Raise NotFoundHere if an input of a stage is missing, TornFile if it is damaged, unless a chosen stage writes it."""
    records = run.all_records()
    for name, writer in keys.inputs_of(stage, records).items():
        if writer in chosen:
            continue
        path, recorded = run.path(name), records.get(writer, {}).get("outputs", {}).get(name)
        missing = "" if path.exists() else f"{path.name} is missing"
        if fault := digests.damage(path, recorded) if recorded else missing:
            kind, when = (files.TornFile, "again") if path.exists() else (places.NotFoundHere, "first")
            way_out = f"run {writer} {when}, or run_all.py without --only and --from"
            raise kind(f"{stage} reads {path}, which {writer} writes: {fault}; {way_out}")


def check_network(head: Mapping[str, Any], tune: Mapping[str, Any]) -> None:
    """Raise ParameterError if the parameters of 03 and 04 differ in network or kernels, or cannot be met."""
    faults = [
        f"{name} differs between train_head ({head[name]!r}) and fine_tune ({tune[name]!r}): give both the same, as "
        f"common.{name} does"
        for name in ("backbone", "weights", "image_size", "deterministic")
        if head[name] != tune[name]
    ]
    backbone, weights, n_layers = tune["backbone"], tune["weights"], BACKBONE_LAYERS[tune["backbone"]]
    if (backbone, weights) in (("small", "imagenet"), ("resnet50", "shipped")):
        has = "small has shipped, resnet50 has imagenet"
        faults.append(f"weights is {weights!r}, and the backbone {backbone} has none: {has}")
    if (n_top := tune["unfreeze_top"]) > n_layers:
        faults.append(f"fine_tune.unfreeze_top is {n_top}: the backbone {backbone} has {n_layers} layers")
    if tune["schedule"] == "cosine" and tune["warmup_epochs"] >= tune["epochs"]:
        faults.append(f"warmup_epochs is {tune['warmup_epochs']}, expected less than epochs, which is {tune['epochs']}")
    if faults:
        raise ParameterError("\n".join(faults))


def execute(stage: str, values: Mapping[str, Any], run: Run, shown: terminal.Shown) -> None:
    """Execute a stage's notebook; the executed copy in the run's folder is written atomically after each cell.

    Raises StageFailed, naming the cell, the error and the executed notebook.
    """
    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.iorw import LocalHandler, papermill_io

    class WholeFiles(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            files.write_text(Path(path), buf)

    # papermill's reader of parameters cells warns about `>=` in comments; every name is already checked.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    root = places.project_root()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    executed = run.path("notebooks") / STAGES[stage].replace(".py", ".ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    papermill_io.register(str(executed.parent), WholeFiles())
    up_to_there = f"the executed notebook, up to there: {executed}"
    try:
        with terminal.Status(stage, run.folder / ".progress", shown) as status:
            papermill.execute_notebook(
                jupytext.read(root / "notebooks" / STAGES[stage]),
                str(executed),
                parameters=values,
                kernel_name="python3",
                start_timeout=300,  # seconds; a busy machine needs more than the default of 60
                cwd=str(root),
                progress_bar=False,
                stdout_file=status.output if shown.all_output else None,
                stderr_file=status.errors,
                # The kernel's own log warns of kernels on TCP without encryption, which never leave this machine, and calls the
                # interrupt at each shutdown an error. A cell that fails, or a kernel that dies, is raised here.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except papermill.PapermillExecutionError as error:
        found = f"{stage} failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
        raise StageFailed(f"{found}\n{up_to_there}") from error
    except DeadKernelError as error:
        found = f"{stage}: its kernel died, most often because memory ran out: close other programs or lower batch_size"
        raise StageFailed(f"{found}. Training goes on from its last finished epoch\n{up_to_there}") from error
    record = run.all_records().get(stage)
    if record is None:
        raise StageFailed(f"{stage} ended without writing its record: {run.stage_record(stage)}")
    terminal.say(f"{stage}: done in {progress.in_words(status.seconds())}: {runs.one_line(record['figures'])}")
