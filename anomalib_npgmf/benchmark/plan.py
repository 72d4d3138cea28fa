"""Plans: which models are trained and tested on which categories with which seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

_KEYS = {
    "plan": {"title", "data", "categories", "seeds", "trainer", "models"},
    "data": {"class_path", "init_args"},
    "model": {"class_path", "init_args", "variants", "data", "trainer"},
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Cell:
    """One training and test: a model in one variant, on one category, with one seed.

    Attributes:
        model: Name of the model in the plan.
        variant: Name of the variant.
        category: Name of the category.
        seed: Seed of everything random.
        model_class: Name in ``anomalib.models``, or a dotted path.
        model_args: Arguments of the model. A text ``weights:NAME`` stands for the local file that serves the timm
            network NAME.
        data_class: Name in ``anomalib.data``, or a dotted path.
        data_args: Arguments of the data module, without its root.
        trainer: Arguments of anomalib's engine.
        root: Folder of the data set; no part of what identifies a cell.
    """

    model: str
    variant: str
    category: str
    seed: int
    model_class: str
    model_args: dict[str, Any]
    data_class: str
    data_args: dict[str, Any]
    trainer: dict[str, Any]
    root: str | None = field(default=None, compare=False)

    @property
    def key(self) -> str:
        """Unique name within the plan, ``model/variant/category/seed<k>``."""
        return f"{self.model}/{self.variant}/{self.category}/seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Cells that belong together.

    Attributes:
        name: Name of the plan's file, without its ending.
        title: What a report calls it.
        cells: What to run, in this order.

    Example:
        >>> plan = parse_plan("tiny", {
        ...     "data": {"class_path": "LOCO", "init_args": {"root": "images/{seed}", "category": "{category}"}},
        ...     "categories": ["juice_bottle", "pushpins"],
        ...     "seeds": [0, 1],
        ...     "models": {"npgmf": {"class_path": "Npgmf", "variants": {"full": {}, "plain": {"use_codebooks": 0}}}},
        ... })
        >>> len(plan.cells)
        8
        >>> plan.cells[0].key, plan.cells[0].root, plan.cells[0].data_args
        ('npgmf/full/juice_bottle/seed0', 'images/0', {'category': 'juice_bottle'})
    """

    name: str
    title: str
    cells: tuple[Cell, ...]

    def select(self, patterns: Sequence[str]) -> Plan:
        """Keep the cells whose key fits one of the shell patterns; all of them if there is no pattern.

        Raises:
            ValueError: If a pattern fits no cell.
        """
        for pattern in patterns:
            if not any(fnmatch(cell.key, pattern) for cell in self.cells):
                msg = f"No cell of plan {self.name} fits {pattern!r}; a cell is named like {self.cells[0].key}."
                raise ValueError(msg)
        chosen = [cell for cell in self.cells if not patterns or any(fnmatch(cell.key, p) for p in patterns)]
        return replace(self, cells=tuple(chosen))


def load_plan(path: Path, root: str | None = None, epochs: int | None = None) -> Plan:
    """Read a plan.

    Args:
        path: YAML file. Its keys are ``title``; ``data`` (``class_path``, ``init_args``); ``categories``; ``seeds``;
            ``trainer`` (arguments of anomalib's engine); and ``models``, by name: ``class_path``, ``init_args``,
            ``variants`` (name to overriding ``init_args``), and ``data`` and ``trainer`` to override the plan's. In
            the data module's arguments ``{category}`` and ``{seed}`` stand for the cell's.
        root: Root of the data set instead of the plan's; may hold ``{category}`` and ``{seed}``.
        epochs: Number of epochs instead of the plan's.

    Returns:
        The plan.

    Raises:
        ValueError: If the file is no plan.
        FileNotFoundError: If there is no such file.
    """
    if not path.is_file():
        msg = f"There is no plan at {path}; give the path of a YAML file, such as configs/plans/synthetic.yaml."
        raise FileNotFoundError(msg)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"{path} is not valid YAML: {error}."
        raise ValueError(msg) from error
    return parse_plan(path.stem, content, root, epochs)


def parse_plan(name: str, content: Any, root: str | None = None, epochs: int | None = None) -> Plan:
    """As `load_plan`, from the content of the file."""
    plan = _section(content, "plan", f"plan {name}", ("data", "categories", "seeds", "models"))
    data = _section(plan["data"], "data", "data", ("class_path",))
    if not isinstance(plan["models"], dict) or not plan["models"]:
        msg = f"Plan {name} needs models: a mapping from a name to class_path and init_args."
        raise ValueError(msg)
    for key in ("categories", "seeds"):
        if not isinstance(plan[key], list) or not plan[key]:
            msg = f"Plan {name} needs {key}: a list of at least one."
            raise ValueError(msg)
    cells = []
    for model_name, entry in plan["models"].items():
        model = _section(entry, "model", f"model {model_name}", ("class_path",))
        trainer = _merge(plan.get("trainer") or {}, model.get("trainer") or {})
        if epochs is not None:
            trainer["max_epochs"] = epochs
        arguments = _merge(data.get("init_args") or {}, model.get("data") or {})
        if root is not None:
            arguments["root"] = root
        for variant, changes in (model.get("variants") or {"default": {}}).items():
            for category in plan["categories"]:
                _check_names(model_name, variant, category)
                for seed in plan["seeds"]:
                    data_args = _fill(arguments, category, seed)
                    cell = Cell(
                        model=model_name,
                        variant=variant,
                        category=category,
                        seed=seed,
                        model_class=model["class_path"],
                        model_args=_merge(model.get("init_args") or {}, changes or {}),
                        data_class=data["class_path"],
                        root=data_args.pop("root", None),
                        data_args=data_args,
                        trainer=trainer,
                    )
                    cells.append(cell)
    return Plan(name, plan.get("title") or name, tuple(cells))


def _section(content: Any, kind: str, what: str, required: Sequence[str]) -> dict[str, Any]:
    if not isinstance(content, dict):
        msg = f"The {what} must be a mapping with the keys {', '.join(sorted(_KEYS[kind]))}."
        raise ValueError(msg)  # noqa: TRY004  a file with wrong content, not a wrong argument
    if unknown := sorted(set(map(str, content)) - _KEYS[kind]):
        msg = f"The {what} has the unknown key {unknown[0]!r}; it may have {', '.join(sorted(_KEYS[kind]))}."
        raise ValueError(msg)
    if missing := [key for key in required if key not in content]:
        msg = f"The {what} lacks {missing[0]!r}."
        raise ValueError(msg)
    return content


def _check_names(*names: Any) -> None:
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            msg = f"{name!r} cannot name a model, variant or category: use a text of letters, digits and '_', '-', '.'."
            raise ValueError(msg)


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``, mappings inside merged likewise."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _fill(arguments: Mapping[str, Any], category: str, seed: int) -> dict[str, Any]:
    """Put category and seed in; a value that is only ``{seed}`` becomes a number."""
    filled: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, str):
            text = value.replace("{category}", category).replace("{seed}", str(seed))
            filled[key] = seed if value == "{seed}" else text
        else:
            filled[key] = value
    return filled
