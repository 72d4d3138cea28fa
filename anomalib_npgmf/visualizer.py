"""Pictures that show what each branch saw."""

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from anomalib_npgmf.pictures import Picture, heat_map, outline, panels, to_rgb

logger = logging.getLogger(__name__)


def speaking_branch(contributions: dict[str, Tensor]) -> str:
    """Name of the branch that adds most where the sum is largest.

    Args:
        contributions: Calibrated and weighted map of each branch, [H, W].

    Example:
        >>> speaking_branch({"logical": torch.tensor([[5.0, 0.0]]), "structural": torch.tensor([[0.0, 4.0]])})
        'logical'
    """
    peak = int(torch.stack(list(contributions.values())).sum(0).argmax())
    return max(contributions, key=lambda branch: float(contributions[branch].flatten()[peak]))


class NpgmfVisualizer(ImageVisualizer):
    """One picture per test image: image, ground truth, each branch's map, merged map and reconstruction.

    The branches' maps are their summands of eq. 11 on the scale of the merged map: green is where a branch alone
    reaches the threshold. The title names the branch that adds most at the highest point.

    Args:
        **kwargs: See `anomalib.visualization.ImageVisualizer`; ``field_size`` and ``output_dir`` are used.
    """

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Save the pictures of a batch."""
        del outputs, batch_idx, dataloader_idx
        if self.output_dir is None:
            self.output_dir = Path(trainer.default_root_dir) / "images"
        datamodule = getattr(trainer, "datamodule", None)
        for index, picture in enumerate(self.draw(pl_module, batch)):
            paths = batch.image_path
            path = generate_output_filename(
                input_path=paths[index] if paths is not None else f"{index}.png",
                output_path=self.output_dir,
                dataset_name=getattr(datamodule, "name", None),
                category=getattr(datamodule, "category", None),
            )
            cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """As `on_test_batch_end`."""
        self.on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the pictures are."""
        del pl_module
        if trainer.is_global_zero and self.output_dir is not None:
            print(f"Pictures: {Path(self.output_dir).resolve()}")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the pictures are."""
        self.on_test_end(trainer, pl_module)

    def draw(self, module: Any, batch: ImageBatch) -> list[Picture]:
        """Draw the pictures of a batch that ``module`` has just predicted.

        Args:
            module: The `anomalib_npgmf.Npgmf` model.
            batch: The batch with its predictions.

        Returns:
            One RGB picture per image.
        """
        assert batch.anomaly_map is not None
        assert batch.image is not None
        branch_maps = module.branch_maps
        merger, post = module.model.merger, module.post_processor
        parts = {branch: part.float().cpu() for branch, part in merger.summands(branch_maps.maps).items()}
        if merger.composition is not None:  # both kinds of map in deviations of the image score
            mean, std = merger.composition.mean.cpu(), merger.composition.std.cpu()
            parts = {branch: part / std[0] for branch, part in parts.items()}
            parts["composition"] = (merger.resize(branch_maps.maps["composition"]).float().cpu() - mean[1]) / std[1]
        pictures = []
        for index in range(len(batch.anomaly_map)):
            image = self._picture(to_rgb(batch.image[index]))
            named = {"image": image}
            if batch.gt_mask is not None:
                named["ground truth"] = outline(image, batch.gt_mask[index].squeeze().bool().cpu().numpy())
            for branch, part in parts.items():
                scores = part[index].squeeze()
                if getattr(post, "enable_normalization", False):
                    scores = post._normalize(
                        scores, *(v.cpu() for v in (post.pixel_min, post.pixel_max, post.pixel_threshold))
                    )
                named[f"{branch} map"] = heat_map(image, self._resize(scores))
            named["merged map"] = heat_map(image, self._resize(batch.anomaly_map[index]))
            if branch_maps.reconstruction is not None:
                named["what normal would look like"] = self._picture(to_rgb(branch_maps.reconstruction[index]))
            score = float(batch.pred_score[index]) if batch.pred_score is not None else float("nan")
            title = f"score {score:.2f}"
            if batch.pred_label is not None:
                title += ", anomalous" if bool(batch.pred_label[index]) else ", normal"
            if len(parts) > 1:
                speaker = speaking_branch({b: part[index].squeeze() for b, part in parts.items()})
                title += "; the composition speaks" if speaker == "composition" else f"; the {speaker} branch speaks"
            pictures.append(panels(named, title))
        return pictures

    def _resize(self, values: Tensor) -> NDArray[np.float32]:
        plane = values.squeeze().float().cpu().numpy()
        return np.asarray(cv2.resize(plane, self.field_size[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.float32)

    def _picture(self, picture: Picture) -> Picture:
        return np.asarray(cv2.resize(picture, self.field_size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
