"""Collects the training patches of the memory bank within a memory budget, and gathers them from all processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anomalib_npgmf.distributed import gather_list, is_distributed, process_rank, receive_from, send_to_rank0
from anomalib_npgmf.structural.coreset import select_coreset

_SLAB_BYTES = 64 << 20
_KEEP = 0.25  # fraction of an image's patches that thinning keeps at least, far above usual coreset ratios


class PatchCollector:
    """Collects the patches of training images, one block per image.

    Two rules make the result the same for any batch size, order of images and number of processes. Blocks are ordered
    by the key of their image, and repeated keys are ignored (a distributed sampler repeats images to fill the last
    batch). When the patches of all images exceed the budget, every block is reduced to its own greedy k-centre coreset,
    here called thinning. This is a composable coreset (Malkomes et al., NeurIPS 2015): the covering radius of the final
    selection over all patches is at most that over the thinned ones plus the largest covering radius of a thinned
    image.

    Args:
        dtype: Precision in which patches are stored.
        budget: Size of all patches of all processes, bytes, above which each image is thinned.
        ratio: Coreset ratio of the final selection. Thinning keeps the fraction ``max(0.25, 4 * ratio)`` of an image's
            patches; with a ratio of 0.25 or more nothing is thinned.
        seed: Seed of the thinning.

    Example:
        >>> collector = PatchCollector(torch.float32, budget=1 << 20, ratio=0.5)
        >>> collector.append(torch.ones(1, 4, 3), keys=["b"])
        >>> collector.append(torch.zeros(2, 4, 3), keys=["a", "b"])
        >>> [block.mean().item() for block in collector.ordered()]
        [0.0, 1.0]
    """

    def __init__(self, dtype: torch.dtype, *, budget: int, ratio: float, seed: int = 0) -> None:
        self.dtype = dtype
        self.budget = budget
        self.keep = min(1.0, max(_KEEP, 4 * ratio))
        self.seed = seed
        self.blocks: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}  # patches of each image before thinning
        self.thinning = False
        self.slab = torch.empty(0, dtype=dtype)

    @property
    def num_patches(self) -> int:
        """Number of patches seen, before thinning."""
        return sum(self.counts.values())

    def append(self, patches: Tensor, keys: Sequence[str] | None = None) -> None:
        """Add a batch of images.

        Args:
            patches: Patches ``[B, P, d]``.
            keys: One key per image, the same in every process, such as its path. ``None`` numbers the images as they
                arrive, which suits a single process with a fixed order.

        Raises:
            ValueError: If a patch is not finite in the storage precision, or the keys do not match the batch.
        """
        if keys is None:
            keys = [f"{len(self.counts) + offset:012d}" for offset in range(len(patches))]
        if len(keys) != len(patches):
            msg = f"Every image needs one key, but {len(patches)} images came with {len(keys)} keys."
            raise ValueError(msg)
        for key, block in zip(keys, patches, strict=True):
            if key in self.counts:
                continue
            converted = block.detach().to(self.dtype)
            if not bool(converted.isfinite().all()):
                advice = "" if self.dtype == torch.float32 else ", or store the bank in float32"
                msg = (
                    f"The patches of image {key!r} hold NaN or Inf in {self.dtype}; "
                    f"check the image and the backbone's weights{advice}."
                )
                raise ValueError(msg)
            self.counts[key] = len(converted)
            self.blocks[key] = self._thin(converted) if self.thinning else self._store(converted)
            self._thin_over(self.num_patches, converted.shape[1])

    def gather(self, device: torch.device) -> None:
        """Move the blocks of every process to rank 0; without effect in a single process.

        Args:
            device: Device for this process's blocks, also for those it receives.
        """
        if not is_distributed():
            return
        rank, shares = process_rank(), gather_list([self.counts])
        dim = max(gather_list([block.shape[1] for block in list(self.blocks.values())[:1]]))
        owner = {key: source for source, share in reversed(list(enumerate(shares))) for key in share}
        counts = {key: count for share in shares for key, count in share.items()}
        self._thin_over(sum(counts.values()), dim)
        for key in sorted(owner):
            if owner[key] == 0:
                continue
            if rank == owner[key]:
                send_to_rank0(self.blocks[key])
            elif rank == 0:
                rows = self._kept(counts[key]) if self.thinning else counts[key]
                block = self._reserve(rows, dim, device=device)
                receive_from(owner[key], block)
                self.blocks[key] = block
        if rank == 0:
            self.counts = counts
        else:
            self.blocks.clear()

    def ordered(self) -> list[Tensor]:
        """Return the stored blocks ``[n_i, d]`` in the order of their keys."""
        return [self.blocks[key] for key in sorted(self.blocks)]

    def _thin_over(self, num_patches: int, dim: int) -> None:
        """Start thinning if that many patches of that dimension exceed the budget."""
        if self.thinning or self.keep == 1.0:
            return
        if num_patches * dim * self.dtype.itemsize > self.budget:
            self.thinning = True
            self.slab = self.slab.new_empty(0)  # frees the slabs of whole blocks as they are replaced
            for key, block in self.blocks.items():
                self.blocks[key] = self._thin(block)

    def _kept(self, rows: int) -> int:
        return max(1, int(self.keep * rows))

    def _thin(self, block: Tensor) -> Tensor:
        return self._store(block[select_coreset(block, self._kept(len(block)), seed=self.seed)])

    def _store(self, block: Tensor) -> Tensor:
        return self._reserve(*block.shape, device=block.device).copy_(block)

    def _reserve(self, rows: int, dim: int, *, device: torch.device) -> Tensor:
        """Return uninitialised memory for a block, as part of a larger allocation (slab).

        Blocks allocated one by one between a network's temporary tensors fragment the heap of glibc, which then takes
        twice the memory in use; slabs are mapped and unmapped as a whole.
        """
        if rows * dim > self.slab.numel():
            size = max(rows * dim, _SLAB_BYTES // self.dtype.itemsize)
            self.slab = torch.empty(size, dtype=self.dtype, device=device)
        room, self.slab = self.slab[: rows * dim], self.slab[rows * dim :]
        return room.view(rows, dim)
