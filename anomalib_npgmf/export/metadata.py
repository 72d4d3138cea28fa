"""Metadata of exported files: written into the file, and read back without running it."""

import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from anomalib_npgmf.host.archive import check_archive

KEY = "anomalib_npgmf"


def write_onnx(path: Path, metadata: dict[str, Any]) -> None:
    """Add the metadata to an ONNX file; weights that lie in a file beside it stay there.

    Args:
        path: The file.
        metadata: JSON data, see `describe`.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    onnx.save_model(model, path)


def write_torch(path: Path, metadata: dict[str, Any]) -> None:
    """Add the metadata to a file of ``torch.save``, as one more member of its zip archive."""
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]  # torch refuses members outside its folder
        archive.writestr(f"{root}/{KEY}.json", json.dumps(metadata))


def describe(path: str | Path) -> dict[str, Any]:
    """Metadata of an exported file or a checkpoint of Npgmf. Runs no code that the file holds.

    Args:
        path: An ``.onnx``, ``.xml`` (OpenVINO), ``.pt`` or ``.ckpt`` file.

    Returns:
        The metadata: ``version`` of this package, ``preset``, ``backbone``, ``structural_backbone``, ``branches``,
        ``category``, ``prompt``, ``image_size`` that images are resized to, also ``logical_image_size`` and
        ``structural_image_size``, ``merging``, ``weights`` (of a sum), ``calibration`` (mean and standard deviation of
        each branch map; with a composition also of the scores, with margin, ``normal_level``, each histogram's
        ``weight``, ``largest_lead`` and ``further_lead`` in the map, ``logical_map_weight``, ``logical_map_limit`` and
        the other numbers as ``map_rule``), ``threshold`` (raw, 0.5 after normalisation), ``normal_score`` (the mean raw
        score of normal images, 0.25 after normalisation), ``false_alarm_rate`` that the threshold stands for and the
        number of ``calibration_images`` that it comes from (``None``: not known), ``bank_size``,
        ``calibrated_for_bank`` (false if the bank was shrunk without data), ``configuration`` (all settings),
        ``input_size`` (``None``: any) and ``date`` (UTC).

    Raises:
        FileNotFoundError: If there is no such file.
        ModuleNotFoundError: If an ``.onnx`` file is given and onnx is not installed.
        ValueError: If the file is truncated, foreign or of an unknown kind.

    Example:
        >>> describe("model.onnx")["category"]  # doctest: +SKIP
        'breakfast_box'
    """
    path = Path(path)
    if path.suffix not in _READERS:
        msg = f"{path.name} is none of the files that can be described: {', '.join(_READERS)}."
        raise ValueError(msg)
    if not path.is_file():
        msg = f"There is no file at {path}."
        raise FileNotFoundError(msg)
    try:
        metadata = _READERS[path.suffix](path)
    except ModuleNotFoundError:
        raise  # onnx is not installed
    except Exception as error:  # whatever a reader makes of arbitrary bytes
        msg = f"{path} cannot be read ({type(error).__name__}); it is truncated or foreign: copy or export it again."
        raise ValueError(msg) from error
    own = isinstance(metadata, dict) and all(isinstance(metadata.get(key), str) for key in ("version", "preset"))
    if not own:
        msg = f"{path} is readable but says nothing about Npgmf; it was written by another model or program."
        raise ValueError(msg)
    return dict(metadata)


def _read_onnx(path: Path) -> Any:
    import onnx

    model = onnx.load(path, load_external_data=False)
    if not model.graph.output:
        raise EOFError
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise FileNotFoundError(entry.value)
    return next((json.loads(entry.value) for entry in model.metadata_props if entry.key == KEY), None)


def _read_openvino(path: Path) -> Any:
    root = ElementTree.parse(path).getroot()
    ends = [int(data.get("offset", 0)) + int(data.get("size", 0)) for data in root.iter("data") if data.get("size")]
    if ends and path.with_suffix(".bin").stat().st_size < max(ends):
        raise EOFError
    entry = root.find(f"./rt_info/framework/{KEY}")
    return None if entry is None else json.loads(entry.get("value", ""))


def _read_torch(path: Path) -> Any:
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{KEY}.json")]
        return json.loads(archive.read(names[0])) if names else None


def _read_checkpoint(path: Path) -> Any:
    import torch
    from anomalib.utils.serialization import anomalib_safe_globals

    check_archive(path)
    with anomalib_safe_globals():
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content.get(KEY) if isinstance(content, dict) else None


_READERS = {".onnx": _read_onnx, ".xml": _read_openvino, ".pt": _read_torch, ".ckpt": _read_checkpoint}
