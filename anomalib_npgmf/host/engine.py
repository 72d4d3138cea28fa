"""Changes to anomalib's ``Engine`` for Npgmf: what it tests, where it exports to, what a failed run leaves."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from inspect import BoundArguments, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.cli import SaveConfigCallback

from anomalib_npgmf.host.rebuild import check_given

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

RESULTS = Path("results")  # where anomalib writes unless the user says otherwise
_CHANGED = "_npgmf"  # marks the methods that are changed already


def adapt_engine(kind: "type[Npgmf]") -> None:
    """Patch the methods of anomalib's ``Engine`` for one class of models; for others they do what they did.

    Args:
        kind: The class.
    """
    from anomalib.engine import Engine  # it imports anomalib.models, which imports this package

    changes: dict[str, Callable[[Any, BoundArguments], Any]] = {"fit": _fit, "train": _train, "export": _export}
    changes |= {"test": _beside_run, "predict": _beside_run}
    for name, change in changes.items():
        original = getattr(Engine, name)
        if not hasattr(original, _CHANGED):
            setattr(Engine, name, _changed(original, change, kind))


def _changed(original: Any, change: Callable[[Any, BoundArguments], Any], kind: type) -> Any:
    @wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        call = signature(original).bind(*args, **kwargs)
        call.apply_defaults()
        return change(original, call) if isinstance(call.arguments["model"], kind) else original(*args, **kwargs)

    setattr(method, _CHANGED, True)
    return method


def _fit(original: Any, call: BoundArguments) -> Any:
    with removed_if_empty(call.arguments["self"]):
        return original(*call.args, **call.kwargs)


def _train(original: Any, call: BoundArguments) -> Any:
    """Test the trained model; anomalib would test the checkpoint that the training resumed from."""
    given = call.arguments
    engine, model, datamodule = given["self"], given["model"], given["datamodule"]
    if given["ckpt_path"] is None:
        return _fit(original, call)
    engine.fit(model, given["train_dataloaders"], given["val_dataloaders"], datamodule, given["ckpt_path"])
    return engine.trainer.test(model, given["test_dataloaders"], datamodule=datamodule)


def _beside_run(original: Any, call: BoundArguments) -> Any:
    """Write into the folder of the checkpoint's run, not of the latest one, and keep that run's ``config.yaml``."""
    engine, path = call.arguments["self"], call.arguments["ckpt_path"]
    arguments = engine._cache.args
    if path is None or Path(arguments["default_root_dir"]) != RESULTS or not _is_in_run(Path(path)):
        return original(*call.args, **call.kwargs)
    given = arguments.get("callbacks") or []
    arguments["callbacks"] = [c for c in given if not isinstance(c, SaveConfigCallback)]
    # the method that chooses the folder; deleted below, so that the class's own applies again
    engine._setup_workspace = lambda *_, **__: arguments.update(default_root_dir=run_of(Path(path)))
    try:
        return original(*call.args, **call.kwargs)
    finally:
        del engine._setup_workspace


def _export(original: Any, call: BoundArguments) -> Any:
    """Export into the folder of the checkpoint's run; refuse arguments that differ from it, which anomalib ignores."""
    given = call.arguments
    if given["ckpt_path"] is not None:
        path, model = Path(given["ckpt_path"]), given["model"]
        moved = {name: model.hparams[name] for name in ("false_alarm_rate",) if model.hparams[name] is not None}
        loaded = type(model).load_from_checkpoint(path, **moved)
        check_given(model.hparams, loaded.settings, loaded.preset, loaded.prompt)
        given["model"], given["ckpt_path"] = loaded, None
        given["export_root"] = given["export_root"] or run_of(path)
    return original(*call.args, **call.kwargs)


def run_of(checkpoint: Path) -> Path:
    """Folder of the run that wrote a checkpoint.

    Args:
        checkpoint: Its file.

    Returns:
        The folder that holds ``weights/lightning``, or the file's own folder if it lies elsewhere.

    Example:
        >>> run_of(Path("/results/Npgmf/bracket/v0/weights/lightning/model.ckpt")).as_posix()
        '/results/Npgmf/bracket/v0'
    """
    folder = checkpoint.resolve().parent
    return folder.parents[1] if _is_in_run(checkpoint) else folder


def _is_in_run(checkpoint: Path) -> bool:
    return checkpoint.resolve().parent.parts[-2:] == ("weights", "lightning")


@contextmanager
def removed_if_empty(engine: Any) -> Iterator[None]:
    """Remove the folder ``vN`` that a run made if the run fails and leaves nothing but its configuration there.

    Args:
        engine: anomalib's.
    """
    before = Path(engine._cache.args["default_root_dir"])
    try:
        yield
    except BaseException:
        folder = Path(engine._cache.args["default_root_dir"])
        if folder != before and re.fullmatch(r"v\d+", folder.name) and folder.is_dir():
            with suppress(OSError):  # another process of the run may remove it; the run's own error is what counts
                _remove_if_empty(folder)
        raise


def _remove_if_empty(folder: Path) -> None:
    if {path.name for path in folder.iterdir()} - {"config.yaml"}:
        return
    (folder / "config.yaml").unlink(missing_ok=True)
    folder.rmdir()
    latest = folder.parent / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
        versions = [path for path in folder.parent.iterdir() if re.fullmatch(r"v\d+", path.name)]
        if versions:
            latest.symlink_to(max(versions, key=lambda path: int(path.name[1:])), target_is_directory=True)
