"""Quantised files keep the scores, and what must stay in float does."""

from typing import Any

import numpy as np
import openvino
import pytest
from _exported import Exported, read

from anomalib_npgmf import Npgmf
from anomalib_npgmf.export import describe
from anomalib_npgmf.export.bank import bank_shape as bank_shape_of
from anomalib_npgmf.export.quantisation import compress_weights, float_operations, quantise


def bank_shape(exported: Exported) -> tuple[int, int]:
    return describe(exported.onnx)["bank_size"], 128 + 256  # channels of resnet18's third and fourth level


def scores(model: Any, exported: Exported) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array([compiled(read(path).numpy())["pred_score"].item() for path in exported.images])


def low_precision(model: Any) -> list[Any]:
    return [
        operation
        for operation in model.get_ops()
        if operation.get_type_name() == "FakeQuantize"
        or (operation.get_type_name() == "Constant" and operation.get_element_type().to_string() in ("i8", "u8"))
    ]


@pytest.mark.parametrize("exported", ["small", "fast", "plus"], indirect=True)
def test_distances_stay_in_float(exported: Exported) -> None:
    model = openvino.Core().read_model(exported.onnx)
    names = float_operations(model, bank_shape(exported))
    kinds = {op.get_type_name() for op in model.get_ops() if op.get_friendly_name() in names}
    assert "MatMul" in kinds  # the products with the bank
    assert any(kind.startswith("Gather") for kind in kinds)  # the nearest patch, from which the distance is computed
    assert any("codebooks" in name for name in names) == (exported.kind != "plus")
    assert any("blur" in name for name in names)
    assert any("model.composition" in name for name in names) == (exported.kind == "plus")
    assert not any("encoder" in name for name in names)


# Quantisation of activations on the model of two sizes: what lies between its resizes can be hard to compile.
@pytest.mark.parametrize(("exported", "how"), [("fast", "weights"), ("small", "all")], indirect=["exported"])
def test_scores_survive(exported: Exported, how: str) -> None:
    model = openvino.Core().read_model(exported.openvino)
    shape = bank_shape(exported)
    small = compress_weights(model, shape) if how == "weights" else quantise(model, shape, exported.datamodule())
    names = {operation.get_friendly_name() for operation in low_precision(small)}
    for module in ("encoder", "logical.decoder"):
        assert sum(module in name for name in names) > 10
    assert not any(name.startswith(("model.structural/", "model.merger", "post_processor")) for name in names)
    constants = [op for op in small.get_ops() if op.get_type_name() == "Constant"]
    banks = [op for op in constants if tuple(op.get_output_shape(0)) in (shape, shape[::-1])]
    assert banks
    assert all(op.get_element_type().to_string() in ("f32", "f16") for op in banks)
    result, expected = scores(small, exported), exported.expected["pred_score"]
    assert np.isfinite(result).all()
    assert np.abs(result - expected).max() < 0.1
    assert np.corrcoef(result, expected)[0, 1] > 0.95


@pytest.mark.parametrize("exported", ["packaged"], indirect=True)
def test_whitened_distances_survive(exported: Exported, loaded: Npgmf) -> None:
    model = openvino.Core().read_model(exported.openvino)
    small = quantise(model, bank_shape_of(loaded), exported.datamodule())
    result, expected = scores(small, exported), exported.expected["pred_score"]
    assert np.abs(result - expected).max() < 0.05
    assert np.corrcoef(result, expected)[0, 1] > 0.99

    encoder = [operation for operation in small.get_ops() if "encoder" in operation.get_friendly_name()]
    depth_wise = [operation for operation in encoder if operation.get_type_name() == "GroupConvolution"]
    assert len(depth_wise) == 11  # of the blocks up to level 4
    sources = [value.get_source_output().get_node() for operation in depth_wise for value in operation.inputs()]
    assert not {"FakeQuantize", "Multiply"} & {source.get_type_name() for source in sources}
    # half of the range: the sum of two products of weights with activations fits into 16 bits on every CPU
    weights = [op.get_data() for op in low_precision(small) if op.get_type_name() == "Constant"]
    weights = [values for values in weights if values.size > 100]
    assert len(weights) > 10
    assert max(np.abs(values.astype(int)).max() for values in weights) <= 64
