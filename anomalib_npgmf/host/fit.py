"""Preparation of a fit: weights, text prior, memory bank, composition, initial codebooks, calibration images, cache."""

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import Folder
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader
from tqdm import tqdm

from anomalib_npgmf.backbone.cache import open_cache
from anomalib_npgmf.distributed import raise_together
from anomalib_npgmf.host.calibration import calibrate_on
from anomalib_npgmf.host.checkpoint_file import write_whole_checkpoints
from anomalib_npgmf.host.compat import adapt_strategy, limit_validation, restore_pictures
from anomalib_npgmf.host.precision import check_precision
from anomalib_npgmf.host.quiet import settle
from anomalib_npgmf.host.splits import normal_images, plain, restore_training_data, sample_images, split_for_calibration
from anomalib_npgmf.logical.text_prior import caption_of, captions_of, encode_caption

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

logger = logging.getLogger(__name__)

INITIAL_IMAGES = 32  # number of training images for channel statistics and codebook initialisation


class PrepareFit(Callback):
    """Prepares a fit of Npgmf, and calibrates after every epoch.

    `anomalib_npgmf.Npgmf` adds it (``configure_callbacks``); hooks of callbacks run before the module's own.
    In all of them ``pl_module`` is the Npgmf module.
    """

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Check the trainer; for a fit also set calibration images aside, and adapt the trainer."""
        check_precision(trainer)
        settle(trainer)
        write_whole_checkpoints(trainer.strategy)
        if stage != "fit":
            return
        limit_validation(trainer)
        fitted = ("model.structural.bank.", "model.composition.")
        unchanging = [name for name, _ in pl_module.named_buffers() if name.startswith(fitted)]
        adapt_strategy(trainer.strategy, pl_module, unchanging=unchanging)
        pl_module.category = category_of(trainer)
        datamodule = getattr(trainer, "datamodule", None)
        pl_module.calibrator.reset(None if datamodule is None else split_for_calibration(datamodule))

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Load weights and embed the category's name, unless a checkpoint, loaded since `setup`, holds them."""
        if not pl_module.weights_ready:
            pl_module.model.load_weights()
            pl_module.weights_ready = True
        embed_category(pl_module, category_of(trainer))

    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Fit bank and composition and initialise the codebooks, unless a checkpoint holds them."""
        assert trainer.train_dataloader is not None
        dataset, model = trainer.train_dataloader.dataset, pl_module.model
        if model.logical is not None:
            pl_module.cached_features = open_cache(pl_module.feature_cache, dataset)
        complete = model.structural is None or len(model.structural.bank) > 0
        if trainer.ckpt_path is not None and complete:
            return
        if model.logical is not None:
            drawn = sample_images(dataset, INITIAL_IMAGES)
            batches = map(restore_pictures, images_of(trainer, drawn, model.config.image_size, shared=False))
            model.initialise(torch.cat([pl_module.normalised(batch.image.to(pl_module.device)) for batch in batches]))
        if model.structural is not None or model.composition is not None:
            collect(trainer, pl_module, dataset)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Calibrate before anything is validated."""
        if trainer.state.fn == "fit":
            calibrate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Calibrate, so that the checkpoint of this epoch is complete, and log codebook statistics."""
        calibrate(trainer, pl_module)
        if pl_module.model.logical is not None:
            for name, value in pl_module.model.logical.codebook_statistics().items():
                pl_module.log(name, value, sync_dist=True)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Put calibration images back into the training set, and free the disk space of the feature cache."""
        if stage != "fit":
            return
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:
            restore_training_data(datamodule)
        if pl_module.cached_features is not None:
            pl_module.cached_features.close()
            pl_module.cached_features = None

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """As `teardown`, which Lightning does not call after an error."""
        del exception
        if trainer.state.fn == "fit":
            self.teardown(trainer, pl_module, "fit")


def category_of(trainer: Trainer) -> str:
    """Name of the category, from the data module; "" if it gives none."""
    datamodule = getattr(trainer, "datamodule", None)
    category = getattr(datamodule, "category", None) or ""
    return str(datamodule.name) if not category and isinstance(datamodule, Folder) else str(category)


def embed_category(module: "Npgmf", category: str) -> None:
    """Give the text prior CLIP's embedding of the caption (section III-A2), unless it has it.

    Without effect for other text priors.

    Raises:
        ValueError: If neither a prompt nor the category is known.
    """
    if module.model.logical is None or module.settings.text_prior != "clip":
        return
    assert module.model.logical.text_prior is not None
    caption = module.prompt or caption_of(category) or module.caption
    if not caption:
        msg = "The text prior needs the category's name, which the data module does not give; set prompt."
        raise ValueError(msg)
    if caption == module.caption:
        return
    config = module.settings.logical
    captions = captions_of(caption, config.captions)
    logger.info("Text prior: %s", captions)
    module.caption = caption
    embedding = encode_caption(*captions, model_name=config.clip_model, weights=module.clip_weights)
    module.model.logical.text_prior.set_embedding(embedding)


def restore_category(module: "Npgmf", metadata: dict[str, Any]) -> None:
    """Take category and caption from a checkpoint; also as prompt, if it is not the category's default caption.

    Args:
        module: The model.
        metadata: See `anomalib_npgmf.export.describe`.
    """
    module.category, module.caption = metadata["category"], metadata["prompt"] or ""
    if module.caption != caption_of(module.category):
        module.prompt = metadata["prompt"]


def images_of(trainer: Trainer, dataset: Any, size: tuple[int, int], *, shared: bool = True) -> DataLoader[Any]:
    """Batches of un-augmented images of a dataset, in order.

    Args:
        trainer: Its data module sets batch size and workers.
        dataset: An anomalib dataset.
        size: Height and width that the images are resized to.
        shared: Whether the processes of a distributed run share the images; otherwise each gets all.
    """
    datamodule = getattr(trainer, "datamodule", None)
    first, step = (trainer.global_rank, trainer.world_size) if shared else (0, 1)
    view = plain(dataset.subsample(list(range(first, len(dataset), step))), size)
    return DataLoader(
        view,
        batch_size=getattr(datamodule, "eval_batch_size", 8),
        num_workers=getattr(datamodule, "num_workers", 0),
        collate_fn=view.collate_fn,
    )


def calibrate(trainer: Trainer, module: "Npgmf") -> None:
    """Set the statistics of the maps and the threshold, if there was a training step since the last time.

    Raises:
        ValueError: If there are no normal calibration images.
    """
    calibrator = module.calibrator
    if not calibrator.is_due(trainer.global_step):
        return
    if calibrator.images is None:
        loaders = trainer.val_dataloaders
        if loaders is None or not loaders.dataset.has_normal:
            msg = "There are no normal validation images to calibrate on; pass a data module or a loader of them."
            raise ValueError(msg)
        calibrator.images = normal_images(loaders.dataset)
    calibrate_on(module, calibration_batches(trainer, module))


def calibration_batches(trainer: Trainer, module: "Npgmf") -> Iterable[Any]:
    """Batches of the calibration images of the last fit, this process's share; none before a fit."""
    images = module.calibrator.images
    return () if images is None else map(restore_pictures, images_of(trainer, images, module.settings.image_size))


def progress(loader: Iterable[Any], *, shown: bool) -> Iterable[Any]:
    """Show a progress bar on the terminal, which disappears at the end."""
    bar: Iterable[Any] = tqdm(loader, "Collecting normal features", leave=False, disable=None if shown else True)
    return bar


@torch.no_grad()
def collect(trainer: Trainer, module: "Npgmf", dataset: Any) -> None:
    """Fit memory bank and composition branch to the training images of the data set, in one pass."""
    structural, composition = module.model.structural, module.model.composition
    shown = trainer.is_global_zero and trainer.progress_bar_callback is not None
    loader = images_of(trainer, dataset, module.settings.image_size)
    with raise_together():
        for batch in map(restore_pictures, progress(loader, shown=shown)):
            images = batch.image.to(module.device)
            features = module.model.features(module.normalised(images))
            keys = [str(path) for path in batch.image_path]
            if structural is not None:
                structural.collect(features.structural, keys)
            if composition is not None:
                composition.collect(features.composition, keys, images)
    if structural is not None:
        structural.finish(progress=shown)
    if composition is not None:
        composition.finish()
