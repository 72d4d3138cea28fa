"""Comparison of rules that merge score and map of the composition with those of the branches.

    python studies/merging_study.py --root drawings --photographs FOLDER --seeds 100

Trains preset small with the composition as the plans synthetic.yaml and juice_bottle.yaml of the benchmark do. Data are
development seeds of SyntheticLOCO, which no benchmark uses, and photographs, MVTec LOCO AD's juice_bottle in FOLDER.
Every rule is the model's with other constants. Statistics come from normal images alone. A cell (a category with a
seed) that is in the results file is not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from _common import options
from _drawn import DEFAULTS, PHOTOGRAPHS, collect, composition_model, data_of, photographs_and_drawn, scores
from torch import Tensor

from anomalib_npgmf.merging import MapMerger, Merged

TESTS = 40  # drawn test images of each kind
IMAGES = 300  # drawn training images
# Trainings of the plans synthetic.yaml and juice_bottle.yaml.
DRAWN: dict[str, Any] = {"epochs": 8, "coreset_ratio": 0.02}
PHOTOGRAPHED: dict[str, Any] = {"epochs": 12}
BATCH = 16
Maps = dict[str, Tensor]
Change = Callable[[MapMerger, Maps], None]


@torch.no_grad()
def read_maps(args: argparse.Namespace, category: str, seed: int) -> tuple[list[Path], Maps, MapMerger]:
    """Paths and raw maps of the test images, and the calibrated merger."""
    data = data_of(args, category, seed, IMAGES, tests=TESTS)
    model = composition_model(data, seed, **(PHOTOGRAPHED if category == PHOTOGRAPHS else DRAWN))
    data.setup("test")
    paths, found = [], []
    for batch in data.test_dataloader():
        paths += [Path(path) for path in batch.image_path]
        found.append(model.model.branch_maps(model.pre_processor(batch.image)).maps)
    return paths, {name: torch.cat([maps[name] for maps in found]) for name in found[0]}, model.model.merger


def merged(merger: MapMerger, maps: Maps, change: Change) -> Merged:
    """Scores and maps by a merger with other constants, in batches."""
    changed, maps = deepcopy(merger), dict(maps)
    change(changed, maps)
    number = len(next(iter(maps.values())))
    batches = [
        changed({name: values[start : start + BATCH] for name, values in maps.items()})
        for start in range(0, number, BATCH)
    ]
    return Merged(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def constant(name: str, *values: float | None) -> Change:
    """Set entries of a buffer of the composition's merger; ``None`` leaves one as it is."""

    def change(merger: MapMerger, maps: Maps) -> None:
        del maps
        buffer = getattr(merger.composition, name)
        for index, value in enumerate(values):
            if value is not None:
                buffer[index] = value

    return change


def without(histogram: int) -> Change:
    """Leave a histogram out; mean and standard deviation of the score, and its surplus in the map, stay."""

    def change(merger: MapMerger, maps: Maps) -> None:
        del merger
        maps["composition_scores"] = maps["composition_scores"].clone()
        maps["composition_scores"][:, histogram] = -torch.inf

    return change


def part(name: str) -> Change:
    """Keep the maps of one branch alone."""

    def change(merger: MapMerger, maps: Maps) -> None:
        del merger
        for other in [other for other in maps if not other.startswith(name)]:
            del maps[other]

    return change


def logical_map(weight: float, limit: float) -> Change:
    """Raise the map of the logical branch by another weight, up to another limit."""

    def change(merger: MapMerger, maps: Maps) -> None:
        del maps
        assert merger.composition is not None
        merger.composition.logical_map_weight.fill_(weight)
        merger.composition.logical_map_limit.fill_(limit)

    return change


def map_rule(**numbers: float) -> Change:
    """Other numbers in the rule of the map."""

    def change(merger: MapMerger, maps: Maps) -> None:
        del maps
        assert merger.composition is not None
        merger.composition.rule = merger.composition.rule._replace(**numbers)

    return change


def in_turn(*changes: Change) -> Change:
    """Several changes, one after the other."""

    def change(merger: MapMerger, maps: Maps) -> None:
        for one in changes:
            one(merger, maps)

    return change


def root_of_squares(merger: MapMerger, maps: Maps) -> Tensor:
    """Root of the sum of the squares of positive scores, [N]."""
    assert merger.composition is not None
    branches = merger.merge_branches(maps)
    assert branches is not None
    pair = (
        merger.composition.of_branches(branches.amax((1, 2, 3))),
        merger.composition.of_composition(maps["composition_scores"]),
    )
    return (pair[0].relu().square() + pair[1].relu().square()).sqrt()


# Histograms: whole image, whole image whitened, 2 x 2, 4 x 4.
NOT_FURTHER = constant("further_lead", 0.0, 0.0, 0.0, 0.0)
FORMER_LEAD = map_rule(lead_level=0.0, lead_allowance=-0.5)
RULES: dict[str, Change] = {
    "logical branch": part("logical"),
    "structural branch": part("structural"),
    "composition": part("composition"),
    "as in the model": constant("margins"),
    **{f"score: branches {margin:+}": constant("margins", -margin) for margin in (0.5, -0.5)},
    "score: without 64 codes of the whole image": without(1),
    "score: without 2 x 2": without(2),
    "score: without 4 x 4": without(3),
    "map: the former rule": in_turn(NOT_FURTHER, FORMER_LEAD, map_rule(logical_quiet_limit=0.0)),
    "map: former lead": FORMER_LEAD,
    **{f"map: level of the lead {level:g}": map_rule(lead_level=level) for level in (0.0, 1.0)},
    "map: no further lead of cells": NOT_FURTHER,
    **{f"map: cells' weight {w:.0f}": constant("weight", None, None, w, w) for w in (120.0, 480.0)},
    **{f"map: whole image's weight {w:.0f}": constant("weight", w, w) for w in (0.0, 90.0)},
    "map: logical map not raised": logical_map(0.0, 0.0),
    "map: logical map up to 3 everywhere": map_rule(logical_quiet_limit=0.0),
    "map: logical map up to 8 everywhere": in_turn(logical_map(2.0, 8.0), map_rule(logical_quiet_limit=0.0)),
}


@torch.no_grad()
def measure(args: argparse.Namespace, category: str, seed: int) -> dict[str, dict[str, float]]:
    """AUROC and AU-sPRO of every rule."""
    paths, maps, merger = read_maps(args, category, seed)
    found = {name: scores(paths, *merged(merger, maps, change)) for name, change in RULES.items()}
    return found | {"score: root of the sum of squares": scores(paths, root_of_squares(merger, maps))}


def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args = options(__doc__, root=Path, photographs=Path, seeds=[100, 101], categories=categories)

    def cell(category: str, seed: int) -> dict[str, dict[str, float]]:
        repeated = category == PHOTOGRAPHS and seed != args.seeds[0]  # only drawn images differ
        return {} if repeated else measure(args, category, seed)

    collect("merging_study", args, lambda cells: photographs_and_drawn(cells, "rule"), cell, merged=True)


if __name__ == "__main__":
    main()
