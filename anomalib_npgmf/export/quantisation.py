"""8-bit OpenVINO files: compressed weights (INT8) and post-training quantisation (INT8_PTQ) of the networks.

Distances, codes, merging and smoothing stay in float. `anomalib_npgmf.export.formats` chooses by compression type.
"""

import ast
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from torchvision.transforms.v2.functional import resize

from anomalib_npgmf.host.splits import restore_training_data, split_for_calibration

_SCOPES = "pkg.torch.onnx.name_scopes"  # where torch's exporter notes the module that a node comes from
# Modules whose results are differences of nearly equal numbers or feed the scores directly.
FLOAT_MODULES = {
    "codebooks",
    "composition",
    "structural",
    "merger",
    "pre_processor",
    "post_processor",
    "resize_logical",
    "resize_structural",
}
# Operations of the top-level forward: cosine distances and maxima of merged maps. INT8 ranges from normal images would
# clip the scores of anomalous ones.
_OUTERMOST = ([""], ["model"])


def name_by_scope(path: Path) -> None:
    """Name the nodes of an ONNX file after the modules that they come from, such as ``model.merger.blur/node_conv2d``.

    Quantisation finds by these names what to leave in float, and the file becomes readable.

    Args:
        path: The file.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
        modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope]
        node.name = f"{modules[-1]}/{node.name}" if modules else node.name
    onnx.save_model(model, path)


def float_operations(model: Any, bank_shape: tuple[int, int] | None) -> list[str]:
    """Names of the operations of an OpenVINO model that must stay in float.

    Args:
        model: ``openvino.Model`` converted from a file that `name_by_scope` processed.
        bank_shape: Patches and dimensions of the memory bank; ``None`` without one.

    Returns:
        Friendly names: operations of `FLOAT_MODULES`, those of the top-level forward, those that have the bank as an
        input, and depth-wise convolutions.
    """
    names = []
    for operation in model.get_ops():
        if operation.get_type_name() == "Constant":  # named after a tensor, not after the module that uses it
            continue
        modules = operation.get_friendly_name().rpartition("/")[0].split(".")
        stays = modules in _OUTERMOST or FLOAT_MODULES.intersection(modules)
        if stays or _reads(operation, bank_shape) or _depth_wise(operation):
            names.append(operation.get_friendly_name())
    return names


def _reads(operation: Any, shape: tuple[int, int] | None) -> bool:
    if shape is None:
        return False
    sources = [value.get_source_output() for value in operation.inputs()]
    return any(
        source.get_partial_shape().is_static and tuple(source.get_shape()) in (shape, shape[::-1]) for source in sources
    )


def _depth_wise(operation: Any) -> bool:
    """Whether it is a depth-wise convolution, which is sensitive to quantisation and has few weights."""
    if operation.get_type_name() != "GroupConvolution":
        return False
    inputs_of_a_group = operation.input(1).get_partial_shape()[2]  # of [groups, outputs, inputs, height, width]
    return inputs_of_a_group.is_static and inputs_of_a_group.get_length() == 1


def _ignored(model: Any, bank_shape: tuple[int, int] | None, types: tuple[str, ...] = ()) -> Any:
    import nncf

    # Not every operation of the list is one that nncf would touch.
    return nncf.IgnoredScope(names=float_operations(model, bank_shape), types=list(types), validate=False)


def compress_weights(model: Any, bank_shape: tuple[int, int] | None) -> Any:
    """Store the networks' weights, except those of depth-wise convolutions, in 8 bits; computation stays in float.

    Args:
        model: ``openvino.Model``.
        bank_shape: See `float_operations`.

    Returns:
        The compressed model.
    """
    import nncf

    return nncf.compress_weights(model, ignored_scope=_ignored(model, bank_shape))


def quantise(model: Any, bank_shape: tuple[int, int] | None, datamodule: AnomalibDataModule) -> Any:
    """Post-training static quantisation of the convolutions, except depth-wise ones.

    Weights take half of the range (7 bits, nncf's ``overflow_fix``): CPUs without instructions for 8 bits (AVX2) add
    products in 16 bits, where sums of full-range products overflow.

    Activation ranges come from the normal images that calibrate the scores, because anomalib's choice, the validation
    set, is the test set in some data modules. The images are not normalised, because the graph does that.

    Args:
        model: ``openvino.Model``.
        bank_shape: See `float_operations`.
        datamodule: Data of the category.

    Returns:
        The quantised model.
    """
    import nncf

    datamodule.setup("fit")
    data = split_for_calibration(datamodule)
    restore_training_data(datamodule)
    shape = model.input(0).partial_shape
    fixed = (shape[2].get_length(), shape[3].get_length()) if shape[2].is_static else None

    def image(index: int) -> Any:
        item = data[index].image
        return (item if fixed is None else resize(item, list(fixed), antialias=True)).unsqueeze(0).numpy()

    return nncf.quantize(
        model,
        nncf.Dataset(range(len(data)), image),
        preset=nncf.QuantizationPreset.MIXED,  # features without ReLU take both signs
        subset_size=len(data),
        ignored_scope=_ignored(model, bank_shape, ("MatMul",)),
        fast_bias_correction=False,  # whitened distances magnify the error that the fast one leaves
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
