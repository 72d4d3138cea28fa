"""What the commands print on a folder of pictures."""

import re
from pathlib import Path

import pytest
from _workplace import prepare, run

MODEL = "--model Npgmf --model.preset small --model.composition true"
DATA = "--data Folder --data.name bracket --data.root pictures/bracket --data.normal_dir good --data.abnormal_dir bad"
CHECKPOINT = "--ckpt_path results/Npgmf/bracket/latest/weights/lightning/model.ckpt"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("quiet")
    prepare(folder)
    commands = {
        "train": f"anomalib train {MODEL} {DATA} --trainer.max_epochs 1",
        "predict": f"anomalib predict {MODEL} --data pictures/new {CHECKPOINT}",
        "export": f"anomalib export {MODEL} --export_type onnx {CHECKPOINT}",
        "error": f"anomalib predict {MODEL} --data pictures/new 2>&1 || true",
        "demo": "anomalib train --config configs/demo.yaml --trainer.max_epochs 1",
    }
    return {name: run(command, folder) for name, command in commands.items()}


@pytest.mark.parametrize(("command", "lines"), [("train", 20), ("predict", 30), ("export", 3), ("demo", 20)])
def test_few_lines_and_no_message_of_a_library(command: str, lines: int, printed: dict[str, str]) -> None:
    output = printed[command]
    assert len(output.splitlines()) <= lines, output
    assert not re.search(r"\w+Warning:", output), output  # of Python; the host's on an empty subset concerns these data
    assert command == "export" or "INFO" not in output, output


def test_a_training_ends_with_a_summary(printed: dict[str, str]) -> None:
    for pattern in (
        "test folder .* by structural",
        r"good +│ 1 ",
        r"image_AUROC [01]\.\d",
        r"threshold 0\.5\.",
        "Pictures: /",
    ):
        assert re.search(pattern, printed["train"]), pattern
    for name, kind in (("Checkpoint", "ckpt"), ("Report", "html")):
        (path,) = re.findall(rf"{name}: (\S+{kind})", printed["train"])
        assert Path(path).is_file()


def test_an_error_is_one_sentence(printed: dict[str, str]) -> None:
    assert "anomalib: error: This Npgmf model has not been trained" in printed["error"]
    assert "Traceback" not in printed["error"]
    assert len(printed["error"].splitlines()) < 5, printed["error"]
