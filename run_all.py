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
import itertools
import os
import sys
from pathlib import Path
from typing import Any

from fer_utils import entry, files, places
from fer_utils.data import download
from fer_utils.pipeline import runner, runs, sweeps, terminal
from fer_utils.pipeline.parameters import STAGES, ParameterError
from fer_utils.pipeline.runs import RunIsBusy

ROOT = Path(__file__).resolve().parent
SQLITE = "sqlite:///"  # a store's address up to the file's path
EXPORT_KAGGLE = Path("outputs/kaggle")  # where the folders for Kaggle go unless said otherwise, in the project
USER = "your-user-name"  # of Kaggle
ALONE = ("list", "compare", "export_model", "to_mlflow", "export_kaggle")  # options that answer without running a stage
APART = ((*ALONE, "sweep"), (*ALONE, "dry_run", "download"))  # of these, one at a time
GOES_WITH = dict.fromkeys(("trials", "seeds", "objective", "storage"), "sweep")  # option → the one that it belongs to
GOES_WITH |= {"tracking_uri": "to_mlflow", "kaggle_user": "export_kaggle", "kaggle_weights": "export_kaggle"}


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)}
    os.chdir(ROOT)
    try:
        _require_that_all_count(given)
        return _answer(options, places.project_root() / (options.outputs_dir or "outputs"))
    except KeyboardInterrupt:
        same = "the same command, without --force, --from and --only, goes on after the last finished stage or epoch"
        print("\nstopped" if given & {*ALONE, "dry_run"} else f"\nstopped; {same}", file=sys.stderr)
        return 130
    except (entry.Failed, ParameterError, files.TornFile, RunIsBusy, OSError) as error:
        terminal.say(f"run_all.py: {error}", sys.stderr)
        return 1 if isinstance(error, entry.Failed) else 2


def _require_that_all_count(given: set[str]) -> None:
    """Raise ParameterError for an option that would be ignored without another one, or beside it."""
    faults = [(name, "goes with", other) for name, other in GOES_WITH.items() if name in given and other not in given]
    pairs = [pair for group in APART for pair in itertools.combinations(group, 2)]
    faults += [(name, "cannot be given with", other) for name, other in pairs if {name, other} <= given]
    for name, fault, other in faults[:1]:
        raise ParameterError(f"--{name} {fault} --{other}".replace("_", "-"))


def _answer(options: argparse.Namespace, outputs: Path) -> int:
    """Do what the options say, each kind in the module that knows it. Some take a while to import."""
    if os.path.lexists(outputs) and not outputs.is_dir():
        raise ParameterError(f"--outputs-dir {outputs} is no folder: give the folder of all runs")
    if options.list:
        terminal.print_list(outputs)
    elif options.compare:
        from fer_utils.pipeline import pages

        pages.compare(outputs, options.compare)
    elif options.export_model:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what the converters tell TensorFlow is of no use here
        os.environ["KERAS_BACKEND"] = "tensorflow"  # Keras exports to TFLite with TensorFlow only
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # formats are compared and timed on the CPU, where the exports run
        from fer_utils.export import formats

        name, folder = options.export_model
        (run,) = runs.find(outputs, [name])
        table = formats.table(formats.export(run, Path(folder))).reset_index().astype(str)
        terminal.print_table([list(table), *table.to_numpy().tolist()])
        print(folder)
    elif options.to_mlflow:
        from fer_utils.export import mlflow_export

        mlflow_export.export_named(outputs, options.to_mlflow, options.tracking_uri)
    else:
        return _run(options)
    return 0


def _run(options: argparse.Namespace) -> int:
    if options.download:
        download.download()
    is_part = bool(options.force or options.first or options.only)
    names = list(STAGES)
    chosen = [options.only] if options.only else names[names.index(options.first or names[0]) :]
    profile, layers = runner.layers(
        options.params, options.run, options.outputs_dir, options.overrides, bool(options.export_kaggle)
    )
    if options.sweep:
        if is_part:
            raise ParameterError("--sweep makes whole runs of what is due: leave --force, --from and --only out")
        how = {name: getattr(options, name) for name in ("trials", "objective", "verbose")}
        plan = sweeps.plan(options.sweep, profile, layers, options.seeds, **how)
        return sweeps.print_plan(plan) if options.dry_run else sweeps.sweep(plan, options.storage)
    values = runner.resolve(profile, layers)
    if options.export_kaggle:
        from fer_utils.kaggle import export

        runner.check_network(values["train_head"], values["fine_tune"])
        weights = options.kaggle_weights or export.WEIGHTS
        export.export(Path(options.export_kaggle), values, options.kaggle_user or USER, weights)
        if not options.kaggle_user:
            print(f"first put your user name in for `{USER}`: export again with --kaggle-user NAME")
    elif options.dry_run:
        runner.print_plan(chosen, values, is_part)
    else:
        n_ran = runner.run(profile, chosen, values, is_part, options.verbose, is_afresh=options.force)
        terminal.print_summary(runner.run_of(values), n_ran)
    return 0


class _RunAndFolder(argparse.Action):
    """Takes the name of a run and the path of a folder."""

    def __call__(self, parser: object, options: argparse.Namespace, given: Any, option: str | None = None) -> None:
        setattr(options, self.dest, [given[0], _path(given[1])])


def _path(given: str) -> str:
    """A path seen from where the user stands: without `..`, and as short as it is from the project's folder."""
    path = Path(os.path.normpath(Path.cwd() / given))
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _profile(given: str) -> str:
    return _path(given) if Path(given).suffix else given


def _store(uri: str) -> str:
    return SQLITE + str(Path.cwd() / uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else uri


def _stage(text: str) -> str:
    """The stage that a command line names: `4`, `04`, `fine_tune`, `04_fine_tune`, with or without `.py`."""
    for name, file in STAGES.items():
        if text in (name, file, Path(file).stem, file[:2], file[:2].lstrip("0")):
            return name
    raise argparse.ArgumentTypeError(f"no stage {text!r}; stages: {_numbered()}")


def _numbered() -> str:
    return ", ".join(f"{file[:2]} {name}" for name, file in STAGES.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say = parser.add_argument
    say(
        "--params",
        metavar="FILE",
        type=_profile,
        help="profile: a file, or a name in params/; default: by this machine",
    )
    say(
        "-p",
        dest="overrides",
        metavar="STAGE.NAME=VALUE",
        action="append",
        default=[],
        help="one parameter (repeatable)",
    )
    say("--run", metavar="NAME", help="name of the run's folder; default: the profile's name")
    say("--outputs-dir", metavar="DIR", type=_path, help="folder of all runs; default: outputs in the project's folder")
    span = parser.add_mutually_exclusive_group()
    span.add_argument(
        "--from", dest="first", metavar="STAGE", type=_stage, help=f"this stage and all after it: {_numbered()}"
    )
    span.add_argument("--only", metavar="STAGE", type=_stage, help="run this stage alone")
    say("--force", action="store_true", help="run stages that are done again, from their start")
    say("--dry-run", action="store_true", help="say what would run, why, and with what; run nothing")
    say("--list", action="store_true", help="list the runs so far")
    say("--compare", metavar="RUN", nargs="+", help="write a page and a table of what differs between runs")
    say("--download", action="store_true", help="first fetch both datasets (kagglehub) and FER+'s votes into data/")
    say = parser.add_argument_group("sweeps (the extra `sweep`)").add_argument
    say(
        "--sweep",
        metavar="STAGE.NAME=VALUES",
        action="append",
        default=[],
        help="run several values of a parameter (repeatable): a list V1,V2 or a range LOW..HIGH[:log]. Lists alone are run in "
        "every combination, ranges are searched. Ranked by VAL. The same command on other machines that share the outputs "
        "folder joins in",
    )
    say("--trials", metavar="N", type=int, default=0, help="points to search where a range is given")
    say("--seeds", metavar="N", type=int, default=1, help="seeds of training for each point, averaged; default: 1")
    say("--objective", choices=sweeps.OBJECTIVES, default="macro_f1", help="what VAL ranks by; default: macro_f1")
    say(
        "--storage", metavar="URL", type=_store, default="", help="an Optuna database, not a file in the outputs folder"
    )
    say = parser.add_argument_group("Kaggle").add_argument
    say(
        "--export-kaggle",
        metavar="DIR",
        nargs="?",
        const=EXPORT_KAGGLE,
        type=_path,
        help="write a notebook ready to push, with --params and -p on top of the profile kaggle; default: outputs/kaggle "
        "in the project's folder",
    )
    user = os.environ.get("KAGGLE_USERNAME")
    say("--kaggle-user", metavar="NAME", default=user, help="owner of the notebook; default: $KAGGLE_USERNAME")
    say(
        "--kaggle-weights",
        metavar="SOURCE",
        help="dataset (owner/slug) or model version (owner/model/framework/variation/version) with a ResNet50 notop "
        "file, attached to the notebook; default: Keras' own dataset",
    )
    say = parser.add_argument_group("finished runs").add_argument
    say(
        "--export-model",
        metavar=("RUN", "DIR"),
        nargs=2,
        action=_RunAndFolder,
        help="write a run's model to DIR as Keras, weights, TFLite and ONNX, compared with each other, and a model card",
    )
    say(
        "--to-mlflow",
        metavar="RUN",
        nargs="+",
        help="copy finished runs to an MLflow store: parameters, scores, history, figures, report, model",
    )
    say("--tracking-uri", metavar="URI", type=_store, help="the MLflow store; default: mlflow.db in the outputs folder")
    say("--verbose", action="store_true", help="show everything that the notebooks print")
    return parser


if __name__ == "__main__":
    entry.enter(main)
