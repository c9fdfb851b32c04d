"""Runs the five notebooks headless, one after the other, with parameters injected by papermill.

python run_all.py                                    the profile that suits this machine; what is done is skipped
python run_all.py --params params/clean.yaml --run clean -p fine_tune.epochs=8
python run_all.py --from 04                          04 and 05 again, on what the run already has
python run_all.py --only evaluate                    one stage, by its name or its number
python run_all.py --force                            every stage again, training from its first epoch
python run_all.py --dry-run                          what would run, why, and every resolved parameter
python run_all.py --list                             the runs so far
python run_all.py --compare demo clean               one page and a table of what differs, in outputs/
python run_all.py --sweep train_head.learning_rate=0.001,0.0005 --sweep fine_tune.unfreeze_top=30,50
python run_all.py --sweep fine_tune.learning_rate=1e-5..1e-3:log --trials 20 --seeds 3
python run_all.py --download                         fetch both datasets with kagglehub, and FER+'s votes, then run
python run_all.py --export-kaggle                    write a folder for `kaggle kernels push`, run nothing
python run_all.py --export-model clean DIR           the run's model as Keras, TFLite and ONNX, with a model card
python run_all.py --to-mlflow demo clean             finished runs, copied to an MLflow store

Paths given to options start where you stand. Paths that are values of parameters, in a profile or after -p, start at the
project's folder.
"""

import argparse
import hashlib
import os
import shutil
import sys
import urllib.request
from pathlib import Path

from fer_utils import entry, files, places
from fer_utils.data import addresses
from fer_utils.pipeline import defaults, parameters, paths, runner, runs, study, sweeps, terminal
from fer_utils.pipeline.lock import RunIsBusy
from fer_utils.pipeline.parameters import STAGES, ParameterError

SQLITE = "sqlite:///"  # a store's address up to the file's path
EXPORT_KAGGLE = Path("outputs/kaggle")  # where the folders for Kaggle go unless said otherwise, in the project


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    _anchor(options, Path.cwd(), Path(__file__).resolve().parent)
    os.chdir(Path(__file__).resolve().parent)
    try:
        outputs = places.project_root() / (options.outputs_dir or "outputs")
        if os.path.lexists(outputs) and not outputs.is_dir():
            raise ParameterError(f"--outputs-dir {outputs} is no folder: give the folder of all runs")
        if options.list:
            _list(outputs)
            return 0
        if options.compare:
            return _compare(outputs, options.compare)
        if options.export_model:
            return _export_model(outputs, *options.export_model)
        if options.to_mlflow:
            return _to_mlflow(outputs, options.to_mlflow, options.tracking_uri)
        if options.tracking_uri:
            raise ParameterError("--tracking-uri goes with --to-mlflow RUN…")
        if options.download:
            _download()
        profile, layers = _layers(options)
        chosen = _chosen_stages(options)
        if options.sweep:
            return _sweep(profile, layers, chosen, options)
        values = _resolve(profile, layers)
        if options.export_kaggle:
            return _export_kaggle(options, values)
        repeat = bool(options.force or options.first or options.only)
        if options.dry_run:
            runner.print_plan(chosen, values, repeat)
            return 0
        if options.force:
            runner.start_afresh(chosen, values)
        _print_summary(runner.folders_of(values), runner.run(profile, chosen, values, repeat, options.verbose))
        return 0
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the last finished stage or epoch", file=sys.stderr)
        return 130
    except runner.StageFailed as error:
        terminal.say(f"\n{error}", sys.stderr)
        return 1
    except (ParameterError, files.TornFile, RunIsBusy, OSError) as error:
        terminal.say(f"run_all.py: {error}", sys.stderr)
        return 2


def _anchor(options: argparse.Namespace, here: Path, root: Path) -> None:
    """Have the paths that options name start at `here`, where the user stands, and not at the project's root."""
    if options.params and Path(options.params).suffix:
        options.params = _seen_from(root, here / options.params)
    if options.outputs_dir and not options.export_kaggle:  # there it names a folder on Kaggle
        options.outputs_dir = _seen_from(root, here / options.outputs_dir)
    if isinstance(options.export_kaggle, str):
        options.export_kaggle = _seen_from(root, here / options.export_kaggle)
    if options.export_model:
        run, folder = options.export_model
        options.export_model = [run, _seen_from(root, here / folder)]
    for name in ("tracking_uri", "storage"):
        if (uri := getattr(options, name) or "").startswith(SQLITE):
            setattr(options, name, SQLITE + str(here / uri.removeprefix(SQLITE)))


def _seen_from(root: Path, path: Path) -> str:
    """A path without `..`, as short as it is from `root`."""
    path = Path(os.path.normpath(path))
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--params",
        metavar="FILE",
        help="profile: a file, or the name of one in params/; default: what suits this machine",
    )
    parser.add_argument(
        "-p",
        dest="overrides",
        metavar="STAGE.NAME=VALUE",
        action="append",
        default=[],
        help="override one parameter (repeatable)",
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run's folder; default: the profile's name")
    parser.add_argument(
        "--outputs-dir", metavar="DIR", help="folder of all runs; default: outputs in the project's folder"
    )
    span = parser.add_mutually_exclusive_group()
    span.add_argument(
        "--from",
        dest="first",
        metavar="STAGE",
        type=_stage,
        help=f"run this stage and all after it; a number or a name: {_numbered()}",
    )
    span.add_argument("--only", metavar="STAGE", type=_stage, help="run this stage alone")
    parser.add_argument("--force", action="store_true", help="run stages that are done again, from their start")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, why, and with what; run nothing")
    parser.add_argument("--list", action="store_true", help="list the runs so far")
    parser.add_argument(
        "--compare", metavar="RUN", nargs="+", help="write a page and a table of what differs between runs"
    )
    parser.add_argument(
        "--download", action="store_true", help="first fetch both datasets (kagglehub) and FER+'s votes into data/"
    )
    sweep = parser.add_argument_group("sweeps (the extra `sweep`)")
    sweep.add_argument(
        "--sweep",
        metavar="STAGE.NAME=VALUES",
        action="append",
        default=[],
        help="run several values of a parameter (repeatable): a list V1,V2 or a range LOW..HIGH[:log]. Lists alone are run in "
        "every combination, ranges are searched. Ranked by VAL. The same command on other machines that share the outputs "
        "folder joins in",
    )
    sweep.add_argument("--trials", metavar="N", type=int, default=0, help="points to search where a range is given")
    sweep.add_argument(
        "--seeds", metavar="N", type=int, default=1, help="seeds of training for each point, averaged; default: 1"
    )
    sweep.add_argument(
        "--objective", choices=study.OBJECTIVES, default="macro_f1", help="what VAL ranks by; default: macro_f1"
    )
    sweep.add_argument(
        "--pruner",
        choices=study.PRUNERS,
        default="none",
        help="median: end a training whose VAL score falls below the median of the earlier trials; default: none",
    )
    sweep.add_argument(
        "--storage", metavar="URL", default="", help="a database of Optuna's instead of a file in the outputs folder"
    )
    sweep.add_argument(
        "--silence",
        metavar="SECONDS",
        type=float,
        default=study.SILENCE,
        help="a trial whose process is silent for so long is given to another; default: %(default).0f",
    )
    kaggle = parser.add_argument_group("Kaggle")
    kaggle.add_argument(
        "--export-kaggle",
        metavar="DIR",
        nargs="?",
        const=EXPORT_KAGGLE,
        help="write notebooks ready to push, with --params and -p on top of the profile kaggle; default: outputs/kaggle "
        "in the project's folder",
    )
    kaggle.add_argument(
        "--kaggle-user",
        metavar="NAME",
        default=os.environ.get("KAGGLE_USERNAME", "your-user-name"),
        help="owner of the notebooks; default: $KAGGLE_USERNAME",
    )
    kaggle.add_argument(
        "--kaggle-weights",
        metavar="SOURCE",
        help="dataset (owner/slug) or model version (owner/model/framework/variation/version) with a ResNet50 notop "
        "file, attached to the notebooks; default: Keras' own dataset",
    )
    parser.add_argument(
        "--export-model",
        metavar=("RUN", "DIR"),
        nargs=2,
        help="write a run's model to DIR as Keras, weights, TFLite and ONNX, compared with each other, and a model card",
    )
    parser.add_argument(
        "--to-mlflow",
        metavar="RUN",
        nargs="+",
        help="copy finished runs to an MLflow store: parameters, scores, history, figures, report, model",
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="the MLflow store; default: mlflow.db, SQLite, in the outputs folder"
    )
    parser.add_argument("--verbose", action="store_true", help="show everything that the notebooks print")
    return parser


def _numbered() -> str:
    return ", ".join(f"{file[:2]} {name}" for name, file in STAGES.items())


def _stage(text: str) -> str:
    """The stage that a command line names: `4`, `04`, `fine_tune`, `04_fine_tune`, with or without `.py`."""
    for name, file in STAGES.items():
        if text in (name, file, Path(file).stem, file[:2], file[:2].lstrip("0")):
            return name
    raise argparse.ArgumentTypeError(f"no stage {text!r}; stages: {_numbered()}")


def _layers(options: argparse.Namespace) -> tuple[str, list[tuple[str, dict]]]:
    """The profile as `--params` takes it, and where parameters come from, as `parameters.resolve` takes it."""
    on_kaggle = parameters.profile_path("kaggle")
    if options.params:
        path = _profile_file(options.params)
    elif options.export_kaggle:
        path = on_kaggle
    else:
        name, reason = _profile_of_run(options) or parameters.choose_profile()
        print(f"profile {name}: {reason}")
        path = _profile_file(name)
    profiles = dict.fromkeys([on_kaggle, path] if options.export_kaggle else [path])
    layers = [(str(profile), parameters.load_profile(profile)) for profile in profiles]
    layers.append(("notebooks/", _typed()))
    for text in options.overrides:
        stage, name, value = parameters.parse_override(text)
        layers.append((f"-p {text}", {stage: {name: value}}))
    named = {"run": options.run, "outputs_dir": options.outputs_dir}
    layers.append(("the command line", {parameters.COMMON: {name: value for name, value in named.items() if value}}))
    is_named = _profile_file(path.stem).resolve() == path.resolve()
    return path.stem if is_named else str(path), layers


def _profile_file(given: str) -> Path:
    """The file of a profile that is given by a path, or by the name of one in params/."""
    return Path(given) if Path(given).suffix else parameters.profile_path(given)


def _profile_of_run(options: argparse.Namespace) -> tuple[str, str] | None:
    """The profile that the run given with --run was last made with, and the reason to take it; None for a new run."""
    if not options.run:
        return None
    described = paths.run_folders(options.run, options.outputs_dir or "outputs", "").description
    if not described.is_file():
        return None
    content = files.read_json(described)
    profile = content.get("profile") if isinstance(content, dict) else None
    if not isinstance(profile, str):
        raise files.TornFile(f"{described} names no profile: say with --params which one the run has")
    if profile == "none":  # a notebook made it, without a profile
        return None
    if not _profile_file(profile).is_file():
        raise ParameterError(
            f"{described}: its profile {profile} is not there any more: say with --params which one to take"
        )
    return profile, f"the run {options.run} was made with it"


def _typed() -> dict[str, dict]:
    """What a person typed in the parameters cells and saved: it wins over a profile, as in JupyterLab. Says what."""
    typed = defaults.typed_in_cells(parameters.declared())
    for stage, values in typed.items():
        for name, value in values.items():
            note = ", which counts in JupyterLab alone: here, give --params" if name == "profile" else ""
            print(f"{name} = {value!r} typed in notebooks/{STAGES[stage]}{note}")
    return typed


def _resolve(profile: str, layers: list[tuple[str, dict]]) -> dict[str, dict]:
    values = parameters.resolve(parameters.declared(), layers)
    for stage_values in values.values():
        stage_values["profile"] = "none"
        stage_values["run"] = Path(profile).stem if stage_values["run"] == "auto" else stage_values["run"]
    _require_one_value(values, ("run", "outputs_dir", "data_dir"))
    runner.folders_of(values)  # a name that no folder can have is refused here
    return values


def _sweep(profile: str, layers: list[tuple[str, dict]], chosen: list[str], options: argparse.Namespace) -> int:
    if options.force or options.first or options.only:
        raise ParameterError("--sweep makes whole runs and skips what is done: leave --force, --from and --only out")
    base = next(iter(_resolve(profile, layers).values()))
    axes = sweeps.axes(options.sweep, parameters.declared())

    def resolve(point: sweeps.Point) -> dict[str, dict]:
        name = sweeps.name_of(base["run"], point)
        places_of_run = {"run": name} | ({"data_dir": f"{base['data_dir']}/{name}"} if base["data_dir"] else {})
        return _resolve(profile, [*layers, ("--sweep", point), ("--sweep", {parameters.COMMON: places_of_run})])

    plan = study.Plan(
        axes=axes, base=base["run"], profile=profile, resolve=resolve, trials=options.trials,
        seeds=range(base["seed"], base["seed"] + options.seeds), objective=options.objective, pruner=options.pruner,
        silence=options.silence, verbose=options.verbose,
    )  # fmt: skip
    plan.check()
    if options.dry_run:
        for name, values in (run for point in sweeps.grid(axes) for run in plan.runs(point)):
            print(f"\n{name}")
            runner.print_plan(chosen, values)
        return 0
    outputs = places.project_root() / base["outputs_dir"]
    shared = study.open_study(plan, outputs, options.storage)
    failed = study.work(plan, shared)
    from fer_utils.pipeline import study_report  # pandas and matplotlib take a while to import

    sheet, page = study_report.write(plan, shared, outputs)
    found = study_report.table(plan, shared)
    print("\n" + "\n".join(runs.as_lines(study_report.lines(found, plan.objective), terminal.columns())))
    terminal.say(f"{found['score'].notna().sum()} of {len(found)} points finished; ranked by VAL: {page}, {sheet}")
    return 1 if failed else 0


def _compare(outputs: Path, names: list[str]) -> int:
    from fer_utils.pipeline import comparison  # pandas and matplotlib take a while to import

    if len(set(names)) < 2:
        raise ParameterError(f"--compare {' '.join(names)}: expected the names of two or more runs")
    for path in comparison.write(runs.find(outputs, names), outputs):
        print(path)
    return 0


def _require_one_value(values: dict[str, dict], names: tuple[str, ...]) -> None:
    for name in names:
        found = {stage_values[name] for stage_values in values.values()}
        if len(found) > 1:
            raise ParameterError(f"{name} differs between stages ({', '.join(sorted(found))}): set common.{name}")


def _chosen_stages(options: argparse.Namespace) -> list[str]:
    names = list(STAGES)
    if options.only:
        return [options.only]
    return names[names.index(options.first) :] if options.first else names


def _export_kaggle(options: argparse.Namespace, values: dict[str, dict]) -> int:
    from fer_utils.kaggle import export  # jupytext takes a while to import

    runner.check_network(values["train_head"], values["fine_tune"])
    folder = Path(options.export_kaggle)
    weights = options.kaggle_weights or export.WEIGHTS
    written = export.export(folder, values, options.kaggle_user, weights)
    size = sum(path.stat().st_size for path in written.iterdir())
    print(f"{written}  {size / 1000:,.0f} kB\n\nto run it on Kaggle: kaggle kernels push -p {written}")
    if options.kaggle_user == "your-user-name":
        print("first put your user name in for `your-user-name`: export again with --kaggle-user NAME")
    return 0


def _export_model(outputs: Path, name: str, folder: str) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what the converters tell TensorFlow is of no use here
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # formats are compared and timed on the CPU, where the exports run
    from fer_utils.export import formats  # TensorFlow takes seconds to import

    (run,) = runs.find(outputs, [name])
    try:
        measured = formats.export(run.folders, Path(folder))
    except formats.ExportError as error:
        terminal.say(f"run_all.py: {error}", sys.stderr)
        return 1
    table = formats.table(measured).reset_index().astype(str)
    print("\n".join(runs.as_lines([list(table), *table.to_numpy().tolist()], terminal.columns())) + f"\n{folder}")
    return 0


def _to_mlflow(outputs: Path, names: list[str], uri: str | None) -> int:
    from fer_utils.export import mlflow_export  # pandas takes a while to import

    uri = uri or mlflow_export.default_uri(outputs)
    try:
        exported = mlflow_export.export(runs.find(outputs, dict.fromkeys(names)), uri)
    except mlflow_export.MLflowError as error:
        terminal.say(f"run_all.py: {error}", sys.stderr)
        return 1
    for each in exported:
        line = f"{each.run}: {'written' if each.is_new else 'there already, unchanged,'} as {each.run_id}"
        terminal.say(line + (f"; earlier states stay: {', '.join(each.earlier)}" if each.earlier else ""))
    print(uri)
    return 0


def _list(outputs: Path) -> None:
    rows, faults = runs.list_rows(outputs)
    lines = runs.as_lines([runs.COLUMNS, *rows], terminal.columns(), apart=4)
    print("\n".join(lines) if rows else f"no runs in {outputs}")
    for fault in faults:
        terminal.say(fault)


def _print_summary(folders: paths.RunFolders, n_ran: int) -> None:
    """The scores of the run's model, in one line where no stage ran, and where the report is."""
    metrics = runs.read(folders.run).metrics
    if metrics is None:
        if folders.metrics.is_file():
            terminal.say(
                f"{folders.metrics} holds the scores of an earlier model or other data: run the stages after it too"
            )
        return
    if n_ran:
        from fer_utils.evaluation import report  # pandas takes a while to import

        print("\n" + "\n".join(runs.as_lines([runs.SCORES, *runs.score_rows(metrics)], terminal.columns())) + "\n")
        for line in filter(
            None, (report.drawn_line(metrics), report.labels_line(metrics), report.honesty_line(metrics))
        ):
            terminal.say(line)
    scores = [f"TEST {name} {runs.with_interval(metrics['test'], key)}" for key, name in runs.INTERVALS.items()]
    terminal.say(f"{', '.join(scores)}; report: {folders.report}")


def _download() -> None:
    missing = {}
    for slug, local in addresses.DATASETS.values():
        target = Path("data") / local
        there = [path for path in (target, target.with_name(f"{local}.zip")) if path.exists()]
        if there:
            print(f"{there[0]} is there already")
        else:
            missing[slug] = target
    wanted = [
        f"  https://www.kaggle.com/datasets/{slug} → {target} or {target}.zip" for slug, target in missing.items()
    ]
    for slug, target in missing.items():
        fetched = _fetched(slug, "\n".join(["By hand, download", *wanted]))
        with files.replacing(target) as temporary:
            shutil.copytree(fetched, temporary)
        (target / files.WRITTEN).unlink()  # nothing ever replaces a source
    _download_votes()


def _fetched(slug: str, by_hand: str) -> str:
    """The folder into which kagglehub fetches a dataset. Raises NotFoundHere with the way out."""
    try:
        import kagglehub

        return kagglehub.dataset_download(slug)
    except ImportError:
        raise places.NotFoundHere(
            "--download needs kagglehub: `pip install kagglehub`, or with uv `uv run --extra download run_all.py --download`. "
            + by_hand
        ) from None
    except Exception as error:  # kagglehub has a dozen, most of them plain: refused, not found, no network
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise places.NotFoundHere(f"{slug} could not be fetched ({reason}). {by_hand}") from error


def _download_votes() -> None:
    """Fetch FER+'s votes into data/, 2 MB; a download that is not the published file is an error."""
    target = Path("data") / addresses.VOTES_FILE
    if target.exists():
        print(f"{target} is there already")
        return
    by_hand = f"download {addresses.VOTES_ADDRESS} by hand and put it at {target}"
    try:
        with urllib.request.urlopen(addresses.VOTES_ADDRESS, timeout=60) as answer:
            data = answer.read()
    except OSError as error:
        raise places.NotFoundHere(f"FER+'s votes could not be fetched ({error}): {by_hand}") from error
    if hashlib.sha256(data).hexdigest() != addresses.VOTES_SHA256:
        raise places.NotFoundHere(
            f"what {addresses.VOTES_ADDRESS} gave is not the file that this project knows: {by_hand}"
        )
    with files.replacing(target) as temporary:
        temporary.write_bytes(data)


if __name__ == "__main__":
    entry.enter(main)
