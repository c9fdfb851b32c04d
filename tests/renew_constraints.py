"""Writes the versions of this environment into pyproject.toml, as the exact set that `uv` installs.

To renew them: take the list `constraint-dependencies` out of pyproject.toml, `uv sync --upgrade`, run the whole suite, and where
it passes `python tests/renew_constraints.py`.
"""

import importlib.metadata
import re
import sys
import textwrap
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
BEGIN, END = "constraint-dependencies = [\n", "]\n"


def installed() -> list[str]:
    """Every package of this environment but the project itself, as `name==version` for the Python that it was tested with."""
    since = f"python_full_version >= '{sys.version.split()[0]}'"
    found = {
        re.sub(r"[-_.]+", "-", package.name).lower(): package.version
        for package in importlib.metadata.distributions()
        if package.name != "fer-resnet50"
    }
    return [f"{name}=={version}; {since}" for name, version in sorted(found.items())]


def main() -> None:
    text = PROJECT.read_text(encoding="utf-8")
    lines = textwrap.wrap(
        " ".join(f'"{entry}",'.replace(" ", "\0") for entry in installed()), 120, break_on_hyphens=False
    )
    block = BEGIN + "".join(f"    {line}\n" for line in lines).replace("\0", " ") + END
    if BEGIN in text:
        head, _, rest = text.partition(BEGIN)
        text = head + block + rest.partition(END)[2]
    else:
        text = text.replace("compile-bytecode = true\n", f"compile-bytecode = true\n{block}")
    PROJECT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
