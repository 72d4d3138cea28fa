"""The study of one command: what it runs, and what it reads from what the command prints."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from _factory import draw_category

sys.path.append(str(Path(__file__).parents[2] / "studies"))

import folder

from anomalib_npgmf.host.duration import in_words


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return draw_category(tmp_path / "data", "plate_reduced")


def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, status: int = 0) -> None:
    """A program in place of anomalib's, which prints the lines."""
    program = tmp_path / "bin" / "anomalib"
    program.parent.mkdir()
    program.write_text("\n".join(["#!/bin/sh", *(f"echo '{line}'" for line in lines), f"exit {status}"]))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program.with_name("python")))


def test_the_row_of_a_category(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced = f"The training takes about {in_words(90)} more (12 epochs of 2 batches)."
    command_line(tmp_path, monkeypatch, announced, "image_AUROC 0.875, pixel_AUROC 0.931")
    monkeypatch.setattr(folder, "time", SimpleNamespace(monotonic=iter((0.0, 10.0, 70.0)).__next__))
    row = folder.measure(category)
    assert row["category"] == "plate"
    assert row["training images"] == 10
    assert (row["image AUROC"], row["pixel AUROC"]) == pytest.approx((87.5, 93.1))
    assert row["minutes"] == pytest.approx(70 / 60)
    assert row["announced"] == pytest.approx(90 / 60)
    assert "--data.root plate_reduced " in row["run"]
    assert "--data.abnormal_dir '[test/blot]'" in row["run"]
    assert str(tmp_path) not in row["run"]


def test_a_command_that_fails_ends_the_study(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command_line(tmp_path, monkeypatch, "Sizes: 128 x 128", status=3)
    with pytest.raises(SystemExit, match=r"plate_reduced .* ended with status 3"):
        folder.measure(category)
