"""Every file scores as the trained model does in anomalib's own engine."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from _exported import OUTPUTS, Exported, predict, read
from anomalib.deploy import OpenVINOInferencer, TorchInferencer

from anomalib_npgmf import Npgmf

TOLERANCE = 1e-4
Runner = Callable[[np.ndarray], dict[str, np.ndarray]]

pytestmark = pytest.mark.parametrize("exported", ["small", "fast", "plus"], indirect=True)


def onnx_runner(exported: Exported) -> Runner:
    session = onnxruntime.InferenceSession(exported.onnx)
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, {"input": batch}), strict=True))


def openvino_runner(exported: Exported) -> Runner:
    compiled = openvino.Core().compile_model(exported.openvino, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        result = compiled(batch)
        return {name: result[name] for name in OUTPUTS}

    return run


def module_runner(model: torch.nn.Module) -> Runner:
    @torch.no_grad()
    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in model.eval()(torch.from_numpy(batch))._asdict().items()}

    return run


def torch_runner(exported: Exported) -> Runner:
    return module_runner(torch.load(exported.torch, weights_only=False)["model"])


def checkpoint_runner(exported: Exported) -> Runner:
    return module_runner(Npgmf.load_from_checkpoint(exported.checkpoint))


def assert_same(result: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in ("pred_score", "anomaly_map"):
        assert np.isfinite(result[name]).all()
        values = result[name].reshape(expected[name].shape)  # the engine drops the axis of the single channel
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
    np.testing.assert_array_equal(result["pred_label"], expected["pred_label"])
    # A pixel may lie on the threshold itself; one beyond the tolerance may not change sides.
    apart = np.abs(expected["anomaly_map"] - 0.5) > TOLERANCE
    masks = result["pred_mask"].reshape(expected["pred_mask"].shape)
    np.testing.assert_array_equal(masks[apart], expected["pred_mask"][apart])


@pytest.mark.parametrize("runner", [onnx_runner, openvino_runner, torch_runner, checkpoint_runner])
def test_files_score_like_the_engine(exported: Exported, runner: Callable[[Exported], Runner]) -> None:
    run, expected = runner(exported), exported.expected
    images = np.concatenate([read(path).numpy() for path in exported.images])
    assert images.shape[-1] == 300  # the graph resizes
    singles = [run(image[None]) for image in images]
    assert_same({name: np.concatenate([single[name] for single in singles]) for name in OUTPUTS}, expected)
    assert_same(run(images[:4]), {name: value[:4] for name, value in expected.items()})


def test_the_test_is_a_hard_one(exported: Exported, loaded: Npgmf) -> None:
    expected = exported.expected
    scores, labels = expected["pred_score"], expected["pred_label"]
    # A score as close to the threshold as a file that errs by the tolerance can still label alike.
    assert TOLERANCE < np.abs(scores - 0.5).min() < 3e-4
    assert 0 < labels.sum() < len(labels)
    assert np.ptp(scores) > 0.1
    # Patches that lie in the bank, and in it twice.
    bank = loaded.model.structural.bank.embeddings
    assert torch.equal(bank[:40], bank[-40:])
    with torch.no_grad():
        maps = loaded.model.branch_maps(loaded.pre_processor(read(exported.images[-1]))).maps
    assert maps["structural"].min() < 5e-3  # no distance, but for rounding in whitened features


def test_a_fresh_process_of_the_engine_agrees(exported: Exported) -> None:
    result = predict(Npgmf.load_from_checkpoint(exported.checkpoint), exported.images[0].parent)
    for name, value in exported.expected.items():
        np.testing.assert_array_equal(result[name], value)


def test_inferencers_agree_on_a_file(exported: Exported, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # anomalib caches compiled models in the working directory
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    inferencers = [
        TorchInferencer(exported.torch, device="cpu"),
        OpenVINOInferencer(exported.openvino, device="CPU", config=config),
        OpenVINOInferencer(exported.onnx, device="CPU", config=config),
    ]
    for inferencer in inferencers:
        with torch.no_grad():
            result = inferencer.predict(exported.images[-1])
        assert np.asarray(result.pred_score).item() == pytest.approx(exported.expected["pred_score"][-1], abs=TOLERANCE)
        result_map = np.asarray(result.anomaly_map).squeeze()
        np.testing.assert_allclose(result_map, exported.expected["anomaly_map"][-1].squeeze(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("runner", [onnx_runner, openvino_runner])
def test_any_size_is_resized_as_in_training(
    exported: Exported, loaded: Npgmf, runner: Callable[[Exported], Runner]
) -> None:
    run = runner(exported)
    for size in ((100, 411), (333, 250), loaded.settings.image_size):
        image = torch.nn.functional.interpolate(read(exported.images[0]), size=size, mode="bilinear")
        with torch.no_grad():
            trained = loaded.post_processor(loaded.model(loaded.pre_processor.transform(image)))
        result = run(image.numpy())
        for name in ("pred_score", "anomaly_map"):
            expected = getattr(trained, name).numpy()
            np.testing.assert_allclose(result[name], expected, rtol=0, atol=TOLERANCE, err_msg=f"{name}, {size}")
