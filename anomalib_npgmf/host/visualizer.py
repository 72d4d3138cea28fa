"""Draws each image with the map of every branch, and finds the branch that decides its score."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anomalib.data import ImageBatch
from anomalib.visualization import ImageVisualizer
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from anomalib_npgmf.composition import Explanation
from anomalib_npgmf.disk import write_picture
from anomalib_npgmf.host.drawing import WHITE, Picture, heat_map, outline, panels, resized, to_rgb
from anomalib_npgmf.host.places import picture_path
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.outputs import BranchMaps


def dominant_part(merger: MapMerger, maps: dict[str, Tensor]) -> list[str]:
    """The branch (logical, structural or composition) that determines each image's score.

    That is the composition branch if its score is the larger one, otherwise the branch with the larger term at the
    maximum of the merged map of logical and structural branch.

    Args:
        merger: A calibrated merger.
        maps: Raw maps by branch, see `anomalib_npgmf.outputs.BranchMaps`.

    Returns:
        Names of branches, one per image.

    Example:
        >>> merger = MapMerger((64, 64), 1.0, 1.0, blur=torch.nn.Identity())
        >>> low, high = torch.full((1, 1, 64, 64), 1.0), torch.full((1, 1, 64, 64), 2.0)
        >>> dominant_part(merger, {"logical": torch.cat([low, high]), "structural": torch.cat([high, low])})
        ['structural', 'logical']
    """
    terms = merger.smoothed(maps)
    merged = merger.combined(terms)
    assert merged is not None
    parts = {name: part.flatten(1) for name, part in terms.items()}
    scores, peaks = merged.flatten(1).max(dim=1)
    by_composition = torch.zeros_like(scores, dtype=torch.bool)
    if merger.composition is not None:
        by_composition = merger.composition.of_composition(maps["composition_scores"]) >= merger.composition.of_peaks(
            scores
        )
    return [
        "composition" if composed else max(parts, key=lambda name: float(parts[name][index, peak]))
        for index, (peak, composed) in enumerate(zip(peaks.tolist(), by_composition.tolist(), strict=True))
    ]


def title_of(score: float, label: bool | None, dominant_name: str | None, explanation: Explanation | None) -> str:
    """Title of a visualization.

    Args:
        score: Image score.
        label: Whether the image is anomalous; ``None`` without a threshold.
        dominant_name: The part that determines the score; ``None`` for a model of one part.
        explanation: Explanation of the composition branch where it determines the score.

    Example:
        >>> title_of(0.714, True, "logical", None)
        'score 0.71, anomalous; the logical branch dominates'
    """
    title = f"score {score:.2f}"
    if label is not None:
        title += ", anomalous" if label else ", normal"
    if dominant_name is not None:
        title += f"; the {dominant_name} branch dominates"
    return title if explanation is None else f"{title}\n{explanation.text}"


def attach_maps(batch: Any, maps: BranchMaps) -> Any:
    """Attach the maps of the branches to a batch, in place; anomalib's batches have no field for them."""
    batch.branch_maps = maps
    return batch


def maps_of(batch: Any) -> BranchMaps | None:
    """The maps that `attach_maps` attached to a batch; ``None`` if there are none."""
    return getattr(batch, "branch_maps", None)


class NpgmfVisualizer(ImageVisualizer):
    """One picture per test image: image, ground truth, each part's map, merged map and reconstruction.

    The maps of the parts are on the scale of the merged map. What is normal stays clear, and what reaches the threshold
    is outlined in white. The title gives score and label, and names the branch that determines the score. Where that is
    the composition branch, a second line names the codebook entry that occurs too often or too rarely. It is
    outlined in the map, and patches of it in normal images are shown.

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
        for index, picture in enumerate(self.draw(pl_module, batch)):
            paths = batch.image_path
            path = self.file_of(trainer, paths[index] if paths is not None else f"{index}.png")
            write_picture(path, np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8))

    on_predict_batch_end = on_test_batch_end

    def file_of(self, trainer: Trainer, path: str) -> Path:
        """Where the picture of an image is saved, in a folder that exists.

        Args:
            trainer: The trainer; its run's folder is used unless ``output_dir`` says otherwise.
            path: The image's file.
        """
        if self.output_dir is None:
            self.output_dir = Path(trainer.default_root_dir) / "images"
        datamodule = getattr(trainer, "datamodule", None)
        return picture_path(path, Path(self.output_dir), datamodule)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the folder of the visualizations."""
        del pl_module
        if trainer.is_global_zero and self.output_dir is not None:
            print(f"Pictures: {Path(self.output_dir).resolve()}")

    on_predict_end = on_test_end

    def draw(self, module: Any, batch: ImageBatch) -> list[Picture]:
        """Draw the pictures of a batch.

        Args:
            module: The `anomalib_npgmf.Npgmf` model.
            batch: The batch as ``test_step`` returned it, with the maps of the branches.

        Returns:
            One RGB picture per image.
        """
        assert batch.anomaly_map is not None
        assert batch.image is not None
        branch_maps, model, post = maps_of(batch), module.model, module.post_processor
        merger = model.merger
        assert branch_maps is not None
        parts = merger.calibrated_maps(branch_maps.maps)
        dominant = dominant_part(merger, branch_maps.maps)
        explanations = {
            index: branch_maps.explanations[index] for index, name in enumerate(dominant) if name == "composition"
        }
        normalised = bool(getattr(post, "enable_normalization", False))
        threshold = 0.5 if normalised else None
        pictures = []
        for index in range(len(batch.anomaly_map)):
            image = resized(to_rgb(batch.image[index], model.mean, model.std), self.field_size)
            named = {"image": image}
            if batch.gt_mask is not None:
                named["ground truth"] = outline(image, batch.gt_mask[index].squeeze().bool().cpu().numpy())
            for name, part in parts.items():
                scores = part[index].squeeze().float()
                if normalised:
                    scores = post._normalize(scores, post.pixel_min, post.pixel_max, post.pixel_threshold)
                named[f"{name} map"] = heat_map(image, scores.cpu().numpy(), threshold=threshold)
            if index in explanations:
                found = explanations[index]
                marked = outline(named.pop("composition map"), found.mask.cpu().numpy(), WHITE)
                what = f"code {found.code}"
                named[f"composition map, {what}"] = marked
                if found.patches is not None:
                    named[f"normal patches, {what}"] = self._tiled(found.patches)
            merged = batch.anomaly_map[index].squeeze().float().cpu().numpy()
            named["merged map"] = heat_map(image, merged, threshold=threshold)
            if branch_maps.reconstruction is not None:
                reconstruction = to_rgb(branch_maps.reconstruction[index], model.mean, model.std)
                named["reconstruction"] = resized(reconstruction, self.field_size)
            score = float(batch.pred_score[index]) if batch.pred_score is not None else float("nan")
            label = None if batch.pred_label is None else bool(batch.pred_label[index])
            dominant_name = dominant[index] if len(parts) > 1 else None
            pictures.append(panels(named, title_of(score, label, dominant_name, explanations.get(index))))
        return pictures

    def _tiled(self, patches: Tensor) -> Picture:
        """Patches [3, 3, h, w] below each other, on white."""
        height, width = self.field_size
        side = height // len(patches) - 4
        canvas = np.full((height, width, 3), 255, np.uint8)
        for number, patch in enumerate(patches.permute(0, 2, 3, 1).cpu().numpy()):
            top, left = number * (side + 4) + 2, (width - side) // 2
            canvas[top : top + side, left : left + side] = cv2.resize(patch, (side, side))
        return canvas
