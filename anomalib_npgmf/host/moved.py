"""Loading of files from before version 0.2: former names of tensors and classes, and the former architecture."""

import sys
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, Final

import torch

from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.config import COMPOSITIONS, PRESETS, ModelConfig
from anomalib_npgmf.merging import CompositionMerger

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

_PACKAGE: Final = "anomalib_npgmf"
_MOVED: Final = {
    "composition.reading": f"{_PACKAGE}.composition.histogram",
    "logical.small_maps": "torch.nn",
    "map_statistics": f"{_PACKAGE}.merging.statistics",
    "post_processor": f"{_PACKAGE}.host.post_processor",
    "presets": f"{_PACKAGE}.config",
    "resize": f"{_PACKAGE}.backbone.resize",
    "structural.memory_bank": f"{_PACKAGE}.structural.bank",
    "visualizer": f"{_PACKAGE}.host.visualizer",
}
_RENAMED: Final = {"Reading": "CodeHistograms", "HalvingConv2d": "Conv2d", "DoublingConv2d": "ConvTranspose2d"}
# Buffers that `CompositionMerger` did not have before 0.2, with values that keep the results of that time: its margins,
# no weight for the map of the logical branch, and a level of -inf, so that the composition leaves the map of the
# branches unchanged.
_MERGER: Final = {
    "margins": [0.0, 0.25],
    "logical_map_weight": 0.0,
    "logical_map_limit": 0.0,
    "normal_level": -torch.inf,
}
MAP_WEIGHTS: Final = ("weight", "largest_lead", "further_lead")  # where a file lacks them, as of today
_COMPOSITION: Final = {"readings": "histograms", "held_out": "cv_stats"}
FORMER_COMPOSITION: Final = MappingProxyType({"levels": (3, 4), "grids": (2, 3), "grid_codebook_sizes": (32,)})


def add_former_modules() -> None:
    """Register the old module names as aliases of the new ones.

    `anomalib_npgmf.lightning_model` calls this on import, since unpickling such a file imports it first.
    """
    for former, present in _MOVED.items():
        name, module = f"{_PACKAGE}.{former}", ModuleType(f"{_PACKAGE}.{former}")
        vars(module).update(vars(import_module(present)))
        for before, after in _RENAMED.items():
            if after in vars(module):
                setattr(module, before, getattr(module, after))
        parent, _, child = name.rpartition(".")
        sys.modules[name] = module
        setattr(sys.modules[parent], child, module)


def rename_tensors(state: dict[str, Any]) -> None:
    """Rename the tensors of a checkpoint to their present names, in place; see `rename_attributes`.

    Example:
        >>> state = {"model.composition.held_out": 1, "model.merger.mean": 2}
        >>> rename_tensors(state)
        >>> sorted(state)
        ['model.composition.cv_stats', 'model.merger.mean']
    """
    start = "model.merger.composition."
    if f"{start}mean" in state:
        for name, value in _MERGER.items():
            state.setdefault(start + name, torch.tensor(value))
    start = "model.composition."
    for name in [name for name in state if name.startswith(start)]:
        first, dot, rest = name.removeprefix(start).partition(".")
        state[f"{start}{_COMPOSITION.get(first, first)}{dot}{rest}"] = state.pop(name)


def rename_attributes(composition: Any, merger: Any = None) -> None:
    """Rename modules and buffers of an unpickled composition branch; ``None`` stays as it is.

    A merger from before 0.2 has no ``normal_level``, and its margins differ. Scores stay as they were; until the model
    is calibrated anew, the merged map is that of the branches, without the composition.
    """
    if merger is not None:
        for name, value in _MERGER.items():
            merger._buffers.setdefault(name, torch.tensor(value, device=merger.mean.device))
    for entries in () if composition is None else (composition._modules, composition._buffers):
        for old, new in _COMPOSITION.items():
            if old in entries:
                entries[new] = entries.pop(old)
    if composition is not None and merger is not None and not merger._buffers.keys() >= set(MAP_WEIGHTS):
        present = CompositionMerger(composition.grids).to(merger.mean.device)
        for name in MAP_WEIGHTS:
            merger._buffers.setdefault(name, getattr(present, name))


def complete_pickled(module: "Npgmf") -> None:
    """Give an unpickled model what files of before version 0.2 lack; a present one stays as it is."""
    module.model.merger.output_size = module.model.config.image_size
    rename_attributes(module.model.composition, module.model.merger.composition)
    if "dilations" not in vars(module.settings.logical):
        module.settings = former_choices(module.settings)


def former_choices(settings: ModelConfig) -> ModelConfig:
    """Settings with the values that were fixed before version 0.2 and can be set since.

    Args:
        settings: Resolved settings of a model whose file names no configuration.

    Example:
        >>> former_choices(PRESETS["literal"]).logical.decoder_blocks
        3
    """
    logical = settings.logical
    blocks = 3 if logical.decoder_blocks == PRESETS["literal"].logical.decoder_blocks else logical.decoder_blocks
    return replace(
        settings,
        logical=replace(logical, dilations="level", rectify_embedding=False, decoder_blocks=blocks),
        structural=replace(settings.structural, whiten=False, neighbourhood=(3,)),
    )


def former_composition(settings: ModelConfig) -> ModelConfig:
    """Settings whose composition has the defaults of before version 0.2 where it has those of today.

    Args:
        settings: Resolved settings of a model whose file does not tell the arguments of its training.

    Example:
        >>> former_composition(PRESETS["plus"]).composition.codes_of_grids
        (32, 32)
    """
    composition = settings.composition
    if composition is None:
        return settings
    today = [vars(config) for config in (CompositionConfig(), COMPOSITIONS["small"])]
    former: dict[str, Any] = {
        name: value
        for name, value in FORMER_COMPOSITION.items()
        if any(getattr(composition, name) == defaults[name] for defaults in today)
    }
    return replace(settings, composition=replace(composition, **former))
