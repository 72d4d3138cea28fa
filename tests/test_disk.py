"""A full disk gives a sentence that names the place and the size, and leaves no half of a file.

A limit on the size of files stands for the disk: beyond it, writing fails in the same way.
"""

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from _limits import no_room_beyond
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.benchmark import record
from anomalib_npgmf.data.synthetic.writer import DrawingPlan, ensure_drawn
from anomalib_npgmf.disk import reserve, whole_files, write_picture
from anomalib_npgmf.host.checkpoint_file import WholeCheckpointIO
from anomalib_npgmf.host.page import write_page
from anomalib_npgmf.host.report import write_csv, write_json
from anomalib_npgmf.host.verdict import Verdict
from anomalib_npgmf.host.visualizer import NpgmfVisualizer
from anomalib_npgmf.metrics import SPRO, spro, write_anomaly_maps
from anomalib_npgmf.metrics.__main__ import write_curves
from anomalib_npgmf.metrics.curve import SproCurve

NOISE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)


def loco_image(root: Path) -> Path:
    path = root / "parts" / "test" / "good" / "000.png"
    path.parent.mkdir(parents=True)
    (root / "parts" / "defects_config.json").write_text("[]")
    Image.fromarray(NOISE).save(path)
    return path


def test_feature_cache(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache", images=100)
    images = torch.rand(2, 3, 8, 8)
    with no_room_beyond(10_000), pytest.raises(OSError, match=r"cache has no room for a file of 7.68e-05 GB .*; free"):
        cache.features(["a", "b"], images, lambda given: [given])
    (found,) = cache.features(["a", "b"], images, lambda given: [given])
    assert torch.equal(found, images)
    cache.close()


def test_spilled_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spro, "_IN_MEMORY", 0)
    path = str(loco_image(tmp_path))
    batch = ImageBatch(image=torch.rand(1, 3, 64, 64), anomaly_map=torch.rand(1, 64, 64), image_path=[path])
    metric = SPRO()
    sentence = rf"{tempfile.gettempdir()} has no room for a file of 1.64e-05 GB .*; free space there"
    with no_room_beyond(10_000), pytest.raises(OSError, match=sentence):
        metric.update(batch)
    metric.update(batch)


@pytest.mark.parametrize("missing", [True, False])
def test_space_is_taken_where_the_system_cannot_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    if missing:
        monkeypatch.delattr(os, "posix_fallocate")
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    size = (5 << 19) + 1
    with (tmp_path / "file").open("wb") as file:
        reserve(file, size, tmp_path)
    status = (tmp_path / "file").stat()
    assert status.st_size == size
    assert status.st_blocks * 512 >= size
    sentence = r"has no room for a file of 0\.00262 GB"
    with (tmp_path / "b").open("wb") as file, no_room_beyond(size - 1), pytest.raises(OSError, match=sentence):
        reserve(file, size, tmp_path)


def test_mapped_files_are_not_sparse(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 1 << 20, tmp_path)
    assert (tmp_path / "file").stat().st_blocks * 512 >= 1 << 20


def test_picture(tmp_path: Path) -> None:
    with no_room_beyond(10_000), pytest.raises(OSError, match=r"a\.png cannot be written .*0.19\d MB needed"):
        write_picture(tmp_path / "a.png", NOISE)
    assert list(tmp_path.iterdir()) == []


def draw(visualizer: NpgmfVisualizer, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(visualizer, "draw", lambda *_: [NOISE])
    batch: Any = SimpleNamespace(image_path=[path], branch_maps=None)
    visualizer.on_test_batch_end(SimpleNamespace(datamodule=None), None, None, batch, 0)  # type: ignore[arg-type]


def test_visualizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visualizer = NpgmfVisualizer(output_dir=tmp_path)
    with no_room_beyond(10_000), pytest.raises(OSError, match=r"good/000\.png cannot be written"):
        draw(visualizer, monkeypatch, "plates/good/000.png")


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".PGM", ".tif", ".tiff", ".webp"])
def test_pictures_of_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    draw(NpgmfVisualizer(output_dir=tmp_path), monkeypatch, f"plates/good/000{suffix}")
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert written.parent.name == "good"
    assert written.name in (f"000{suffix}", f"000{suffix}.png")
    with Image.open(written) as image:
        assert image.size == (256, 256)
        assert image.mode == "RGB"


def test_anomaly_maps(tmp_path: Path) -> None:
    path = str(loco_image(tmp_path))
    batch = ImageBatch(image=torch.rand(1, 3, 64, 64), anomaly_map=torch.rand(1, 64, 64), image_path=[path])
    with no_room_beyond(10_000), pytest.raises(OSError, match=r"000\.tiff cannot be written .*0.26\d MB needed"):
        write_anomaly_maps([batch], tmp_path / "maps")
    assert not list(tmp_path.rglob("*.tiff"))


def test_drawing(tmp_path: Path) -> None:
    with no_room_beyond(1000), pytest.raises(OSError, match=r"000\.png cannot be written"):
        ensure_drawn(tmp_path, DrawingPlan("cable_pairs", (64, 64), 1, 1, 1, 1, 1, 0))
    assert list(tmp_path.iterdir()) == []


def test_record(tmp_path: Path) -> None:
    record.write(tmp_path / "a.json", {"status": "finished"})
    with no_room_beyond(1000), pytest.raises(OSError, match=r"\.a\.json\.part cannot be written"):
        record.write(tmp_path / "a.json", {"text": "x" * 2000})
    assert json.loads((tmp_path / "a.json").read_text()) == {"status": "finished"}
    assert len(list(tmp_path.iterdir())) == 1


CURVE = SproCurve(np.ones(999), np.arange(999), np.arange(999) + 1, 9999)
VERDICTS = [Verdict(f"{number}.png", number / 200) for number in range(200)]
WRITERS: dict[str, Callable[[Path], object]] = {
    "scores.json": lambda path: write_json(VERDICTS, path),
    "scores.csv": lambda path: write_csv(VERDICTS, path),
    "report.html": lambda path: write_page(VERDICTS, {}, path, summary=""),
    "curve.csv": lambda path: write_curves({"mean": CURVE}, path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_of_a_report(tmp_path: Path, name: str) -> None:
    with no_room_beyond(2000), pytest.raises(OSError, match=rf"{name} cannot be written .* MB needed"):
        WRITERS[name](tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_files_whose_names_are_no_text_are_reported(tmp_path: Path) -> None:
    path = os.fsdecode(b"part-\xff.png")
    for name, write in (("a.json", write_json), ("a.csv", write_csv)):
        write([Verdict(path, 0.5)], tmp_path / name)
    write_page([Verdict(path, 0.5)], {}, tmp_path / "a.html", summary="")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))[0]["path"] == path
    for name in ("a.csv", "a.html"):
        assert "part-\\udcff.png" in (tmp_path / name).read_text(encoding="utf-8")


def test_checkpoint(tmp_path: Path) -> None:
    """The one from before stays."""
    path = tmp_path / "weights" / "model.ckpt"
    writer = WholeCheckpointIO()
    writer.save_checkpoint({"state_dict": {"w": torch.zeros(1)}}, path)
    with (
        no_room_beyond(10_000),
        pytest.raises(OSError, match=r"model\.ckpt\.part cannot be written .* MB needed"),
    ):
        writer.save_checkpoint({"state_dict": {"w": torch.zeros(100_000)}}, path)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].shape == (1,)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),  # torch.save
        RuntimeError("basic_ios::clear: iostream error"),  # OpenVINO
    ],
)
def test_files_that_other_libraries_write(tmp_path: Path, error: Exception) -> None:
    (tmp_path / "model.txt").write_text("of before")

    def fail() -> None:
        (tmp_path / "model.bin").write_text("half")
        raise error

    with pytest.raises(OSError, match=r"has no room for model .*; free space there"), whole_files(tmp_path, "model"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["model.txt"]
    with pytest.raises(RuntimeError, match=r"^another error$"), whole_files(tmp_path, "model"):
        raise RuntimeError("another error")
