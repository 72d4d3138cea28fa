import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anomalib_npgmf.structural import StructuralBranch, StructuralConfig
from anomalib_npgmf.structural.model import concatenated


def features(batch: int, seed: int = 0, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, 8, 4, 4), (batch, 12, 2, 2)]
    coarse = [torch.randn(shape, generator=generator) for shape in shapes]
    return [nn.functional.interpolate(c, size=(size >> i, size >> i), mode="bilinear") for i, c in enumerate(coarse)]


@pytest.fixture
def branch() -> StructuralBranch:
    branch = StructuralBranch([8, 12], StructuralConfig(coreset_ratio=0.1)).eval()
    branch.collect(features(4))
    branch.finish()
    return branch


def test_embedding_is_the_pooled_and_aligned_concatenation() -> None:
    fine, coarse = features(2)
    patches = StructuralBranch([8, 12]).embed([fine, coarse])
    assert patches.shape == (2, 16, 16, 20)
    # Away from the border the mean of the 3 x 3 neighbourhood, and bilinear values between two pooled cells.
    torch.testing.assert_close(patches[:, 5, 7, :8], fine[:, :, 4:7, 6:9].mean((2, 3)))
    torch.testing.assert_close(patches[:, 0, 0, :8], fine[:, :, :2, :2].sum((2, 3)) / 9)  # zeros beyond the border
    pooled = nn.functional.avg_pool2d(coarse, 3, 1, 1)
    expected = (0.75 * pooled[:, :, 2] + 0.25 * pooled[:, :, 3]) @ torch.eye(8)[:, 3] * 0.75 + (
        0.75 * pooled[:, :, 2] + 0.25 * pooled[:, :, 3]
    ) @ torch.eye(8)[:, 2] * 0.25
    torch.testing.assert_close(patches[:, 5, 6, 8:], expected)


@pytest.mark.parametrize("side", [1, 5])
def test_neighbourhood_of_another_size(side: int) -> None:
    """Mean of so many positions each way; of a single one the features themselves."""
    fine, coarse = features(2)
    patches = StructuralBranch([8, 12], StructuralConfig(neighbourhood=(side,))).embed([fine, coarse])
    reach = side // 2
    expected = fine[:, :, 5 - reach : 6 + reach, 7 - reach : 8 + reach].mean((2, 3))
    torch.testing.assert_close(patches[:, 5, 7, :8], expected)
    if side == 1:
        torch.testing.assert_close(patches, concatenated([fine, coarse]))


def test_a_neighbourhood_has_a_centre() -> None:
    with pytest.raises(ValueError, match=r"structural\.neighbourhood must be odd, .* but it is \(2,\)"):
        StructuralConfig(neighbourhood=(2,))


def test_a_neighbourhood_of_its_own_for_each_level() -> None:
    fine, coarse = features(2)
    patches = StructuralBranch([8, 12], StructuralConfig(neighbourhood=(1, 3))).embed([fine, coarse])
    torch.testing.assert_close(patches, concatenated([fine, nn.functional.avg_pool2d(coarse, 3, 1, 1)]))
    alone = StructuralBranch([8], StructuralConfig(levels=(3,), neighbourhood=(1, 3)))
    torch.testing.assert_close(alone.embed([fine]), concatenated([fine]))


def test_a_branch_of_before_averages() -> None:
    """Files from before the setting hold no ``neighbourhood``."""
    restored = pickle.loads(pickle.dumps(StructuralBranch([8, 12])))
    del restored.__dict__["neighbourhood"]
    assert torch.equal(restored.embed(features(2)), StructuralBranch([8, 12]).embed(features(2)))


def test_map_is_low_on_normal_and_high_on_a_defect(branch: StructuralBranch) -> None:
    maps = features(4)
    normal = branch(maps)
    assert normal.shape == (4, 1, 16, 16)
    maps[0][1, :, 4:8, 10:13] += 5.0
    changed = branch(maps)
    assert torch.equal(changed[0], normal[0])
    peak = changed[1, 0].flatten().argmax().item()
    assert 3 <= peak // 16 <= 8
    assert 9 <= peak % 16 <= 13
    assert changed[1].max() > 2 * normal.max()


def test_odd_and_other_sizes(branch: StructuralBranch) -> None:
    maps = [torch.rand(1, 8, 15, 9), torch.rand(1, 12, 8, 5)]
    assert branch(maps).shape == (1, 1, 15, 9)


def test_wrong_channels_and_untrained() -> None:
    branch = StructuralBranch([8, 12])
    with pytest.raises(ValueError, match=r"maps of \(8, 12\) channels"):
        branch(features(1)[::-1])
    with pytest.raises(RuntimeError, match="train the model"):
        branch(features(1))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"coreset_ratio": 0.0}, "coreset_ratio"),
        ({"coreset_ratio": 1.5}, "coreset_ratio"),
        ({"levels": ()}, "levels"),
        ({"levels": (4, 3)}, "levels"),
        ({"levels": (0, 3)}, "levels"),
        ({"coreset_method": "slow"}, "coreset_method"),
        ({"bank_dtype": "int8"}, "bank_dtype"),
        ({"reduce_to": 0}, "reduce_to"),
    ],
)
def test_config_refuses(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^structural.{words} must"):
        StructuralConfig(**values)  # type: ignore[arg-type]


class TwoInputs(nn.Module):
    def __init__(self, branch: StructuralBranch) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        return self.branch([fine, coarse])


@pytest.mark.parametrize("options", [{}, {"bank_dtype": "float16"}, {"reduce_to": 10}])
def test_exported_map_equals_torch(options: dict[str, object], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    branch = StructuralBranch([8, 12], StructuralConfig(coreset_ratio=0.1, **options)).eval()  # type: ignore[arg-type]
    branch.collect(features(4))
    branch.finish()
    model, path = TwoInputs(branch).eval(), tmp_path / "branch.onnx"
    batch = {0: torch.export.Dim("batch")}
    shapes = {"fine": batch, "coarse": batch}
    torch.onnx.export(model, tuple(features(2)), path, dynamo=True, opset_version=18, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in (1, 3):
        maps = features(size, seed=5)
        expected = model(*maps).numpy()
        inputs = {tensor.name: value.numpy() for tensor, value in zip(session.get_inputs(), maps, strict=True)}
        np.testing.assert_allclose(session.run(None, inputs)[0], expected, atol=2e-5)
        np.testing.assert_allclose(compiled([value.numpy() for value in maps])[0], expected, atol=2e-5)


def test_traced_map_equals_torch(branch: StructuralBranch) -> None:
    model = TwoInputs(branch)
    traced = torch.jit.trace(model, tuple(features(1)), check_trace=False)
    torch.testing.assert_close(traced(*features(3, seed=5)), model(*features(3, seed=5)))


@pytest.mark.parametrize(("memory", "thinned"), [(2.0, False), (0.0, True)])
def test_images_are_thinned_above_the_memory_that_is_set(memory: float, thinned: bool) -> None:
    branch = StructuralBranch([4, 8], StructuralConfig(coreset_ratio=0.02, collect_gb=memory))
    branch.collect([torch.rand(3, 4, 8, 8), torch.rand(3, 8, 4, 4)], keys=["a", "b", "c"])
    assert [len(block) for block in branch.bank.collector.ordered()] == [16 if thinned else 64] * 3
    branch.finish()
    assert len(branch.bank) == int(0.02 * 3 * 64), "the ratio is that of all patches"
