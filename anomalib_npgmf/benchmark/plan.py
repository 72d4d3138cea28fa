"""Plans: which models are trained and tested on which categories with which seeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def key_of(cell: Mapping[str, Any]) -> str:
    """Name of a cell, ``model/variant/category/seed<k>``, from its fields."""
    return "{model}/{variant}/{category}/seed{seed}".format(**cell)


@dataclass(frozen=True)
class Cell:
    """One training and test: a model in one variant, on one category, with one seed.

    Classes are named as in ``anomalib.models`` and ``anomalib.data``, or by a dotted path.

    Attributes:
        model: Name of the model in the plan.
        variant: Name of a set of arguments that override the model's.
        category: Category of the data set.
        seed: Seed of training and, where the plan says so, of the images.
        model_class: Class of the model.
        model_args: Arguments of the model. A string ``weights:NAME`` stands for the local file of the timm
            network NAME.
        data_class: Class of the data module.
        data_args: Arguments of the data module, without its root.
        trainer: Arguments of anomalib's engine.
        root: Folder of the data set; excluded from equality.
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
        return key_of(vars(self))


@dataclass(frozen=True)
class Plan:
    """An ordered list of trainings.

    Attributes:
        name: Name of the plan's file.
        title: Title in reports.
        cells: What to run, in this order.

    Example:
        >>> plan = parse_plan("tiny", {
        ...     "data": {"class_path": "LOCO", "init_args": {"root": "images/{seed}", "category": "{category}"}},
        ...     "categories": ["juice_bottle", "pushpins"],
        ...     "seeds": [0, 1],
        ...     "models": {"npgmf": {"class_path": "Npgmf", "variants": {"full": {}, "plain": {"use_codebooks": 0}}}},
        ... })
        >>> len(plan.cells), plan.cells[0].key, plan.cells[0].root, plan.cells[0].data_args
        (8, 'npgmf/full/juice_bottle/seed0', 'images/0', {'category': 'juice_bottle'})
    """

    name: str
    title: str
    cells: tuple[Cell, ...]

    def select(self, patterns: Sequence[str]) -> Plan:
        """Keep the cells whose key matches one of the shell patterns; all of them if there is no pattern.

        Raises:
            ValueError: If a pattern matches no cell.
        """
        for pattern in patterns:
            if not any(fnmatch(cell.key, pattern) for cell in self.cells):
                msg = f"No cell of plan {self.name} fits {pattern!r}; a cell is named like {self.cells[0].key}."
                raise ValueError(msg)
        chosen = (cell for cell in self.cells if not patterns or any(fnmatch(cell.key, p) for p in patterns))
        return replace(self, cells=tuple(chosen))


def load_plan(path: Path, root: str | None = None, epochs: int | None = None) -> Plan:
    """Read a plan.

    Args:
        path: YAML file. Its keys are ``title``; ``data`` (``class_path``, ``init_args``); ``categories``; ``seeds``;
            ``trainer`` (arguments of anomalib's engine); and ``models``, a mapping from name to ``class_path``,
            ``init_args``, ``variants`` (name to overriding ``init_args``), and ``data`` and ``trainer`` to override the
            plan's. In the data module's arguments ``{category}`` and ``{seed}`` stand for the cell's.
        root: Root of the data set instead of the plan's; may hold ``{category}`` and ``{seed}``.
        epochs: Number of epochs instead of the plan's.

    Raises:
        ValueError: If the file is not a valid plan.
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
    plan = _section(f"plan {name}", content, ("data", "categories", "seeds", "models"), ("title", "trainer"))
    data = _section("data", plan["data"], ("class_path",), ("init_args",))
    for key, kind in (("models", dict), ("categories", list), ("seeds", list)):
        if not isinstance(plan[key], kind) or not plan[key]:
            msg = f"Plan {name} needs {key}: a {kind.__name__} of at least one."
            raise ValueError(msg)
    cells = []
    for model_name, entry in plan["models"].items():
        optional = ("init_args", "variants", "data", "trainer")
        model = _section(f"model {model_name}", entry, ("class_path",), optional)
        trainer = _merge(plan.get("trainer"), model.get("trainer"), {} if epochs is None else {"max_epochs": epochs})
        arguments = _merge(data.get("init_args"), model.get("data"), {} if root is None else {"root": root})
        variants = model.get("variants", {"default": {}})
        for variant, category, seed in product(variants, plan["categories"], plan["seeds"]):
            for text in (model_name, variant, category):
                if not isinstance(text, str) or not _NAME.fullmatch(text):
                    msg = f"{text!r} cannot name a model, variant or category: use letters, digits and '_', '-', '.'."
                    raise ValueError(msg)
            data_args = {key: _fill(value, category, seed) for key, value in arguments.items()}
            place = data_args.pop("root", None)
            ours = (model["class_path"], _merge(model.get("init_args"), variants[variant]))
            theirs = (data["class_path"], data_args)
            cells.append(Cell(model_name, variant, category, seed, *ours, *theirs, trainer, place))
    return Plan(name, plan.get("title", name), tuple(cells))


def _section(what: str, content: Any, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """A section of the file, after a check of its keys."""
    known = [*required, *optional]
    if not isinstance(content, dict):
        msg = f"The {what} must be a mapping with the keys {', '.join(known)}."
        raise ValueError(msg)  # noqa: TRY004  a file with wrong content, not a wrong argument
    if unknown := [key for key in content if key not in known]:
        msg = f"The {what} has the unknown key {unknown[0]!r}; it may have {', '.join(known)}."
        raise ValueError(msg)
    if missing := [key for key in required if key not in content]:
        msg = f"The {what} lacks {missing[0]!r}."
        raise ValueError(msg)
    return content


def _merge(*parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Deep merge of mappings; later values override earlier ones."""
    merged: dict[str, Any] = {}
    for key, value in ((key, value) for part in parts for key, value in (part or {}).items()):
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _fill(value: Any, category: str, seed: int) -> Any:
    """Fill in category and seed in a string; a value that is only ``{seed}`` becomes a number."""
    if value == "{seed}" or not isinstance(value, str):
        return seed if value == "{seed}" else value
    return value.replace("{category}", category).replace("{seed}", str(seed))
