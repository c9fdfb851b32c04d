"""What every command line of this project shares as a process: how its output is encoded, and how it ends."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


class Failed(RuntimeError):
    """What a command set out to do failed: it ends with status 1, and nothing is wrong with what was asked for."""


def enter(main: Callable[[], int]) -> NoReturn:
    """Run a command line as this process and exit with its status.

    What the output's encoding lacks is written as `\\u2192`: Windows encodes redirected output as cp1252, and a file's name
    need not be text. SIGTERM and SIGHUP raise SystemExit, so that temporary files are removed; where they are ignored, as
    under `nohup`, they stay so. Ctrl-C ends without a traceback, and so does output that cannot be written (`| head`).
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        status = main()
    except KeyboardInterrupt:
        status = 130
    try:
        print(end="", flush=True)
    except OSError as error:
        print(f"error: the output cannot be written ({error})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own flush at exit fails again
        status = 1
    sys.exit(status)
