"""Whatever is in a file, `describe` and `load_from_checkpoint` refuse it with their sentence, or read it rightly."""

import io
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from _exported import Exported

from anomalib_npgmf import Npgmf
from anomalib_npgmf.export import describe

KEY = "anomalib_npgmf"
small = pytest.mark.parametrize("exported", ["small"], indirect=True)


def archive(text: bytes, method: int = zipfile.ZIP_STORED, name: str = f"model/{KEY}.json") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr(name, text)
    return file.getvalue()


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


CONTENTS = {
    "pickle of a dictionary": pickle.dumps({"a": 1}),
    "pickle of a list": pickle.dumps([1, 2], protocol=0),
    "pickle of a missing class": b"cno_such_module\nClass\n.",
    "pickle that is cut": b"\x80\x04",
    "archive of nothing": b"PK\x05\x06" + bytes(18),
    "archive of a list": archive(b"[1, 2]"),
    "archive of a number": archive(b"1"),
    "archive of no JSON": archive(b"{"),
    "archive of deep JSON": archive(b"[" * 100_000),
    "archive of other JSON": archive(b'{"a": 1}'),
    "archive of a compressed member": archive(b'{"version": "0.1", "preset": "small"}' + b" " * 1000, zipfile.ZIP_LZMA),
    "archive with a broken pickle": archive(b"\xff", name="model/data.pkl"),
    "checkpoint of a list": saved([1, 2]),
    "checkpoint of a tensor": saved(torch.zeros(2)),
    "checkpoint of no dictionaries": saved({"state_dict": [1], "hyper_parameters": 2, KEY: 3}),
    "checkpoint of a text": saved({"state_dict": {}, KEY: "text"}),
    "checkpoint of other metadata": saved({"state_dict": {}, KEY: {"preset": "small"}}),
    "XML with a size that is none": b"<net><data offset='x' size='y'/></net>",
}


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt", ".ckpt"])
@pytest.mark.parametrize("name", CONTENTS)
def test_foreign_files_are_not_described(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(CONTENTS[name])
    with pytest.raises(ValueError, match=r"foreign\.\w+ (cannot be read .* or foreign|is readable but says n)"):
        describe(path)


@pytest.mark.parametrize("name", CONTENTS)
def test_foreign_files_are_not_loaded(tmp_path: Path, name: str) -> None:
    path = tmp_path / "foreign.ckpt"
    path.write_bytes(CONTENTS[name])
    with pytest.raises(ValueError, match=r"truncated or foreign|not written by Npgmf"):
        Npgmf.load_from_checkpoint(path)


def test_a_directory_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .IsADirectoryError"):
        Npgmf.load_from_checkpoint(tmp_path)


def test_what_inflates_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    text = b'{"version": "0.1", "preset": "small", "note": "' + b" " * (200 << 20) + b'"}'
    path.write_bytes(archive(text, zipfile.ZIP_DEFLATED))
    del text
    assert path.stat().st_size < 300_000
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda *_: pytest.fail("the member is read"))
    with pytest.raises(ValueError, match="truncated or foreign"):
        describe(path)


@small
@pytest.mark.parametrize("file", ["onnx", "openvino", "torch", "checkpoint"])
def test_a_truncated_file_is_refused_wherever_it_ends(exported: Exported, file: str, tmp_path: Path) -> None:
    path = getattr(exported, file)
    content = path.read_bytes()
    copy = tmp_path / path.name
    if file == "openvino":
        shutil.copy(path.with_suffix(".bin"), tmp_path)
    for end in np.random.default_rng(0).integers(0, len(content), 20):
        copy.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"truncated or foreign|says nothing about Npgmf"):
            describe(copy)


@small
@pytest.mark.parametrize("file", ["torch", "checkpoint"])
def test_damage_inside_is_noticed(exported: Exported, file: str, tmp_path: Path) -> None:
    path = getattr(exported, file)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of the weights
    copy = tmp_path / path.name
    copy.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or foreign"):
        describe(copy)
    if file == "checkpoint":
        with pytest.raises(ValueError, match="truncated or foreign"):
            Npgmf.load_from_checkpoint(copy)


@small
@pytest.mark.parametrize("change", ["no weights", "no metadata", "no preset", "a list of weights", "other settings"])
def test_a_checkpoint_with_one_entry_changed(exported: Exported, tmp_path: Path, change: str) -> None:
    content = torch.load(exported.checkpoint, weights_only=True)
    if change == "no weights":
        del content["state_dict"]
    elif change == "no metadata":
        content[KEY] = [1]
    elif change == "no preset":
        del content[KEY]["preset"]
    elif change == "a list of weights":
        content["state_dict"] = [1]
    else:
        content["hyper_parameters"]["logical_image_size"] = [[1]]
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=r"truncated or foreign|not written by Npgmf|logical_image_size must"):
        Npgmf.load_from_checkpoint(tmp_path / "changed.ckpt")


@small
def test_unknown_arguments_of_loading_are_refused(exported: Exported) -> None:
    with pytest.raises(TypeError, match="Npgmf has no argument structural_wieght"):
        Npgmf.load_from_checkpoint(exported.checkpoint, structural_wieght=3.0)
    assert Npgmf.load_from_checkpoint(exported.checkpoint, map_location="cpu", feature_cache="x").feature_cache == "x"
