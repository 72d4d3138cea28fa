"""Memory bank of normal patches and its nearest-neighbour search (paper, section III-B, eqs. 8 to 10)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anomalib_npgmf.distributed import broadcast_buffers, gather_list, process_rank, raise_together
from anomalib_npgmf.structural.collector import PatchCollector
from anomalib_npgmf.structural.coreset import rows_of_blocks, select_from_blocks
from anomalib_npgmf.structural.memory import enough_memory
from anomalib_npgmf.structural.reduction import principal_components, reduce
from anomalib_npgmf.structural.search import nearest, rows_per_chunk
from anomalib_npgmf.structural.whitening import whitening

_BUFFERS = ("embeddings", "norms", "center", "metric", "basis")
_COLLECT_BYTES = 2 << 30
_SEARCH_BYTES = 64 << 20


class MemoryBank(nn.Module):
    """Coreset of normal patches, collected image by image and queried for the nearest neighbour.

    Call :meth:`append` for every training image, :meth:`finish` once, and :meth:`search` from then on. The bank is
    stored mean-centred, which keeps rounding errors small, and in the order of selection, so that its first k rows
    are the greedy coreset of size k.

    Args:
        coreset_ratio: Fraction of all patches to keep, in (0, 1].
        coreset_method: ``"fast"`` or ``"exact"``, see :func:`~anomalib_npgmf.structural.coreset.select_coreset`.
        dtype: Precision of the stored patches, ``torch.float32`` or ``torch.float16``.
        reduce_to: Number of principal components to which bank and queries are reduced, plus one dimension for the
            norm of the residual; ``None``, or a number not below the dimension d of a patch, keeps all dimensions.
        whiten: Channels of each level that the patches concatenate, to measure distances in whitened features, see
            `whitening`; ``None`` for Euclidean distances.
        seed: Seed of the coreset selection.
        collect_bytes: Memory for collected patches, bytes; above it every image is first reduced to its own coreset,
            unless ``coreset_ratio`` is 0.25 or more.
        search_bytes: Memory for the distance matrix of one chunk of queries, bytes.

    Attributes:
        embeddings: Bank ``[M, r]`` relative to ``center``, with r = d or ``reduce_to + 1``; ``[0, 0]`` before it is
            built.
        norms: Squared norms of its rows ``[M]``, float32.
        center: Mean of the bank ``[d]``, float32; with whitening the mean of all training patches.
        metric: Whitening matrix W ``[d, d]``, float32: distances are those of ``(x - center) W``; ``[0, 0]`` without.
        basis: Principal components ``[d, reduce_to]``, float32; ``[0, 0]`` without reduction.

    Example:
        >>> bank = MemoryBank(coreset_ratio=0.5)
        >>> bank.append(torch.tensor([[[0.0, 0.0], [0.0, 0.1], [3.0, 4.0], [3.0, 4.1]]]))
        >>> bank.finish()
        >>> len(bank), bank.search(torch.tensor([[3.0, 5.0], [3.0, 4.1]]))
        (2, tensor([0.9000, 0.0000]))
    """

    embeddings: Tensor
    norms: Tensor
    center: Tensor
    metric: Tensor
    basis: Tensor

    def __init__(
        self,
        coreset_ratio: float = 0.01,
        *,
        coreset_method: Literal["fast", "exact"] = "fast",
        dtype: torch.dtype = torch.float32,
        reduce_to: int | None = None,
        whiten: Sequence[int] | None = None,
        seed: int = 0,
        collect_bytes: int = _COLLECT_BYTES,
        search_bytes: int = _SEARCH_BYTES,
    ) -> None:
        super().__init__()
        self.coreset_ratio = coreset_ratio
        self.coreset_method = coreset_method
        self.dtype = dtype
        self.reduce_to = reduce_to
        self.whiten = whiten
        self.seed = seed
        self.collect_bytes = collect_bytes
        self.search_bytes = search_bytes
        self.register_buffer("embeddings", torch.empty(0, 0, dtype=dtype))
        self.register_buffer("norms", torch.empty(0))
        self.register_buffer("center", torch.empty(0))
        self.register_buffer("metric", torch.empty(0, 0))
        self.register_buffer("basis", torch.empty(0, 0))
        self.collector = self._new_collector()

    def __len__(self) -> int:
        """Return the number of patches in the bank, M."""
        return self.embeddings.shape[0]

    def append(self, patches: Tensor, keys: Sequence[str] | None = None) -> None:
        """Collect the patches of normal images (eq. 8).

        Args:
            patches: One block of patches per image ``[B, P, d]``.
            keys: A key per image, such as its path, the same in every process. Blocks are ordered by key and repeated
                keys are ignored, so the bank depends neither on the order of images nor on the number of processes.

        Raises:
            RuntimeError: If there is too little memory.
            ValueError: If a patch is not finite or the keys do not match the batch.
        """
        with enough_memory(len(self.collector.counts), self.collector.num_patches):
            self.collector.append(patches, keys)

    def finish(self, *, progress: bool = False) -> None:
        """Select the coreset of all collected patches, store it as the bank, and free the rest.

        In a distributed run every process must call this, including those without images: rank 0 selects, and all get
        the same bank.

        Args:
            progress: Show a progress bar.

        Raises:
            RuntimeError: If there is too little memory.
            ValueError: If nothing was collected or the bank would be empty. In a distributed run every process raises.
        """
        collector, self.collector = self.collector, self._new_collector()
        if not sum(gather_list([collector.num_patches])):
            msg = "The memory bank has no patches to select from; train on at least one normal image."
            raise ValueError(msg)
        device = next((block.device for block in collector.blocks.values()), self.center.device)
        collector.gather(device)
        with raise_together(), enough_memory(len(collector.counts), collector.num_patches):
            if process_rank() == 0:
                # Not concatenated: a contiguous copy would double the memory needed.
                self.build(collector.ordered(), collector.num_patches, progress=progress)
        broadcast_buffers(self, _BUFFERS, device)

    def search(self, queries: Tensor) -> Tensor:
        """Return the distance of every query to its nearest patch in the bank (eqs. 9 and 10).

        Args:
            queries: Patches ``[n, d]``.

        Returns:
            Euclidean distances ``[n]``, float32, never negative and never NaN for finite queries.

        Raises:
            RuntimeError: If the bank is empty.
        """
        if len(self) == 0:
            msg = "The memory bank is empty; train the model before it predicts or is exported."
            raise RuntimeError(msg)
        queries = queries.to(torch.float32) - self.center
        if self.metric.numel() > 0:
            queries = queries @ self.metric
        if self.basis.numel() > 0:
            queries = reduce(queries, self.basis)
        # Converted once for all chunks: a CPU has no fast half precision product.
        bank = self.embeddings.to(torch.float32) if queries.device.type == "cpu" else self.embeddings
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return nearest(queries, bank, self.norms)[0]  # a graph cannot loop over a variable number of chunks
        chunks = queries.split(rows_per_chunk(len(self), self.search_bytes))
        return torch.cat([nearest(chunk, bank, self.norms)[0] for chunk in chunks])

    def shrink(self, size: int) -> None:
        """Keep the first ``size`` patches: the greedy coreset of that size, without a new selection.

        Args:
            size: New number of patches, 1 <= size <= M.

        Raises:
            ValueError: If the size is out of range.
        """
        if not 1 <= size <= len(self):
            msg = f"The bank holds {len(self)} patches and can shrink to 1 up to that many, not to {size}."
            raise ValueError(msg)
        self.embeddings = self.embeddings[:size].clone()
        self.norms = self.norms[:size].clone()

    def _new_collector(self) -> PatchCollector:
        return PatchCollector(self.dtype, budget=self.collect_bytes, ratio=self.coreset_ratio, seed=self.seed)

    def build(self, blocks: list[Tensor], num_patches: int, *, progress: bool = False) -> None:
        """Select the coreset of these patches and store it as the bank, in this process only.

        Args:
            blocks: Patches ``[n_i, d]``; with whitening they are overwritten by whitened ones.
            num_patches: Number of patches before thinning, of which ``coreset_ratio`` is kept.
            progress: Show a progress bar.

        Raises:
            ValueError: If the bank would be empty, or a patch overflows the ``dtype`` of the bank.
        """
        size = int(self.coreset_ratio * num_patches)
        if size == 0:
            msg = (
                f"A coreset ratio of {self.coreset_ratio} of {num_patches} patches leaves an empty memory "
                "bank; raise the ratio or train on more images."
            )
            raise ValueError(msg)
        if self.whiten is not None:
            self.center, self.metric = whitening(blocks, self.whiten)
            for block in blocks:  # in place: a copy would double the memory needed
                block.copy_((block.float() - self.center) @ self.metric)
        rows = select_from_blocks(blocks, size, method=self.coreset_method, seed=self.seed, progress=progress)
        if self.whiten is None:
            self.fill(rows_of_blocks(blocks, rows))
        else:
            self._store(rows_of_blocks(blocks, rows))

    def fill(self, patches: Tensor) -> None:
        """Store these patches as the bank, without selection and whitening.

        Args:
            patches: Patches ``[M, d]``, float32; `shrink` keeps the first ones.

        Raises:
            ValueError: If a patch overflows the ``dtype`` of the bank.
        """
        self.center = patches.mean(dim=0)
        self.metric = patches.new_empty(0, 0)
        self._store(patches - self.center)

    def _store(self, bank: Tensor) -> None:
        """Store centred, and possibly whitened, patches."""
        self.basis = bank.new_empty(0, 0)
        if self.reduce_to is not None and self.reduce_to < bank.shape[1]:
            self.basis = principal_components(bank, self.reduce_to)
            bank = reduce(bank, self.basis)
        self.embeddings = bank.to(self.dtype)
        if not bool(self.embeddings.isfinite().all()):
            narrow = self.dtype != torch.float32
            advice = "store the bank in float32" if narrow else "check the images and the backbone's weights"
            msg = f"The patches of the bank exceed the range of {self.dtype}; {advice}."
            raise ValueError(msg)
        self.norms = self.embeddings.float().square().sum(dim=1)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Add the buffers that pickles of version 0.1 lack, which had no whitening."""
        super().__setstate__(state)
        if "metric" not in self._buffers:
            self.whiten = None
            self.register_buffer("metric", torch.empty(0, 0))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Allocate the buffers in the shape and dtype of the stored ones, which are known only after training."""
        if prefix + "embeddings" in state_dict:
            state_dict.setdefault(prefix + "metric", self.metric.new_empty(0, 0))  # files of 0.1 have no whitening
        for name in _BUFFERS:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                setattr(self, name, torch.empty_like(stored, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
