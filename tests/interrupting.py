"""Commands in a process group of their own, to be interrupted as from a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `moekd` with these arguments."""
    return subprocess.Popen(
        [sys.executable, "-m", "moekd", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background of a script ignores the signal, and so would its children.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def interrupt(process: subprocess.Popen[str], *, within: float) -> None:
    """Press Ctrl-C while it works: exit code 130, one line on stderr, and after so many seconds no process is left."""
    assert process.poll() is None, "it must still be at work for this test to tell anything"
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "moekd: interrupted; the same command continues from here\n"
    for _ in range(round(10 * within)):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("a process is left")
