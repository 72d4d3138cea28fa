"""Runs a cell of a plan in a subprocess that is killed when its parent ends for any reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_POSIX = os.name == "posix"


def run(call: Sequence[str], job: str, log: Path) -> int:
    """Run a program that begins with `read_job`, and wait for it.

    If this process is told to end meanwhile, the program's whole process group, data loaders included, gets SIGKILL. On
    a milder signal Lightning would go on to the end of a batch, and the cell would record a failure.

    Args:
        call: The program and its arguments.
        job: What `read_job` returns there; one line.
        log: File of its output.

    Returns:
        Its exit status; negative is the signal that killed it.

    Raises:
        SystemExit: If this process gets SIGTERM or SIGHUP; the status is that of a shell, 128 more than the signal's
            number.
        KeyboardInterrupt: If it gets SIGINT.
    """
    with log.open("w", encoding="utf-8") as output, _ended_by_signals():
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            call, bufsize=0, stdin=pipe, stdout=output, stderr=subprocess.STDOUT, start_new_session=_POSIX
        )
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # it ended before it read the job
                process.stdin.write(f"{job}\n".encode())
            return process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL) if _POSIX else process.kill()
            process.wait()
            raise
        finally:
            process.stdin.close()


def read_job() -> str:
    """The first line of standard input; from then on this process group is killed when standard input closes.

    Nobody writes to it any more, so it closes when the process that holds the other end ends, even by SIGKILL.
    """
    job = b""
    # unbuffered: a thread that waits in sys.stdin would hinder the interpreter's exit
    while not job.endswith(b"\n") and (part := os.read(0, 1 << 16)):
        job += part
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    return job.decode()


def _end_with_standard_input() -> None:
    os.read(0, 1)
    if _POSIX and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP, unless they are ignored, as under nohup."""

    def end(number: int, _frame: Any) -> None:
        sys.exit(128 + number)

    names = ("SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None)) is not None}
    former = {number: handler for number, handler in former.items() if handler is not signal.SIG_IGN}
    for number in former:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
