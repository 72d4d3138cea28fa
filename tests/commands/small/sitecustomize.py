"""Makes small what a printed command trains, and keeps it off the network.

Python imports a module of this name at its start if it finds one, and the tests put this folder on PYTHONPATH. So the
command stays as printed. Only sizes and the source of weights change: the presets get a tiny network and narrow layers,
drawn categories a few small images, and a hub's weights become random ones. The presets train for as many epochs as
``NPGMF_TEST_EPOCHS`` says, where that is set.
"""

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

SLIM_LOGICAL = {"embedding_channels": 16, "prior_dim": 8, "code_dim": 8, "atrous_width": 8, "decoder_blocks": 1}
FEW_IMAGES = {
    "image_size": 64,
    "num_train": 6,
    "num_validation": 2,
    "num_test_good": 2,
    "num_test_logical": 2,
    "num_test_structural": 2,
}


def shrink_presets(module: ModuleType) -> None:
    """Every preset on timm's smallest network with five levels; one or two of them, as before."""
    for name, config in module.PRESETS.items():
        two = config.structural_backbone is not None
        module.PRESETS[name] = replace(
            config,
            backbone="test_resnet",
            structural_backbone="test_resnet" if two else None,
            logical_image_size=(128, 128),
            structural_image_size=(192, 192) if two else (128, 128),
            logical=replace(config.logical, **SLIM_LOGICAL),
            epochs=int(os.environ.get("NPGMF_TEST_EPOCHS", config.epochs)),
        )


def shrink_drawings(module: ModuleType) -> None:
    """Few small images where nothing else is asked for."""
    init = module.SyntheticLOCO.__init__
    names = init.__code__.co_varnames[1 : init.__code__.co_argcount]
    defaults = dict(zip(reversed(names), reversed(init.__defaults__), strict=False))
    init.__defaults__ = tuple((defaults | FEW_IMAGES)[name] for name in names if name in defaults)


def no_workers(module: ModuleType) -> None:
    """A few images are read faster than the default number of processes starts, anew in every epoch."""
    original = module.AnomalibDataModule.__init__

    @wraps(original)
    def init(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        self.num_workers = 0

    module.AnomalibDataModule.__init__ = init


def shrink_networks(module: ModuleType) -> None:
    """Weights come from a file that the command names, or are random; anomalib's models get a tiny network too."""
    original = module.create_model

    def create_model(name: str, pretrained: bool = False, **options: Any) -> Any:
        named = "state_dict" in (options.get("pretrained_cfg_overlay") or {})
        name = "test_resnet" if name in ("resnet18", "wide_resnet50_2") else name
        return original(name, pretrained=pretrained and named, **options)

    module.create_model = create_model


def without_clips_hub(module: ModuleType) -> None:
    """Random weights of CLIP."""
    original = module.create_model
    module.create_model = lambda name, pretrained=None, **options: original(name, pretrained=None, **options)


CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "anomalib_npgmf.config": shrink_presets,
    "anomalib_npgmf.data.synthetic.datamodule": shrink_drawings,
    "anomalib.data.datamodules.base.image": no_workers,
    "timm": shrink_networks,
    "open_clip": without_clips_hub,
}


class Changer(MetaPathFinder):
    """Changes a module right after its import."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        change = CHANGES.pop(name, None)
        spec = None if change is None else find_spec(name)
        if change is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Changer())
runpy.run_path(str(Path(__file__).parents[2] / "offline" / "sitecustomize.py"))
