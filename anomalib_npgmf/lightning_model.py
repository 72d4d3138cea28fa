"""Npgmf: the model as anomalib's engine, command line and benchmarks use it."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, Batch, ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.utils.data import DataLoader

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.config import resolve
from anomalib_npgmf.export.mixin import NpgmfExport
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.host.checkpoint import NpgmfCheckpoint
from anomalib_npgmf.host.defaults import NpgmfDefaults
from anomalib_npgmf.host.fit import NpgmfPreparation
from anomalib_npgmf.host.grayscale16 import restore_deep_images
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.host.splits import normal_images, plain, restore_training_data, split_for_calibration
from anomalib_npgmf.torch_model import BranchMaps, NpgmfModel

logger = logging.getLogger(__name__)


class Npgmf(NpgmfPreparation, NpgmfExport, NpgmfCheckpoint, NpgmfDefaults, AnomalibModule):  # type: ignore[misc]  # Lightning's own to_onnx differs
    """NPGMF: normality prior guided multi-semantic fusion (arXiv 2506.18544).

    Finds damaged parts with a memory bank (structural branch) and wrongly assembled ones with a decoder that rebuilds
    frozen features under normal priors (logical branch), and merges their calibrated maps.

    Args:
        preset: Configuration to start from: ``paper``, ``literal``, ``fast``, ``plus`` or ``small``; arguments that are
            given override it.
        backbone: timm name of the logical branch's frozen encoder; any network with a feature pyramid.
        backbone_weights: Weights of the encoder: a local .pth or .safetensors file, or ``random``. Left out, timm's
            published weights are fetched (preset ``small``: random ones).
        structural_backbone: timm name of the memory bank's frozen network.
        structural_backbone_weights: Weights of that network, as for ``backbone_weights``.
        text_prior: Global context: ``clip`` embeds the category's name, ``learned`` trains a free vector, ``random``
            fixes a random one, ``none`` leaves it out.
        prompt: Caption for CLIP; left out, the category's name from the data module.
        clip_weights: Local file of CLIP ViT-B/32 weights, or ``random``; left out, OpenAI's are fetched.
        logical_image_size: Side, or height and width, of the images that the logical branch sees.
        structural_image_size: Side, or height and width, of the images that the structural branch sees.
        coreset_ratio: Share of the training patches that the memory bank keeps, in (0, 1].
        logical_weight: Weight of the calibrated logical map in the sum.
        structural_weight: Weight of the calibrated structural map in the sum.
        merging: ``sum`` adds the calibrated and weighted maps as the paper does, ``maximum`` takes the larger one of
            the calibrated maps, without weights. The latter in preset ``plus``.
        use_codebooks: Whether the logical branch uses codebooks of normal features.
        branches: ``both``, or ``logical`` or ``structural`` alone.
        learning_rate: Learning rate of Adam.
        logical: Fields of ``anomalib_npgmf.logical.config.LogicalConfig`` to override.
        structural: Fields of ``anomalib_npgmf.structural.config.StructuralConfig`` to override.
        composition: Whether the composition read-out, which sees how many there are and what goes together, joins them,
            or fields of ``anomalib_npgmf.composition.config.CompositionConfig`` to override. On in preset ``plus``.
        feature_cache: Folder in which the encoder's features of the training images are kept between epochs, in a file
            of at most 16 GB that goes when training ends; left out, they are computed in every epoch. Without effect
            where training images are augmented.
        pre_processor: anomalib pre-processor, or whether to use the default one.
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        ValueError: If an argument is out of range or the backbone cannot serve.

    Example:
        >>> model = Npgmf(preset="small", logical_image_size=128)
        >>> tuple(model.input_size)
        (128, 128)
    """

    def __init__(
        self,
        preset: str = "paper",
        backbone: str | None = None,
        backbone_weights: str | None = None,
        structural_backbone: str | None = None,
        structural_backbone_weights: str | None = None,
        text_prior: str | None = None,
        prompt: str | None = None,
        clip_weights: str | None = None,
        logical_image_size: int | tuple[int, int] | None = None,
        structural_image_size: int | tuple[int, int] | None = None,
        coreset_ratio: float | None = None,
        logical_weight: float | None = None,
        structural_weight: float | None = None,
        merging: str | None = None,
        use_codebooks: bool = True,
        branches: str | None = None,
        learning_rate: float | None = None,
        logical: dict[str, Any] | None = None,
        structural: dict[str, Any] | None = None,
        composition: bool | dict[str, Any] | None = None,
        feature_cache: str | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        structural = dict(structural or {}) | ({} if coreset_ratio is None else {"coreset_ratio": coreset_ratio})
        logical = dict(logical or {}) | ({} if use_codebooks else {"vq_levels": ()})
        overrides = {
            "backbone": backbone,
            "backbone_weights": backbone_weights,
            "structural_backbone": structural_backbone,
            "structural_backbone_weights": structural_backbone_weights,
            "text_prior": text_prior,
            "logical_image_size": logical_image_size,
            "structural_image_size": structural_image_size,
            "logical_weight": logical_weight,
            "structural_weight": structural_weight,
            "merging": merging,
            "branches": branches,
            "learning_rate": learning_rate,
        }
        self.settings = resolve(preset, overrides, logical, structural, composition)
        super().__init__(pre_processor, post_processor, evaluator, visualizer)
        self._keep_antialiasing()
        self.prompt, self.clip_weights = prompt, clip_weights
        self.preset, self.category = preset, ""
        self.model: NpgmfModel = NpgmfModel(self.settings)
        self.branch_maps: BranchMaps | None = None
        self._weights_ready = False
        self._calibration_data: Any = None
        self._calibrated_at = -1
        self._calibrator = Calibrator(self.model, self.normalised)
        self.feature_cache = feature_cache
        self._cached_features: FeatureCache | None = None

    # ---------------------------------------------------------------- training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Losses of the logical branch (eq. 6)."""
        del batch_idx
        losses = self._losses(batch)
        for name, value in losses.items():
            if not torch.isfinite(value):
                self._restore_training_data()  # Lightning tears nothing down after an error
                msg = (
                    f"The {name} loss became {value.item()} in epoch {self.current_epoch}; training stops and the last "
                    "checkpoint stays. Try a smaller learning rate."
                )
                raise RuntimeError(msg)
        names = {name: "train_loss" if name == "loss" else f"train_{name}_loss" for name in losses}
        size = batch.batch_size
        for name, value in losses.items():
            shown = name == "loss"
            self.log(names[name], value, on_step=False, on_epoch=True, prog_bar=shown, batch_size=size, sync_dist=True)
        return losses["loss"]

    def _losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        if self._cached_features is None or self.model.logical is None:
            losses: dict[str, Tensor] = self.model(batch.image)
            return losses
        assert batch.image is not None
        assert batch.image_path is not None
        features = self._cached_features.features(
            [str(path) for path in batch.image_path],
            batch.image,
            lambda images: self.model.features(images, ["logical"]).logical,
        )
        return self.model.logical.losses(features, self.model.resize_logical(batch.image))

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> Any:
        """Predictions for metrics on the validation set; only made when something looks at them."""
        del batch_idx
        wanted = isinstance(self.evaluator, Evaluator) and len(self.evaluator.val_metrics) > 0
        if not wanted and (self.post_processor is None or isinstance(self.post_processor, CalibratedPostProcessor)):
            return batch
        assert batch.image is not None
        assert batch.image_path is not None
        maps = self._calibrator.maps(batch.image, [str(path) for path in batch.image_path])
        return batch.update(**self.model.merge(maps)._asdict())

    def on_validation_start(self) -> None:
        """Calibrate before anything is validated."""
        if self.trainer.state.fn == "fit":
            self._calibrate()

    def on_train_epoch_end(self) -> None:
        """Calibrate, so that the checkpoint of this epoch is complete, and log how the codes are used."""
        self._calibrate()
        if self.model.logical is not None:
            for name, value in self.model.logical.codebook_statistics().items():
                self.log(name, value, sync_dist=True)

    # ---------------------------------------------------------------- calibration

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Statistics of the maps and the threshold, from normal images that no branch was fitted on."""
        if self._calibrated_at == self.trainer.global_step:
            return
        self._calibrated_at = self.trainer.global_step
        if self._calibration_data is None:
            loaders = self.trainer.val_dataloaders
            if loaders is None or not loaders.dataset.has_normal:
                msg = "There are no normal validation images to calibrate on; pass a data module or a loader of them."
                raise ValueError(msg)
            self._calibration_data = normal_images(loaders.dataset)
        self._calibrate_on(self.calibration_batches())

    def calibration_batches(self) -> Iterable[ImageBatch]:
        """The normal images that the model was calibrated on in its last fit, this process's share; none before."""
        return map(restore_deep_images, self._loader(self._calibration_data)) if self._calibration_data else ()

    @torch.no_grad()
    def calibrate(self, datamodule: AnomalibDataModule) -> None:
        """Compute the statistics of the maps and the threshold anew, without training.

        Args:
            datamodule: Data of the category; its calibration images are used.
        """
        datamodule.setup("fit")
        view = plain(split_for_calibration(datamodule), self.settings.image_size)
        restore_training_data(datamodule)
        self._calibrator.forget()
        loader = DataLoader(view, batch_size=datamodule.eval_batch_size, collate_fn=view.collate_fn)
        self._calibrate_on(map(restore_deep_images, loader))

    def _calibrate_on(self, batches: Iterable[Any]) -> None:
        scores = self._calibrator.run(batches)
        if isinstance(self.post_processor, CalibratedPostProcessor):
            self.post_processor.calibrate(scores)

    # ---------------------------------------------------------------- inference

    def test_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Scores and merged maps of a batch; the branch maps stay in ``self.branch_maps`` for the visualizer."""
        del batch_idx, args, kwargs
        return self._predict(batch)

    def predict_step(self, batch: Batch[Any], batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """As `test_step`."""
        del batch_idx, dataloader_idx
        return self._predict(batch)

    def _require_training(self) -> None:
        if not self.model.merger.calibrated:
            msg = "This Npgmf model has not been trained: fit it or load a checkpoint (ckpt_path) first."
            raise RuntimeError(msg)

    def _predict(self, batch: Any) -> STEP_OUTPUT:
        self._require_training()
        self.branch_maps = self.model.branch_maps(batch.image)
        return batch.update(**self.model.merge(self.branch_maps.maps)._asdict())
