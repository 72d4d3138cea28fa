"""Two processes over gloo: one without images does its part, and an error of one is raised in both, without waiting.

Imports little: every process imports it again.
"""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from anomalib_npgmf import distributed
from anomalib_npgmf.composition import CompositionBranch, CompositionConfig
from anomalib_npgmf.distributed import raise_together
from anomalib_npgmf.logical.loss import check_finite
from anomalib_npgmf.structural import MemoryBank

IMAGES = 6
SECONDS = 240  # a run takes about ten


def image(index: int) -> Tensor:
    return torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(index))


def bank(indices: list[int], ratio: float = 0.1, collect_bytes: int = 1 << 20) -> MemoryBank:
    found = MemoryBank(ratio, collect_bytes=collect_bytes)
    for index in indices:
        found.append(image(index).flatten(2).mT, [f"{index}.png"])
    found.finish()
    return found


def thinned(indices: list[int]) -> MemoryBank:
    return bank(indices, collect_bytes=3 * 64 * 8 * 4)


def composition(indices: list[int]) -> CompositionBranch:
    config = CompositionConfig(levels=(3,), codebook_sizes=(3,), codebooks=1, grids=(2,), grid_codebook_sizes=(4,))
    branch = CompositionBranch([3], [8], config)
    for index in indices:
        branch.collect([image(index)], [f"{index}.png"], image(index)[:, :3])
    branch.finish()
    return branch


def loss(values: list[float]) -> None:
    check_finite({"loss": torch.tensor(sum(values)), "image": torch.tensor(values[0])}, 3)


def together(values: list[int]) -> None:
    with raise_together():
        if values:
            msg = "1.png is truncated"
            raise OSError(msg)


EVERY, NONE = list(range(IMAGES)), list[int]()
TRAINED: dict[str, Callable[[list[int]], nn.Module]] = {"bank": bank, "thinned": thinned, "composition": composition}
# What is run, what the first process and the second one get, and what both say.
ERRORS: dict[str, tuple[Callable[[list], object], list, list, str]] = {
    "bank of nothing": (bank, NONE, NONE, "no patches to select from"),
    "bank too small": (lambda images: bank(images, ratio=0.001), [0], [1], "leaves an empty memory bank"),
    "composition of nothing": (composition, NONE, NONE, "has no images to learn from"),
    "composition of one": (composition, [0], NONE, "cannot be learnt from 1 image"),
    "loss": (loss, [1.0], [float("nan")], "loss became nan in epoch 3"),
    "infinite loss": (loss, [float("inf")], [1.0], "loss became inf in epoch 3"),
    "together": (together, NONE, [1], "1.png is truncated"),
}


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    said: dict[str, str] = {}

    def run(name: str, function: Callable[[list], object], share: list) -> object:
        store = f"file://{folder / name}"
        dist.init_process_group("gloo", store, timedelta(seconds=10), rank=rank, world_size=2)  # waits no longer
        try:
            return function(share)
        except Exception as error:
            said[name] = str(error)
            return None
        finally:
            dist.destroy_process_group()

    for name, train in TRAINED.items():
        for owner in (0, 1):
            found = run(f"{name} {owner}", train, EVERY if owner == rank else NONE)
            if isinstance(found, nn.Module):
                torch.save(found.state_dict(), folder / f"{name}_{owner}_{rank}.pt")
    for name, (function, *shares, _) in ERRORS.items():
        run(name, function, shares[rank])
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of all cases in one run of two processes: starting them is what takes time."""
    folder = tmp_path_factory.mktemp("errors")
    processes = mp.spawn(worker, args=(folder,), nprocs=2, join=False)
    deadline = time.monotonic() + SECONDS
    while not processes.join(timeout=1):
        if time.monotonic() > deadline:
            for process in processes.processes:
                process.kill()
            pytest.fail(f"two processes did not end within {SECONDS} s: one waits for the other")
    return folder


@pytest.mark.parametrize("owner", [0, 1])
@pytest.mark.parametrize("name", list(TRAINED))
def test_a_process_without_images_gets_the_model_of_the_other(folder: Path, name: str, owner: int) -> None:
    expected = TRAINED[name](EVERY).state_dict()
    for rank in (0, 1):
        state = torch.load(folder / f"{name}_{owner}_{rank}.pt", weights_only=True)
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", list(ERRORS))
def test_an_error_of_one_process_is_raised_in_both(folder: Path, name: str) -> None:
    for rank in (0, 1):
        said = json.loads((folder / f"{rank}.json").read_text())
        assert ERRORS[name][3] in said[name]


def test_no_other_error(folder: Path) -> None:
    assert all(json.loads((folder / f"{rank}.json").read_text()).keys() == ERRORS.keys() for rank in (0, 1))


def test_reading_of_images_ends_in_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass over the training images and that over those of calibration, where another process failed."""
    from anomalib_npgmf.config import resolve
    from anomalib_npgmf.host import calibration, fit
    from anomalib_npgmf.torch_model import NpgmfModel

    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "gather_list", lambda items: [*items, "1.png is truncated"])
    monkeypatch.setattr(fit, "images_of", lambda *arguments: [])
    trainer = SimpleNamespace(is_global_zero=False, progress_bar_callback=None)
    parts = SimpleNamespace(structural=None, composition=None)
    module = SimpleNamespace(model=parts, settings=SimpleNamespace(image_size=(8, 8)))
    with pytest.raises(RuntimeError, match=r"Process 1 stopped: 1\.png is truncated"):
        fit.collect(trainer, module, None)
    small = {"backbone": "test_resnet", "logical_image_size": 128, "branches": "logical"}
    calibrator = calibration.Calibrator(NpgmfModel(resolve("small", small)), lambda images: images)
    with pytest.raises(RuntimeError, match=r"Process 1 stopped: 1\.png is truncated"):
        calibrator.run([])
