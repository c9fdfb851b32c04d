"""One process of a sweep of fake runs, for tests: python study_worker.py OUTPUTS LOG SECONDS SWEEP...

A stage takes SECONDS and appends `<process> <run> <stage>` to LOG before, and the same with `end` after.
"""

import os
import sys
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fer_utils import files
from fer_utils.pipeline import parameters, runner, sweeps

from fake_runs import FakeRun


def plan(outputs: Path, swept: list[str], merge_split: dict[str, str] | None = None, **how) -> sweeps.Plan:
    """A plan of fake runs."""

    def resolve(point):
        given = sweeps.sections(point)
        given["merge_split"] = (merge_split or {}) | given.get("merge_split", {})
        return FakeRun(outputs, sweeps.name_of("demo", point), **given).values

    axes = sweeps.axes(swept, parameters.declared())
    return sweeps.Plan(axes=axes, base="demo", profile="demo", resolve=resolve, **how)


def content(stage: str, run: str) -> str:
    """What a fake stage writes: from training on, of another length in each run, which its scores depend on."""
    return "x" * (zlib.crc32(run.encode()) % 1000) if stage in ("train_head", "fine_tune", "evaluate") else ""


def execute(outputs: Path, log: Path, seconds: float):
    """A stand-in for runner.execute."""

    def say(*words: str) -> None:
        with log.open("a") as file:
            file.write(" ".join((str(os.getpid()), *words)) + "\n")

    def run(stage, values, folders, verbose=False):
        say(values["run"], stage, "begin")
        time.sleep(seconds)
        fake = FakeRun(outputs, values["run"], **files.read_json(folders.folder / "run.json")["parameters"])
        fake.do(stage, content=content(stage, values["run"]))
        say(values["run"], stage, "end")

    return run


def main() -> None:
    outputs, log = Path(sys.argv[1]), Path(sys.argv[2])
    sweeps.POLL = 0.05
    runner.execute = execute(outputs, log, float(sys.argv[3]))
    swept = plan(outputs, sys.argv[4:])
    sys.exit(bool(sweeps.work(swept, sweeps.open_study(swept, outputs), outputs)))


if __name__ == "__main__":
    main()
