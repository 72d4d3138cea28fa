"""Mean and standard deviation of all pixels of many maps."""

from torch import Tensor

from anomalib_npgmf.distributed import gather_list

MIN_RELATIVE_STD = 0.05  # lower bound on standard deviation / mean of scores: a few images may agree by chance


class MapStatistics:
    """Mean and standard deviation of all pixels of a stream of maps, in float64.

    Blocks are combined by the parallel update of Chan, Golub and LeVeque (Am. Stat. 37, 1983), which stays accurate
    where the mean is large compared with the standard deviation.

    Example:
        >>> import torch
        >>> statistics = MapStatistics()
        >>> statistics.update(torch.tensor([1.0, 2.0]))
        >>> statistics.update(torch.tensor([3.0, 4.0]))
        >>> statistics.mean, statistics.std
        (2.5, 1.118033988749895)
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def update(self, maps: Tensor) -> None:
        """Add the pixels of ``maps`` (any shape)."""
        values = maps.detach().double()
        mean = values.mean().item()
        self.combine(values.numel(), mean, (values - mean).square().sum().item())

    def combine(self, count: int, mean: float, squares: float) -> None:
        """Add a block of values, given their count, mean and sum of squared differences from the mean."""
        if not count:
            return
        total = self.count + count
        delta = mean - self.mean
        self._squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation of all values (divided by N)."""
        return (self._squares / self.count) ** 0.5 if self.count else 0.0

    @property
    def sample_std(self) -> float:
        """Sample standard deviation (divided by N − 1) of at least two values."""
        return (self._squares / (self.count - 1)) ** 0.5

    def synchronise(self) -> None:
        """Combine the statistics of all processes, in the order of their ranks; no effect in a single process."""
        blocks = gather_list([(self.count, self.mean, self._squares)])
        self.count, self.mean, self._squares = 0, 0.0, 0.0
        for block in blocks:
            self.combine(*block)
