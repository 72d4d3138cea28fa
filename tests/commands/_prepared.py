"""Runs commands in forks of one process that has imported anomalib, most of what a small training takes.

    python _prepared.py < requests

A request is a line of JSON: ``arguments`` (the program first), ``folder`` and ``output``, the file for what the command
prints. The answer is two lines: the number of the process, and its exit status.
"""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

PROGRAMS = Path(sys.executable).parent
IMPORTED = ("anomalib.cli.cli", "anomalib_npgmf")


def begin(folder: str, output: str) -> None:
    """Become a process group of its own, in the folder, with all that is printed in the file."""
    os.setsid()
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def execute(arguments: list[str]) -> None:
    """What the interpreter does with ``python -m MODULE``, ``python SCRIPT`` or an installed program."""
    program, *rest = arguments
    if program not in ("python", "python3"):
        sys.argv = [str(PROGRAMS / program), *rest]
        runpy.run_path(sys.argv[0], run_name="__main__")
    elif rest[0] == "-m":
        sys.argv = rest[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path.insert(0, str(Path(rest[0]).resolve().parent))
        runpy.run_path(rest[0], run_name="__main__")


def main() -> None:
    """Serve until there are no more requests."""
    for name in IMPORTED:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if not child:
            begin(request["folder"], request["output"])
            execute(request["arguments"])
            sys.exit()  # as any program: threads and exit handlers come to their end
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
