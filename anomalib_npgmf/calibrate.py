"""``python -m anomalib_npgmf.calibrate CHECKPOINT``: move the threshold of a trained model, without training."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from anomalib.data import PredictDataset
from anomalib.utils.serialization import anomalib_safe_globals
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Resize

from anomalib_npgmf.disk import replace_bytes
from anomalib_npgmf.export.metadata import KEY
from anomalib_npgmf.host.calibration import calibrate_on
from anomalib_npgmf.host.compat import restore_pictures
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.lightning_model import Npgmf

PROGRAM = "python -m anomalib_npgmf.calibrate"
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Command line without the program's name; ``None`` for ``sys.argv[1:]``.

    Returns:
        Exit status: 0, or 1 after an error, which is printed as one sentence.
    """
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a .ckpt file of Npgmf")
    add(
        "--good",
        type=Path,
        help="folder of good images to calibrate on; left out, the calibration of the training stays",
    )
    add("--bad", type=Path, help="folder of bad images: how many are found at which threshold")
    add("--false-alarm-rate", type=float, help="share of good parts that may be rejected, such as 0.002")
    add("--output", type=Path, help="checkpoint to write (CHECKPOINT's name with -calibrated)")
    options = parser.parse_args(arguments)
    try:
        recalibrate(options.checkpoint, options.good, options.bad, options.false_alarm_rate, options.output)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def recalibrate(
    checkpoint: Path,
    good: Path | None = None,
    bad: Path | None = None,
    false_alarm_rate: float | None = None,
    output: Path | None = None,
) -> Path:
    """Calibrate a checkpoint anew, print what its threshold means and write it.

    Args:
        checkpoint: A file of `Npgmf`.
        good: Folder of normal images that the model was not trained on, to calibrate maps and threshold on anew;
            ``None`` keeps the calibration.
        bad: Folder of anomalous images; a table tells how many are found at which false alarm rate.
        false_alarm_rate: Share of normal images that may be rejected, in (0, 0.5); ``None`` keeps the checkpoint's.
        output: The file to write; ``None`` for the checkpoint's name with ``-calibrated``.

    Returns:
        The written file.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the file is no checkpoint of Npgmf or has another post-processor, a folder holds no image, or the
            rate is out of range.
    """
    if not checkpoint.is_file():
        msg = f"There is no file at {checkpoint}."
        raise FileNotFoundError(msg)
    model = Npgmf.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    post = model.post_processor
    if not isinstance(post, CalibratedPostProcessor):
        msg = f"{checkpoint} was trained with another post-processor, whose threshold is not set on normal images."
        raise ValueError(msg)  # noqa: TRY004  a file with wrong content, not a wrong argument
    if good is not None:
        calibrate_on(model, _batches(good, model.settings.image_size))
    if false_alarm_rate is not None:
        post.set_false_alarm_rate(false_alarm_rate)
    print(post.statement() or "The scores of its normal images are not known; give --good.")
    if bad is not None:
        Console().print(detection_table(post, scores_of(model, bad)))
    output = output or checkpoint.with_stem(f"{checkpoint.stem}-calibrated")
    with anomalib_safe_globals():
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    content["state_dict"] = model.state_dict()
    content[KEY] = model.describe()
    content["anomalib_post_processor_config"] = post.checkpoint_config()
    content["hyper_parameters"]["false_alarm_rate"] = post.false_alarm_rate
    file = BytesIO()
    torch.save(content, file)
    replace_bytes(output, file.getbuffer())
    print(f"Written to {output}.")
    return output


@torch.no_grad()
def scores_of(model: Npgmf, folder: Path) -> Tensor:
    """Raw image scores [N] of the images of a folder."""
    batches = _batches(folder, model.settings.image_size)
    return torch.cat([model.model(model.normalised(batch.image)).pred_score.reshape(-1) for batch in batches])


def detection_table(post: CalibratedPostProcessor, scores: Tensor) -> Table:
    """Table of how many anomalous images are found at which false alarm rate; the model's own rate is marked.

    Args:
        post: The post-processor of a calibrated model; it keeps its rate.
        scores: Raw image scores of anomalous images, [N].
    """
    table = Table(
        "of 1,000 good parts rejected", "threshold (score before normalisation)", f"of {len(scores)} bad ones found"
    )
    own = post.false_alarm_rate
    for rate in sorted({*RATES, own}):
        post.set_false_alarm_rate(rate)
        threshold = post.image_threshold.item()
        found = int((scores > threshold).sum())
        table.add_row(f"{1000 * rate:.3g}{' (set)' if rate == own else ''}", f"{threshold:.3f}", str(found))
    post.set_false_alarm_rate(own)
    return table


def _batches(folder: Path, size: tuple[int, int]) -> Iterator[Any]:
    if not folder.is_dir():
        msg = f"There is no folder at {folder}."
        raise FileNotFoundError(msg)
    try:
        images = PredictDataset(path=folder, transform=Resize(size, antialias=True))
    except RuntimeError as error:
        msg = f"There is no image in {folder}."
        raise ValueError(msg) from error
    return map(restore_pictures, DataLoader(images, batch_size=8, collate_fn=images.collate_fn))


if __name__ == "__main__":
    sys.exit(main())
