"""Npgmf: the model as anomalib's engine, command line and benchmarks use it."""

import logging
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from anomalib import LearningType
from anomalib.data import AnomalibDataModule, Batch, Folder, ImageBatch
from anomalib.metrics import AUROC, Evaluator, F1Score
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize
from tqdm import tqdm

from anomalib_npgmf.calibration_split import normal_images, plain, restore_training_data, split_for_calibration
from anomalib_npgmf.checkpoint import check_checkpoint, unreadable
from anomalib_npgmf.export.metadata import KEY
from anomalib_npgmf.export.mixin import NpgmfExport
from anomalib_npgmf.logical.text_prior import caption_of, encode_caption
from anomalib_npgmf.merging import BRANCHES, MapStatistics, gather_list
from anomalib_npgmf.metrics import loco_metrics
from anomalib_npgmf.post_processor import CalibratedPostProcessor
from anomalib_npgmf.presets import resolve
from anomalib_npgmf.resize import exportable
from anomalib_npgmf.torch_model import BranchMaps, NpgmfModel
from anomalib_npgmf.visualizer import NpgmfVisualizer

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
GRADIENT_CLIP = 1.0
INITIAL_IMAGES = 32  # training images that channel statistics and codebooks start from


class Npgmf(NpgmfExport, AnomalibModule):  # type: ignore[misc]  # Lightning's own to_onnx differs
    """NPGMF: normality prior guided multi-semantic fusion (arXiv 2506.18544).

    Finds damaged parts with a memory bank (structural branch) and wrongly assembled ones with a decoder that rebuilds
    frozen features under normal priors (logical branch), and adds their calibrated maps.

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
        use_codebooks: Whether the logical branch uses codebooks of normal features.
        branches: ``both``, or ``logical`` or ``structural`` alone.
        learning_rate: Learning rate of Adam.
        logical: Fields of ``anomalib_npgmf.logical.config.LogicalConfig`` to override.
        structural: Fields of ``anomalib_npgmf.structural.config.StructuralConfig`` to override.
        composition: Whether the composition read-out, which sees how much there is of everything, joins the branches,
            or fields of ``anomalib_npgmf.composition.config.CompositionConfig`` to override. On in preset ``plus``.
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
        use_codebooks: bool = True,
        branches: str | None = None,
        learning_rate: float | None = None,
        logical: dict[str, Any] | None = None,
        structural: dict[str, Any] | None = None,
        composition: bool | dict[str, Any] | None = None,
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
        self._fixed_maps: dict[str, dict[str, Tensor]] = {}

    # ---------------------------------------------------------------- the parts that anomalib asks for

    @property
    def learning_type(self) -> LearningType:
        """One class: normal images only."""
        return LearningType.ONE_CLASS

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Defaults for the trainer, which give way to what the user chose."""
        epochs = 1 if self.settings.branches == "structural" else self.settings.epochs
        return {"max_epochs": DefaultEpochs(epochs)}

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:  # type: ignore[override]
        """Plain resize to the larger of the branches' sizes, and ImageNet's normalisation."""
        size = image_size or self.settings.image_size
        return PreProcessor(Compose([Resize(size, antialias=True), Normalize(IMAGENET_MEAN, IMAGENET_STD)]))

    def configure_post_processor(self) -> PostProcessor:
        """Threshold and normalisation from normal images alone."""
        return CalibratedPostProcessor()

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

    # ---------------------------------------------------------------- before training

    def setup(self, stage: str) -> None:
        """Prepare a fit: number of epochs and calibration images."""
        if stage != "fit":
            return
        self.trainer.num_sanity_val_steps = 0  # there is nothing to predict before the bank is collected
        epochs = self.trainer.fit_loop.max_epochs
        if isinstance(epochs, DefaultEpochs) and self.trainer.fit_loop.epoch_loop.max_steps != -1:
            self.trainer.fit_loop.max_epochs = -1  # the user limits the steps instead
        self._calibrated_at = -1
        self._fixed_maps = {}
        self.category = self._category()
        datamodule = getattr(self.trainer, "datamodule", None)
        self._calibration_data = None if datamodule is None else split_for_calibration(datamodule)

    def teardown(self, stage: str) -> None:
        """Give the data module its training images back."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and datamodule is not None:
            restore_training_data(datamodule)

    def on_fit_start(self) -> None:
        """Load weights and embed the category, unless a checkpoint brought them: it is restored after `setup`."""
        if not self._weights_ready:
            self.model.load_weights()
            self._embed_category()
            self._weights_ready = True

    def _embed_category(self) -> None:
        if self.model.logical is None or self.settings.text_prior != "clip":
            return
        assert self.model.logical.text_prior is not None
        caption = self.prompt or caption_of(self._category())
        if not caption:
            msg = "The text prior needs the category's name, which the data module does not give; set prompt."
            raise ValueError(msg)
        logger.info("Text prior: %r", caption)
        self.prompt = caption
        self.model.logical.text_prior.set_embedding(encode_caption(caption, weights=self.clip_weights))

    def _category(self) -> str:
        datamodule = getattr(self.trainer, "datamodule", None)
        category = getattr(datamodule, "category", None) or ""
        return str(datamodule.name) if not category and isinstance(datamodule, Folder) else str(category)

    def on_train_start(self) -> None:
        """Fit what is not trained and start the codebooks at normal features, unless a checkpoint brought them."""
        if self.trainer.ckpt_path is not None and self._is_complete():
            return
        assert self.trainer.train_dataloader is not None
        loader = self._loader(self.trainer.train_dataloader.dataset)
        if self.model.logical is not None:
            self.model.initialise(self._first_images(loader))
        if self.model.structural is not None or self.model.composition is not None:
            self._collect(loader)

    def _first_images(self, loader: DataLoader[Any]) -> Tensor:
        images: list[Tensor] = []
        for batch in loader:
            images += self._normalised(batch.image.to(self.device))
            if len(images) >= INITIAL_IMAGES:
                break
        return torch.stack(images)

    def _is_complete(self) -> bool:
        return self.model.structural is None or len(self.model.structural.bank) > 0

    @torch.no_grad()
    def _collect(self, loader: DataLoader[Any]) -> None:
        """Fit memory bank and composition read-out to all training images, in one pass."""
        structural, composition = self.model.structural, self.model.composition
        for batch in self._progress(loader, "Collecting normal features"):
            features = self.model.features(self._normalised(batch.image.to(self.device)))
            keys = [str(path) for path in batch.image_path]
            if structural is not None:
                structural.collect(features.structural, keys)
            if composition is not None:
                composition.collect(features.composition, keys)
        if structural is not None:
            structural.finish(progress=self._shows_progress)
        if composition is not None:
            composition.finish()

    # ---------------------------------------------------------------- training

    def training_step(self, batch: ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Losses of the logical branch (eq. 6)."""
        del batch_idx
        losses: dict[str, Tensor] = self.model(batch.image)
        for name, value in losses.items():
            if not torch.isfinite(value):
                msg = (
                    f"The {name} loss became {value.item()} in epoch {self.current_epoch}; training stops and the last "
                    "checkpoint stays. Try a smaller learning rate."
                )
                raise RuntimeError(msg)
        names = {name: "train_loss" if name == "loss" else f"train_{name}_loss" for name in losses}
        size = batch.batch_size
        for name, value in losses.items():
            self.log(names[name], value, on_step=False, on_epoch=True, prog_bar=name == "loss", batch_size=size)
        return losses["loss"]

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> Any:
        """Predictions for metrics on the validation set; only made when something looks at them."""
        del batch_idx
        wanted = isinstance(self.evaluator, Evaluator) and len(self.evaluator.val_metrics) > 0
        if not wanted and (self.post_processor is None or isinstance(self.post_processor, CalibratedPostProcessor)):
            return batch
        maps = self._maps_with_memory(batch)
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
                self.log(name, value)

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
        self._calibrate_on(self._loader(self._calibration_data))

    @torch.no_grad()
    def calibrate(self, datamodule: AnomalibDataModule) -> None:
        """Compute the statistics of the maps and the threshold anew, without training.

        Args:
            datamodule: Data of the category; its calibration images are used.
        """
        datamodule.setup("fit")
        view = plain(split_for_calibration(datamodule), self.settings.image_size)
        restore_training_data(datamodule)
        self._fixed_maps = {}
        self._calibrate_on(DataLoader(view, batch_size=datamodule.eval_batch_size, collate_fn=view.collate_fn))

    def _calibrate_on(self, loader: Iterable[Any]) -> None:
        training = self.model.training
        self.model.eval()
        statistics: dict[str, MapStatistics] = {}
        kept: list[dict[str, Tensor]] = []
        for batch in loader:
            batch.image = self._normalised(batch.image.to(self.device))
            maps = self._maps_with_memory(batch)
            for branch in maps.keys() & set(BRANCHES):
                statistics.setdefault(branch, MapStatistics()).update(self.model.merger.resize(maps[branch]))
            kept.append({branch: raw.cpu() for branch, raw in maps.items()})
        for branch_statistics in statistics.values():
            branch_statistics.synchronise()
        self.model.merger.calibrate({branch: (s.mean, s.std) for branch, s in statistics.items()})
        if self.model.merger.composition is not None:
            peaks: list[tuple[float, float]] = []
            for maps in kept:
                merged = self.model.merger.merge_branches({name: raw.to(self.device) for name, raw in maps.items()})
                assert merged is not None
                peaks += zip(merged.amax((1, 2, 3)).tolist(), maps["composition"].amax((1, 2, 3)).tolist(), strict=True)
            self.model.merger.composition.calibrate(*torch.tensor(gather_list(peaks)).T)
        if isinstance(self.post_processor, CalibratedPostProcessor):
            scores: list[float] = []
            for maps in kept:
                on_device = {branch: raw.to(self.device) for branch, raw in maps.items()}
                score = self.model.merge(on_device).pred_score
                assert score is not None
                scores += score.tolist()
            self.post_processor.calibrate(torch.tensor(gather_list(scores)))
        self.model.train(training)

    def _maps_with_memory(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Branch maps of a batch; those of the parts that training does not change are computed once per image."""
        assert batch.image is not None
        assert batch.image_path is not None
        paths = [str(path) for path in batch.image_path]
        known: dict[str, Tensor] = {}
        if all(path in self._fixed_maps for path in paths):
            rows = [self._fixed_maps[path] for path in paths]
            known = {part: torch.stack([row[part] for row in rows]).to(self.device) for part in rows[0]}
        maps = self.model.branch_maps(batch.image, known).maps
        if not known:
            fixed = {part: values.cpu() for part, values in maps.items() if part != "logical"}
            self._fixed_maps |= {path: {part: v[i] for part, v in fixed.items()} for i, path in enumerate(paths)}
        return maps

    def _normalised(self, images: Tensor) -> Tensor:
        transform = self.pre_processor.transform if isinstance(self.pre_processor, PreProcessor) else None
        result: Tensor = transform(images) if transform else images
        return result

    def _loader(self, dataset: Any) -> DataLoader[Any]:
        """Un-augmented images of a dataset, in order; in a distributed run this process's share of them."""
        datamodule = getattr(self.trainer, "datamodule", None)
        share = range(self.trainer.global_rank, len(dataset), self.trainer.world_size)
        view = plain(dataset.subsample(list(share)), self.settings.image_size)
        return DataLoader(
            view,
            batch_size=getattr(datamodule, "eval_batch_size", 8),
            num_workers=getattr(datamodule, "num_workers", 0),
            collate_fn=view.collate_fn,
        )

    @property
    def _shows_progress(self) -> bool:
        return self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None

    def _progress(self, items: Iterable[Any], description: str) -> Iterable[Any]:
        return tqdm(items, desc=description, disable=not self._shows_progress)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Have the checkpoint say what it is; see `anomalib_npgmf.export.describe`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is of this model.

        Raises:
            ValueError: If it is not.
        """
        check_checkpoint(checkpoint, self, self.preset)
        super().on_load_checkpoint(checkpoint)
        self._keep_antialiasing()
        self.category, self.prompt = checkpoint[KEY]["category"], checkpoint[KEY]["prompt"]
        self._weights_ready = True

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "Npgmf":  # type: ignore[override]
        """As `anomalib.models.AnomalibModule.load_from_checkpoint`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, foreign or of another architecture.
        """
        try:
            model = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except (ValueError, FileNotFoundError):
            raise
        except (RuntimeError, EOFError, KeyError, TypeError, AttributeError, UnpicklingError) as error:
            raise unreadable(checkpoint_path, error) from error
        assert isinstance(model, cls)
        return model

    def _keep_antialiasing(self) -> None:
        """Resize in `forward` and in exported files as in training; anomalib leaves the antialiasing out there."""
        if isinstance(self.pre_processor, PreProcessor):
            self.pre_processor.export_transform = exportable(self.pre_processor.transform)

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


class DefaultEpochs(int):
    """Number of epochs for the engine to use where the user gave none.

    anomalib's engine overrides the user's trainer arguments with the model's wherever the two differ; this number
    differs from nothing but a missing value.

    Example:
        >>> 7 != DefaultEpochs(50), None != DefaultEpochs(50)
        (False, True)
    """

    def __eq__(self, other: object) -> bool:
        return other is not None

    def __ne__(self, other: object) -> bool:
        return other is None

    __hash__ = int.__hash__
