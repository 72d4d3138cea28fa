"""Tiny trained models and everything exported from them."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import torch
from anomalib.data.utils import read_image
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf, SyntheticLOCO

SLIM = {
    "embedding_channels": 32,
    "prior_dim": 8,
    "code_dim": 8,
    "atrous_width": 8,
    "fusion_depth": 1,
    "decoder_blocks": 1,
}
BANK_ALONE = "bank"  # trained for the tests of the bank's size, which export it themselves
KINDS: dict[str, dict[str, Any]] = {
    # Two input sizes, the resize from the larger to the smaller in the graph.
    "small": {
        "preset": "small",
        "backbone": "resnet18",
        "backbone_weights": "random",
        "logical_image_size": 128,
        "structural_image_size": 256,
        "logical": SLIM,
        "structural": {"coreset_ratio": 0.02, "bank_dtype": "float16"},
    },
    # One backbone pass for both branches.
    "fast": {
        "preset": "fast",
        "backbone": "resnet18",
        "backbone_weights": "random",
        "text_prior": "random",
        "logical_image_size": 128,
        "logical": SLIM | {"vq_levels": (3,)},
        "structural": {"coreset_ratio": 0.1},
    },
    # With the composition branch; its logical branch is that of the preset before.
    "plus": {
        "preset": "plus",
        "backbone": "resnet18",
        "backbone_weights": "random",
        "branches": "structural",
        "structural_image_size": 128,
        "structural": {"coreset_ratio": 0.1},
    },
    # Real features with whitened distances, which small errors of the network change most.
    "packaged": {"preset": "small", "branches": "structural", "structural_image_size": 128},
    BANK_ALONE: {
        "preset": "small",
        "backbone": "resnet18",
        "backbone_weights": "random",
        "branches": "structural",
        "structural_image_size": 128,
    },
}
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")


@dataclass
class Exported:
    """Files of one model, images and what ``Engine.predict`` says of them."""

    kind: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.ckpt"

    @property
    def onnx(self) -> Path:
        return self.folder / "weights" / "onnx" / "model.onnx"

    @property
    def openvino(self) -> Path:
        return self.folder / "openvino.xml"

    @property
    def torch(self) -> Path:
        return self.folder / "weights" / "torch" / "model.pt"

    @property
    def images(self) -> list[Path]:
        return sorted((self.folder / "pictures").iterdir())

    @property
    def expected(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / "expected.npz"))

    def datamodule(self) -> SyntheticLOCO:
        return datamodule(self.folder)


def datamodule(folder: Path) -> SyntheticLOCO:
    return SyntheticLOCO(
        folder / "data",
        "sorting_tray",
        image_size=300,  # larger than any model's own size: without antialiasing scores would differ
        num_train=4,
        num_validation=4,
        num_test_good=2,
        num_test_logical=2,
        num_test_structural=2,
        train_batch_size=2,
        eval_batch_size=4,
    )


def train(folder: Path, kind: str) -> Npgmf:
    torch.manual_seed(0)
    model = Npgmf(**KINDS[kind], visualizer=False)
    engine = Engine(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    engine.fit(model, datamodule=datamodule(folder))
    engine.trainer.save_checkpoint(folder / "model.ckpt", weights_only=True)
    return model.eval()


def predict(model: Npgmf, pictures: Path) -> dict[str, np.ndarray]:
    """What anomalib's engine says of the pictures in a folder, in the order of their names."""
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=pictures.parent, logger=False)
    batches = engine.predict(model, data_path=pictures, return_predictions=True)
    order = np.argsort([str(path) for batch in batches for path in batch.image_path])
    values = {
        name: np.concatenate([getattr(batch, name).cpu().numpy() for batch in batches])[order] for name in OUTPUTS
    }
    # Batches drop the channel of maps and masks.
    return {name: value[:, None] if value.ndim == 3 else value for name, value in values.items()}


def build(folder: Path, kind: str) -> None:
    model = train(folder, kind)
    if kind == BANK_ALONE:
        save_checkpoint(model, folder)
        return
    data = folder / "data" / "sorting_tray"
    pictures = folder / "pictures"
    pictures.mkdir()
    for i, path in enumerate([*sorted((data / "test").rglob("*.png")), *sorted((data / "train").rglob("*.png"))[:1]]):
        shutil.copy(path, pictures / f"{i}.png")
    bank = model.model.structural.bank
    # The first patches twice: every query near one of them has two nearest neighbours.
    bank.embeddings = torch.cat([bank.embeddings, bank.embeddings[:40]])
    bank.norms = torch.cat([bank.norms, bank.norms[:40]])
    # The threshold right beside the score of a test image, above it for one model and below it for the others: about
    # 2e-4 of a normalised score, twice what a file may differ.
    post = model.post_processor
    with torch.no_grad():
        raw = [model.model(model.pre_processor(read(path))).pred_score for path in sorted(pictures.iterdir())]
    raw = torch.cat(raw).sort().values
    side = 1 if kind == "small" else -1
    threshold = raw[3] + side * 4e-4 * (raw[3] - raw[0])
    for prefix in ("image", "pixel"):
        getattr(post, f"{prefix}_min").copy_(raw[0])
        getattr(post, f"{prefix}_max").copy_(threshold)
        getattr(post, f"_{prefix}_threshold").copy_(threshold)
    save_checkpoint(model, folder)
    np.savez(folder / "expected.npz", **predict(model, pictures))
    model.to_torch(folder)
    path = model.to_onnx(folder)
    openvino.save_model(openvino.convert_model(path), folder / "openvino.xml", compress_to_fp16=False)


def save_checkpoint(model: Npgmf, folder: Path) -> None:
    checkpoint = torch.load(folder / "model.ckpt", weights_only=True)
    checkpoint["state_dict"] = model.state_dict()
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "model.ckpt")


def read(path: Path) -> torch.Tensor:
    return read_image(path, as_tensor=True)[None]
