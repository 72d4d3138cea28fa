"""What a user gets from one command and a folder of pictures: metrics, time and memory of `anomalib train`.

    python studies/folder.py --root FOLDER

FOLDER holds categories in the layout of MVTec AD: ``train/good``, ``test`` and ``ground_truth``. For each of them this
runs the command that the results file keeps: preset small with all defaults, in a folder of its own. ``announced`` is
the ratio of the remaining time that the command estimates (see `Duration`) to the time that it then takes.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _common import Row, options, save

UNITS = {"s": 1, "minutes": 60, "hours": 3600}
ANNOUNCED = re.compile(r"The training takes about ([\d.]+) (s|minutes|hours) more")
METRICS = re.compile(r"(image_AUROC|pixel_AUROC) ([\d.]+)")


def command_for(folder: Path) -> list[str]:
    """The command that trains on a category."""
    defects = sorted(path.name for path in (folder / "test").iterdir() if path.name != "good")
    lists = {key: ",".join(f"{key}/{name}" for name in defects) for key in ("test", "ground_truth")}
    words = f"""train --model Npgmf --model.preset small --data Folder --data.name {folder.name} --data.root {folder}
        --data.normal_dir train/good --data.abnormal_dir [{lists["test"]}] --data.normal_test_dir test/good
        --data.mask_dir [{lists["ground_truth"]}] --data.test_split_mode from_dir --data.val_split_mode none"""
    return ["anomalib", *words.split()]


def measure(folder: Path) -> Row:
    """Run the command, and read what it prints."""
    command, row = command_for(folder), {"category": folder.name.removesuffix("_reduced")}
    found: dict[str, float] = {}
    program = Path(sys.executable).with_name(command[0])
    with tempfile.TemporaryDirectory() as scratch:
        start = said = time.monotonic()
        process = subprocess.Popen(
            [program, *command[1:]], cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if match := ANNOUNCED.search(line):
                found["announced s"], said = float(match[1]) * UNITS[match[2]], time.monotonic()
            found |= {name: 100 * float(value) for name, value in METRICS.findall(line)}
        _, status, usage = os.wait4(process.pid, 0)
        end = time.monotonic()
    if status:
        raise SystemExit(f"{shlex.join(command)} ended with status {os.waitstatus_to_exitcode(status)}.")
    return {
        **row,
        "training images": len(list((folder / "train" / "good").iterdir())),
        "image AUROC": found["image_AUROC"],
        "pixel AUROC": found["pixel_AUROC"],
        "minutes": (end - start) / 60,
        "announced": found["announced s"] / (end - said),
        "peak memory, MiB": round(usage.ru_maxrss / 1024),
        "run": shlex.join(command).replace(f"{folder.parent}/", ""),
    }


def main() -> None:
    args: argparse.Namespace = options(__doc__, root=Path, categories=["transistor_reduced", "hazelnut_reduced"])
    rows: list[Row] = []
    for category in args.categories:
        rows.append(measure((args.root / category).resolve()))
        save(args.out / "folder.json", rows)


if __name__ == "__main__":
    main()
