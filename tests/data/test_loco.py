from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecLOCO
from PIL import Image

from anomalib_npgmf.data.loco import LOCO


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folders = ["train/good", "validation/good", "test/good", "test/logical_anomalies", "test/structural_anomalies"]
    for folder in folders:
        for number in range(3):
            path = tmp_path / "parts" / folder / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (12, 20, 3), dtype=np.uint8)).save(path)
            if "anomalies" in folder:
                for channel in range(1 + number % 2):
                    mask = np.zeros((12, 20), np.uint8)
                    mask[number : number + 3, 5 * channel : 5 * channel + 4] = 255 - channel
                    target = tmp_path / "parts/ground_truth" / path.parent.name / path.stem / f"{channel:03d}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(target)
    return tmp_path


def loaders(datamodule: MVTecLOCO) -> list:
    datamodule.setup()
    return [datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()]


def test_batches(root: Path) -> None:
    train, val, test = loaders(LOCO(root, "parts", train_batch_size=2, eval_batch_size=16, num_workers=0))
    assert len(train.dataset) == 3
    assert {Path(p).parts[-3] for batch in val for p in batch.image_path} == {"validation"}
    (batch,) = test
    labels = [int("anomalies" in path) for path in batch.image_path]
    assert batch.gt_label.int().tolist() == labels
    assert sum(labels) == 6
    for path, mask in zip(batch.image_path, batch.gt_mask, strict=True):
        expected = np.zeros((12, 20), bool)
        for file in (root / "parts/ground_truth" / Path(path).parent.name / Path(path).stem).glob("*.png"):
            expected |= np.asarray(Image.open(file)) > 0
        assert torch.equal(mask.as_subclass(torch.Tensor).bool(), torch.from_numpy(expected))


def test_same_batches_as_anomalib(root: Path) -> None:
    arguments = {"root": root, "category": "parts", "eval_batch_size": 4, "num_workers": 0}
    for ours, theirs in zip(loaders(LOCO(**arguments)), loaders(MVTecLOCO(**arguments)), strict=True):
        ours_items, theirs_items = (
            sorted((item for batch in loader for item in batch), key=lambda item: item.image_path)
            for loader in (ours, theirs)
        )
        assert [i.image_path for i in ours_items] == [i.image_path for i in theirs_items]
        assert [i.mask_path for i in ours_items] == [i.mask_path for i in theirs_items]
        for a, b in zip(ours_items, theirs_items, strict=True):
            torch.testing.assert_close(a.image, b.image)
            torch.testing.assert_close(a.gt_mask, b.gt_mask)
            assert a.gt_label == b.gt_label


def test_missing_data_is_explained(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No images in .*pushpins; set root"):
        LOCO(root, "pushpins", num_workers=0).setup()
    for mask in (root / "parts/ground_truth/logical_anomalies/001").glob("*.png"):
        mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"No mask for .*001\.png"):
        LOCO(root, "parts", num_workers=0).setup()
