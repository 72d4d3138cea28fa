"""CPU latency of the exported ``fast`` preset beside anomalib's exported PatchCore and ReverseDistillation.

    python studies/export_latency.py export --folder OUT
    python studies/export_latency.py time --folder OUT
    python studies/export_latency.py report

The same backbone (wide_resnet50_2, random weights: latency does not depend on them), image size and bank for all
(``--bank``: 3,584 patches are 1 % of those of 350 images), as OpenVINO files of fixed size, one image at a time. The
files take turns in one process, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import load, options, smooth_images, table, take_turns
from export_formats import megabytes, runner

from anomalib_npgmf.benchmark.record import write

OURS, PATCHCORE, RD = "Npgmf fast", "PatchCore", "ReverseDistillation"
DIM = 512 + 1024  # channels of the second and third block


def models(size: int, bank: torch.Tensor) -> dict[str, Any]:
    """The three models, ready to export."""
    from anomalib.models import Patchcore, ReverseDistillation

    from anomalib_npgmf import Npgmf

    ours = Npgmf(preset="fast", backbone_weights="random", text_prior="random", logical_image_size=size)
    ours.model.structural.bank.fill(bank)
    ours.model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    ours.post_processor.calibrate(torch.tensor([1.0, 2.0]))
    patchcore = Patchcore("wide_resnet50_2", layers=("layer2", "layer3"), pre_trained=False)
    patchcore.model.memory_bank = bank
    rd = ReverseDistillation("wide_resnet50_2", pre_trained=False)
    for model in (patchcore, rd):
        model.pre_processor = model.configure_pre_processor((size, size))
    return {OURS: ours.eval(), PATCHCORE: patchcore.eval(), RD: rd.eval()}


@torch.no_grad()
def export(args: argparse.Namespace) -> None:
    """Write the files, and print how far ours is from the model on a smooth image."""
    torch.manual_seed(0)
    found = models(args.size, torch.randn(args.bank, DIM).relu())
    for name, model in found.items():
        # For one image each: with a dynamic batch anomalib's PatchCore exports for two.
        kwargs = {"dynamic_axes": None, "dynamic_shapes": None}
        path = model.to_openvino(args.folder / name, input_size=(args.size, args.size), onnx_kwargs=kwargs)
        print(path, flush=True)
        if name == OURS:
            image, run = smooth_images(1, args.size).sigmoid(), runner(path)
            expected = model(image)
            gap = np.abs(run(image.numpy(), "anomaly_map") - expected.anomaly_map.numpy()).max()
            score = float(expected.pred_score)
            away = abs(float(run(image.numpy(), "pred_score").squeeze()) - score)
            print(f"file against model: map within {gap:.1e}, score within {away:.1e} of {score:.3f}")


def time_files(args: argparse.Namespace) -> None:
    """Measure the files."""
    paths = {name: args.folder / name / "weights" / "openvino" / "model.xml" for name in (OURS, PATCHCORE, RD)}
    runners = {name: runner(path) for name, path in paths.items()}
    image = np.random.default_rng(0).random((1, 3, args.size, args.size), dtype=np.float32)
    calls = {name: lambda run=run: run(image, "anomaly_map") for name, run in runners.items()}
    medians = 1000 * take_turns(calls, turns=args.repeats, warmup=2).groupby("name", sort=False).median()
    frame = medians.set_axis(["ms", "cpu_ms"], axis=1).rename_axis("model").reset_index()
    frame["MB"] = [megabytes(path.with_suffix(".bin")) for path in paths.values()]
    settings = {"size": args.size, "bank": args.bank, "inference_threads": args.threads}
    print(write(args.out / "export_latency.json", frame.to_dict("records"), **settings))
    report(args)


def report(args: argparse.Namespace) -> None:
    """Print the table, with a line for the two others one after the other."""
    frame = pd.DataFrame(load("export_latency", args.out)["rows"]).set_index("model")
    frame.loc[f"{PATCHCORE} + {RD}"] = frame.loc[[PATCHCORE, RD]].sum()
    shown = frame.round().astype(int)
    shown["CPU time / PatchCore"] = (frame.cpu_ms / frame.cpu_ms[PATCHCORE]).map("{:.2f}".format)
    print(table(shown.reset_index()))


def main() -> None:
    parts = {"export": export, "time": time_files, "report": report}
    args = options(__doc__, *parts, folder=Path, size=256, bank=3584, repeats=15, threads=2)
    if args.part != "report" and args.folder is None:
        raise SystemExit("--folder OUT is missing.")
    parts[args.part](args)


if __name__ == "__main__":
    main()
