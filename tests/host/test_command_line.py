"""On anomalib's command line, what the user gave wrong ends in one sentence and exit code 2."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anomalib.cli import AnomalibCLI

from anomalib_npgmf import Npgmf
from anomalib_npgmf.fields import checked
from anomalib_npgmf.host.command_line import is_sentence, speak_plainly
from anomalib_npgmf.structural.bank import MemoryBank

SMALL = ["--model", "anomalib_npgmf.Npgmf", "--model.preset", "small", "--model.backbone", "test_resnet"]
DATA = ["--data", "SyntheticLOCO", "--data.image_size", "64", "--data.num_train", "2", "--data.root", "drawn"]
FIT = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--model.logical_image_size", "128"]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/anomalib", "train"])
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def _main(arguments: list[str]) -> None:
    """As the command does, with the hook that Python calls at the end of a process."""
    try:
        AnomalibCLI(["train", *arguments])
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "anomalib_npgmf.Npgmf", "--model.preset", "tiny", *DATA], "There is no preset 'tiny'; choose one"),
        ([*SMALL, *DATA, "--model.logical", '{"depth": 3}'], "logical has no field ['depth']; its fields are"),
        ([*SMALL, *DATA, "--model.learning_rate", "-1"], "learning_rate must be a number above 0 on, not -1.0."),
        ([*SMALL, *DATA, "--model.logical", '{"window": 7}'], "cannot tile"),
        ([*SMALL, *DATA, "--model.backbone", "resnet1"], "timm has no network 'resnet1' with feature levels"),
        ([*SMALL, *DATA, "--data.image_size", "3"], "image_size must be a whole number from 64 to 8192"),
        ([*SMALL, *DATA, "--data.train_batch_size", "0"], "train_batch_size must be a whole number from 1 on, not 0."),
        ([*SMALL, *FIT, *DATA, "--model.backbone_weights", "none.pth"], "There is no weights file at none.pth; give"),
        ([*SMALL, *FIT, "--data", "LOCO", "--data.root", "none"], "No images in none/"),
        ([*SMALL, *FIT, *DATA, "--ckpt_path", "none.ckpt"], "none.ckpt"),
        ([*SMALL, *DATA, "--model.learning_rate", "fast"], "Given value: fast"),
    ],
)
def test_wrong_input_ends_in_a_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        _main(arguments)
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_a_process_ends_with_the_exit_code(tmp_path: Path) -> None:
    script = tmp_path / "anomalib"
    script.write_text(
        "from anomalib_npgmf.host.command_line import speak_plainly\n"
        "from anomalib_npgmf.fields import checked\n"
        "with speak_plainly():\n    pass\n"
        "checked('reduce_to', 2.5, int)\n"
    )
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == ("anomalib: error: reduce_to must be a whole number, not 2.5.\n")


def _of(call: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_only_sentences_lose_their_traceback() -> None:
    assert is_sentence(_of(lambda: checked("x", 1, str)))
    assert is_sentence(_of(lambda: MemoryBank().finish()))
    assert is_sentence(_of(lambda: Path("/none").read_text()))
    assert not is_sentence(_of(lambda: int("x"))), "raised elsewhere"
    assert not is_sentence(_of(lambda: MemoryBank().fill("no tensor"))), "raised by an operation of this package"  # type: ignore[arg-type]


def test_scripts_and_notebooks_keep_their_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = sys.__excepthook__
    monkeypatch.setattr(sys, "excepthook", hook)
    with pytest.raises(ValueError, match="no preset"):
        Npgmf(preset="tiny")
    assert sys.excepthook is hook
    monkeypatch.setattr(sys, "argv", ["/usr/bin/anomalib"])
    for _ in range(2):
        with speak_plainly():
            pass
    assert isinstance(sys.excepthook, partial)
    assert sys.excepthook.args == (hook,), "set once"
