"""What the presets cost: operations, parameters, time per image and size of the bank (table VII of the paper).

    python studies/efficiency.py
    python studies/efficiency.py --repeats 9

The networks have random weights and the bank random patches, which changes no cost; the bank has as many patches
as the preset keeps of 350 images, the size of a category of MVTec LOCO AD. One image at a time; a part's figures
include the pass of its own network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from _common import fix_threads, gflops, measure, print_table, save
from torch import Tensor, nn

from anomalib_npgmf.config import PRESETS, resolve
from anomalib_npgmf.torch_model import NpgmfModel

IMAGES = 350


def ready(preset: str) -> NpgmfModel:
    """A preset with random weights that can predict."""
    torch.manual_seed(0)
    changes = {"text_prior": "random", "backbone_weights": "random", "structural_backbone_weights": "random"}
    model = NpgmfModel(resolve(preset, changes)).eval()
    assert model.structural is not None
    patches = model.structural.embed(model.features(image_of(model)).structural).flatten(0, 2)
    size = int(model.config.structural.coreset_ratio * IMAGES * len(patches))
    model.structural.bank.fill(torch.randn(size, patches.shape[1]))
    model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    return model


def image_of(model: NpgmfModel) -> Tensor:
    """An image of noise at the model's size."""
    return torch.randn(1, 3, *model.config.image_size, generator=torch.Generator().manual_seed(0))


def millions(*modules: nn.Module | None, trained: bool = False) -> float:
    """Parameters."""
    parameters = {p for module in modules if module is not None for p in module.parameters()}
    return sum(p.numel() for p in parameters if p.requires_grad or not trained) / 1e6


@torch.no_grad()
def costs(preset: str, repeats: int) -> list[dict[str, Any]]:
    """One row for each branch and one for the whole model."""
    model = ready(preset)
    image, logical, structural = image_of(model), model.logical, model.structural
    assert logical is not None
    assert structural is not None

    def logical_map() -> Tensor:
        features = model.features(image, ["logical"]).logical
        return logical.anomaly_map(features, logical(features, reconstruct=False))

    def structural_map() -> Tensor:
        return structural(model.features(image, ["structural"]).structural)

    parts: dict[str, tuple[Callable[[], object], tuple[nn.Module | None, ...]]] = {
        "logical branch": (logical_map, (model.encoder, logical)),
        "structural branch": (structural_map, (model.structural_encoder or model.encoder, structural)),
    }
    if model.composition is not None:
        composition = model.composition
        parts["composition read-out"] = (
            lambda: composition(model.features(image, ["composition"]).composition, model.merger.size),
            (model.structural_encoder or model.encoder, composition),
        )
    parts["whole model"] = (lambda: model(image), (model,))
    rows = []
    for name, (call, modules) in parts.items():
        times = measure(call, repeats=repeats)
        rows.append(
            {
                "preset": preset,
                "what": name,
                "image_size": max(model.config.logical_image_size)
                if name == "logical branch"
                else max(model.config.structural_image_size),
                "gflop": gflops(call),
                "parameters_m": millions(*modules),
                "trained_m": millions(*modules, trained=True),
                "wall_ms": 1e3 * times["wall_s"],
                "cpu_ms": 1e3 * times["cpu_s"],
                "bank_patches": len(structural.bank) if name in ("structural branch", "whole model") else "",
            }
        )
    return rows


def main() -> None:
    """Measure every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    fix_threads(1)
    rows: list[dict[str, Any]] = []
    for preset in PRESETS:
        rows += costs(preset, arguments.repeats)
        save("efficiency", rows)
    print_table(rows)


if __name__ == "__main__":
    main()
