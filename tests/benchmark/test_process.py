"""A cell ends with its runner, however that one ends, and so do the cell's own processes."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from test_run import write_plan

from anomalib_npgmf.benchmark import process

RUNNER = """
import sys
from pathlib import Path
from anomalib_npgmf.benchmark import process
process.run([sys.executable, "cell.py"], '{"a": 1}', Path("cell.log"))
"""
CELL = """
import os, subprocess, sys, time
from pathlib import Path
from anomalib_npgmf.benchmark import process
assert process.read_job() == '{"a": 1}\\n'
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path("draft").write_text(f"{os.getpid()} {child.pid}")
Path("draft").rename("started")
time.sleep(600)
"""


def wait_for(path: Path) -> list[int]:
    """The process ids in a file, once it is there."""
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, "the cell does not start"
        time.sleep(0.02)
    return [int(number) for number in path.read_text().split()]


def assert_ended(numbers: list[int]) -> None:
    end = time.monotonic() + 10
    while alive := [number for number in numbers if runs(number)]:
        assert time.monotonic() < end, f"{alive} of {numbers} still run"
        time.sleep(0.02)


def runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/stat")  # an ended process without a parent may wait for its burial
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2), (signal.SIGKILL, -9)],
)
def test_a_cell_ends_with_its_runner(tmp_path: Path, number: signal.Signals, status: int) -> None:
    (tmp_path / "runner.py").write_text(RUNNER)
    (tmp_path / "cell.py").write_text(CELL)
    # Under nohup or in the background programs inherit that signals are ignored, and so would the runner, as it should.
    default = (
        "import signal, runpy; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); runpy.run_path('runner.py')"
    )
    runner = subprocess.Popen([sys.executable, "-c", default], cwd=tmp_path, stderr=subprocess.DEVNULL)
    started = wait_for(tmp_path / "started")
    assert all(map(runs, started))
    runner.send_signal(number)
    assert runner.wait(timeout=10) == status
    assert_ended(started)


def test_a_cell_that_reads_no_job(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.run([sys.executable, "-c", "print('no'); raise SystemExit(3)"], "{}" * 10**6, log) == 3
    assert log.read_text() == "no\n"


def test_the_command_ends_its_cell(tmp_path: Path) -> None:
    code = """
    import os, tempfile, time
    from pathlib import Path
    def model(**arguments):
        Path("draft").write_text(str(os.getpid()))
        Path("draft").rename("started")
        time.sleep(600)
    """
    (tmp_path / "sleeper.py").write_text(textwrap.dedent(code))
    plan = write_plan(tmp_path, sleeper={"class_path": "sleeper.model"})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "anomalib_npgmf.benchmark", "run", str(plan), "--output", "results"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "TMPDIR": str(scratch)}
    runner = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    started = wait_for(tmp_path / "started")
    assert list(scratch.iterdir())
    runner.terminate()
    assert runner.wait(timeout=10) == 143
    assert_ended(started)
    assert not list((tmp_path / "results").rglob("*.json"))
    assert not list(scratch.glob("npgmf_cell_*"))
