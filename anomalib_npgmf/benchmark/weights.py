"""Local weights for every model of a plan, so that none has to be downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REFERENCE = "weights:"


def parse_weights(options: list[str]) -> dict[str, Path]:
    """Read ``NAME=PATH`` options.

    Raises:
        ValueError: If one is not of that form.
        FileNotFoundError: If a file does not exist.

    Example:
        >>> parse_weights(["resnet18"])
        Traceback (most recent call last):
        ...
        ValueError: --weights takes NAME=PATH, such as resnet18=resnet18.safetensors, not 'resnet18'.
    """
    files = {}
    for option in options:
        name, _, path = option.partition("=")
        if not (name and path):
            msg = f"--weights takes NAME=PATH, such as resnet18=resnet18.safetensors, not {option!r}."
            raise ValueError(msg)
        if not Path(path).is_file():
            msg = f"There is no weights file at {path}; give the path of a .pth or .safetensors file."
            raise FileNotFoundError(msg)
        files[name] = Path(path).resolve()
    return files


def references(arguments: Any) -> set[str]:
    """Names of the networks that ``arguments`` refer to.

    Example:
        >>> references({"backbone_weights": "weights:resnet18", "preset": "small"})
        {'resnet18'}
    """
    if isinstance(arguments, Mapping):
        return set().union(*map(references, arguments.values()))
    is_reference = isinstance(arguments, str) and arguments.startswith(_REFERENCE)
    return {arguments.removeprefix(_REFERENCE)} if is_reference else set()


def insert_files(arguments: Any, files: Mapping[str, Path]) -> Any:
    """Put the files in the place of the texts ``weights:NAME``.

    Raises:
        ValueError: If a name has no file.

    Example:
        >>> insert_files({"backbone_weights": "weights:resnet18"}, {"resnet18": Path("a.pth")})
        {'backbone_weights': 'a.pth'}
    """
    if isinstance(arguments, Mapping):
        return {key: insert_files(value, files) for key, value in arguments.items()}
    for name in references(arguments):
        if name not in files:
            msg = f"The plan needs a local weights file for {name}; add --weights {name}=PATH."
            raise ValueError(msg)
        return str(files[name])
    return arguments


@contextmanager
def served_by_timm(files: Mapping[str, Path]) -> Iterator[set[str]]:
    """Have ``timm.create_model(name, pretrained=True)`` read local files and packaged weights.

    This is for models that have no argument for a weights file. A file serves a network under its name with or without
    timm's tag (``resnet18`` and ``resnet18.a1_in1k``).

    Yields:
        The names of the networks that were served so far.
    """
    import timm

    from anomalib_npgmf.backbone.packaged import packaged_weights
    from anomalib_npgmf.backbone.weights import read_state_dict

    original = timm.create_model
    served: set[str] = set()

    def create_model(model_name: str, pretrained: bool = False, **kwargs: Any) -> Any:
        name = model_name if model_name in files else model_name.partition(".")[0]
        overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
        if pretrained and "state_dict" not in overlay:
            found = read_state_dict(files[name]) if name in files else packaged_weights(model_name)
            if found is not None:
                served.add(name)
                kwargs["pretrained_cfg_overlay"] = overlay | {"state_dict": found}
        return original(model_name, pretrained=pretrained, **kwargs)

    timm.create_model = create_model  # type: ignore[assignment]
    try:
        yield served
    finally:
        timm.create_model = original
