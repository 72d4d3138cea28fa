"""The callbacks that a model adds to the trainer, in the order in which they have to run."""

from collections.abc import Sequence

from anomalib.visualization import Visualizer
from lightning.pytorch import Callback

from anomalib_npgmf.host.compat import RestorePictures
from anomalib_npgmf.host.duration import Duration
from anomalib_npgmf.host.fit import PrepareFit
from anomalib_npgmf.host.folder_check import CheckPictures
from anomalib_npgmf.host.report import Report
from anomalib_npgmf.host.resume import ResumeState
from anomalib_npgmf.host.summary import TestSummary


def with_own(host: Sequence[Callback], *, skip_unreadable: bool) -> list[Callback]:
    """Add this package's callbacks to those of anomalib.

    Args:
        host: anomalib's callbacks: pre-processor, post-processor, evaluator, visualizer, where the model has them.
        skip_unreadable: See `CheckPictures`.

    Returns:
        All callbacks. Images are checked and read first; the summary precedes the visualizer, the report follows it.
    """
    before = [callback for callback in host if not isinstance(callback, Visualizer)]
    visualizers = [callback for callback in host if isinstance(callback, Visualizer)]
    first = [CheckPictures(skip_unreadable=skip_unreadable), RestorePictures(), PrepareFit()]
    first += [Duration(), ResumeState()]
    return [*first, *before, TestSummary(), *visualizers, *([Report()] if visualizers else [])]
