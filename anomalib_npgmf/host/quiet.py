"""A quiet command line: messages of libraries for developers are left out, those about the user's data stay.

This acts in the process of the ``anomalib`` command, once an Npgmf model is made; programs that call the engine set up
their own logging. Messages of imports are left out from the start, also in this package's programs (``python -m``).
``ANOMALIB_NPGMF_VERBOSE=1`` switches it off. Standard library
only, because `anomalib_npgmf.host.plugin` imports it early. «The host» is the framework: anomalib, Lightning and their
libraries.

| what the host prints | since when | what is done |
|---|---|---|
| its imports warn of deprecated modules of timm, of OpenVINO and of anomalib itself | timm 1.0, OpenVINO 2025, \
anomalib 2.7 | `quieten_imports` |
| types that torchvision's operators do not declare, at every export | torch 2.8 | from ERROR on |
| «OpenVINO is possibly not installed», where no export is asked for | anomalib 2.0 to 2.7 | `quieten_imports` |
| two handlers on the root logger, at INFO: every line of every library comes twice, thousands of them from the ONNX \
exporter | anomalib 2.0 to 2.7 | one handler, from WARNING on |
| accelerators, tips and checkpoints at INFO | Lightning 2.6 | from WARNING on |
| warnings in a column of 30 characters, beside the time and the line of code | anomalib 2.0 to 2.7 | `PlainHandler` |
| ten retries of an unreachable hub, twice each | huggingface_hub 1 | from ERROR on; the error itself says what to do |
| a table of submodules, a table of metrics | Lightning 2.6 | taken out; `TestSummary` prints the metrics |
| eight workers on any machine, of which torch warns in every epoch | anomalib 2.0 to 2.7 | one per processor |
| every prediction stays in memory, though nobody uses them | Lightning 2.6 | discarded |
| warnings of Lightning, torch and torchmetrics that no user can act on | see `FILTERED` | filtered by their text |
| the file, the number and the text of the line of code that warns | Python | left out |
"""

import logging
import os
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

# Beginnings of messages, as regular expressions.
IMPORTS: Final = (
    "Importing from timm.models.layers is deprecated",
    "The anomalib.models.components.dinov2 package is deprecated",
    "The `openvino.runtime` module is deprecated",
)
FILTERED: Final = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own code, with torch 2.10 and later
    "'pin_memory' argument is set as true but no accelerator",  # Engine.predict always sets it
    r"Found \d+ module\(s\) in eval mode at the start of training",  # the frozen network, on purpose
    "The dirpath has changed from",  # a prediction has another folder than the training
    r"The ``compute`` method of metric \w+ was called before the ``update`` method",  # pixel metrics without masks
    "No (posi|nega)tive samples in targets",  # the folders hold no bad pictures, or no good ones
    "Total length of `DataLoader` across ranks is zero",  # no test was asked for
)
LOGGERS: Final = ("", "lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
EXPORTED: Final = "Exported model to"  # the one message of anomalib at INFO that users need


def on_command_line() -> bool:
    """Whether this process is the ``anomalib`` command, and ``ANOMALIB_NPGMF_VERBOSE`` is not set."""
    return Path(sys.argv[0] if sys.argv else "").stem == "anomalib" and not os.environ.get("ANOMALIB_NPGMF_VERBOSE")


def quieten_imports() -> None:
    """Leave out what the host says before there is a model, also in programs of this package (``python -m``)."""
    ours = any(a == "-m" and b.startswith("anomalib_npgmf.") for a, b in pairwise(sys.orig_argv))
    if on_command_line() or (ours and not os.environ.get("ANOMALIB_NPGMF_VERBOSE")):
        for text in IMPORTS:
            warnings.filterwarnings("ignore", text)
        logging.getLogger("anomalib.cli.utils.openvino").setLevel(logging.WARNING)


def quieten() -> None:
    """Leave out what does not concern the user; see the module."""
    if not on_command_line():
        return
    for name in LOGGERS:
        library = logging.getLogger(name)
        plain = [handler for handler in library.handlers if type(handler) is logging.StreamHandler]
        for double in plain if len(library.handlers) > len(plain) else plain[1:]:
            library.removeHandler(double)
        library.handlers = [PlainHandler() if _is_boxed(handler) else handler for handler in library.handlers]
        for handler in library.handlers:
            handler.addFilter(concerns_the_user)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    for name in ("huggingface_hub", "torch.onnx._internal.exporter._schemas"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in FILTERED:
        warnings.filterwarnings("ignore", text)
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {_one_line(message)}\n"


class PlainHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes a message as one line, «Warning: ...», which the terminal may wrap and a file keeps whole.

    It writes to whatever ``sys.stderr`` is at the time, which a progress bar replaces for a while.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The message after its level, which a mere information does not have."""
        text = super().format(record) if record.exc_info else _one_line(super().format(record))
        return text if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {text}"


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())


def _is_boxed(handler: logging.Handler) -> bool:
    """Whether this is the host's handler, which breaks file names into columns beside a time and a line of code."""
    return type(handler).__module__ == "rich.logging"


def concerns_the_user(record: logging.LogRecord) -> bool:
    """Whether a record is a warning, or says where an exported file is."""
    return record.levelno >= logging.WARNING or str(record.msg).startswith(EXPORTED)


def settle(trainer: Any) -> None:
    """Prepare a run: no tables of submodules and metrics, few workers, predictions are not kept.

    Args:
        trainer: Before its loaders are made.
    """
    if not on_command_line():
        return
    trainer.callbacks = [c for c in trainer.callbacks if "ModelSummary" not in type(c).__name__]
    trainer.predict_loop.return_predictions = False
    trainer.test_loop.verbose = False
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        datamodule.num_workers = min(datamodule.num_workers, processors())


def processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
