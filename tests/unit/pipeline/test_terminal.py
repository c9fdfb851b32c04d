"""What a stage shows while it runs: one line on a terminal, lines now and then in a log, and nothing glued together."""

import contextlib
import fcntl
import io
import json
import os
import pty
import struct
import termios
import threading
import time
from pathlib import Path

from fer_utils import progress
from fer_utils.pipeline import terminal
from fer_utils.pipeline.terminal import Shown, Status

import pytest

REPORTS = Path("reports")  # of a status that is never begun, and writes no file


class Clock:
    """A clock that the tests turn on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def report(
    done: int, task: str = "reading images", total: int = 100, unit: str = "images", left=None, scores=None
) -> dict:
    return {"task": task, "done": done, "total": total, "unit": unit, "left": left, "scores": scores}


def test_the_line_says_stage_time_gone_how_far_it_is_and_time_left():
    clock = Clock()
    status = Status("merge_split", REPORTS, clock=clock)
    clock.now += 10  # the kernel starts
    assert status.line() == "merge_split, 10 s"
    status.take(report(0))
    clock.now += 5
    assert status.line() == "merge_split, 15 s, reading images, 0 of 100 images"
    status.take(report(40, left=12.4))
    assert status.line() == "merge_split, 15 s, reading images, 40 of 100 images, about 12 s left"
    status.take(report(99, left=0.3))
    assert status.line() == "merge_split, 15 s, reading images, 99 of 100 images"
    status.take({"task": None})
    assert status.line() == "merge_split, 15 s"


def test_epochs_show_the_scores_of_the_last():
    clock = Clock()
    status = Status("fine_tune", REPORTS, clock=clock)
    clock.now += 150
    status.take(report(51, "epoch 5 of 9", 201, "steps", 150, "epoch 4: loss 0.512, VAL accuracy 0.710"))
    assert status.line() == (
        "fine_tune, 2 min, epoch 5 of 9, 51 of 201 steps, about 2 min left, after epoch 4: loss 0.512, VAL accuracy 0.710"
    )


def test_a_bar_estimates_the_time_left(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.REPORTS, str(tmp_path / "reports"))
    began = time.monotonic()
    with progress.bar(total=40) as bar:
        for _ in range(3):
            time.sleep(0.6)
            bar.update(1)
        seconds = time.monotonic() - began
    last = [json.loads(line) for line in (tmp_path / "reports").read_text().splitlines()][-2]
    assert last["done"] == 3 and last["left"] == pytest.approx(37 * seconds / 3, rel=0.2)


def test_bars_report_to_the_file_and_leave_nothing_in_the_notebook(tmp_path, monkeypatch, capsys):
    reports = tmp_path / "reports"
    monkeypatch.setenv(progress.REPORTS, str(reports))
    with progress.bar(description="reading", total=3) as bar:
        bar.set_description("still reading")
        bar.update(2)
        bar.set_postfix_str("epoch 1: loss 0.5")
    assert list(progress.bar(range(4), "rows")) == [0, 1, 2, 3]
    found = [json.loads(line) for line in reports.read_text().splitlines()]
    assert found[0] == report(0, "reading", 3, scores=None)
    assert report(2, "still reading", 3, scores="epoch 1: loss 0.5") in found
    assert [line["task"] for line in found].count(None) == 2
    assert capsys.readouterr() == ("", "")


def test_in_a_notebook_a_bar_is_text_on_standard_output(monkeypatch, capsys):
    monkeypatch.delenv(progress.REPORTS, raising=False)
    assert list(progress.bar(range(4), "rows")) == [0, 1, 2, 3]
    printed = capsys.readouterr()
    assert "rows: " in printed.out and not printed.err


def test_long_steps_are_announced_on_the_terminal_and_short_ones_only_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(progress.REPORTS, str(tmp_path / "reports"))
    progress.announce("about 2 min", 120)
    progress.announce("about 5 s", 5)
    assert capsys.readouterr().out == "about 2 min\nabout 5 s\n"
    assert json.loads((tmp_path / "reports").read_text()) == {"say": "about 2 min", "seconds": 0}


@pytest.mark.parametrize(("all_output", "shown"), [(False, "about 2 min\n"), (True, "")])
def test_what_a_kernel_says_is_shown_once_a_run_whether_or_not_all_output_is(all_output, shown, capsys):
    of_run = Shown(all_output)
    for stage in ("train_head", "fine_tune"):
        Status(stage, REPORTS, of_run).take({"say": "about 2 min", "seconds": 0})
    assert capsys.readouterr().out == shown


def test_the_longest_step_tells_how_long_the_run_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(progress.REPORTS, str(tmp_path / "reports"))
    progress.announce("about 20 min", 1200, is_longest=True)
    clock = Clock()
    status = Status("fine_tune", REPORTS, Shown(began=clock()), clock)
    clock.now += 300
    status.take(json.loads((tmp_path / "reports").read_text()))
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "the run takes about 25 min to the end of fine_tune, validation not counted"
    )


def test_a_log_gets_a_line_each_half_minute_and_no_carriage_return(capsys):
    clock = Clock()
    status = Status("fine_tune", REPORTS, clock=clock)
    for second in range(100):
        status.take(report(second, f"epoch {1 + second // 10} of 9" if second < 40 else "predicting"))
        status._draw()
        clock.now += 1
    printed = capsys.readouterr()
    shown = [line.split(", ")[2] for line in printed.out.splitlines()]
    assert shown == ["epoch 4 of 9", "predicting", "predicting"]
    assert "\r" not in printed.out and "\x1b" not in printed.out and not printed.err


def test_what_the_notebook_writes_comes_out_in_whole_lines(capsys, tmp_path):
    with Status("fine_tune", tmp_path / "reports") as status:
        for piece in ("a warn", "ing\nnext", " line\n", "\rbar 10%", "\rbar 90%\r", "\nlast"):
            status.errors.write(piece)
    assert capsys.readouterr().err == "a warning\nnext line\n\nlast\n"


def test_it_follows_reports_while_they_are_written(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(terminal, "REFRESH", 0.01)
    monkeypatch.setattr(terminal, "LOG_EVERY", 0)
    with Status("merge_split", tmp_path / "reports"), Path(os.environ[progress.REPORTS]).open("a") as file:
        text = json.dumps(report(7)) + "\n"
        for part in (text[:9], text[9:]):  # half a line is no report yet
            file.write(part)
            file.flush()
            time.sleep(0.1)
    assert "reading images, 7 of 100 images\n" in capsys.readouterr().out
    assert progress.REPORTS not in os.environ and not list(tmp_path.iterdir())


def test_a_report_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.REPORTS, str(tmp_path / "gone" / "reports"))
    assert list(progress.bar(range(4), "rows")) == [0, 1, 2, 3]
    progress.announce("about 2 min", 120)


def test_a_report_cut_off_by_a_full_disk_is_passed_over(tmp_path):
    with Status("fine_tune", tmp_path / "reports") as status:
        (tmp_path / "reports").write_text('{"task": "epo' + json.dumps(report(7)) + "\n" + json.dumps(report(8)) + "\n")
    assert status._task["done"] == 8


def test_what_a_killed_process_left_is_no_report_of_the_next(tmp_path):
    (tmp_path / "reports").write_text(json.dumps(report(7)) + "\n")
    with Status("fine_tune", tmp_path / "reports") as status:
        pass
    assert status._task == {} and not list(tmp_path.iterdir())


@contextlib.contextmanager
def screen(columns: int):
    """A terminal in place of standard output and error; gives a list that holds what was written to it in the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    seen, text = [], []

    def read():
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(master, 65536):
                seen.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with (
        io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", write_through=True) as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield text
    reader.join()
    os.close(master)
    text.append(b"".join(seen).decode().replace("\r\n", "\n"))


def shown_lines(text: str) -> list[str]:
    """The lines that a terminal shows in the end: what a carriage return and an erasure took away is gone."""
    return [line.rpartition("\r\x1b[K")[2] for line in text.split("\n")]


def test_on_a_terminal_one_line_is_rewritten_and_gone_in_the_end(monkeypatch, tmp_path):
    monkeypatch.setattr(terminal, "REFRESH", 0.01)
    with screen(80) as written:
        with Status("fine_tune", tmp_path / "reports") as status:
            status.take(report(5, "epoch 4 of 9", 201, "steps", None, "epoch 3: " + "loss 0.512, " * 10))
            time.sleep(0.1)
            status.errors.write("a warning\n")
            time.sleep(0.1)
        terminal.say("fine_tune: done in 3 min")
    drawn = [piece for line in written[0].split("\n") for piece in line.split("\r\x1b[K")]
    assert max(map(len, drawn)) == 79
    assert sum(piece.startswith("fine_tune, under 1 s, epoch 4 of 9, 5 of 201 steps") for piece in drawn) > 3
    assert shown_lines(written[0]) == ["a warning", "fine_tune: done in 3 min", ""]


def test_on_a_terminal_a_long_line_is_folded_between_words():
    with screen(80) as written:
        terminal.say(
            "evaluate (05_evaluate.py): run: " + "; ".join(f"parameter_{n} was {n}, is {n + 1}" for n in range(8))
        )
    lines = written[0].splitlines()
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    assert all(line.startswith("  ") for line in lines[1:])


def test_each_line_is_folded_for_itself_and_long_words_stay_whole():
    text = "run_all.py: no weights\n" + "/a/path" * 20 + " is missing"
    with screen(80) as written:
        terminal.say(text)
    assert written[0] == "run_all.py: no weights\n" + "/a/path" * 20 + "\n  is missing\n"


def test_in_a_log_a_long_line_stays_whole(capsys):
    terminal.say("word " * 50 + "end")
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.3, "under 1 s"), (45, "45 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert progress.in_words(seconds) == words
