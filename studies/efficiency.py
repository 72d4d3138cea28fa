"""What the presets cost: operations, parameters, time per image and size of the bank (table VII of the paper).

    python studies/efficiency.py
    python studies/efficiency.py --repeats 9

The networks have random weights and the bank random patches, which changes no cost; the bank has as many patches
as the preset keeps of 350 images, the size of a category of MVTec LOCO AD. One image at a time; a part's figures
include the pass of its own network.
"""

from __future__ import annotations

from typing import Any

import torch
from _common import Call, Row, gflops, options, ready, table
from torch import nn

from anomalib_npgmf.benchmark.record import write
from anomalib_npgmf.benchmark.timing import measure
from anomalib_npgmf.config import PRESETS

IMAGES = 350


def millions(*modules: nn.Module, trained: bool = False) -> float:
    """Parameters."""
    parameters = {p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in parameters if p.requires_grad or not trained) / 1e6


@torch.no_grad()
def costs(preset: str, repeats: int) -> list[Row]:
    """One row for each branch and one for the whole model."""
    torch.manual_seed(0)
    weights = {"text_prior": "random", "backbone_weights": "random", "structural_backbone_weights": "random"}
    model = ready(preset, **weights)
    image = torch.randn(1, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0))
    # typed as Any: every preset has both branches
    logical: Any = model.logical
    structural: Any = model.structural
    composition: Any = model.composition
    encoder: Any = model.structural_encoder or model.encoder
    patches = structural.embed(model.features(image).structural).flatten(0, 2)
    structural.bank.fill(
        torch.randn(int(model.config.structural.coreset_ratio * IMAGES * len(patches)), patches.shape[1])
    )

    def logical_map() -> object:
        features = model.features(image, ["logical"]).logical
        return logical.anomaly_map(features, logical(features, reconstruct=False))

    parts: dict[str, tuple[Call, tuple[nn.Module, ...]]] = {
        "logical branch": (logical_map, (model.encoder, logical)),
        "structural branch": (
            lambda: structural(model.features(image, ["structural"]).structural),
            (encoder, structural),
        ),
        "composition read-out": (
            lambda: composition(model.features(image, ["composition"]).composition, model.merger.size),
            (encoder, composition),
        ),
        "whole model": (lambda: model(image), (model,)),
    }
    if composition is None:
        del parts["composition read-out"]
    rows = []
    for name, (call, modules) in parts.items():
        times = measure(call, repeats=repeats)
        size = model.config.logical_image_size if name == "logical branch" else model.config.structural_image_size
        row: Row = {"preset": preset, "what": name, "image_size": max(size), "gflop": gflops(call)}
        row |= {"parameters_m": millions(*modules), "trained_m": millions(*modules, trained=True)}
        row |= {f"{clock}_ms": 1e3 * times[f"{clock}_s"] for clock in ("wall", "cpu")}
        rows.append(
            row | {"bank_patches": len(structural.bank) if name in ("structural branch", "whole model") else ""}
        )
    return rows


def main() -> None:
    args = options(__doc__, repeats=5, presets=list(PRESETS))
    rows: list[Row] = []
    for preset in args.presets:
        rows += costs(preset, args.repeats)
        write(args.out / "efficiency.json", rows)
    print(table(rows))


if __name__ == "__main__":
    main()
