"""Rebuilds a model with the configuration of a checkpoint, so that one made without arguments can load it."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from anomalib.models.components import AnomalibModule

from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.config import OVERRIDABLE, ModelConfig, resolve
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.host.checkpoint import check_checkpoint
from anomalib_npgmf.host.compat import keep_antialiasing
from anomalib_npgmf.host.fit import restore_category
from anomalib_npgmf.host.moved import (
    FORMER_COMPOSITION,
    MAP_WEIGHTS,
    former_choices,
    former_composition,
    rename_tensors,
)
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.structural.config import StructuralConfig
from anomalib_npgmf.torch_model import NpgmfModel

if TYPE_CHECKING:
    from anomalib_npgmf.lightning_model import Npgmf

_WEIGHTS = {"backbone_weights", "structural_backbone_weights"}  # initial weights; a checkpoint holds its own
_BRANCHES = ("logical", "structural")
_COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")


def restore(module: "Npgmf", checkpoint: dict[str, Any], metadata: dict[str, Any] | None) -> None:
    """Restore configuration, components and category from a checkpoint, before Lightning loads the state dict.

    Args:
        module: The model.
        checkpoint: The checkpoint as Lightning loads it; former names of its tensors are renamed in place.
        metadata: Its metadata, see `anomalib_npgmf.export.describe`.

    Raises:
        ValueError: If an argument that the model was made with is not that of the checkpoint, or if the checkpoint is
            of another model or of a newer version.
    """
    rename_tensors(checkpoint["state_dict"])
    take_configuration(module, checkpoint, metadata)
    if (merger := module.model.merger.composition) is not None:
        for name in MAP_WEIGHTS:
            checkpoint["state_dict"].setdefault(f"model.merger.composition.{name}", getattr(merger, name))
    check_checkpoint(checkpoint["state_dict"], metadata, module)
    assert metadata is not None
    AnomalibModule.on_load_checkpoint(module, checkpoint)
    keep_antialiasing(module.pre_processor)
    resize_data(module)
    restore_category(module, metadata)
    module.weights_ready = True


def take_configuration(module: "Npgmf", checkpoint: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
    """Give a model the configuration of a checkpoint, before its tensors are loaded.

    Args:
        module: The model.
        checkpoint: The checkpoint as Lightning loads it.
        metadata: Its metadata, see `anomalib_npgmf.export.describe`; without them the model stays as it is.

    Raises:
        ValueError: If an argument that the model was made with is not that of the checkpoint, or if the checkpoint is
            of a newer version.
    """
    if not isinstance(metadata, dict) or not {"preset", "prompt"} <= metadata.keys():
        return  # for `check_checkpoint` to refuse
    given = _without_defaults(module.hparams)
    stored = checkpoint.get("hyper_parameters") or {}
    if "configuration" in metadata:
        settings = model_config(metadata["configuration"], metadata["version"])
        check_given(given, settings, metadata["preset"], metadata["prompt"])
    else:
        settings = former_choices(_before_0_2(given, stored, metadata) or former_composition(module.settings))
    _disable_components(module, checkpoint.get("anomalib_components_enabled"))
    if not given.get("preset"):
        module.preset = metadata["preset"]
    if settings == module.settings:
        return
    images = module.calibrator.images
    module.settings = settings
    module.model = NpgmfModel(settings).to(module.model.merger.mean.device).train(module.training)
    module.calibrator = Calibrator(module.model, module.normalised)
    module.calibrator.reset(images)
    module.hparams.update(stored)


def check_given(arguments: Mapping[str, Any], settings: ModelConfig, preset: str, prompt: str | None) -> None:
    """Raise if an argument that was given for a model contradicts its checkpoint.

    Args:
        arguments: Of the constructor; those that are ``None`` were not given.
        settings: The checkpoint's.
        preset: Preset of the checkpoint.
        prompt: Prompt of the checkpoint.

    Raises:
        ValueError: If one differs. Sources of weights are not compared, because the checkpoint holds the weights.

    Example:
        >>> check_given({"merging": "maximum"}, resolve("small", {}), "small", None)
        Traceback (most recent call last):
        ...
        ValueError: The checkpoint was made with merging 'sum' (not 'maximum'); leave these arguments out, or give ...
    """
    given = _without_defaults(arguments)
    own = {"preset": preset, "prompt": prompt}
    others = [f"{name} {own[name]!r} (not {given[name]!r})" for name in own if given.get(name, own[name]) != own[name]]
    if wrong := [*_disagreements(given, settings), *others]:
        msg = f"The checkpoint was made with {', '.join(wrong)}; leave these arguments out, or give the same."
        raise ValueError(msg)


def _without_defaults(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value not in (None, {})}


def model_config(plain: Mapping[str, Any], version: str) -> ModelConfig:
    """The configuration that a checkpoint describes.

    Args:
        plain: ``dataclasses.asdict`` of it.
        version: Version of this package that wrote it.

    Raises:
        ValueError: If it has a field that this version does not know.

    Example:
        >>> from dataclasses import asdict
        >>> config = resolve("plus", {})
        >>> model_config(asdict(config), "0.2.0") == config
        True
    """
    parts = {"logical": LogicalConfig, "structural": StructuralConfig, "composition": CompositionConfig}
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in plain.items()}
    composition = plain.get("composition")
    if isinstance(composition, dict) and not composition.get("region_levels"):
        composition.pop("region_levels", None)  # a former part of the composition, not in use
    unset = "structural_backbone" in plain and plain["structural_backbone"] is None
    if unset and plain.get("structural_backbone_weights") != "random":
        plain["structural_backbone_weights"] = None  # a file that earlier versions accepted and did not read
    values = {
        name: _known(parts[name], value, version) if name in parts and value is not None else value
        for name, value in plain.items()
    }
    config: ModelConfig = _known(ModelConfig, values, version)
    return config


def _known(kind: Any, values: Mapping[str, Any], version: str) -> Any:
    if unknown := sorted(set(values) - {field.name for field in fields(kind)}):
        msg = f"The checkpoint has settings that this version does not know ({', '.join(unknown)}); install {version}."
        raise ValueError(msg)
    return kind(**values)


def _disagreements(given: Mapping[str, Any], settings: ModelConfig) -> Iterator[str]:
    """Settings of the checkpoint that given arguments contradict: ``merging 'sum' (not 'maximum')``."""
    for name in OVERRIDABLE:
        if name in given and name not in _WEIGHTS:
            yield from _compare(settings, name, given[name])
    for part in _BRANCHES:
        for name, value in given.get(part, {}).items():
            yield from _compare(getattr(settings, part), name, value, f"{part}.")
    wanted = given.get("composition")
    if wanted is not None and (wanted is not False) != (settings.composition is not None):
        yield f"composition {settings.composition is not None} (not {wanted is not False})"
    elif isinstance(wanted, Mapping):
        assert settings.composition is not None
        other = replace(settings.composition, **{"grid_codebook_sizes": (), **wanted})
        alike = other.codes_of_grids == settings.composition.codes_of_grids  # perhaps in other words
        for name in wanted:
            if not (alike and name == "grid_codebook_sizes"):
                yield from _differs(settings.composition, other, name, "composition.")


def _compare(config: Any, name: str, value: Any, prefix: str = "") -> Iterator[str]:
    yield from _differs(config, replace(config, **{name: value}), name, prefix)


def _differs(config: Any, other: Any, name: str, prefix: str) -> Iterator[str]:
    stored, wanted = getattr(config, name), getattr(other, name)
    if _plain(stored) != _plain(wanted):
        yield f"{prefix}{name} {stored!r} (not {wanted!r})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # YAML gives lists


def _before_0_2(given: Mapping[str, Any], stored: Mapping[str, Any], metadata: Mapping[str, Any]) -> ModelConfig | None:
    """Configuration of a checkpoint that has none, from the arguments of its training; ``None`` if these are unknown.

    Presets have changed since, so metadata and stored arguments override them; what the user gives overrides all.
    """
    named = {name: metadata[name] for name in ("preset", "backbone", "merging") if metadata.get(name) is not None}
    arguments: dict[str, Any] = {
        **named,
        **{name: value for name, value in stored.items() if value is not None},
        **given,
    }
    logical, structural = ({**(stored.get(part) or {}), **given.get(part, {})} for part in _BRANCHES)
    overrides = {name: arguments.get(name) for name in OVERRIDABLE}
    composition = arguments.get("composition", arguments.get("preset") == "plus")
    if composition is not False:
        choices: list[Any] = [FORMER_COMPOSITION, stored.get("composition"), composition]
        composition = {
            name: value for chosen in choices if isinstance(chosen, Mapping) for name, value in chosen.items()
        }
    try:
        return resolve(arguments["preset"], overrides, logical, structural, composition)
    except (ValueError, TypeError, KeyError):
        return None


def _disable_components(module: "Npgmf", flags: dict[str, bool] | None) -> None:
    """Remove components that the training had disabled, also from the trainer, which holds them as callbacks."""
    before = [getattr(module, name) for name in _COMPONENTS]
    module._restore_component_enabled_flags(flags)
    after = [getattr(module, name) for name in _COMPONENTS]
    gone = [component for component in before if component is not None and not any(component is kept for kept in after)]
    trainer: Any = module._trainer
    if trainer is not None and gone:
        trainer.callbacks = [
            callback for callback in trainer.callbacks if not any(callback is component for component in gone)
        ]


def resize_data(module: "Npgmf") -> None:
    """Have the data module resize to the size of the checkpoint's model, which is known only after its setup."""
    trainer = module._trainer
    datamodule = getattr(trainer, "datamodule", None)
    if trainer is not None and datamodule is not None:
        datamodule.setup(trainer.state.fn)  # may be repeated: Lightning also calls it for each of its functions
