"""Arguments that nobody means: run_all.py answers each in a sentence, at once, and changes nothing."""

import os
import resource
import sys
import time
from pathlib import Path

from fer_utils.pipeline import runner

import pytest
from fake_runs import FakeRun
from surroundings import unchanged

ROOT = Path(__file__).resolve().parents[3]
LONG = "x" * 300

# Profiles by the name of their file: what they hold, and what is said of it.
PROFILES = {
    "flow.yaml": ("common: " + "[" * 20_000, "flow.yaml: not readable as YAML: maximum recursion depth exceeded"),
    "block.yaml": ("- " * 5_000, "block.yaml: not readable as YAML: maximum recursion depth exceeded"),
    "digits.yaml": (f"common: {{seed: {'9' * 5_000}}}", "digits.yaml: not readable as YAML: Exceeds the limit"),
    "date.yaml": ("common: {seed: 2024-13-45}", "date.yaml: not readable as YAML: month must be in 1..12"),
    "itself.yaml": ("common: &a {<<: *a}", "itself.yaml: not readable as YAML"),
    "pairs.yaml": ("common: {? {a: b} : c}", "pairs.yaml: not readable as YAML"),
    "object.yaml": ("common: !!python/name:os.system", "object.yaml: not readable as YAML"),
    "zero.yaml": ("common: {seed: \0}", "zero.yaml: not readable as YAML"),
    "infinite.yaml": ("common: {seed: .inf}", "common.seed is inf, expected a whole number"),
    "empty.yaml": ("common:", "section 'common' should hold"),
    "number.yaml": ("5", "number.yaml: expected sections such as"),
    "key.yaml": ("5: {a: b}", "unknown section 5"),
    "true.yaml": ("common: {true: 1}", "unknown parameter common.True"),
    "run.yaml": ('common: {run: "a\\0b"}', r"common.run is 'a\x00b', expected text on one line"),
    "half.yaml": ('common: {run: "\\ud800"}', r"common.run is '\ud800', expected text on one line"),
    "outputs.yaml": ('common: {outputs_dir: "a\\nb"}', r"common.outputs_dir is 'a\nb', expected text on one line"),
    "weights.yaml": ('common: {weights: "\\e[2J"}', r"common.weights is '\x1b[2J', expected text on one line"),
}
B = ["--params", "demo", "--outputs-dir", "{outputs}"]
SWEEP = [*B, "--sweep", "balance.seed=1,2"]

# Arguments that are refused before anything is written, and what is said.
REFUSED = [
    *(
        (["--outputs-dir", place, *command], "--outputs-dir {outputs}/")
        for place in ("{outputs}/file", "{outputs}/dead", "{outputs}/loop")
        for command in (["--list"], ["--compare", "a", "b"], ["--to-mlflow", "a"], ["--params", "demo"])
    ),
    *(
        (["--outputs-dir", f"{{outputs}}/{LONG}", *command], "File name too long")
        for command in (["--list"], ["--compare", "a", "b"], ["--params", "demo"], ["--run", "a", "--dry-run"])
    ),
    (
        ["--params", "demo", "--outputs-dir", "{outputs}/file/below"],
        "{outputs}/file/below/demo cannot be written (Not a directory): choose another output folder",
    ),
    *((["--params", f"{{profiles}}/{name}", *B[2:]], said) for name, (_, said) in PROFILES.items()),
    (["--params", "{profiles}/pipe.yaml", *B[2:]], "pipe.yaml: no such profile"),
    (["--params", "{profiles}/folder.yaml", *B[2:]], "folder.yaml: no such profile"),
    (["--params", f"{LONG}.yaml", *B[2:]], "File name too long"),
    (["--params", LONG, *B[2:]], "File name too long"),
    *(
        ([*B, "-p", f"common.seed={seed}"], "expected a whole number (>= 0, < 4294967296)")
        for seed in ("4294967296", "-1", "1e400", "9" * 5_000, "0x10", "nan", "", "=1")
    ),
    ([*B, "-p", "common.run=.."], "run is '..', expected a plain folder name"),
    ([*B, "-p", f"common.weights={LONG}"], "File name too long"),
    ([*B, "-p", "common.weights=/dev/zero"], "train_head.weights is '/dev/zero': no file at /dev/zero"),
    ([*B, "-p", "evaluate.picture=/dev/zero"], "evaluate.picture is '/dev/zero': no file at /dev/zero"),
    *(([*B, "-p", text], f"-p {text}: expected STAGE.NAME=VALUE") for text in ("", "=", "a.b", ".seed=1", "a b.c=1")),
    ([*B, "-p", "a.b="], "unknown section 'a'"),
    *(
        ([*B, "--sweep", text, "--dry-run"], said)
        for text, said in (
            ("balance.seed=", "expected values set apart by commas"),
            ("balance.seed=1..1e400", "a range LOW..HIGH"),
            ("balance.seed=nan..inf", "a range LOW..HIGH"),
            ("balance.seed=1..9", "say with --trials how many"),
            ("balance.seed=1,4294967296", "balance.seed is 4294967296, expected a whole number"),
            ("a.b=1,2", "unknown section 'a'"),
            ("merge_split.extra=a b,a-b", "gives two runs the name"),
            (f"balance.seed={','.join(map(str, range(20_000)))}", "more than 10,000 combinations"),
        )
    ),
    *(
        ([*SWEEP, *more], said)
        for more, said in (
            (["--seeds", "0"], "--seeds is 0, expected 1 to 10,000"),
            (["--seeds", "1" + "0" * 30], "expected 1 to 10,000"),
            (["--trials", "-1"], "--trials is for ranges"),
            (["--storage", "garbage"], "--storage garbage: cannot be opened"),
            (["--storage", "sqlite:////nowhere/x.db"], "--storage sqlite:////nowhere/x.db: cannot be opened"),
            (["--storage", "sqlite:///{outputs}"], "cannot be opened"),
            (["--storage", "redis://nowhere"], "--storage redis://nowhere: cannot be opened"),
            (["--force"], "leave --force, --from and --only out"),
        )
    ),
    *(
        ([*B[2:], "--compare", *names], said)
        for names, said in (
            (["base"], "expected the names of two or more runs"),
            (["base", "base"], "expected the names of two or more runs"),
            (["base", "../outputs/base"], "has no run '../outputs/base'"),
            (["base", "*"], "has no run '*'"),
            (["base", ""], "has no run"),
            (["base", LONG], "has no run 'xxx"),
        )
    ),
    ([*B[2:], "--to-mlflow", "../outputs/base"], "has no run '../outputs/base'"),
    ([*B, "--run", "new", "--only", "evaluate"], "which merge_split writes: manifest.csv is missing"),
    (["--tracking-uri", "x"], "--tracking-uri goes with --to-mlflow"),
]
UNKNOWN = [
    (["--only", "0"], "no stage '0'"),
    (["--from", "４"], "no stage '４'"),
    (["--from", "4", "--only", "4"], "not allowed with"),
    (["--seeds", "two"], "invalid int value"),
    (["--run", "-x"], "expected one argument"),
    (["--objective", "auc"], "invalid choice"),
    (["--nonsense"], "unrecognized arguments"),
]
ANSWERED = [
    ([*B[2:], "--list"], "base"),
    ([*B, "--run", "base", "--dry-run"], "skip"),
    ([*B[2:], "--run", "base", "--dry-run"], "was made with it"),
    ([*B, "--run", "new", "--dry-run", "-p", "common.seed=4294967295"], "seed = 4294967295"),
    ([*B, "--dry-run", "-p", f"merge_split.extra={';' * 1_000}"], "it has not run yet"),
    ([*B, "--sweep", f"merge_split.extra={LONG},{LONG}y", "--dry-run"], "demo__merge_split.extra=xxx"),
    ([*SWEEP, "--dry-run", "--storage", "garbage"], "demo__balance.seed=2"),
    (["--outputs-dir", "{outputs}/nowhere", "--list"], "no runs in"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """An outputs folder with a run and what is no folder, and profiles of a hostile hand."""
    outputs, profiles = (tmp_path_factory.mktemp(name) for name in ("outputs", "profiles"))
    FakeRun(outputs, "base").do()
    (outputs / "file").write_text("a person's own")
    (outputs / "dead").symlink_to("gone")
    (outputs / "loop").symlink_to("loop")
    for name, (content, _) in PROFILES.items():
        (profiles / name).write_text(content)
    (profiles / "folder.yaml").mkdir()
    os.mkfifo(profiles / "pipe.yaml")
    return {"outputs": outputs, "profiles": profiles}


@pytest.fixture
def ask(places, answer, monkeypatch):
    """run_all.py's answer, after at most ten seconds and a gigabyte more, and without a stage or a change."""

    def ask(arguments: list[str]) -> tuple[int, str, str]:
        monkeypatch.setattr(runner, "execute", lambda *_: pytest.fail("a stage began"))
        began, before = time.monotonic(), _peak()
        with unchanged(*places.values(), ROOT / "notebooks", ROOT / "params"):
            told = answer(*(text.format(**places) for text in arguments))
        assert time.monotonic() - began < 10 and _peak() - before < 1e9
        return told

    names = set(ROOT.iterdir())
    yield ask
    assert set(ROOT.iterdir()) == names


def _peak() -> int:
    """Bytes of memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _short(value) -> str:
    return " ".join(text[:30] for text in value) if isinstance(value, list) else ""


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=_short)
def test_refused(ask, places, arguments, said):
    status, _, errors = ask(arguments)
    assert status == 2 and errors.startswith("run_all.py: ") and said.format(**places) in errors


@pytest.mark.parametrize(("arguments", "said"), UNKNOWN, ids=_short)
def test_refused_by_the_parser(ask, capsys, arguments, said):
    with pytest.raises(SystemExit) as ended:
        ask(arguments)
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "said"), ANSWERED, ids=_short)
def test_answered(ask, arguments, said):
    status, told, errors = ask(arguments)
    assert (status, errors) == (0, "") and said in told


# --- a run's profile, and a store's address ----------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A folder of a person's own with a profile called as one in params/; stages of runs end as if done."""
    profile = "merge_split: {fer2013: demo, emotion_detection: demo, seed: 7}\nfine_tune: {unfreeze_top: 31}\n"
    (tmp_path / "demo.yaml").write_text(profile)

    def execute(stage, values, folders, verbose=False):
        run = FakeRun.__new__(FakeRun)
        run.values, run.folders = {stage: values}, folders
        run.do(stage)

    monkeypatch.setattr(runner, "execute", execute)
    return tmp_path


def test_a_run_keeps_a_profile_that_lies_elsewhere(elsewhere, answer):
    run = ["--outputs-dir", str(elsewhere / "outputs"), "--run", "mine"]
    status, _, errors = answer("--params", str(elsewhere / "demo.yaml"), *run)
    assert status == 0, errors
    with unchanged(elsewhere):
        _, said, _ = answer(*run, "--dry-run")
        assert (
            f"profile {elsewhere / 'demo.yaml'}: the run mine was made with it" in said and "unfreeze_top = 31" in said
        )
        assert said.count(": skip: ") == 5
    (elsewhere / "demo.yaml").rename(elsewhere / "other.yaml")
    with unchanged(elsewhere):
        status, _, errors = answer(*run, "--dry-run")
    assert status == 2 and f"{elsewhere / 'demo.yaml'}: no such profile" in errors


def test_a_run_is_named_after_its_profile_wherever_that_lies(elsewhere, answer):
    arguments = ["--params", str(elsewhere / "demo.yaml"), "--outputs-dir", str(elsewhere / "outputs")]
    assert answer(*arguments)[0] == 0
    _, said, _ = answer("--outputs-dir", str(elsewhere / "outputs"), "--run", "demo", "--dry-run")
    assert "unfreeze_top = 31" in said


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"profile": 5}', '{"profile": null}', "{"])
def test_a_run_that_does_not_say_its_profile_gets_no_other(answer, tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.json").write_text(content)
    with unchanged(tmp_path):
        status, _, errors = answer("--outputs-dir", str(tmp_path), "--run", "mine", "--dry-run")
    assert status == 2 and f"{tmp_path / 'mine' / 'run.json'} " in errors


def test_a_store_is_where_the_user_stands(elsewhere, monkeypatch, capsys):
    pytest.importorskip("optuna", reason="sweeps need the extra `sweep`")
    import run_all

    names = set(ROOT.iterdir())
    monkeypatch.chdir(elsewhere)
    swept = ["--sweep", "evaluate.seed=1,2", "--storage", "sqlite:///here.db"]
    assert run_all.main(["--params", "demo.yaml", "--outputs-dir", "outputs", *swept]) == 0, capsys.readouterr().err
    assert (elsewhere / "here.db").is_file() and set(ROOT.iterdir()) == names
