"""environment.yml and pyproject.toml name the same packages in the same versions."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def _split(requirement: str) -> tuple[str, str]:
    name, bounds = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(.*)", requirement).groups()
    return name.lower().replace("_", "-"), bounds.replace(" ", "")


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _environment() -> tuple[list[str], list[str], dict]:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    (nested,) = [entry for entry in content["dependencies"] if isinstance(entry, dict)]
    return conda, nested["pip"], content


def test_environment_and_project_hold_the_same_packages_in_the_same_versions():
    project = _project()
    wanted = dict(map(_split, [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]))
    conda, pip, _ = _environment()
    entries = [_split(entry) for entry in [*conda, *pip] if not entry.startswith("-e")]
    assert len(entries) == len(dict(entries)), "a package stands twice"
    assert {name: bounds for name, bounds in entries if name not in ("python", "pip")} == wanted


def test_python_is_the_projects_and_the_package_itself_is_installed():
    conda, pip, content = _environment()
    assert dict(map(_split, conda))["python"] == _project()["project"]["requires-python"]
    assert "-e ." in pip and "pip" in conda
    assert content["channels"] == ["conda-forge"] and content["name"]


def test_there_is_one_opencv():
    conda, pip, _ = _environment()
    assert [
        name for name, _ in map(_split, [entry for entry in conda + pip if entry != "-e ."]) if "opencv" in name
    ] == ["opencv-python-headless"]


def test_what_the_project_asks_for_is_installed_in_the_version_that_was_tested():
    """The list is renewed by tests/renew_constraints.py, which says how."""
    project = _project()
    pinned = {
        name: Version(bounds.split(";")[0].removeprefix("=="))
        for name, bounds in map(_split, project["tool"]["uv"]["constraint-dependencies"])
    }
    for entry in [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]:
        asked = Requirement(entry)
        assert pinned[asked.name] in asked.specifier, entry
