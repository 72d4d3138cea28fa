"""Comparison of rules that merge score and map of the composition with those of the branches.

    python studies/merging_study.py --root drawings --photographs FOLDER
    python studies/merging_study.py --root drawings --photographs FOLDER --branches both --seeds 100

By default nothing is trained: preset small without the logical branch. With both branches, trained as in the plans
synthetic.yaml and juice_bottle.yaml of the benchmark, the rules that need a logical branch or many images are compared.
Data are development seeds of SyntheticLOCO, which no benchmark uses, and photographs, MVTec LOCO AD's juice_bottle in
FOLDER. Every rule is the model's with other constants. Statistics come from normal images alone. A cell (a category
with a seed) that is in the results file is not measured again.
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
# With both branches, as in the plans of the benchmark: drawn training images, epochs, share of the patches in the bank.
DRAWN: dict[str, Any] = {"drawn": 300, "epochs": 8, "coreset_ratio": 0.02}
PHOTOGRAPHS_EPOCHS = 12
BATCH = 16
Maps = dict[str, Tensor]
Change = Callable[[MapMerger, Maps], None]


@torch.no_grad()
def read_maps(args: argparse.Namespace, category: str, seed: int) -> tuple[list[Path], Maps, MapMerger]:
    """Paths and raw maps of the test images, and the calibrated merger."""
    settings: dict[str, Any] = {"epochs": 1}
    if args.branches == "both":
        settings = {"epochs": PHOTOGRAPHS_EPOCHS} if category == PHOTOGRAPHS else dict(DRAWN)
    data = data_of(args, category, seed, settings.pop("drawn", 60), tests=TESTS)
    model = composition_model(data, seed, branches=args.branches, **settings)
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


def eight(merger: MapMerger, maps: Maps) -> None:
    """A limit of the logical map that does not depend on what the branches see."""
    map_rule(quiet_limit=0.0)(merger, maps)
    logical_map(2.0, 8.0)(merger, maps)


def shared(merger: MapMerger, maps: Maps) -> None:
    """The surplus of all histograms by the largest lead, weight 45 up to 3: the rule of before."""
    assert merger.composition is not None
    maps["composition"] = maps["composition"].amax(dim=1, keepdim=True).expand_as(maps["composition"])
    merger.composition.weight.fill_(45.0)
    merger.composition.largest_lead.fill_(3.0)


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
RULES: dict[str, Change] = {
    "structural branch": part("structural"),
    "composition": part("composition"),
    "as in the model": constant("margins"),
    **{f"score: branches {margin:+}": constant("margins", -margin) for margin in (0.5, -0.5)},
    "score: without 64 codes of the whole image": without(1),
    "score: without 2 x 2": without(2),
    "score: without 4 x 4": without(3),
    **{f"map: cells' weight {w:.0f}": constant("weight", None, None, w, w) for w in (120.0, 480.0)},
    "map: cells' lead up to 2": constant("largest_lead", None, None, 2.0, 2.0),
    **{f"map: whole image's weight {w:.0f}": constant("weight", w, w) for w in (0.0, 90.0)},
    "map: whole image's lead up to 4": constant("largest_lead", 4.0, 4.0),
    "map: surplus of all by the largest lead": shared,
}
RULES_OF_BOTH: dict[str, Change] = {
    "logical branch": part("logical"),
    "structural branch": part("structural"),
    "composition": part("composition"),
    "as in the model": constant("margins"),
    "score: composition -0.5": constant("margins", None, 0.5),
    "map: the branches' score plus 0.5 counts": map_rule(lead_level=0.0, lead_allowance=-0.5),
    "map: level of the lead 0": map_rule(lead_level=0.0),
    "map: level of the lead 1": map_rule(lead_level=1.0),
    "map: no further lead of cells": constant("further_lead", 0.0, 0.0, 0.0, 0.0),
    "map: logical map not raised": logical_map(0.0, 0.0),
    "map: limit of the logical map 3": map_rule(quiet_limit=0.0),
    "map: limit of the logical map 8": eight,
}


@torch.no_grad()
def measure(args: argparse.Namespace, category: str, seed: int) -> dict[str, dict[str, float]]:
    """AUROC and AU-sPRO of every rule."""
    paths, maps, merger = read_maps(args, category, seed)
    rules = RULES if args.branches == "structural" else RULES_OF_BOTH
    found = {name: scores(paths, *merged(merger, maps, change)) for name, change in rules.items()}
    if args.branches == "both":
        return found
    return found | {"score: root of the sum of squares": scores(paths, root_of_squares(merger, maps))}


def main() -> None:
    categories = [*DEFAULTS["categories"], PHOTOGRAPHS]
    args = options(__doc__, root=Path, photographs=Path, seeds=[100, 101], categories=categories, branches="structural")

    def cell(category: str, seed: int) -> dict[str, dict[str, float]]:
        repeated = category == PHOTOGRAPHS and seed != args.seeds[0]  # only drawn images differ
        return {} if repeated else measure(args, category, seed)

    name = "merging_study" if args.branches == "structural" else "merging_study_both"
    collect(name, args, lambda cells: photographs_and_drawn(cells, "rule"), cell, merged=True)


if __name__ == "__main__":
    main()
