"""What happens before the first training step: weights, text prior, memory bank, composition, first codes."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Folder
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from anomalib_npgmf.backbone.cache import FeatureCache, open_cache
from anomalib_npgmf.config import ModelConfig
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.host.epochs import set_default_epochs
from anomalib_npgmf.host.grayscale16 import restore_deep_images
from anomalib_npgmf.host.splits import plain, restore_training_data, split_for_calibration
from anomalib_npgmf.host.strategy import adapt_strategy
from anomalib_npgmf.logical.text_prior import caption_of, encode_caption
from anomalib_npgmf.torch_model import NpgmfModel

logger = logging.getLogger(__name__)

INITIAL_IMAGES = 32  # training images that channel statistics and codebooks start from


# anomalib takes every direct subclass of its module for a model, so only Npgmf itself may be one.
if TYPE_CHECKING:
    _Base = AnomalibModule
else:
    _Base = object


class NpgmfPreparation(_Base):
    """Preparation of a fit, and what it shares with calibration.

    Attributes:
        settings: The resolved configuration.
        model: The model in pure torch.
        category: What the images show, "" if unknown.
        prompt: Caption of the text prior.
        clip_weights: File of CLIP's weights.
        feature_cache: Folder of the encoder's features, if any.
    """

    settings: ModelConfig
    model: NpgmfModel
    category: str
    prompt: str | None
    clip_weights: str | None
    feature_cache: str | None
    _weights_ready: bool
    _calibration_data: Any
    _calibrated_at: int
    _calibrator: Calibrator
    _cached_features: FeatureCache | None

    @property
    def trainer(self) -> Trainer:
        """The trainer that the model is attached to; RuntimeError if there is none.

        Attaching one that is about to fit gives it the preset's number of epochs where the user set no limit; one epoch
        where nothing but the memory bank is fitted.
        """
        return super().trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        AnomalibModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # a property, which mypy takes for methods
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            set_default_epochs(trainer, 1 if self.settings.branches == "structural" else self.settings.epochs)

    def setup(self, stage: str) -> None:
        """Prepare a fit: calibration images, and what distributed training must know."""
        if stage != "fit":
            return
        self.trainer.num_sanity_val_steps = 0  # there is nothing to predict before the bank is collected
        bank = [name for name, _ in self.named_buffers() if name.startswith("model.structural.bank.")]
        adapt_strategy(self.trainer.strategy, self, unchanging=bank)
        self._calibrated_at = -1
        self._calibrator.forget()
        self.category = self._category()
        datamodule = getattr(self.trainer, "datamodule", None)
        self._calibration_data = None if datamodule is None else split_for_calibration(datamodule)
        if datamodule is not None and getattr(datamodule, "val_data", None) is None:
            self.trainer.limit_val_batches = 0  # val_split_mode none: anomalib's val_dataloader() would fail

    def teardown(self, stage: str) -> None:
        """Give the data module its training images back."""
        if stage == "fit":
            self._restore_training_data()
            if self._cached_features is not None:
                self._cached_features.close()
                self._cached_features = None

    def _restore_training_data(self) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
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
        assert self.trainer.train_dataloader is not None
        dataset = self.trainer.train_dataloader.dataset
        if self.model.logical is not None:
            self._cached_features = open_cache(self.feature_cache, dataset)
        if self.trainer.ckpt_path is not None and self._is_complete():
            return
        if self.model.logical is not None:
            # The same images in every process.
            first = dataset.subsample(list(range(min(INITIAL_IMAGES, len(dataset)))))
            batches = map(restore_deep_images, self._loader(first, shared=False))
            self.model.initialise(torch.cat([self.normalised(batch.image.to(self.device)) for batch in batches]))
        if self.model.structural is not None or self.model.composition is not None:
            self._collect(self._loader(dataset))

    def _is_complete(self) -> bool:
        return self.model.structural is None or len(self.model.structural.bank) > 0

    @torch.no_grad()
    def _collect(self, loader: DataLoader[Any]) -> None:
        """Fit memory bank and composition read-out to all training images, in one pass."""
        structural, composition = self.model.structural, self.model.composition
        for batch in map(restore_deep_images, self._progress(loader, "Collecting normal features")):
            features = self.model.features(self.normalised(batch.image.to(self.device)))
            keys = [str(path) for path in batch.image_path]
            if structural is not None:
                structural.collect(features.structural, keys)
            if composition is not None:
                composition.collect(features.composition, keys)
        if structural is not None:
            structural.finish(progress=self._shows_progress)
        if composition is not None:
            composition.finish()

    def normalised(self, images: Tensor) -> Tensor:
        """Images as the model takes them."""
        transform = self.pre_processor.transform if isinstance(self.pre_processor, PreProcessor) else None
        result: Tensor = transform(images) if transform else images
        return result

    def _loader(self, dataset: Any, *, shared: bool = True) -> DataLoader[Any]:
        """Un-augmented images of a dataset, in order; in a distributed run this process's share of them, or all."""
        datamodule = getattr(self.trainer, "datamodule", None)
        first, step = (self.trainer.global_rank, self.trainer.world_size) if shared else (0, 1)
        share = range(first, len(dataset), step)
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
