"""Two processes over gloo end with the bank of one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank

IMAGES = 7  # odd: a distributed sampler repeats one image to fill up
OPTIONS: dict[str, dict[str, object]] = {
    "default": {},
    "half_reduced": {"dtype": torch.float16, "reduce_to": 8},
    "whitened": {"whiten": [20, 12]},
    "thinned": {"collect_bytes": 5 * 64 * 32 * 4},  # more than one process holds, less than both together
}


def image(index: int) -> Tensor:
    coarse = torch.randn(1, 32, 3, 3, generator=torch.Generator().manual_seed(index))
    return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").flatten(2).transpose(1, 2)


def fill(bank: MemoryBank, indices: list[int]) -> None:
    for index in indices:
        bank.append(image(index), [f"{index:03d}.png"])
    bank.finish()


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    for name, options in OPTIONS.items():
        bank = MemoryBank(0.1, **options)  # type: ignore[arg-type]
        fill(bank, [i % IMAGES for i in range(rank, IMAGES + 1, 2)])
        torch.save(bank.state_dict(), folder / f"{name}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks of two processes, all options in one run of them: starting processes is what takes time."""
    folder = tmp_path_factory.mktemp("banks")
    mp.spawn(worker, args=(folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("name", list(OPTIONS))
def test_two_processes_equal_one(name: str, folder: Path) -> None:
    alone = MemoryBank(0.1, **OPTIONS[name])  # type: ignore[arg-type]
    fill(alone, list(range(IMAGES)))
    for rank in (0, 1):
        state = torch.load(folder / f"{name}_{rank}.pt", weights_only=True)
        assert state.keys() == alone.state_dict().keys()
        for key, buffer in alone.state_dict().items():
            torch.testing.assert_close(state[key], buffer, rtol=0, atol=1e-5)
