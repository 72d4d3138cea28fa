"""Two processes over gloo renew and count codes as one process does. Imports little: every process imports it again."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from anomalib_npgmf.logical.codebook import Codebook


def renewed(features: torch.Tensor) -> Codebook:
    """A codebook of which two codes die, moved onto ``features`` and used once more."""
    book = Codebook(4, 2).train()
    with torch.no_grad():
        book.codes.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [50.0, 50.0], [60.0, 60.0]]))
    book(features)
    assert book.renew(features, torch.Generator().manual_seed(3), restart=True) == 2
    book(features)
    return book


def feature_map(rank: int) -> torch.Tensor:
    """Of another number of images in each process."""
    return torch.rand(1 + rank, 2, 4, 4, generator=torch.Generator().manual_seed(rank))


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    book = renewed(feature_map(rank))
    torch.save((book.codes.detach(), book.usage), folder / f"codes_{rank}.pt")
    dist.destroy_process_group()


def test_codes_are_renewed_from_the_vectors_of_all_processes(tmp_path: Path) -> None:
    mp.spawn(worker, args=(tmp_path,), nprocs=2)
    alone = renewed(torch.cat([feature_map(0), feature_map(1)]))
    assert float(alone.usage.sum()) == 3 * 16
    for rank in (0, 1):
        codes, usage = torch.load(tmp_path / f"codes_{rank}.pt", weights_only=True)
        assert torch.equal(codes, alone.codes)
        assert torch.equal(usage, alone.usage)
