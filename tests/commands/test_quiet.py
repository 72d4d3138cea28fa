"""What the commands print on a folder of pictures."""

import re
from pathlib import Path

from _workplace import run, workplace

__all__ = ["workplace"]  # the fixture

MODEL = "--model Npgmf --model.preset small --model.composition true"
DATA = "--data Folder --data.name bracket --data.root pictures/bracket --data.normal_dir good --data.abnormal_dir bad"
CHECKPOINT = "--ckpt_path results/Npgmf/bracket/latest/weights/lightning/model.ckpt"


def assert_few_lines_and_no_message_of_a_library(output: str, lines: int) -> None:
    """A line per wrong picture is not counted: how many there are depends on the pictures that the run draws."""
    counted = [line for line in output.splitlines() if not re.match(r" *(false alarm|miss): ", line)]
    assert len(counted) <= lines, output
    assert not re.search(r"\w+Warning:", output), output  # of Python; the host's on an empty subset concerns these data


def assert_summary(output: str) -> None:
    for pattern in (
        "test folder .* by structural",
        r"good +│ 1 ",
        r"image_AUROC [01]\.\d",
        r"threshold 0\.5\.",
        "Pictures: /",
    ):
        assert re.search(pattern, output), pattern
    for name, kind in (("Checkpoint", "ckpt"), ("Report", "html")):
        (path,) = re.findall(rf"{name}: (\S+{kind})", output)
        assert Path(path).is_file()


def test_own_pictures(workplace: Path) -> None:
    """One test, since each command needs what the ones before left."""
    trained = run(f"anomalib train {MODEL} {DATA} --trainer.max_epochs 1", workplace)
    assert_few_lines_and_no_message_of_a_library(trained, 20)
    assert "INFO" not in trained, trained
    assert_summary(trained)
    predicted = run(f"anomalib predict {MODEL} --data pictures/new {CHECKPOINT}", workplace)
    assert_few_lines_and_no_message_of_a_library(predicted, 30)
    assert "INFO" not in predicted, predicted
    exported = run(f"anomalib export {MODEL} --export_type onnx {CHECKPOINT}", workplace)
    assert_few_lines_and_no_message_of_a_library(exported, 3)


def test_the_demo(workplace: Path) -> None:
    output = run("anomalib train --config configs/demo.yaml --trainer.max_epochs 1", workplace)
    assert_few_lines_and_no_message_of_a_library(output, 20)
    assert "INFO" not in output, output


def test_an_error_is_one_sentence(workplace: Path) -> None:
    output = run(f"anomalib predict {MODEL} --data pictures/new 2>&1 || true", workplace)
    assert "anomalib: error: This Npgmf model has not been trained" in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 5, output
