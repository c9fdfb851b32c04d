"""Runs the five notebooks headless, one after the other, with parameters injected by papermill.

python run_all.py                                    the profile that suits this machine
python run_all.py --params params/clean.yaml --run clean -p fine_tune.epochs=8
python run_all.py --from fine_tune                   04 and 05 again, on what the run already has
python run_all.py --only evaluate
python run_all.py --dry-run                          every resolved parameter, nothing run
python run_all.py --list                             the runs so far
python run_all.py --download                         fetch both datasets with kagglehub, then run
python run_all.py --export-kaggle                    write folders for `kaggle kernels push`, run nothing
"""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

import jupytext
import papermill
from papermill.exceptions import PapermillExecutionError

from fer_utils import files, kaggle_export, parameters, paths, report, stages
from fer_utils.parameters import STAGES, ParameterError

# Its reader of parameters cells stumbles over `>=` in a comment; ours has checked every name by then.
logging.getLogger("papermill").setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line asks for; return the exit status."""
    options = _parser().parse_args(arguments)
    os.chdir(Path(__file__).resolve().parent)
    try:
        if options.list:
            return _list_runs(Path(options.outputs_dir or "outputs"))
        if options.download:
            _download()
        profile, values = _resolve(options)
        if options.export_kaggle:
            return _export_kaggle(options, values)
        chosen = _chosen_stages(options)
        if options.dry_run:
            _print_plan(chosen, values)
            return 0
        return _run(profile, chosen, values, options.verbose)
    except (ParameterError, kaggle_export.ExportError, paths.NotFoundHere, files.OutputError) as error:
        print(f"run_all.py: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--params", metavar="FILE", help="profile: a file in params/ or its name; default: what suits this machine"
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
    parser.add_argument("--outputs-dir", metavar="DIR", help="folder of all runs; default: outputs")
    span = parser.add_mutually_exclusive_group()
    span.add_argument(
        "--from", dest="first", metavar="STAGE", choices=STAGES, help=f"begin at this stage: {', '.join(STAGES)}"
    )
    span.add_argument("--only", metavar="STAGE", choices=STAGES, help="run this stage alone")
    parser.add_argument("--dry-run", action="store_true", help="print stages and parameters, run nothing")
    parser.add_argument("--list", action="store_true", help="list the runs so far")
    parser.add_argument("--download", action="store_true", help="fetch both datasets into data/ with kagglehub first")
    kaggle = parser.add_argument_group("Kaggle")
    kaggle.add_argument(
        "--export-kaggle",
        metavar="DIR",
        nargs="?",
        const="outputs/kaggle",
        help="write notebooks ready to push, with --params and -p on top of the profile kaggle; default: outputs/kaggle",
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
        default=kaggle_export.WEIGHTS,
        help="dataset (owner/slug) or model version (owner/model/framework/variation/version) with a ResNet50 notop "
        f"file, attached to the notebooks; default: {kaggle_export.WEIGHTS}",
    )
    parser.add_argument("--verbose", action="store_true", help="show everything that the notebooks print")
    return parser


def _resolve(options: argparse.Namespace) -> tuple[str, dict[str, dict]]:
    on_kaggle = parameters.profile_path("kaggle")
    if options.params:
        path = Path(options.params)
        path = path if path.suffix else parameters.profile_path(options.params)
    elif options.export_kaggle:
        path = on_kaggle
    else:
        name, reason = parameters.choose_profile()
        print(f"profile {name}: {reason}")
        path = parameters.profile_path(name)
    profiles = dict.fromkeys([on_kaggle, path] if options.export_kaggle else [path])
    layers = [(str(profile), parameters.load_profile(profile)) for profile in profiles]
    for text in options.overrides:
        stage, name, value = parameters.parse_override(text)
        layers.append((f"-p {text}", {stage: {name: value}}))
    named = {"run": options.run, "outputs_dir": options.outputs_dir}
    layers.append(("the command line", {parameters.COMMON: {name: value for name, value in named.items() if value}}))
    values = parameters.resolve(parameters.declared(), layers)
    for own in values.values():
        own["profile"] = "none"
        own["run"] = path.stem if own["run"] == "auto" else own["run"]
    _require_one_value(values, ("run", "outputs_dir", "data_dir"))
    for own in values.values():
        try:
            paths.run_folders(own["run"], own["outputs_dir"], own["data_dir"])
        except ValueError as error:
            raise ParameterError(str(error)) from error
    return path.stem, values


def _require_one_value(values: dict[str, dict], names: tuple[str, ...]) -> None:
    for name in names:
        found = {own[name] for own in values.values()}
        if len(found) > 1:
            raise ParameterError(f"{name} differs between stages ({', '.join(sorted(found))}): set common.{name}")


def _chosen_stages(options: argparse.Namespace) -> list[str]:
    names = list(STAGES)
    if options.only:
        return [options.only]
    return names[names.index(options.first) :] if options.first else names


def _print_plan(chosen: list[str], values: dict[str, dict]) -> None:
    for stage in chosen:
        print(f"{stage} ({STAGES[stage]})")
        for name, value in values[stage].items():
            print(f"  {name} = {value!r}")


def _check_inputs(values: dict[str, dict]) -> None:
    """What would fail hours later, found before the first kernel starts."""
    for name in paths.DATASETS:
        if values["merge_split"][name] != "demo":
            paths.find_dataset(name, values["merge_split"][name])
    for stage in ("train_head", "fine_tune"):
        weights = values[stage]["weights"]
        if weights not in ("imagenet", "none") and not (paths.project_root() / weights).is_file():
            raise ParameterError(f"{stage}.weights is {weights!r}: neither imagenet, none, nor a file that is there")
    _check_phases_agree(values)


def _check_phases_agree(values: dict[str, dict]) -> None:
    for name in ("weights", "image_size"):
        if values["train_head"][name] != values["fine_tune"][name]:
            raise ParameterError(f"{name} differs between train_head and fine_tune: set common.{name}")


def _export_kaggle(options: argparse.Namespace, values: dict[str, dict]) -> int:
    _check_phases_agree(values)
    folder = Path(options.export_kaggle)
    for written in kaggle_export.export(folder, values, options.kaggle_user, options.kaggle_weights):
        size = sum(path.stat().st_size for path in written.iterdir())
        print(f"{written}  {size / 1000:,.0f} kB")
    print(f"\nto run it all on Kaggle: kaggle kernels push -p {folder / kaggle_export.slug(kaggle_export.TITLE)}")
    if options.kaggle_user == "your-user-name":
        print("first put your user name in for `your-user-name`: export again with --kaggle-user NAME")
    return 0


def _run(profile: str, chosen: list[str], values: dict[str, dict], verbose: bool) -> int:
    own = values[chosen[0]]
    folders = paths.run_folders(own["run"], own["outputs_dir"], own["data_dir"])
    if "merge_split" in chosen:
        _check_inputs(values)
    files.write_json(folders.run / "run.json", {"profile": profile, "parameters": values})
    print(f"run {folders.run.name}: {', '.join(chosen)} → {folders.run}")
    for stage in chosen:
        folders.stage_record(stage).unlink(missing_ok=True)
        try:
            _execute(stage, values[stage], folders, verbose)
        except PapermillExecutionError as error:
            print(f"\n{stage} failed in cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
            print(
                f"the executed notebook, up to there: {folders.notebooks / STAGES[stage]}".replace(".py", ".ipynb"),
                file=sys.stderr,
            )
            return 1
        if not folders.stage_record(stage).is_file():
            print(f"{stage} ended without its record: {folders.stage_record(stage)}", file=sys.stderr)
            return 1
    _print_summary(folders)
    return 0


def _execute(stage: str, values: dict, folders: paths.RunFolders, verbose: bool) -> None:
    root = paths.project_root()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    folders.notebooks.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        jupytext.read(root / "notebooks" / STAGES[stage]),
        str(folders.notebooks / STAGES[stage].replace(".py", ".ipynb")),
        parameters=values,
        kernel_name="python3",
        cwd=str(root),
        progress_bar={"desc": f"{STAGES[stage]} cells", "leave": True},
        stdout_file=sys.stdout if verbose else None,
        stderr_file=sys.stderr,
    )


def _print_summary(folders: paths.RunFolders) -> None:
    records = stages.records(folders)
    width = max(map(len, STAGES))
    print(f"\n{'stage':{width}}  {'seconds':>8}  key figures")
    for stage, record in records.items():
        shown = ", ".join(f"{name} {value:,}" for name, value in record["figures"].items())
        print(f"{stage:{width}}  {record['seconds']:8.1f}  {shown}")
    if folders.metrics.is_file() and "evaluate" in records:
        metrics = files.read_json(folders.metrics)
        print(f"\n{report.score_table(metrics).round(4).to_string()}\n\n{report.honesty_line(metrics)}")
        print(f"report: {folders.report}")


def _list_runs(outputs: Path) -> int:
    print(
        f"{'run':20}  {'finished':25}  {'profile':8}  {'stages':>6}  {'accuracy':>8}  {'macro F1':>8}  {'in TRAIN':>8}"
    )
    for file in sorted(outputs.glob("*/run.json")):
        folders = paths.run_folders(file.parent.name, str(outputs.absolute()), "")
        records = stages.records(folders)
        finished = max((record["finished"] for record in records.values()), default="")
        row = f"{file.parent.name:20}  {finished:25}  {files.read_json(file)['profile']:8}  {len(records)} of {len(STAGES)}"
        if "evaluate" in records:
            metrics = files.read_json(folders.metrics)
            test, leaked = metrics["test"], metrics["leakage"]["test_images_in_train"]
            row += f"  {test['accuracy']:8.4f}  {test['macro_f1']:8.4f}  {leaked / test['n']:8.0%}"
        print(row)
    return 0


def _download() -> None:
    try:
        import kagglehub
    except ImportError:
        wanted = "\n".join(
            f"  https://www.kaggle.com/datasets/{slug} → data/{local} or data/{local}.zip"
            for slug, local in paths.DATASETS.values()
        )
        raise paths.NotFoundHere(
            f"--download needs kagglehub (`pip install kagglehub`). By hand, download\n{wanted}"
        ) from None
    for slug, local in paths.DATASETS.values():
        target = Path("data") / local
        if target.exists():
            print(f"{target} is there already")
            continue
        with files.replacing(target) as temporary:
            shutil.copytree(kagglehub.dataset_download(slug), temporary)


if __name__ == "__main__":
    sys.exit(main())
