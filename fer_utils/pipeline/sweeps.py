"""Sweeps: which parameters vary, which points that gives, and how the runs of a point are called."""

import hashlib
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fer_utils.pipeline import parameters
from fer_utils.pipeline.parameters import Parameter, ParameterError
from fer_utils.pipeline.paths import LONGEST_NAME

Point = dict[str, dict[str, str]]  # section → name → value, as text
SEEDED = (
    "train_head",
    "fine_tune",
)  # the stages that several seeds of a point differ in: data and splits stay the same
_RANGE = re.compile(r"([^.:\s]*\.?[^.:\s]+)\.\.([^:\s]+?)(:log)?")
MOST_POINTS = 10_000  # combinations of a sweep's values
_DIGITS = 4  # significant digits of a searched value


@dataclass(frozen=True)
class Axis:
    """One swept parameter: the values of a list, or a range, both ends included."""

    stage: str
    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_int: bool = False

    @property
    def key(self) -> str:
        return f"{self.stage}.{self.name}"

    @property
    def is_range(self) -> bool:
        return not self.values


def axes(texts: Sequence[str], declared: Mapping[str, Mapping[str, Parameter]]) -> list[Axis]:
    """The axes of `STAGE.NAME=V1,V2,…` and `STAGE.NAME=LOW..HIGH[:log]`. Raises ParameterError."""
    found: list[Axis] = []
    for text in texts:
        stage, name, given = parameters.parse_override(text, "--sweep")
        if (stage, name) in [(axis.stage, axis.name) for axis in found]:
            raise ParameterError(f"--sweep {text}: {stage}.{name} is swept twice; give its values in one list")
        found.append(_axis(text, stage, name, given, declared))
    return found


def _axis(text: str, stage: str, name: str, given: str, declared: Mapping[str, Mapping[str, Parameter]]) -> Axis:
    match = _RANGE.fullmatch(given) if ".." in given and "," not in given else None  # long lists would take it minutes
    if not match:
        values = tuple(value.strip() for value in given.split(","))
        if "" in values or len(set(values)) < len(values):
            raise ParameterError(
                f"--sweep {text}: expected values set apart by commas, none twice, or a range such as 1e-5..1e-3:log"
            )
        return Axis(stage, name, values)
    cells = declared.values() if stage == parameters.COMMON else [declared.get(stage, {})]
    kinds = {cell[name].type for cell in cells if name in cell}
    if kinds and not kinds <= {int, float}:
        raise ParameterError(f"--sweep {text}: {stage}.{name} is no number, so it has no range; give a list of values")
    try:
        low, high = float(match[1]), float(match[2])
    except ValueError:
        low = high = math.nan
    is_int, is_log = kinds == {int}, bool(match[3])
    if not low < high or math.isinf(low) or math.isinf(high) or (is_log and low <= 0):
        raise ParameterError(
            f"--sweep {text}: expected LOW..HIGH with LOW below HIGH, for :log both above 0, such as 1e-5..1e-3:log"
        )
    if is_int and not (low.is_integer() and high.is_integer()):
        raise ParameterError(f"--sweep {text}: {stage}.{name} is a whole number, and so are the ends of its range")
    return Axis(stage, name, (), low, high, is_log, is_int)


def grid(swept: Sequence[Axis]) -> list[Point]:
    """Every combination of the axes' values; of a range these are its two ends."""
    lists = [[(axis, value) for value in axis.values or _ends(axis)] for axis in swept]
    if math.prod(map(len, lists)) > MOST_POINTS:
        raise ParameterError(
            f"--sweep: more than {MOST_POINTS:,} combinations; give fewer values, or ranges and --trials"
        )
    return [point_of(dict(combination)) for combination in itertools.product(*lists)]


def _ends(axis: Axis) -> tuple[float, float]:
    return (int(axis.low), int(axis.high)) if axis.is_int else (axis.low, axis.high)


def point_of(values: Mapping[Axis, str | float]) -> Point:
    """The point with these values; searched numbers are rounded to four significant digits."""
    point: Point = {}
    for axis, value in values.items():
        text = value if isinstance(value, str) else str(value) if axis.is_int else f"{value:.{_DIGITS}g}"
        point.setdefault(axis.stage, {})[axis.name] = text
    return point


def with_seed(point: Mapping[str, Mapping[str, str]], seed: int) -> Point:
    """The point with another seed of both phases of training."""
    return {**point, **{stage: {**point.get(stage, {}), "seed": str(seed)} for stage in SEEDED}}


def name_of(base: str, point: Mapping[str, Mapping[str, str]]) -> str:
    """The name of the run of a point: `demo__train_head.epochs=3__fine_tune.unfreeze_top=30`.

    A longer one than a run may have is cut, and ends in a digest of the whole.
    """
    parts = [f"{stage}.{name}={value}" for stage, values in point.items() for name, value in values.items()]
    name = "__".join([base, *(re.sub(r"[^\w.=+-]+", "-", part) for part in parts)])
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME or not parts:
        return name
    whole = hashlib.blake2b(encoded, digest_size=4).hexdigest()
    return encoded[: LONGEST_NAME - len(whole) - 1].decode(errors="ignore") + f"-{whole}"
