"""Reads the parameters cells, profiles and overrides, and resolves them to one checked value each.

A parameters cell declares one parameter per line:

    # What the specification names
    epochs: int = 10  # >= 1; specification
    optimizer: str = "adamw"  # adamw | adam; specification

The type and, before the `;`, the allowed values are declared only there. A line that begins with `# ` is a heading.
"""

import ast
import contextlib
import difflib
import json
import math
import operator
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from fer_utils import places
from fer_utils.data import addresses, finding

import yaml

# Stage names in order, and the notebook of each.
STAGES = {
    "merge_split": "01_merge_split.py",
    "balance": "02_balance.py",
    "train_head": "03_train_head.py",
    "fine_tune": "04_fine_tune.py",
    "evaluate": "05_evaluate.py",
}
COMMON = "common"  # section of a profile whose values apply to every stage with the parameter
CELL_MARK = '# %% tags=["parameters"]'

_LINE = re.compile(
    r"^(?P<start>(?P<name>\w+): (?P<type>int|float|str|bool) = )(?P<value>[^#\n]+?)(?P<end>  # (?P<comment>.+))$",
    re.MULTILINE,
)
_CHOICES = re.compile(r"(\w+(?: \| \w+)+)(?:; |$)")
_BOUNDS = re.compile(r"((?:[<>]=? [\d.e-]+)(?:, [<>]=? [\d.e-]+)*)(?:; |$)")
_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are no UTF-8
_EXPECTED = {int: "a whole number", float: "a number", str: "text on one line", bool: "true or false"}


class ParameterError(ValueError):
    """An invalid parameter, profile or override; the message has a line for each fault."""


@dataclass(frozen=True)
class Parameter:
    """One declared parameter."""

    name: str
    type: type
    default: Any
    allowed: str  # ">= 1, < 10", "adamw | adam", or "" for any value

    def coerce(self, value: Any) -> Any:
        """`value` as this parameter's type; raises ValueError that says what was expected.

        Text is converted to a number or truth value, since YAML reads `1e-3` as text and command-line values are text.
        """
        with contextlib.suppress(LookupError, OverflowError, ValueError):
            value = _CONVERT[self.type](value)
            if self._is_allowed(value):
                return value
        rule = f" ({self.allowed})" if self.allowed else ""
        raise ValueError(f"is {reprlib.repr(value)}, expected {_EXPECTED[self.type]}{rule}")

    def _is_allowed(self, value: Any) -> bool:
        if self.type is str:
            is_text = isinstance(value, str) and not _NO_TEXT.search(value)
            return is_text and (not self.allowed or value in self.allowed.split(" | "))
        conditions = [condition.split() for condition in self.allowed.split(",") if condition]
        return math.isfinite(value) and all(_COMPARISONS[sign](value, float(limit)) for sign, limit in conditions)


def _as_int(value: Any) -> int:
    text = str(value)  # as text, since True is no number
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)  # a float would round a long seed
    if number != int(number):
        raise ValueError
    return int(number)


_CONVERT: dict[type, Callable[[Any], Any]] = {
    int: _as_int,
    float: lambda value: float(str(value)),
    str: lambda value: value,
    bool: lambda value: {"true": True, "false": False}[str(value).lower()],
}


@lru_cache
def read_cell(source: str, name: str) -> dict[str, Parameter]:
    """The parameters that a notebook's text declares. Raises ParameterError, naming `name` and the line."""
    cells = source.split("\n# %%")
    tagged = [cell for cell in cells if cell.startswith(CELL_MARK.removeprefix("# %%"))]
    if len(tagged) != 1:
        raise ParameterError(f"{name}: {len(tagged)} cells start with {CELL_MARK}, expected one")
    lines = [line for line in tagged[0].splitlines()[1:] if line.strip() and not line.startswith("# ")]
    try:
        return {parameter.name: parameter for parameter in map(_declared, lines)}
    except ValueError as error:
        raise ParameterError(f"{name}: {error}") from None


def _declared(line: str) -> Parameter:
    match = _LINE.match(line)
    if not match:
        raise ValueError(f"expected `name: type = literal  # allowed; reason` in the parameters cell, found {line!r}")
    kind = next(kind for kind in _CONVERT if kind.__name__ == match["type"])
    rule = re.match(_CHOICES if kind is str else _BOUNDS, match["comment"])
    parameter = Parameter(match["name"], kind, None, rule[1] if rule else "")
    try:
        return replace(parameter, default=parameter.coerce(ast.literal_eval(match["value"])))
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"the default of {parameter.name}: {error}") from None


def with_values(cell: str, values: Mapping[str, Any]) -> str:
    """The text of a parameters cell with `values` as defaults; types and comments are unchanged."""

    def line(match: re.Match) -> str:
        value = values[match["name"]]
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        return f"{match['start']}{literal}{match['end']}"

    return _LINE.sub(line, cell)


def source_of(stage: str) -> str:
    """The text of a stage's notebook."""
    return (places.source_root() / "notebooks" / STAGES[stage]).read_text(encoding="utf-8")


def declared() -> dict[str, dict[str, Parameter]]:
    """Every stage's parameters, from the parameters cells of the notebooks."""
    return {stage: read_cell(source_of(stage), file) for stage, file in STAGES.items()}


@lru_cache
def shipped() -> dict[str, dict[str, Any]]:
    """The defaults as shipped, stage → name → value; a cell that was edited and saved no longer has its own."""
    content = yaml.safe_load(Path(__file__).with_name("defaults.yaml").read_text(encoding="utf-8"))
    return {stage: content[stage] for stage in STAGES}


def typed(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stage that a user typed: those that differ from the shipped default."""
    return {name: value for name, value in values.items() if value != shipped()[stage].get(name, value)}


def typed_in_cells(declared: Mapping[str, Mapping[str, Parameter]]) -> dict[str, dict[str, Any]]:
    """Values that a user typed in the parameters cells of these stages and saved: stage → name → value."""
    return {stage: typed(stage, {name: one.default for name, one in own.items()}) for stage, own in declared.items()}


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys, of which YAML silently keeps the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_profile(path: Path) -> dict[str, dict[str, Any]]:
    """Read a profile: sections (`common` or a stage), each with parameters. Raises ParameterError, naming the file."""
    if not path.is_file():
        known = ", ".join(sorted(each.name for each in path.parent.glob("*.yaml")))
        raise ParameterError(f"{path}: no such profile; profiles there: {known or 'none'}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader) or {}
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:  # ValueError: of a date or a number
        raise ParameterError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path}: expected sections such as `balance:`, found {reprlib.repr(content)}")
    for section, values in content.items():
        if not isinstance(values, dict):
            found = reprlib.repr(values)
            raise ParameterError(f"{path}: section {section!r} should hold `name: value` lines, found {found}")
    return content


def parse_override(text: str, option: str = "-p") -> tuple[str, str, str]:
    """Split `STAGE.NAME=VALUE`, given to `option`. Raises ParameterError."""
    match = re.fullmatch(r"(\w+)\.(\w+)=(.*)", text, re.DOTALL)
    if not match:
        raise ParameterError(f"{option} {text}: expected STAGE.NAME=VALUE, such as fine_tune.epochs=8")
    return match[1], match[2], match[3]


def resolve(
    stages: Mapping[str, Mapping[str, Parameter]], layers: Sequence[tuple[str, Mapping[str, Mapping[str, Any]]]]
) -> dict[str, dict[str, Any]]:
    """One checked value for every parameter of every stage.

    layers: (origin, section → name → value). Later layers take precedence; within a layer a stage's section takes
    precedence over `common`. Raises ParameterError with a line for every fault: its origin, what was expected, and the
    most similar known name.
    """
    faults: list[str] = []
    values = {stage: {name: parameter.default for name, parameter in cell.items()} for stage, cell in stages.items()}
    for origin, sections in layers:
        for section in sorted(sections, key=lambda section: section != COMMON):
            if section not in (COMMON, *stages):
                faults.append(f"{origin}: unknown section {section!r}{_nearest(section, [COMMON, *stages])}")
                continue
            for name, value in sections[section].items():
                homes = [stage for stage in stages if name in stages[stage]]
                targets = [stage for stage in homes if section in (COMMON, stage)]
                if not targets:
                    known = sorted({known for stage in stages if section in (COMMON, stage) for known in stages[stage]})
                    hint = f"; it belongs to {' and '.join(homes)}" if homes else _nearest(name, known)
                    faults.append(f"{origin}: unknown parameter {section}.{name}{hint}")
                for stage in targets:
                    try:
                        values[stage][name] = stages[stage][name].coerce(value)
                    except ValueError as fault:
                        faults.append(f"{origin}: {section}.{name} {fault}")
    if faults:
        raise ParameterError("\n".join(dict.fromkeys(faults)))  # each once, where several stages have the parameter
    return values


def _nearest(name: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def choose_profile() -> tuple[str, str]:
    """The profile for this machine: (name, reason).

    Raises NotFoundHere if data/ is not empty but lacks a dataset: faces are drawn only if data/ is empty.
    """
    if places.on_kaggle():
        return "kaggle", "this is a Kaggle machine"
    if not finding.held_data():
        return "demo", "data/ is empty: drawn faces stand in for the two datasets"
    for name in addresses.DATASETS:
        finding.find_dataset(name, "auto")
    name, gpu = ("gpu", "a GPU") if places.shows_gpu() else ("cpu", "no GPU")
    return name, f"both datasets are in data/ and {gpu} is here"


def profile_path(name: str) -> Path:
    """The file of a profile that is given by a path, or by its name: `params/<name>.yaml`."""
    return Path(name) if Path(name).suffix else places.source_root() / "params" / f"{name}.yaml"
