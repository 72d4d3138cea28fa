"""Products in place of convolutions give the convolutions' results and gradients."""

import pytest
import torch
from torch import Tensor, nn

from anomalib_npgmf.logical import small_maps
from anomalib_npgmf.logical.small_maps import DoublingConv2d, HalvingConv2d

LAYERS = {
    "halving": lambda: HalvingConv2d(3, 5),
    "halving_without_bias": lambda: HalvingConv2d(3, 5, bias=False),
    "doubling": lambda: DoublingConv2d(3, 5),
}


def results(layer: nn.Module, size: tuple[int, int]) -> list[Tensor]:
    """Output, and the gradients of the input and of the parameters."""
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = layer(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((weights * out).sum(), [x, *layer.parameters()])
    return [out, *gradients]


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (5, 4), (8, 8)])
@pytest.mark.parametrize("name", list(LAYERS))
def test_equal_to_torch(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LAYERS[name]()
    product = results(layer, size)
    monkeypatch.setattr(small_maps, "_POSITIONS", 0)
    for ours, torchs in zip(product, results(layer, size), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(LAYERS))
def test_a_captured_graph_keeps_the_convolution(name: str) -> None:
    program = torch.export.export(LAYERS[name]().eval(), (torch.zeros(1, 3, 4, 4),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert any("conv" in target for target in targets)
    assert not any("im2col" in target or "einsum" in target or "matmul" in target for target in targets)
