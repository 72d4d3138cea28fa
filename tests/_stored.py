"""Checkpoints that stay in the repository: one of every preset, with the scores that it gave when it was written.

    python tests/_stored.py NAME

writes tests/host/stored/NAME_<preset>.ckpt.gz and adds their scores to scores.json. NAME is the version of the package.
Files of former versions stay. Weights are rounded to bfloat16 first, so that the files are small.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _factory import SIDE, SLIM_LOGICAL, draw_category, make_engine, mvtec
from lightning.pytorch import seed_everything
from torch import Tensor

from anomalib_npgmf import Npgmf
from anomalib_npgmf.config import PRESETS

STORED = Path(__file__).parent / "host" / "stored"
SCORES = STORED / "scores.json"
_COMPOSITION = {"codebook_sizes": (4,), "codebooks": 1, "grids": (2,), "grid_codebook_sizes": (4,)}


def slim(preset: str) -> Npgmf:
    """A model of a preset over timm's smallest network at 128 px; all other choices are the preset's."""
    config = PRESETS[preset]
    logical: dict[str, Any] = SLIM_LOGICAL | {"decoder_blocks": config.logical.decoder_blocks}
    network = {"backbone": "test_efficientnet", "backbone_weights": "random", "text_prior": "random"}
    if config.structural_backbone is not None:
        network |= {"structural_backbone": "test_efficientnet", "structural_backbone_weights": "random"}
    sizes = {"logical_image_size": SIDE, "structural_image_size": SIDE}
    composition = _COMPOSITION if preset in ("plus", "small") else None
    return Npgmf(preset=preset, logical=logical, composition=composition, visualizer=False, **network, **sizes)


def images() -> Tensor:
    """Three images in [0, 1], [3, 3, 128, 128]: a square as in training, one with a blot, noise."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.full((3, SIDE, SIDE), 60 / 255)
    plain[:, 32:96, 32:96] = 140 / 255
    blot = plain.clone()
    blot[:, 50:68, 50:68] = torch.tensor([240, 240, 20]).view(3, 1, 1) / 255
    return torch.stack([plain, blot, torch.rand(3, SIDE, SIDE, generator=generator)])


@torch.no_grad()
def found(model: Npgmf) -> dict[str, list[float]]:
    """Scores of `images`, and the means of their maps, as a user of the model gets them."""
    output = model.eval()(images())
    return {"scores": output.pred_score.flatten().tolist(), "maps": output.anomaly_map.mean((1, 2, 3)).tolist()}


def main(version: str) -> None:
    """Train and store a checkpoint of every preset."""
    STORED.mkdir(exist_ok=True)
    scores = json.loads(SCORES.read_text()) if SCORES.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        draw_category(Path(folder))
        for preset in PRESETS:
            seed_everything(0, verbose=False)
            model = slim(preset)
            engine = make_engine(Path(folder) / "runs")
            engine.fit(model, datamodule=mvtec(Path(folder)))
            for weights in model.parameters():
                weights.data = weights.data.bfloat16().float()
            plain = Path(folder) / f"{version}_{preset}.ckpt"
            engine.trainer.save_checkpoint(plain, weights_only=True)
            path = STORED / f"{plain.name}.gz"
            path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
            scores[plain.name] = found(model)
            print(path.name, path.stat().st_size // 1024, "KiB")
    SCORES.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
