"""Scripts of the folder ``studies/`` that the commands use where they run from a checkout."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load_study(name: str) -> ModuleType | None:
    """Load ``studies/<name>.py``; None without a checkout.

    Example:
        >>> load_study("no_such_study")
    """
    spec = spec_from_file_location(name, Path(__file__).parents[2] / "studies" / f"{name}.py")
    if spec is None or spec.loader is None or not Path(str(spec.origin)).is_file():
        return None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
