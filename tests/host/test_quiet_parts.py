"""What is left out on the command line, and that nothing else is."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from _factory import draw_category, folder_of, make_engine, make_model, mvtec
from anomalib.cli.utils import openvino
from anomalib.loggers import configure_logger
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelSummary

from anomalib_npgmf.host import quiet


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """As in the process of ``anomalib train``; what it changes in the process is undone."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/anomalib", "train"])
    monkeypatch.setattr(warnings, "formatwarning", lambda *_, **__: "as before")
    monkeypatch.delenv("ANOMALIB_NPGMF_VERBOSE", raising=False)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "warning")
    loggers = [logging.getLogger(name) for name in (*quiet.LOGGERS, "huggingface_hub", openvino.__name__)]
    before = [(logger, logger.level, [*logger.handlers]) for logger in loggers]
    root = logging.getLogger()
    root.handlers = []
    with warnings.catch_warnings():
        configure_logger()
        yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers = handlers


def records_of(capsys: pytest.CaptureFixture[str]) -> str:
    logging.getLogger("onnxscript.rewriter").info("Applied 245 of general pattern rewrite rules.")
    logging.getLogger("anomalib_npgmf.host").warning(f"3 pictures cannot be read: {'/long/name' * 20}.png")
    logging.getLogger().info("Exported model to a.onnx")
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_warnings_come_once_and_what_libraries_say_at_info_does_not(
    command_line: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Applied 245" in records_of(capsys)  # as the host sets it up
    quiet.quieten()
    printed = records_of(capsys)
    assert "Applied" not in printed
    assert printed.splitlines()[0] == f"Warning: 3 pictures cannot be read: {'/long/name' * 20}.png"  # in one line
    assert printed.count("3 pictures cannot be read") == 1
    assert printed.count("Exported model to") == 1


def test_openvino_is_not_missed_before_an_export(
    command_line: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino, "get_common_cli_parser", None)  # as where it is not installed
    openvino.add_openvino_export_arguments(ArgumentParser())
    assert "OpenVINO is possibly not installed" in capsys.readouterr().out
    quiet.quieten_imports()
    openvino.add_openvino_export_arguments(ArgumentParser())
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_warning_of_python_is_one_line(command_line: None) -> None:
    assert warnings.formatwarning("Too few", UserWarning, "file.py", 3) == "as before"
    quiet.quieten()
    assert warnings.formatwarning("Too few", UserWarning, "file.py", 3) == "Warning: Too few\n"


@pytest.mark.parametrize("tested", [True, False])
def test_a_training_on_good_pictures_alone(
    tested: bool, command_line: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What good pictures alone cannot tell is left out; the last lines say how to go on, also without a test."""
    folder, mode = draw_category(tmp_path / "data", train=8), "from_dir" if tested else "none"
    places = {"abnormal_dir": None, "normal_test_dir": None, "test_split_mode": mode, "val_split_mode": "none"}
    engine = make_engine(tmp_path / "run")
    engine.train(make_model(branches="structural"), datamodule=folder_of(folder, **places))
    captured = capsys.readouterr()
    assert "AUROC" not in captured.out
    assert "bad." not in captured.out
    assert ("False alarms:" in captured.out) == tested
    *_, saved, following = captured.out.strip().splitlines()
    assert saved == f"Checkpoint: {engine.best_model_path}"
    assert following == f"Next: anomalib predict --model Npgmf --data FOLDER --ckpt_path {engine.best_model_path}"


@pytest.mark.parametrize("name", ["pytest", "ipykernel_launcher.py"])
def test_other_programs_keep_their_logging(name: str, command_line: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    handlers, filters = [*logging.getLogger().handlers], [*warnings.filters]
    quiet.quieten()
    quiet.quieten_imports()
    trainer = Trainer(logger=False)
    quiet.settle(trainer)
    assert (logging.getLogger().handlers, [*warnings.filters]) == (handlers, filters)
    assert any(isinstance(callback, ModelSummary) for callback in trainer.callbacks)


def test_everything_on_request(command_line: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANOMALIB_NPGMF_VERBOSE", "1")
    handlers = [*logging.getLogger().handlers]
    quiet.quieten()
    assert logging.getLogger().handlers == handlers


def test_warnings_of_the_users_data_stay(command_line: None, recwarn: pytest.WarningsRecorder) -> None:
    quiet.quieten()
    quiet.quieten_imports()
    warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use another", stacklevel=1)
    warnings.warn("Image a.png is truncated", stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ["Image a.png is truncated"]


def test_a_run_is_settled(command_line: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = mvtec(draw_category(tmp_path / "data", train=4).parent, num_workers=0)
    model = make_model(branches="structural")
    engine = make_engine(tmp_path / "run", enable_model_summary=True)
    engine.fit(model, datamodule=data)
    assert not any(isinstance(callback, ModelSummary) for callback in engine.trainer.callbacks)
    assert engine.predict(model, data_path=tmp_path / "data" / "square_plate" / "test") is None
    monkeypatch.setattr(quiet, "processors", lambda: 2)
    data.num_workers = 8
    quiet.settle(engine.trainer)
    assert data.num_workers == 2
