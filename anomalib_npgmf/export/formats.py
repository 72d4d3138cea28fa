"""Export functions, the methods of Npgmf: anomalib's, with antialiasing, metadata and errors of one sentence.

A file does what the trained model does, from an image in [0, 1] of any size (or the given one) to normalised scores and
labels: antialiased resize, normalisation, all branches, calibration, merging, smoothing, threshold. It needs neither
CLIP nor network access, and `anomalib_npgmf.export.describe` prints its metadata.

``bank_size`` keeps only that many patches of the memory bank: the greedy coreset of that size. Distances to a smaller
bank are larger: give the ``datamodule`` as well, and the calibration and the threshold are computed anew for the
exported file. The model itself stays as it is.
"""

from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import AnomalibDataModule
from anomalib.deploy import CompressionType
from anomalib.models.components.base.export_mixin import ExportMixin
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchmetrics import Metric

from anomalib_npgmf.disk import whole_files
from anomalib_npgmf.export.bank import bank_of_size, bank_shape
from anomalib_npgmf.export.metadata import write_onnx, write_torch
from anomalib_npgmf.export.quantisation import compress_weights, name_by_scope, quantise

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

OPSET = 18  # the one that torch's exporter is written for; anomalib asks for 14 and gets 18 with a warning
_SINGLE_FILE_BYTES = 1_900_000_000  # a protobuf message, and so an ONNX file, ends at 2 GiB


def _require(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        msg = f"This export needs {' and '.join(missing)}: pip install 'anomalib-npgmf[openvino]'."
        raise ModuleNotFoundError(msg, name=missing[0])


def _whole(export_root: Path | str, kind: str, name: str) -> AbstractContextManager[None]:
    """Leave no half files in the folder that anomalib writes to."""
    return whole_files(Path(export_root) / "weights" / kind, name)


def to_torch(
    module: "Npgmf",
    export_root: Path | str,
    model_file_name: str = "model",
    bank_size: int | None = None,
    datamodule: AnomalibDataModule | None = None,
) -> Path:
    """Write a ``.pt`` file for anomalib's ``TorchInferencer``.

    Args:
        module: The trained model.
        export_root: Folder; the file goes to ``weights/torch`` in it.
        model_file_name: Name of the file, without suffix.
        bank_size: See the module's docstring.
        datamodule: See the module's docstring.

    Returns:
        Path of the file.

    Raises:
        RuntimeError: If the model has not been trained.
        ValueError: If ``bank_size`` is out of range.
    """
    module.model.merger.require_calibration()
    with bank_of_size(module, bank_size, datamodule), _whole(export_root, "torch", model_file_name):
        path: Path = ExportMixin.to_torch(module, export_root, model_file_name)
        write_torch(path, module.describe() | {"input_size": None})
    return path


def to_onnx(
    module: "Npgmf",
    export_root: Path | str,
    model_file_name: str = "model",
    input_size: tuple[int, int] | None = None,
    bank_size: int | None = None,
    datamodule: AnomalibDataModule | None = None,
    **kwargs: Any,
) -> Path:
    """Write an ``.onnx`` file; the batch size is free.

    Args:
        module: The trained model.
        export_root: Folder; the file goes to ``weights/onnx`` in it.
        model_file_name: Name of the file, without suffix.
        input_size: Height and width of the images that the file takes; ``None`` takes any. They are resized in the
            graph.
        bank_size: See the module's docstring. On the command line ``--onnx_kwargs '{"bank_size": 1000}'``.
        datamodule: See the module's docstring.
        **kwargs: For ``torch.onnx.export``. Up to about 2 GB one file holds everything, unless ``external_data``
            says otherwise.

    Returns:
        Path of the file.

    Raises:
        ModuleNotFoundError: If onnx or onnxscript is missing.
        RuntimeError: If the model has not been trained.
        ValueError: If ``input_size`` is no size or ``bank_size`` is out of range.
    """
    _require("onnx", "onnxscript")
    module.model.merger.require_calibration()
    if input_size is not None:
        input_size = _checked_size(input_size)
    with bank_of_size(module, bank_size, datamodule), _whole(export_root, "onnx", model_file_name):
        state = module.model.state_dict().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in state)
        kwargs = {"opset_version": OPSET, "external_data": size > _SINGLE_FILE_BYTES, "verbose": False} | kwargs
        # The memory layout that fused attention returns depends on the kernel, which the exporter cannot handle.
        # Without gradients the export takes a fifth less time.
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            path: Path = ExportMixin.to_onnx(module, export_root, model_file_name, input_size, **kwargs)
        name_by_scope(path)
        write_onnx(path, module.describe() | {"input_size": input_size and list(input_size)})
    return path


def to_openvino(
    module: "Npgmf",
    export_root: Path | str,
    model_file_name: str = "model",
    input_size: tuple[int, int] | None = None,
    compression_type: CompressionType | None = None,
    datamodule: AnomalibDataModule | None = None,
    metric: Metric | None = None,
    task: Any = None,
    max_drop: float = 0.01,
    ov_kwargs: dict[str, Any] | None = None,
    onnx_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Write an OpenVINO ``.xml`` and ``.bin`` file; the batch size is free.

    Args:
        module: The trained model.
        export_root: Folder; the files go to ``weights/openvino`` in it.
        model_file_name: Name of the files, without suffix.
        input_size: As for `to_onnx`.
        compression_type: ``FP16`` halves the file; ``INT8`` stores the weights of the networks, not the bank, in 8
            bits; ``INT8_PTQ`` computes their convolutions in 8 bits. Depth-wise convolutions, distances, codes,
            merging and smoothing stay in float.
        datamodule: Images for ``INT8_PTQ`` and ``INT8_ACQ``; also calibrates a shrunken bank.
        metric: Metric to keep with ``INT8_ACQ``, see anomalib.
        task: See anomalib.
        max_drop: Largest loss of that metric.
        ov_kwargs: For ``openvino.convert_model``.
        onnx_kwargs: As the further arguments of `to_onnx`; ``bank_size`` goes here.

    Returns:
        Path of the ``.xml`` file.

    Raises:
        ModuleNotFoundError: If openvino, onnx, onnxscript or nncf is missing.
        RuntimeError: If the model has not been trained.
        ValueError: If an argument is out of range or the data module is missing.
    """
    compresses = compression_type not in (None, CompressionType.FP16)
    _require("openvino", "onnx", "onnxscript", *(["nncf"] if compresses else []))
    if compression_type in (CompressionType.INT8_PTQ, CompressionType.INT8_ACQ) and datamodule is None:
        msg = f"{compression_type} needs images: pass a data module (--data on the command line)."
        raise ValueError(msg)
    onnx_kwargs = dict(onnx_kwargs or {})
    module.model.merger.require_calibration()
    bank_size = onnx_kwargs.pop("bank_size", None)
    with bank_of_size(module, bank_size, datamodule), _whole(export_root, "openvino", model_file_name):
        path: Path = ExportMixin.to_openvino(
            module,
            export_root,
            model_file_name,
            input_size,
            compression_type,
            datamodule,
            metric,
            task,
            max_drop,
            ov_kwargs,
            onnx_kwargs,
        )
    return path


def compress_openvino(
    module: "Npgmf", model: Any, compression_type: CompressionType | None = None, *args: Any, **kwargs: Any
) -> Any:
    """Compress a converted model; anomalib's ``to_openvino`` calls this as a method of the model."""
    if compression_type == CompressionType.INT8:
        return compress_weights(model, bank_shape(module))
    return ExportMixin._compress_ov_model(module, model, compression_type, *args, **kwargs)


def quantise_openvino(module: "Npgmf", model: Any, datamodule: AnomalibDataModule | None = None) -> Any:
    """Quantise a converted model; anomalib's ``to_openvino`` calls this as a method of the model."""
    assert datamodule is not None
    return quantise(model, bank_shape(module), datamodule)


def _checked_size(size: Any) -> tuple[int, int]:
    valid = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) for side in size)
    if not valid or min(size) < 1:
        msg = f"input_size must be the height and width of the images in pixels, such as (256, 256), not {size!r}."
        raise ValueError(msg)
    return int(size[0]), int(size[1])
