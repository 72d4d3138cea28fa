"""Coreset and search on a GPU choose as on the CPU."""

import pytest
import torch
from torch import Tensor

from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.coreset import covering_radius, select_coreset
from anomalib_npgmf.structural.search import nearest

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.fixture(scope="module")
def patches() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(20, 384, generator=generator)
    return centres[torch.randint(20, (6000,), generator=generator)] + torch.randn(6000, 384, generator=generator)


def test_exact_selection_is_that_of_the_cpu(patches: Tensor) -> None:
    chosen = select_coreset(patches.cuda(), 600, method="exact")
    assert chosen.device.type == "cuda"
    # Two points whose distances agree to the last digits may swap places; the bank they make is the same.
    assert set(chosen.tolist()) == set(select_coreset(patches, 600, method="exact").tolist())


def test_fast_selection_covers_as_well(patches: Tensor) -> None:
    radii = [covering_radius(patches, select_coreset(moved, 600).cpu()) for moved in (patches, patches.cuda())]
    assert radii[1] == pytest.approx(radii[0], rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_search_finds_the_nearest(patches: Tensor, dtype: torch.dtype) -> None:
    points, queries = patches[:4000].cuda().to(dtype), patches[4000:].cuda()
    distances, _ = nearest(queries, points, points.float().square().sum(1))
    exact = torch.cdist(queries.double(), points.double()).amin(1)
    # half precision may confuse points that are nearly as near, never by more than this
    torch.testing.assert_close(distances.double(), exact, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=0)


def test_a_bank_is_the_same_wherever_it_is_built(patches: Tensor) -> None:
    banks = []
    for device in ("cpu", "cuda"):
        bank = MemoryBank(0.1, coreset_method="exact").to(device)
        for part, key in zip(patches.view(6, 1000, 384), "abcdef", strict=True):
            bank.append(part[None].to(device), [key])
        bank.finish()
        points = bank.cpu().embeddings
        banks.append(points[points[:, 0].argsort()])
    torch.testing.assert_close(*banks)  # the mean that is subtracted rounds otherwise
