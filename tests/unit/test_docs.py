"""Commands in the documentation are for every shell: bash, zsh, PowerShell and cmd."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Plain words, and quoted ones. Elsewhere # begins no comment, \ continues no line, a comma in PowerShell and brackets in zsh
# are syntax, and cmd knows no single quotes. `>` sends output to a file everywhere.
WORD = r'[\w./:=+@>-]+|"[\w./:=+@<>,;\[\] -]+"'


def _commands(page: Path) -> list[str]:
    return [
        line for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.S) for line in block.splitlines()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one_line_that_all_shells_read_alike(page):
    wrong = [line for line in _commands(page) if not re.fullmatch(rf"(?:{WORD})(?: (?:{WORD}))*", line)]
    assert wrong == []


def test_the_readme_leads_with_the_commands_that_set_up_answer_train_and_test():
    first = _commands(PAGES[0])[:4]
    assert first[0] == "pip install uv" and all(line.startswith("uv run ") for line in first[1:])
    assert "uv run pytest" in first and "uv run pytest" in (ROOT / ".ci/run").read_text()


def _anchors(page: Path) -> list[str]:
    """The anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text("utf-8")):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_project_that_is_named_exists(page):
    named = re.findall(
        r"(?:fer_utils|tests|notebooks|params|docs)/[\w/]+\.(?:py|md|yaml|txt|onnx)", page.read_text("utf-8")
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
