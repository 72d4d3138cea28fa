"""Eqs. 3 to 7 by hand."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.logical.loss import LogicalLoss, check_finite, cosine_distance_map, feature_loss, logical_map


def column(*vectors: tuple[float, float]) -> torch.Tensor:
    """Vectors as a map [1, 2, len(vectors), 1]."""
    return torch.tensor(vectors, dtype=torch.float32).T.reshape(1, 2, -1, 1)


def test_cosine_distance_by_hand() -> None:
    encoder = column((1, 0), (1, 0), (1, 0), (3, 4))
    decoder = column((5, 0), (0, 1), (-2, 0), (4, 3))
    expected = torch.tensor([0.0, 1.0, 2.0, 1 - 24 / 25])
    torch.testing.assert_close(cosine_distance_map(encoder, decoder).flatten(), expected)


def test_zero_vectors_count_one_and_have_finite_gradients() -> None:
    encoder = column((0, 0), (1, 2))
    decoder = torch.zeros(1, 2, 2, 1, requires_grad=True)
    distance = cosine_distance_map(encoder, decoder)
    torch.testing.assert_close(distance.flatten(), torch.ones(2))
    distance.sum().backward()
    assert torch.isfinite(decoder.grad).all()


def test_feature_loss_is_a_mean_over_positions_and_a_sum_over_levels() -> None:
    encoder = [column((1, 0), (1, 0), (1, 0), (1, 0)), column((1, 0))]
    decoder = [column((1, 0), (0, 1), (0, 1), (-1, 0)), column((0, 3))]
    assert feature_loss(encoder, decoder).item() == pytest.approx((0 + 1 + 1 + 2) / 4 + 1)


def test_flat_cosine_differs_from_local() -> None:
    encoder, decoder = [column((3, 0), (0, 1))], [column((3, 0), (1, 0))]
    assert feature_loss(encoder, decoder, "local").item() == pytest.approx(0.5)
    # one vector (3, 0, 0, 1) against (3, 1, 0, 0), in channel-major order (3, 0 | 0, 1) and (3, 1 | 0, 0)
    assert feature_loss(encoder, decoder, "flat").item() == pytest.approx(1 - 9 / 10)


def test_flat_cosine_is_taken_per_image() -> None:
    encoder = [torch.cat([column((1, 0)), column((100, 0))])]
    decoder = [torch.cat([column((0, 1)), column((1, 0))])]
    assert feature_loss(encoder, decoder, "flat").item() == pytest.approx(0.5)


def test_logical_map_sums_upsampled_levels() -> None:
    fine = (torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4), torch.rand(1, 2, 4, 4))
    coarse = (torch.tensor([0.0, 1.0]).view(1, 2, 1, 1), torch.tensor([1.0, 1.0]).view(1, 2, 1, 1))
    merged = logical_map([fine[0], coarse[0]], [fine[1], coarse[1]], (4, 4))
    assert merged.shape == (1, 1, 4, 4)
    torch.testing.assert_close(merged, cosine_distance_map(*fine) + 1 - math.sqrt(0.5))


def test_logical_map_interpolates_at_half_pixels() -> None:
    encoder = column((1, 0), (1, 0))
    decoder = column((1, 0), (0, 1))
    merged = logical_map([encoder], [decoder], (4, 1))
    torch.testing.assert_close(merged.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_total_is_weighted() -> None:
    config = LogicalConfig(feature_loss_weight=2.0, image_loss_weight=3.0, codebook_loss_weight=5.0)
    image = torch.zeros(1, 3, 2, 2)
    parts = LogicalLoss(config)([column((1, 0))], [column((0, 1))], image, image + 2.0, torch.tensor(0.25))
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {"feature": 1.0, "image": 4.0, "codebook": 0.25, "loss": 2 * 1.0 + 3 * 4.0 + 5 * 0.25}
    )


def test_losses_are_checked_in_one_transfer() -> None:
    """Each number that the host reads makes it wait for the GPU."""
    read: list[str] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten._local_scalar_dense.default:
                read.append(str(function))
            return function(*args, **(kwargs or {}))

    names = ("loss", "feature", "image", "codebook")
    with Reads():
        check_finite({name: torch.tensor(1.0) for name in names}, 0)
    assert read == [], "the four are read as one tensor"
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(RuntimeError, match=f"The image loss became {value} in epoch 7"):
            check_finite({name: torch.tensor(value if name == "image" else 1.0) for name in names}, 7)
