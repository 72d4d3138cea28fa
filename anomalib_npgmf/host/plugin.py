"""Registration with anomalib: the autoload entry point, `register`, and the check of anomalib's version.

anomalib has no entry-point group for models. It looks names up in ``anomalib.models`` and ``anomalib.data`` and
among the subclasses of its base classes that are already imported. The one thing that runs in every process that
uses anomalib is ``import torch``, which calls the entry points of the group ``torch.backends``. :func:`autoload` is
one of them: it waits for these two packages to be imported and then adds this project's names to them, so that
``anomalib train --model Npgmf`` and ``get_model("npgmf")`` work in a process that never mentions this project.

How it waits. ``import torch`` may happen before anomalib is imported, or halfway through ``import anomalib.models``.
A finder on :data:`sys.meta_path` notices the start of an import in the first case; nothing notices it in the second.
The end of an import is detected the same way in both cases: Python binds a finished submodule as an attribute of its
parent package, and a package whose class overrides ``__setattr__`` sees that happen. Names are added once neither the
two packages nor any module of this project is halfway through its import, because adding them imports modules that
import both. After that the finder and the overridden classes are gone.

Since all of this runs in every torch process of the environment, this module imports the standard library only and
its entry point never raises.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Final

from anomalib_npgmf.host.quiet import quieten_imports

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

_SUPPORTED_HOST: Final = "2.7"

# package of the host, anomalib -> (module of this project, names it adds to that package); data come first because
# `anomalib.models` imports `anomalib.data`
_PROVIDED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "anomalib.data": ("anomalib_npgmf.data", ("SyntheticLOCO", "LOCO")),
    "anomalib.models": ("anomalib_npgmf.lightning_model", ("Npgmf",)),
}

_waiting: set[str] = set()  # host packages that the autoload still has to add names to
_watched: list[ModuleType] = []  # packages whose class is overridden for the time being


def autoload() -> None:
    """Add this project's names to anomalib as soon as anomalib is imported.

    Entry point of the group ``torch.backends``, called by ``import torch``; not meant to be called by users, who have
    :func:`register`. Does nothing where anomalib is not installed, or where the environment variable
    ``ANOMALIB_NPGMF_AUTOLOAD`` is ``0``. Never raises: what goes wrong is logged as one warning.

    Example:
        >>> autoload()
        >>> import anomalib.models
        >>> anomalib.models.Npgmf.__name__
        'Npgmf'
    """
    try:
        if os.environ.get("ANOMALIB_NPGMF_AUTOLOAD") == "0" or _Finder in sys.meta_path:
            return
        quieten_imports()
        host_is_loaded = "anomalib" in sys.modules
        if not host_is_loaded and find_spec("anomalib") is None:
            return
        _waiting.update(_PROVIDED)
        sys.meta_path.insert(0, _Finder)
        if host_is_loaded:
            _proceed()
    except Exception as error:  # an exception here would break `import torch`
        _stop()
        _warn(f"anomalib does not know Npgmf by name, call anomalib_npgmf.register(): {error!r}")


def register() -> None:
    """Add ``Npgmf`` to ``anomalib.models``, ``SyntheticLOCO`` and ``LOCO`` to ``anomalib.data``, now.

    The explicit way, for environments where the autoload is off. Imports anomalib and this project's model; calling
    it again changes nothing.

    Raises:
        ImportError: If anomalib, or a package that the model needs, cannot be imported.

    Example:
        >>> import anomalib.models
        >>> register()
        >>> anomalib.models.Npgmf.__name__
        'Npgmf'
        >>> "npgmf" in anomalib.models.list_models()
        True
    """
    for host in _PROVIDED:
        import_module(host)
        _add(host)
    _check_host_version()


class _Finder:
    """Notices that an import of one of the host packages starts; finds nothing itself."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:  # noqa: ARG004
        if name in _waiting:
            _watch(name)


class _WatchedPackage(ModuleType):
    """Temporary class of a package while one of its submodules is being imported."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if isinstance(value, ModuleType):
            _proceed()


def _watch(name: str) -> None:
    """Have :func:`_proceed` called when the module ``name`` is bound to its parent package."""
    package = sys.modules[name.rpartition(".")[0]]
    if type(package) is ModuleType:
        package.__class__ = _WatchedPackage
        _watched.append(package)


def _unwatch() -> None:
    while _watched:
        _watched.pop().__class__ = ModuleType


def _stop() -> None:
    """Remove the import finder, and restore the classes of the packages."""
    _waiting.clear()
    _unwatch()
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)


def _is_under_way(name: str) -> bool:
    """Whether the module ``name`` is halfway through its import: known, but not yet an attribute of its package."""
    parent, _, child = name.rpartition(".")
    if sys.modules.get(name) is None or sys.modules.get(parent) is None:  # None: an import that was blocked
        return False
    # vars() and not hasattr(), which would set off a package's own lazy __getattr__
    return child not in vars(sys.modules[parent])


def _proceed() -> None:
    """Add the names to every host package that is ready; watch the imports that have to end before the others are."""
    failures = []
    _unwatch()
    own = [name for name in list(sys.modules) if name.startswith("anomalib_npgmf.")]
    under_way = [name for name in (*_PROVIDED, *own) if _is_under_way(name)]
    for name in under_way:
        _watch(name)
    if under_way:
        return
    for host in [host for host in _PROVIDED if host in _waiting and host in sys.modules]:
        _waiting.discard(host)
        try:
            _add(host)
        except Exception as error:  # an exception here would break the import of anomalib
            failures.append(f"{' and '.join(_PROVIDED[host][1])} to {host} ({type(error).__name__}: {error})")
    if failures:
        _warn(
            f"anomalib-npgmf could not add {', '.join(failures)}; it needs anomalib {_SUPPORTED_HOST} and found "
            f"{_host_version()}: reinstall both, or set ANOMALIB_NPGMF_AUTOLOAD=0 to do without it."
        )
    elif _waiting != set(_PROVIDED):
        _check_host_version()
    if not _waiting:
        _stop()


def _add(host: str) -> None:
    """Set the names that belong to the host package ``host``, importing the module that provides them."""
    provider, names = _PROVIDED[host]
    package, module = sys.modules[host], import_module(provider)
    for name in names:
        setattr(package, name, getattr(module, name))
        if name not in package.__all__:
            package.__all__.append(name)


def _host_version() -> str:
    return str(getattr(sys.modules["anomalib"], "__version__", "an unknown version"))


def _check_host_version() -> None:
    if _host_version().split(".")[:2] != _SUPPORTED_HOST.split("."):
        _warn(
            f"anomalib-npgmf was made for anomalib {_SUPPORTED_HOST} and found {_host_version()}: "
            f"install `anomalib=={_SUPPORTED_HOST}.*`, or an anomalib-npgmf made for this anomalib."
        )


@cache
def _warn(message: str) -> None:
    """Log ``message`` once. Not `warnings.warn`, which raises under ``python -W error``."""
    logger.warning(message)
