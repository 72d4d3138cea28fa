"""Errors on the command line: wrong input ends in one sentence and exit code 2, as a wrong option of argparse does.

jsonargparse checks types only. Constructors and the fit raise the other errors, which anomalib prints as a long
traceback with all local variables.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import Any

_COMMAND = "anomalib"
_EXIT_CODE = 2  # as argparse's
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def speak_plainly() -> Iterator[None]:
    """Print errors of this package as one sentence if this process is anomalib's command; without effect otherwise.

    Constructors use it, because anomalib sets its own ``sys.excepthook`` on import, and jsonargparse wraps errors of
    constructors in another message. An error in the block ends the process at once, a later one through the hook.

    Example:
        >>> with speak_plainly():
        ...     raise ValueError("This is no process of that command.")
        Traceback (most recent call last):
        ...
        ValueError: This is no process of that command.
    """
    if Path(sys.argv[0]).stem != _COMMAND:
        yield
        return
    hook = sys.excepthook
    if not (isinstance(hook, partial) and hook.func is _report):
        sys.excepthook = partial(_report, hook)
    try:
        yield
    except Exception as error:
        if is_sentence(error):
            _exit(error)
        raise


def is_sentence(error: BaseException) -> bool:
    """Whether the error's text was written for the user.

    It was, if a ``raise`` statement of this package raised it, or if it names a file that cannot be opened.

    Args:
        error: An error with its traceback.
    """
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.filename is not None):
        return True
    return isinstance(error, (ValueError, TypeError, RuntimeError, OSError)) and _raised_here(error)


def _raised_here(error: BaseException) -> bool:
    frames = extract_tb(error.__traceback__)
    return (
        bool(frames) and _PACKAGE in Path(frames[-1].filename).parents and (frames[-1].line or "").startswith("raise")
    )


def _report(
    otherwise: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not is_sentence(error):
        otherwise(kind, error, trace)
        return
    _exit(error)


def _exit(error: BaseException) -> None:
    sys.stderr.write(f"{_COMMAND}: error: {error}\n")
    sys.exit(_EXIT_CODE)
