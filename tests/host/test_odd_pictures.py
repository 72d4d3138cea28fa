"""Pictures of every kind that folders hold: they get a score, or are named; none ends a run."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from _factory import draw, draw_category, folder_of, make_engine, make_model
from PIL import Image

from anomalib_npgmf import Npgmf
from anomalib_npgmf.host.report import names_of, print_table, table_of
from anomalib_npgmf.host.verdict import Verdict

RNG = np.random.default_rng(0)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)


def animated(path: Path) -> None:
    noise(40, 30).save(path, save_all=True, append_images=[noise(40, 30), noise(40, 30)])


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(40, 30).save(path, exif=exif)


def locked(path: Path) -> None:
    draw(path, 0)
    path.chmod(0)


# what is scored
READABLE: dict[str, Callable[[Path], object]] = {
    "one_pixel.png": lambda path: noise(1, 1).save(path),
    "wide.png": lambda path: noise(20_000, 50).save(path),
    "cmyk.jpg": lambda path: noise(40, 30, "CMYK").save(path),
    "palette.png": lambda path: noise(40, 30, "P").save(path, transparency=0),
    "grey_alpha.png": lambda path: noise(40, 30, "LA").save(path),
    "bits.png": lambda path: noise(40, 30, "1").save(path),
    "grey_16.png": lambda path: cv2.imwrite(str(path), RNG.integers(0, 65536, (30, 40), np.uint16)),
    "colour_16.png": lambda path: cv2.imwrite(str(path), RNG.integers(0, 65536, (30, 40, 3), np.uint16)),
    "grey_16.tiff": lambda path: cv2.imwrite(str(path), RNG.integers(0, 65536, (30, 40), np.uint16)),
    "pages.tiff": animated,
    "animated.webp": animated,
    "animated.png": animated,
    "turned.jpg": turned,
    "jpeg_named.png": lambda path: noise(40, 30).save(path, format="JPEG"),
    "png_named.jpg": lambda path: noise(40, 30).save(path, format="PNG"),
    "UPPER.PNG": lambda path: noise(40, 30).save(path),
    "line\nbreak.png": lambda path: noise(40, 30).save(path),
    os.fsdecode(b"no_text_\xff.png"): lambda path: noise(40, 30).save(path),
}
# what is named
UNREADABLE: dict[str, Callable[[Path], object]] = {
    "empty.png": Path.touch,
    "text.jpg": lambda path: path.write_text("Buy milk."),
    "folder.png": Path.mkdir,
    "zeros.bmp": lambda path: path.write_bytes(bytes(1000)),
}
if os.getuid() != 0:  # who may read everything
    UNREADABLE["locked.png"] = locked


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("odd"))


@pytest.fixture(scope="module")
def model(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Npgmf:
    """Trained among odd pictures."""
    for name in ("one_pixel.png", "cmyk.jpg", "colour_16.png", "pages.tiff", "jpeg_named.png"):
        READABLE[name](category / "train" / "good" / name)
    model = make_model(branches="structural")
    make_engine(tmp_path_factory.mktemp("run")).fit(model, datamodule=folder_of(category))
    return model


def test_every_picture_is_scored_or_named(model: Npgmf, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, write in (READABLE | UNREADABLE).items():
        write(folder / name)
    make_engine(tmp_path / "run").predict(model, data_path=folder)
    (file,) = (tmp_path / "run").rglob("scores.json")
    records = {Path(record["path"]).name: record for record in json.loads(file.read_text(encoding="utf-8"))}
    assert set(records) == {*READABLE, *UNREADABLE}
    for name, record in records.items():
        if name in READABLE:
            assert 0 <= record["score"] <= 1, name
        else:
            assert record["label"] == "unreadable", name
            assert record["reason"], name


def test_names_that_are_no_text_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's stream refuses them."""
    strict = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", strict)
    verdict = Verdict(os.fsdecode(b"bad/no_text_\xff.png"), 0.2, False, truth=True)
    print_table(table_of([verdict]))
    print(names_of([verdict], "miss"))
    strict.flush()
