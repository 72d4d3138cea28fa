"""Small models of every preset, and their lives in two processes: `python _matrix.py DATA RESULTS ACCELERATOR`.

Lightning starts the second process by running this script again. Every process saves what it ends with.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from _factory import make_engine, make_model, mvtec
from lightning import seed_everything
from lightning.pytorch import Callback

from anomalib_npgmf import Npgmf

TWO_SIZES = {"structural_image_size": 128, "structural_backbone": "test_efficientnet"}
WEIGHTS = {"structural_backbone_weights": "random", "text_prior": "random"}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": TWO_SIZES | WEIGHTS,
    "literal": TWO_SIZES | WEIGHTS,
    "fast": {"text_prior": "random"},
    "plus": {"text_prior": "random"},
    "small": {},
}
MIXED = ("32-true", "bf16-mixed", "16-mixed")
Found = dict[str, tuple[float, torch.Tensor]]  # score and map of each test image


class Keep(Callback):
    """Score and map of each test image that this process sees, before the post-processor normalises them."""

    def __init__(self) -> None:
        self.found: Found = {}

    def on_test_batch_end(self, trainer: Any, model: Any, outputs: Any, *rest: Any) -> None:
        for path, score, amap in zip(outputs.image_path, outputs.pred_score, outputs.anomaly_map, strict=True):
            self.found["/".join(Path(path).parts[-2:])] = score.item(), amap.squeeze().cpu().clone()


def make(preset: str) -> Npgmf:
    """A preset over small networks of random weights."""
    seed_everything(0, workers=True)
    levels = {"levels": (2, 3, 4), "vq_levels": (3, 4), "loss_levels": None}
    structural = {"coreset_ratio": 0.1}
    return make_model(
        preset=preset, logical_image_size=64, visualizer=False, logical=levels, structural=structural, **PRESETS[preset]
    )


def fit(model: Npgmf, data: Path, root: Path, **trainer: Any) -> Path:
    """Two steps; returns the path of the checkpoint."""
    engine = make_engine(root, limit_train_batches=2, **trainer)
    engine.fit(model, datamodule=mvtec(data))
    return Path(engine.trainer.checkpoint_callback.best_model_path)


def test(model: Npgmf, data: Path, root: Path, **trainer: Any) -> Found:
    """What the model says of the test images."""
    keep = Keep()
    make_engine(root, callbacks=[keep], **trainer).test(model, datamodule=mvtec(data), verbose=False)
    return keep.found


test.__test__ = False  # type: ignore[attr-defined]  # for pytest, this is no test


def reload(checkpoint: Path) -> Npgmf:
    """The model of a checkpoint."""
    model = Npgmf.load_from_checkpoint(checkpoint)
    model.visualizer = None
    return model


def run(data: Path, results: Path, accelerator: str) -> None:
    """Fit each preset in each precision and test the checkpoint of one process: `<preset>_<precision>_<rank>.pt`.

    What is said of a precision that is refused goes to `refused_<rank>.txt`.
    """
    torch.set_num_threads(1)
    trainer: dict[str, Any] = {"accelerator": accelerator, "devices": 2, "strategy": "ddp"}
    for preset in PRESETS:
        for precision in MIXED if accelerator == "cuda" else MIXED[:2]:
            name = f"{preset}_{precision}"
            root = results / name / os.environ.get("LOCAL_RANK", "0")  # anomalib's making of folders is a race of two
            model = make(preset)
            fit(model, data, root, precision=precision, **trainer)
            found = test(reload(results / f"{preset}.ckpt"), data, root, precision=precision, **trainer)
            torch.save((model.cpu().state_dict(), found), results / f"{name}_{model.global_rank}.pt")
    rank = os.environ.get("LOCAL_RANK", "0")
    try:
        fit(make("small"), data, results / "refused" / rank, precision="bf16-true", **trainer)
    except ValueError as error:
        (results / f"refused_{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
