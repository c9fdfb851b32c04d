"""Runs stages headless: decides which are due, executes their notebooks, and reports what happened.

papermill and Jupytext are imported only when a notebook runs, so that a run with nothing to do ends quickly.
"""

import contextlib
import importlib.util
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fer_utils import entry, files, places, progress
from fer_utils.data import addresses, finding
from fer_utils.pipeline import keys, parameters, runs, terminal
from fer_utils.pipeline.parameters import STAGES, ParameterError

BACKBONE_LAYERS = {"resnet50": 175, "small": 45}  # a test counts them; Keras takes seconds to import

_NEEDED = {"tensorboard_dir": "tensorboard", "find_label_issues": "cleanlab"}  # parameter → the package that it needs


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
    on_kaggle = parameters.profile_path("kaggle")
    if params or for_kaggle:
        path = parameters.profile_path(params) if params else on_kaggle
    else:
        name, reason = _profile_of_run(run, outputs_dir) or parameters.choose_profile()
        print(f"profile {name}: {reason}")
        path = parameters.profile_path(name)
    files_of = dict.fromkeys([on_kaggle, path] if for_kaggle else [path])
    typed = parameters.typed_in_cells(parameters.declared())
    for stage, name, value in ((stage, *item) for stage, values in typed.items() for item in values.items()):
        note = ", which counts in JupyterLab alone: here, give --params" if name == "profile" else ""
        print(f"{name} = {value!r} typed in notebooks/{STAGES[stage]}{note}")
    found = [*((str(file), parameters.load_profile(file)) for file in files_of), ("notebooks/", typed)]
    for text in overrides:
        stage, name, value = parameters.parse_override(text)
        found.append((f"-p {text}", {stage: {name: value}}))
    named = {name: value for name, value in (("run", run), ("outputs_dir", outputs_dir)) if value}
    is_named = parameters.profile_path(path.stem).resolve() == path.resolve()
    return path.stem if is_named else str(path), [*found, ("the command line", {parameters.COMMON: named})]


def _profile_of_run(run: str | None, outputs_dir: str | None) -> tuple[str, str] | None:
    """The profile that a run was last made with, and the reason to take it; None for a new run."""
    described = runs.run_folders(run, outputs_dir or "outputs", "").path("run.json") if run else None
    if described is None or not described.is_file():
        return None
    content = files.read_json(described)
    profile = content.get("profile") if isinstance(content, dict) else None
    if not isinstance(profile, str):
        raise files.TornFile(f"{described} names no profile: say with --params which one the run has")
    if profile == "none":  # a notebook made it, without a profile
        return None
    if not parameters.profile_path(profile).is_file():
        raise ParameterError(
            f"{described}: its profile {profile} is not there any more: say with --params which one to take"
        )
    return profile, f"the run {run} was made with it"


def resolve(profile: str, layers: Sequence[tuple[str, Mapping]]) -> dict[str, dict]:
    """The checked parameters of all stages, as papermill injects them. Raises ParameterError."""
    values = parameters.resolve(parameters.declared(), layers)
    for own in values.values():
        own |= {"profile": "none", "run": Path(profile).stem if own["run"] == "auto" else own["run"]}
    for name in ("run", "outputs_dir", "data_dir"):
        found = {own[name] for own in values.values()}
        if len(found) > 1:
            raise ParameterError(f"{name} differs between stages ({', '.join(sorted(found))}): set common.{name}")
    folders_of(values)  # a name that no folder can have is refused here
    return values


def folders_of(values: Mapping[str, Mapping[str, Any]]) -> runs.RunFolders:
    """The folders of a run whose stages have these parameters; they are the same for all stages.

    Raises ValueError for a run name that is no plain folder name, ParameterError for a folder inside a source.
    """
    first = next(iter(values.values()))
    folders = runs.run_folders(first["run"], first["outputs_dir"], first["data_dir"])
    given = [values["merge_split"][name] for name in addresses.DATASETS]
    sources = [places.place(path) for path in given if path not in ("auto", "demo")]
    sources += [places.place(f"data/{local}") for _, local in addresses.DATASETS.values()]
    sources += finding.extra_places(f"{values['merge_split']['extra']};{values['evaluate']['also']}").values()
    others = {stage_values.get(name) for stage_values in values.values() for name in ("cache_dir", "tensorboard_dir")}
    for path in (folders.run, folders.data, *map(places.place, filter(None, others))):
        for source in sources:
            if path.resolve().is_relative_to(source.resolve()):
                raise ParameterError(f"{path} lies in {source}, a source, which is only read: choose another folder")
    return folders


def run(
    profile: str,
    chosen: Sequence[str],
    values: Mapping[str, Mapping],
    repeat: bool = False,
    verbose: bool = False,
    is_shared: bool = False,
    goes_on: Callable[[str], bool] = lambda stage: True,
) -> int:
    """Run the chosen stages that are due, or all chosen stages with `repeat`; return how many ran.

    is_shared: if another run of the outputs folder has finished a due stage with the same key, its outputs are taken over; if
    another process computes such a stage now, this one waits for it. goes_on: asked before each stage; False ends the run
    there. Holds the run's lock. Prints for each stage whether it runs and why. Raises StageFailed, RunIsBusy, OutputError.
    """
    folders = folders_of(values)

    @cache
    def key(stage: str) -> dict:
        return keys.key_of(stage, values[stage], folders, runs.records_of(folders))

    def reasons_for(stage: str) -> list[str]:
        return ["asked for"] if repeat else reasons_to_run(stage, values[stage], folders, key)

    _check_inputs(chosen, values, reasons_for)
    _check_earlier_outputs(chosen, folders)
    for stage in chosen:
        if stage in ("merge_split", "balance") and reasons_for(stage):
            runs.require_own_images(folders, stage)
    ran, shown = 0, terminal.Shown(verbose)
    with runs.held_by_runner(folders):
        runs.clear_leftovers(folders)
        files.remove_partials(folders.path("notebooks"))
        runs.describe_run(folders, profile, values)
        terminal.say(f"run {folders.run.name}: {', '.join(chosen)} → {folders.run}, with {keys.backend()}")
        for stage in chosen:
            if not goes_on(stage):
                break
            reasons = reasons_for(stage)
            with _once_for_all(stage, key(stage), folders) if reasons and is_shared else contextlib.nullcontext():
                donors = _donors(stage, folders) if reasons and is_shared else ()
                is_taken = any(take_over(stage, values[stage], folders, donor, key(stage)) for donor in donors)
                if not is_taken:
                    _say(stage, reasons)
                if reasons and not is_taken:
                    execute(stage, values[stage], folders, shown)
                    ran += 1
            if reasons:
                key.cache_clear()  # the stages after it read what it wrote
    return ran


def _donors(stage: str, folders: runs.RunFolders) -> Iterator[runs.RunFolders]:
    """The other runs of the outputs folder that have finished a stage. One with damage is none: its own run says so."""
    for record in sorted(folders.run.parent.glob(f"*/stages/{stage}.json")):
        with contextlib.suppress(files.TornFile, OSError):
            if (donor := runs.read(record.parents[1]).folders) != folders:
                yield donor


def _once_for_all(stage: str, key: dict, folders: runs.RunFolders) -> contextlib.AbstractContextManager:
    """Keep other processes from computing a stage with this key in the same outputs folder, for the block."""
    return files.one_at_a_time(
        folders.run.parent / ".stages" / f"{keys.digest(key)}.lock",
        lambda: terminal.say(f"{stage}: another process computes it; waiting"),
    )


def _check_inputs(chosen: Sequence[str], values: Mapping[str, Mapping], reasons_for: Callable[[str], list]) -> None:
    """Find faults before the first kernel starts that would otherwise appear hours later."""
    if "merge_split" in chosen and reasons_for("merge_split"):
        for name, given in finding.taken(values["merge_split"]).items():
            if given != "demo":
                finding.find_dataset(name, given)
        _require_votes(chosen, values)
    for stage in {"train_head", "fine_tune"} & set(chosen):
        weights = values[stage]["weights"]
        file = places.SHIPPED if weights == "shipped" else places.place(weights)
        if weights not in ("imagenet", "none") and not file.is_file():
            raise ParameterError(
                f"{stage}.weights is {weights!r}: neither imagenet, none, nor a file that is there ({file})"
            )
    for stage, (name, package) in itertools.product(chosen, _NEEDED.items()):
        if values[stage].get(name) and importlib.util.find_spec(package) is None:
            raise ParameterError(f"{stage}.{name} is set, but {package} is not installed: `pip install {package}`")
    for name in ("picture", "also_groups"):
        given = values["evaluate"][name]
        if "evaluate" in chosen and given and not places.place(given).is_file():
            raise ParameterError(f"evaluate.{name} is {given!r}: no file at {places.place(given)}")
    also = values["evaluate"]["also"]
    if "evaluate" in chosen and also and reasons_for("evaluate"):
        from fer_utils.data import extra_sources  # pandas and OpenCV take a while to import

        for name, path in finding.extra_places(also).items():
            try:
                classes, columns = values["evaluate"]["also_classes"], values["evaluate"]["also_columns"]
                with extra_sources.open_extra(path, name, "test", classes, columns=columns):
                    pass
            except ValueError as error:
                raise ParameterError(f"evaluate.also: {error}") from error
    check_network(values["train_head"], values["fine_tune"])


def _require_votes(chosen: Sequence[str], values: Mapping[str, Mapping]) -> None:
    """Raise NotFoundHere if a chosen stage needs FER+'s votes and 01 would find none. Drawn faces have votes of their own."""
    wanted = {"merge_split.labels": values["merge_split"]["labels"] == "ferplus"}
    for stage in ("train_head", "fine_tune"):
        wanted |= {f"{stage}.{name}": values[stage].get(name) for name in ("votes_share", "votes_output")}
    wanted = [name for name, given in wanted.items() if given and name.split(".")[0] in chosen]
    is_drawn = "demo" in {values["merge_split"][name] for name in addresses.DATASETS}
    if wanted and not is_drawn and finding.find_votes(values["merge_split"]["votes"], {}) is None:
        raise places.NotFoundHere(
            f"{', '.join(wanted)}: FER+'s votes are needed, and none are there: put {addresses.VOTES_FILE} into data/ "
            f"(`python run_all.py --download` fetches it, from {addresses.VOTES_ADDRESS})"
        )


def _check_earlier_outputs(chosen: Sequence[str], folders: runs.RunFolders) -> None:
    """Raise NotFoundHere if an input of a chosen stage, written by a stage not chosen, is missing or damaged."""
    found = runs.records_of(folders)
    faults = [
        f"{stage} reads {path}, which {writer} writes: {fault}"
        for stage in chosen
        for path, writer, fault in runs.faulty_inputs(stage, folders, found, chosen)
    ]
    if faults:
        raise places.NotFoundHere(
            "\n".join([*faults, "Run it again without --only and --from: only stages that are missing or outdated run"])
        )


def check_network(head: Mapping[str, Any], tune: Mapping[str, Any]) -> None:
    """Raise ParameterError if stages 03 and 04 differ in the network or in the kind of kernels, or name no network.

    head, tune: the parameters of both stages.
    """
    for name in ("backbone", "weights", "image_size", "deterministic"):
        if head[name] != tune[name]:
            raise ParameterError(
                f"{name} differs between train_head ({head[name]!r}) and fine_tune ({tune[name]!r}): give both the same, "
                f"as common.{name} does"
            )
    backbone, n_layers = tune["backbone"], BACKBONE_LAYERS[tune["backbone"]]
    if (backbone, tune["weights"]) in (("small", "imagenet"), ("resnet50", "shipped")):
        raise ParameterError(
            f"weights is {tune['weights']!r}, and the backbone {backbone} has none: small has shipped, resnet50 has imagenet"
        )
    if tune["unfreeze_top"] > n_layers:
        raise ParameterError(
            f"fine_tune.unfreeze_top is {tune['unfreeze_top']}: the backbone {backbone} has {n_layers} layers"
        )


def start_afresh(chosen: Sequence[str], values: Mapping[str, Mapping]) -> None:
    """Delete the checkpoints of the chosen stages, so that their training starts from the first epoch."""
    folders = folders_of(values)
    with runs.held_by_runner(folders):
        for stage in chosen:
            folders.checkpoint(stage).unlink(missing_ok=True)


def print_plan(chosen: Sequence[str], values: Mapping[str, Mapping], repeat: bool = False) -> None:
    """Print what `run` would do, and with which parameters; nothing is run or written.

    Raises NotFoundHere if an input of a chosen stage is missing.
    """
    folders = folders_of(values)
    _check_earlier_outputs(chosen, folders)
    due: list[str] = []
    for stage in chosen:
        reasons = ["asked for"] if repeat else reasons_to_run(stage, values[stage], folders)
        changed = [name for name, writer in keys.INPUTS[stage].items() if writer in due]
        if not reasons and changed:
            reasons = [f"{', '.join(changed)} will be written again; if that changes nothing, it is skipped"]
        if reasons:
            due.append(stage)
        _say(stage, reasons)
        for name, value in values[stage].items():
            print(f"  {name} = {value!r}")


def reasons_to_run(
    stage: str, values: Mapping[str, Any], folders: runs.RunFolders, key: Callable[[str], dict] | None = None
) -> list[str]:
    """The reasons why a stage has to run; empty if its outputs are complete and nothing that they depend on changed.

    key: gives the stage's key, which takes a while: that of the first stage is a walk through the sources.
    """
    found = runs.records_of(folders)
    if stage not in found:
        return ["it has not run yet"]
    recorded = found[stage]
    now = key(stage) if key else keys.key_of(stage, values, folders, found)
    changed = [*recorded.get("by_hand", []), *keys.differences(recorded["key"], now)]
    return changed or [
        damage for name, found in recorded["outputs"].items() if (damage := _damage(name, found, folders))
    ]


def _damage(name: str, recorded: Mapping[str, Any], folders: runs.RunFolders) -> str | None:
    """A description of the damage to a recorded output, or None. A figure only has to exist: notebooks draw it again."""
    path = folders.path(name)
    return keys.damage(path, recorded) if not (name.startswith("figures/") and path.is_file()) else None


def take_over(
    stage: str, values: Mapping[str, Any], folders: runs.RunFolders, donor: runs.RunFolders, key: dict
) -> bool:
    """Take over a stage's outputs from another run that finished it with this key; return whether it did.

    Pictures become hard links if the file system supports them. This is safe since no file is changed in place.
    """
    if reasons_to_run(stage, values, donor, lambda _: key):
        return False
    record = runs.records_of(donor)[stage]
    executed = donor.path("notebooks") / STAGES[stage].replace(".py", ".ipynb")
    names = [*record["outputs"], *([f"notebooks/{executed.name}"] if executed.is_file() else [])]
    for name in names:
        files.place_copy(donor.path(name), folders.path(name))
    files.write_json(folders.stage_record(stage), record | {"parameters": dict(values), "taken_from": donor.run.name})
    terminal.say(f"{stage} ({STAGES[stage]}): taken over from run {donor.run.name}")
    return True


def _say(stage: str, reasons: Sequence[str]) -> None:
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    what = f"run: {shown}" if reasons else "skip: done, and nothing that it depends on changed"
    terminal.say(f"{stage} ({STAGES[stage]}): {what}")


def execute(stage: str, values: Mapping[str, Any], folders: runs.RunFolders, shown: terminal.Shown) -> None:
    """Execute a stage's notebook; the executed copy in the run's folder is written atomically after each cell.

    Raises StageFailed, naming the cell, the error and the executed notebook.
    """
    import logging

    import jupytext
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import LocalHandler, papermill_io

    class WholeFiles(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            status.cell_begins(buf)
            with files.replacing(Path(path)) as temporary:
                temporary.write_text(buf, encoding="utf-8")

    # papermill's reader of parameters cells warns about `>=` in comments; every name is already checked.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    root = places.project_root()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    executed = folders.path("notebooks") / STAGES[stage].replace(".py", ".ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    record = folders.stage_record(stage)
    earlier = record.stat().st_mtime_ns if record.is_file() else None
    papermill_io.register(str(folders.path("notebooks")), WholeFiles())
    try:
        with terminal.Status(stage, folders.run / ".progress", shown) as status:
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
                # The kernel's own log, not the notebook's: it warns of kernels on TCP without encryption, which never leave
                # this machine, and calls the interrupt that jupyter_client sends at each shutdown an error. A cell that
                # fails, or a kernel that dies, is raised here.
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
    except PapermillExecutionError as error:
        raise StageFailed(
            f"{stage} failed in cell {error.exec_count}: {error.ename}: {error.evalue}\n"
            f"the executed notebook, up to there: {executed}"
        ) from error
    except DeadKernelError as error:
        raise StageFailed(
            f"{stage}: its kernel died, most often because memory ran out. Close other programs or lower batch_size, and "
            f"run again: training goes on from its last finished epoch\nthe executed notebook, up to there: {executed}"
        ) from error
    if not record.is_file() or record.stat().st_mtime_ns == earlier:
        raise StageFailed(f"{stage} ended without writing its record: {record}")
    figures = runs.one_line(runs.records_of(folders)[stage]["figures"])
    terminal.say(f"{stage}: done in {progress.in_words(status.seconds())}: {figures}")
