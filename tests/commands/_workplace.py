"""Where printed commands run, and find what they name: a clone's files, pictures, data sets and weights."""

import atexit
import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import timm
import torch
import yaml
from _factory import draw, draw_category
from safetensors.torch import save_file

from anomalib_npgmf.data.synthetic.writer import DrawingPlan, ensure_drawn

ROOT = Path(__file__).parents[2]
FEW = 4  # epochs, where what a command prints leaves their number to a file or a preset
LIMIT = 600  # seconds for one command, most of which take less than a minute
SMALL = Path(__file__).parent / "small"
PREPARED = Path(__file__).parent / "_prepared.py"
NORMAL, ANOMALOUS = 6, 2  # images of each kind
_COUNTS = ("image_size", "num_train", "num_validation", "num_test_good", "num_test_logical", "num_test_structural")
_PLANNED = ("npgmf", "padim")  # models of a plan; most others train for hundreds of epochs or need a hub


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder that holds what the commands name."""
    prepare(tmp_path)
    return tmp_path


def prepare(folder: Path) -> None:
    """Fill an empty folder."""
    for name in ("studies", "configs", "docs", "README.md"):
        source, target = ROOT / name, folder / name
        if source.is_file():
            shutil.copy(source, target)
        else:
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.jpg", "__pycache__"))
    _draw_folder(folder / "pictures" / "bracket", "good", "bad")
    _draw_folder(folder / "pictures" / "new", ".", ".")
    _draw_folder(folder / "parts", "good", "bad")
    _draw_folder(folder / "new_pictures", ".", ".")
    data = folder / "datasets"
    for category in ("01", "02"):
        _draw_folder(data / "BTech" / category, "train/ok", "test/ko", masks="ground_truth/ko")
        draw(data / "BTech" / category / "test" / "ok" / "t00.png", 300)
    for category in ("bottle", "transistor"):
        draw_category(data / "MVTecAD", category, train=NORMAL)
    for category in ("breakfast_box", "pushpins"):
        plan = DrawingPlan("sorting_tray", (64, 64), NORMAL, ANOMALOUS, ANOMALOUS, ANOMALOUS, ANOMALOUS, seed=0)
        ensure_drawn(data / "MVTecLOCO", plan).rename(data / "MVTecLOCO" / category)
    (data / "MVTec_LOCO").symlink_to("MVTecLOCO")
    for image in (data / "MVTecLOCO" / "pushpins" / "test").glob("*/*.png"):
        target = folder / "maps" / image.relative_to(data / "MVTecLOCO").with_suffix(".tiff")
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, np.random.default_rng(0).random((64, 64), np.float32))
    save_file(timm.create_model("test_resnet").state_dict(), folder / "wide_resnet50_2.safetensors")
    for name in ("PATH", "FILE"):
        torch.save(timm.create_model("mobilenetv2_100").state_dict(), folder / name)


def shrink_configs(folder: Path) -> None:
    """Fewer and smaller images, epochs, seeds and categories in the configurations."""
    for path in (folder / "configs").rglob("*.yaml"):
        content = _smaller(yaml.safe_load(path.read_text(encoding="utf-8")))
        if "models" in content:
            content["models"] = {name: content["models"][name] for name in _PLANNED if name in content["models"]}
            content |= {name: content[name][:1] for name in ("categories", "seeds")}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")


def run(command: str, folder: Path, **variables: str) -> str:
    """Run a command of the shell in a folder; its output. The test fails if it fails or does not end.

    Args:
        command: The command.
        folder: The folder.
        variables: Further environment variables.
    """
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=_environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"did not end within {LIMIT} s: {command}\n{output[-3000:]}")
    assert process.returncode == 0, f"{command}\n{output[-6000:]}"
    return output


def run_prepared(command: str, folder: Path) -> None:
    """Like `run` without a shell, in a fork of a process that has imported anomalib already; `FEW` epochs."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    output = folder / "printed.txt"
    request = {"arguments": shlex.split(command), "folder": str(folder), "output": str(output)}
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    number = int(server.stdout.readline())
    limit = threading.Timer(LIMIT, os.killpg, (number, signal.SIGKILL))
    limit.start()
    status = server.stdout.readline().strip()
    limit.cancel()
    assert status == "0", f"{command}: {status}\n{output.read_text(encoding='utf-8')[-6000:]}"


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that runs commands in forks (`_prepared`); one for all tests of this process."""
    server = subprocess.Popen(
        [sys.executable, PREPARED],
        env=_environment(NPGMF_TEST_EPOCHS=str(FEW)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(server.kill)
    return server


def _environment(**variables: str) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    fixed = {"PYTHONPATH": str(SMALL), "PATH": programs, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
    return os.environ | fixed | variables


def _smaller(node: Any) -> Any:
    """Without sizes, which leaves the data module's (see small/sitecustomize.py), and the first point of each grid."""
    if not isinstance(node, dict):
        return node
    if list(node) == ["grid"]:
        return node if "Npgmf" in node["grid"] else node["grid"][0]
    few = {"max_epochs": FEW} if node.get("max_epochs", 0) > FEW else {}
    return {name: _smaller(value) for name, value in node.items() if name not in _COUNTS} | few


def _draw_folder(folder: Path, normal: str, anomalous: str, masks: str | None = None) -> None:
    for i in range(NORMAL):
        draw(folder / normal / f"n{i:02}.png", i)
    for i in range(ANOMALOUS):
        draw(folder / anomalous / f"a{i:02}.png", 200 + i)
        if masks is not None:
            (folder / masks).mkdir(parents=True, exist_ok=True)
            mask = np.zeros((128, 128), np.uint8)
            mask[:20, :20] = 255
            cv2.imwrite(str(folder / masks / f"a{i:02}.png"), mask)
