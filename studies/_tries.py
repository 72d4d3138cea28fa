"""Bad input for `tries.py`: damaged and foreign model files, damaged data sets, wrong arguments."""

from __future__ import annotations

import io
import json
import math
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import openvino
import tifffile
import torch
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.metrics.ground_truth import image_size, list_test_images

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 2.5, math.nan, math.inf, "", "text", "a\0b", b"\xff", [], [1], {}, {"a": 1}),
    *([[[]]], torch.zeros(2), torch.zeros(0)),
)
PLAIN = tuple(value for value in VALUES if not isinstance(value, (bytes, torch.Tensor)))  # what JSON can hold
COUNTS = dict.fromkeys(("num_train", "num_validation", "num_test_good", "num_test_logical", "num_test_structural"), 3)
KEY = "anomalib_npgmf"


class Bad(NamedTuple):
    """A bad file or data set."""

    kind: str  # of damage
    path: Path


def make_files(folder: Path) -> dict[str, Path]:
    """Train a tiny model and export it; intact files by suffix."""
    data = SyntheticLOCO(folder / "data", "cable_pairs", 64, **COUNTS)
    narrow = dict.fromkeys(("embedding_channels", "prior_dim", "code_dim", "atrous_width"), 8)
    model = Npgmf(
        "small",
        *("test_resnet", "random"),
        logical_image_size=128,
        logical=narrow | {"fusion_depth": 1, "decoder_blocks": 1},
        visualizer=False,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    engine = Engine(max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder, **quiet)
    engine.fit(model, datamodule=data)
    engine.trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    model.eval()
    found = {".ckpt": folder / "model.ckpt", ".pt": model.to_torch(folder), ".onnx": model.to_onnx(folder)}
    found[".xml"] = folder / "model.xml"
    openvino.save_model(openvino.convert_model(found[".onnx"]), found[".xml"], compress_to_fp16=False)
    return found


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A kind of damage, and the content of a file after it."""
    kind = str(rng.choice(["truncated", "overwritten", "zeroed", "random"], p=[0.4, 0.35, 0.15, 0.1]))
    start = int(rng.integers(0, len(content)))
    size = int(rng.integers(16, 4096))
    if kind == "truncated":
        return kind, content[:start]
    if kind == "random":
        return kind, content[: int(rng.integers(0, 64))] + rng.bytes(size)
    block = rng.bytes(size) if kind == "overwritten" else bytes(size)
    return kind, (content[:start] + block + content[start + size :])[: len(content)]


def damaged_files(intact: Path, folder: Path, count: int, rng: np.random.Generator) -> Iterator[Bad]:
    """Damaged copies of a model file; damage that changes nothing is left out."""
    content = intact.read_bytes()
    for number in range(count):
        kind, changed = damaged(content, rng)
        path = folder / f"{number}{intact.suffix}"
        if changed != content:
            path.write_bytes(changed)
            if intact.suffix == ".xml":
                shutil.copy(intact.with_suffix(".bin"), path.with_suffix(".bin"))
            yield Bad(kind, path)


def foreign_files(suffix: str, folder: Path) -> Iterator[Bad]:
    """Files of other programs under the suffix of a model file."""
    for number, content in enumerate(_foreign_contents()):
        path = folder / f"foreign{number}{suffix}"
        path.write_bytes(content)
        yield Bad("foreign", path)


@lru_cache
def _foreign_contents() -> list[bytes]:
    contents = [
        b"",
        b"Buy milk.",
        b"{}",
        b"\x80\x04",
        b"\x00" * 4096,
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"\xff\xfe<\x00",
    ]
    contents += [b"PK\x05\x06" + bytes(18), b"<net/>", b"<net><data offset='x' size='y'/></net>"]
    contents += [pickle.dumps(value, protocol) for value in VALUES for protocol in (0, 2, 4)]
    contents += [b"cos\nsystem\n(S'false'\ntR.", b"cno_such_module\nClass\n.", pickle.dumps(np.zeros)]
    names = ("a", f"a/{KEY}.json", "a/data.pkl", "a/version")
    texts = [*(json.dumps(value).encode() for value in PLAIN), b"{", b"\xff", b"[" * 10**5, b"9" * 10**4, b""]
    contents += [_archive({name: text}) for name in names for text in texts]
    contents += [_archive({f"a/{KEY}.json": b" " * (400 << 20) + b"{}"}, zipfile.ZIP_DEFLATED)]
    contents += [_archive({f"a/{KEY}.json": b"{}"}, method) for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]
    keys = ("state_dict", "hyper_parameters", KEY, "epoch")
    contents += [_saved(value) for value in VALUES]
    contents += [_saved(dict.fromkeys(chosen, value)) for value in VALUES for chosen in (keys, keys[:1], keys[2:3])]
    contents += [_saved({"state_dict": {}, KEY: {"version": "1", "preset": value}}) for value in (None, 1, [])]
    contents += [_rt_info(json.dumps(value)) for value in PLAIN] + [_rt_info("{"), _onnx("{"), _onnx("[1]"), _onnx("")]
    return contents


def changed_checkpoints(intact: Path, folder: Path, count: int, rng: np.random.Generator) -> Iterator[Bad]:
    """Checkpoints in which one entry is missing or has another value."""
    for number in range(count):
        content = torch.load(intact, weights_only=True)
        inside = [content, content["state_dict"], content["hyper_parameters"], content[KEY]][number % 4]
        entry = str(rng.choice(list(inside)))
        if rng.random() < 0.3:
            del inside[entry]
        else:
            inside[entry] = VALUES[int(rng.integers(len(VALUES)))]
        path = folder / f"changed{number}.ckpt"
        torch.save(content, path)
        yield Bad("one entry changed", path)


def write_maps(folder: Path, category: Path) -> None:
    """A map per test image; every second file is compressed."""
    rng = np.random.default_rng(0)
    for number, image in enumerate(list_test_images(category)):
        path = folder / category.name / "test" / image.parent.name / f"{image.stem}.tiff"
        path.parent.mkdir(parents=True, exist_ok=True)
        scores = rng.random(image_size(image), np.float32)
        tifffile.imwrite(path, scores, compression="zlib" if number % 2 else None)


def spoil_data(root: Path, rng: np.random.Generator) -> Bad | None:
    """Damage one file of a category or of its maps; None if that changes nothing, or nothing but scores."""
    patterns = ("data/*/defects_config.json", "maps/**/*.tiff", "data/*/ground_truth/**/*.png", "data/*/test/**/*.png")
    pattern = str(rng.choice(patterns))
    path = Path(rng.choice(sorted(map(str, root.glob(pattern)))))
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.7:
        return _spoil_config(path, rng)
    # a category that lacks a test image, or one of several masks, is smaller but valid
    if rng.random() < 0.15 and (path.suffix != ".png" or len(list(path.parent.iterdir())) == 1):
        path.unlink()
        if rng.random() < 0.5:
            path.mkdir()
            return Bad("directory", path)
        return Bad("missing", path)
    kind, changed = damaged(content, rng)
    if path.suffix == ".tiff" and kind in ("overwritten", "zeroed") and not is_compressed(path):
        return None  # other scores, which no reader can tell from the right ones
    path.write_bytes(changed)
    return None if changed == content else Bad(kind, path)


def is_compressed(path: Path) -> bool:
    """Whether a TIFF file is compressed, so that it has a checksum."""
    with tifffile.TiffFile(path) as file:
        return bool(file.pages[0].compression != 1)


def _spoil_config(path: Path, rng: np.random.Generator) -> Bad:
    entries = json.loads(path.read_text())
    entry = entries[int(rng.integers(len(entries)))]
    field = str(rng.choice(list(entry)))
    # another positive number or another text is valid: it makes another data set
    wrong = [value for value in PLAIN if type(value) is not type(entry[field]) and not _is_number(value, entry[field])]
    choice = rng.random()
    if choice < 0.15:
        del entry[field]
    elif choice < 0.25:
        entries = wrong[int(rng.integers(len(wrong)))]
    elif choice < 0.35:
        entry["saturation_threshold"], entry["relative_saturation"] = float(rng.uniform(1.01, 5)), True
    elif choice < 0.45:
        entry["saturation_threshold"] = [-1, 0, math.nan, math.inf, -0.5][int(rng.integers(5))]
    else:
        entry[field] = wrong[int(rng.integers(len(wrong)))]
    path.write_text(json.dumps(entries))
    return Bad("wrong entry", path)


def _is_number(value: Any, right: Any) -> bool:
    numbers = (int, float)
    return isinstance(value, numbers) and isinstance(right, numbers) and not isinstance(value, bool) and value > 0


def _archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _rt_info(text: str) -> bytes:
    quoted = text.replace("&", "&amp;").replace('"', "&quot;")
    return f'<net><rt_info><framework><{KEY} value="{quoted}"/></framework></rt_info></net>'.encode()


def _onnx(text: str) -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {KEY: text})
    return bytes(model.SerializeToString())
