"""`anomalib train` on a folder of pictures: how long it trains, as the checkpoint says."""

from pathlib import Path

import pytest
import torch
from _workplace import run, workplace

TRAIN = (
    "anomalib train --model Npgmf --model.preset small --data Folder --data.name bracket --data.root pictures/bracket "
    "--data.normal_dir good --data.abnormal_dir bad"
)

__all__ = ["workplace"]  # the fixture


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        ("", 50),
        ("--model.branches structural", 1),
        ("--trainer.max_epochs 3", 3),
        ("--trainer.max_steps 4", 4),
        ("--trainer.max_epochs -1 --trainer.max_time 00:00:00:03", None),
    ],
)
def test_ends(arguments: str, epochs: int | None, workplace: Path) -> None:
    run(f"{TRAIN} {arguments}", workplace)
    path = workplace / "results" / "Npgmf" / "bracket" / "latest" / "weights" / "lightning" / "model.ckpt"
    checkpoint = torch.load(path, map_location="cpu", weights_only=False)
    if epochs is None:
        assert checkpoint["global_step"] > 0
    else:
        assert checkpoint["epoch"] + 1 == epochs
        assert checkpoint["global_step"] == epochs  # an epoch is one batch
