"""Too little memory for the memory bank gives a sentence that says what to lower."""

import sys

import pytest
import torch
from _limits import little_memory

from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.memory import enough_memory

SENTENCE = r"too little memory for the memory bank \({} patches of {} images.*lower collect_gb or coreset_ratio"
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")


@linux
def test_while_patches_are_collected() -> None:
    bank = MemoryBank()
    bank.append(torch.zeros(2, 3, 64))
    many = torch.zeros(1, 1, 1).expand(1, 10_000_000, 64)  # one value, as large as 2.4 GiB
    with little_memory(256 << 20), pytest.raises(RuntimeError, match=SENTENCE.format(6, 2)):
        bank.append(many)


@linux
@pytest.mark.parametrize("whiten", [None, (64,)])
def test_while_the_coreset_is_selected(whiten: tuple[int, ...] | None) -> None:
    bank = MemoryBank(whiten=whiten)
    bank.append(torch.rand(2, 1000, 64))
    for key in bank.collector.blocks:
        bank.collector.blocks[key] = torch.zeros(1, 1).expand(10_000_000, 64)
    with little_memory(256 << 20), pytest.raises(RuntimeError, match=SENTENCE.format(2000, 2)):
        bank.finish()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_on_a_gpu_and_in_numpy(error: Exception) -> None:
    with pytest.raises(RuntimeError, match=SENTENCE.format(1, 1)), enough_memory(1, 1):
        raise error


def test_other_errors_stay() -> None:
    with pytest.raises(RuntimeError, match=r"^another error$"), enough_memory(1, 1):
        raise RuntimeError("another error")
