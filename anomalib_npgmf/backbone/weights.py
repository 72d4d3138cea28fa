"""Files of weights: reading them, and checking that they fit a network."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.pth``, ``.pt`` or ``.safetensors`` file of weights without running any code stored in it.

    Args:
        path: The file. Of a ``.pth`` or ``.pt`` file a mapping under the key ``state_dict`` or ``model`` is unwrapped,
            and a prefix ``module.`` dropped.

    Returns:
        Parameter name to tensor, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a mapping of names to tensors.
    """
    path = Path(path)
    if not path.is_file():
        msg = f"There is no weights file at {path}; give the path of a .pth or .safetensors file."
        raise FileNotFoundError(msg)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"{path} cannot be read as a file of weights ({type(error).__name__}); it may be truncated or foreign."
        raise ValueError(msg) from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        msg = f"{path} holds no mapping of parameter names to tensors; save a state_dict into it."
        raise ValueError(msg)
    return {name.removeprefix("module."): value for name, value in state.items()}


def check_state_dict(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, network: str) -> None:
    """Raise unless ``state`` holds every tensor of ``expected`` in its shape.

    Args:
        state: The tensors on offer.
        expected: The tensors that the network needs.
        source: What the error calls the file.
        network: What the error calls the network.

    Raises:
        ValueError: Naming the first keys that are missing or have another shape.
    """
    missing = [name for name in expected if name not in state]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or wrong:
        parts = []
        if missing:
            parts.append(f"{len(missing)} missing, first {', '.join(missing[:3])}")
        if wrong:
            parts.append(f"{len(wrong)} of another shape, first {', '.join(wrong[:3])}")
        msg = f"{source} does not fit {network}: {'; '.join(parts)}."
        raise ValueError(msg)
