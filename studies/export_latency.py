"""CPU latency of the exported ``fast`` preset beside anomalib's exported PatchCore and ReverseDistillation.

    python studies/export_latency.py export --folder OUT
    python studies/export_latency.py time --folder OUT
    python studies/export_latency.py report

The same backbone (wide_resnet50_2, random weights: latency does not depend on them), image size and bank for all, as
OpenVINO files of fixed size, one image at a time. The files take turns in one process, so that whatever else the
machine does meets all alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import openvino
import torch
from _common import RESULTS, fix_threads, print_table, save, smooth_images
from anomalib.models import Patchcore, ReverseDistillation

from anomalib_npgmf import Npgmf

DIM = 512 + 1024  # channels of the second and third block


def npgmf(size: int, bank: torch.Tensor) -> Npgmf:
    model = Npgmf(preset="fast", backbone_weights="random", text_prior="random", logical_image_size=size)
    model.model.structural.bank.fill(bank)
    model.model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    model.post_processor.calibrate(torch.tensor([1.0, 2.0]))
    return model


def patchcore(size: int, bank: torch.Tensor) -> Patchcore:
    model = Patchcore("wide_resnet50_2", layers=("layer2", "layer3"), pre_trained=False)
    model.pre_processor = model.configure_pre_processor((size, size))
    model.model.memory_bank = bank
    return model


def reverse_distillation(size: int, bank: torch.Tensor) -> ReverseDistillation:
    del bank
    model = ReverseDistillation("wide_resnet50_2", pre_trained=False)
    model.pre_processor = model.configure_pre_processor((size, size))
    return model


MODELS = {"Npgmf fast": npgmf, "PatchCore": patchcore, "ReverseDistillation": reverse_distillation}


def export(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    bank = torch.randn(args.bank, DIM).relu()
    for name, build in MODELS.items():
        model = build(args.size, bank).eval()
        # For one image each: with a dynamic batch anomalib's PatchCore exports for two.
        kwargs = {"dynamic_axes": None, "dynamic_shapes": None}
        path = model.to_openvino(args.folder / name, input_size=(args.size, args.size), onnx_kwargs=kwargs)
        print(path, flush=True)
        if isinstance(model, Npgmf):
            check(model, path, args.size)


@torch.no_grad()
def check(model: Npgmf, path: Path, size: int) -> None:
    """Print how far the file is from the model on a smooth image."""
    image = smooth_images(1, size).sigmoid()
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found, expected = compiled(image.numpy()), model(image)
    gap = np.abs(found["anomaly_map"] - expected.anomaly_map.numpy()).max()
    score = abs(found["pred_score"].item() - expected.pred_score.item())
    print(f"file against model: map within {gap:.1e}, score within {score:.1e} of {expected.pred_score.item():.3f}")


def time_files(args: argparse.Namespace) -> None:
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": args.threads}
    core = openvino.Core()
    paths = {name: args.folder / name / "weights" / "openvino" / "model.xml" for name in MODELS}
    compiled = {name: core.compile_model(path, "CPU", config) for name, path in paths.items()}
    image = np.random.default_rng(0).random((1, 3, args.size, args.size), dtype=np.float32)
    walls: dict[str, list[float]] = {name: [] for name in MODELS}
    cpus: dict[str, list[float]] = {name: [] for name in MODELS}
    for repeat in range(args.repeats + 2):
        for name, model in compiled.items():
            wall, cpu = time.perf_counter(), time.process_time()
            model(image)
            if repeat >= 2:  # the first two warm up
                walls[name].append(time.perf_counter() - wall)
                cpus[name].append(time.process_time() - cpu)
    rows = [
        {
            "model": name,
            "ms": 1000 * median(walls[name]),
            "cpu_ms": 1000 * median(cpus[name]),
            "MB": paths[name].with_suffix(".bin").stat().st_size / 1e6,
        }
        for name in MODELS
    ]
    print(save("export_latency", rows, size=args.size, bank=args.bank, inference_threads=args.threads))
    report()


def report() -> None:
    """Print the table, with a line for the two others one after the other."""
    rows = json.loads((RESULTS / "export_latency.json").read_text())["rows"]
    others = [row for row in rows if row["model"] != "Npgmf fast"]
    rows.append({"model": " + ".join(row["model"] for row in others)})
    rows[-1] |= {key: sum(row[key] for row in others) for key in ("ms", "cpu_ms", "MB")}
    baseline = next(row["cpu_ms"] for row in rows if row["model"] == "PatchCore")
    lines = [
        {"model": row["model"]}
        | {key: str(round(row[key])) for key in ("ms", "cpu_ms", "MB")}
        | {"CPU time / PatchCore": f"{row['cpu_ms'] / baseline:.2f}"}
        for row in rows
    ]
    print_table(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("export", "time", "report"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--bank", type=int, default=3584, help="1 % of the patches of 350 images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args(arguments)
    fix_threads(args.threads)
    if args.part == "report":
        report()
    elif args.folder is None:
        parser.error("--folder is missing")
    else:
        {"export": export, "time": time_files}[args.part](args)


if __name__ == "__main__":
    main()
