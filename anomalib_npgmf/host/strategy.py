"""What Lightning's DistributedDataParallel strategy has to know of the model."""

from collections.abc import Iterable
from itertools import chain

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn

from anomalib_npgmf.distributed import broadcast_from_rank0


def adapt_strategy(strategy: Strategy, module: nn.Module, *, unchanging: Iterable[str]) -> None:
    """Prepare a distributed fit; without effect for other strategies.

    Args:
        strategy: The trainer's strategy, before it wraps the module.
        module: The module that is trained.
        unchanging: Names of buffers that every process sets alike and that training steps leave alone. The wrapper
            would send all of them from the first process to the others before every step.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    if any(parameter.requires_grad for parameter in module.parameters()):
        module._ddp_params_and_buffers_to_ignore = list(unchanging)  # type: ignore[assignment]  # torch's own switch
        return

    def share_weights() -> None:
        broadcast_from_rank0(chain(module.parameters(), module.buffers()))

    # A memory bank alone trains nothing, and DistributedDataParallel refuses a module without gradients.
    strategy.configure_ddp = share_weights  # type: ignore[method-assign]
