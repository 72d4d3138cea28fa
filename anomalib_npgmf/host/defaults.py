"""What anomalib asks every model for: pre- and post-processing, metrics, pictures, trainer and optimiser."""

from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_npgmf.config import ModelConfig
from anomalib_npgmf.host.grayscale16 import DeepImages
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.host.visualizer import NpgmfVisualizer
from anomalib_npgmf.metrics import loco_metrics
from anomalib_npgmf.torch_model import NpgmfModel

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRADIENT_CLIP = 1.0


# anomalib takes every direct subclass of its module for a model, so only Npgmf itself may be one.
if TYPE_CHECKING:
    _Base = AnomalibModule
else:
    _Base = object


class NpgmfDefaults(_Base):
    """Npgmf's answers, apart from the model itself.

    Attributes:
        settings: The resolved configuration.
        model: The model in pure torch.
    """

    settings: ModelConfig
    model: NpgmfModel

    @property
    def learning_type(self) -> LearningType:
        """One class: normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Nothing: anomalib's engine would override what the user chose (see `set_default_epochs`)."""
        return {}

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:  # type: ignore[override]
        """Plain resize to the larger of the branches' sizes, and ImageNet's normalisation."""
        size = image_size or self.settings.image_size
        return PreProcessor(Compose([Resize(size, antialias=True), Normalize(IMAGENET_MEAN, IMAGENET_STD)]))

    def configure_post_processor(self) -> PostProcessor:
        """Threshold and normalisation from normal images alone."""
        return CalibratedPostProcessor()

    def configure_callbacks(self) -> list[Callback]:
        """Return anomalib's, which are the parts of the model, after one that restores deep grey images."""
        others = super().configure_callbacks()
        return [DeepImages(), *([others] if isinstance(others, Callback) else others)]

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Anomalib's default metrics and, on data in MVTec LOCO AD's layout, AU-sPRO and AUROC per anomaly type."""
        return Evaluator(
            test_metrics=[
                AUROC(fields=["pred_score", "gt_label"], prefix="image_"),
                F1Score(fields=["pred_label", "gt_label"], prefix="image_"),
                AUROC(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False),
                F1Score(fields=["pred_mask", "gt_mask"], prefix="pixel_", strict=False),
                *loco_metrics(),
            ]
        )

    @classmethod
    def configure_visualizer(cls) -> NpgmfVisualizer:
        """Pictures of every branch's map beside the merged one."""
        return NpgmfVisualizer()

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Adam with the paper's betas over everything that is not frozen."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not parameters:
            return None
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate, betas=(0.5, 0.999))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradients, to 1 unless the trainer says otherwise."""
        limit = GRADIENT_CLIP if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, limit, gradient_clip_algorithm or "norm")
