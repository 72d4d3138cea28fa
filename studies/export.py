"""Exported models: accuracy, size and CPU latency of every format, and latency beside anomalib's exported models.

    python studies/export.py formats
    python studies/export.py latency
    python studies/export.py report

``formats`` draws categories of SyntheticLOCO, trains preset ``small`` with the composition on each, exports it and
evaluates every file on the test images through its own runtime. ``latency`` exports preset ``fast``, PatchCore and
ReverseDistillation with the same backbone (wide_resnet50_2, random weights), image size and bank (3,584 patches are 1 %
of those of 350 images) to OpenVINO. Both keep the files below ``--folder`` and time one image at a time. ``report``
prints the tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Row, measured, run_part, save, table, take_turns, timed
from _drawn import fit, scores
from numpy.typing import NDArray

from anomalib_npgmf import Npgmf, SyntheticLOCO

COMPRESSIONS = {"FP32": None, "FP16": "FP16", "INT8 weights": "INT8", "INT8_PTQ": "INT8_PTQ"}
SMALLER = (8, 64)  # the whole bank divided by these
ACCURACY = {"image AUROC %": "AUROC mean", "sPRO@0.05 %": "sPRO mean"}
OURS, PATCHCORE, RD = "Npgmf fast", "PatchCore", "ReverseDistillation"
SIZE = 256
BANK, DIM = 3584, 512 + 1024  # channels of the second and third block
Runner = Callable[[NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]


def runner(path: Path) -> Runner:
    """Function that runs an exported file: images [B, 3, H, W] to scores and maps."""
    threads = torch.get_num_threads()
    if path.suffix == ".pt":
        model = torch.load(path, weights_only=False)["model"].eval()

        @torch.no_grad()
        def predict(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            found = model(torch.from_numpy(batch))
            return found.pred_score.numpy(), found.anomaly_map.numpy()

        return predict
    if path.suffix == ".onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda batch: tuple(session.run(["pred_score", "anomaly_map"], {"input": batch}))
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(path, "CPU", config)

    def infer(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = compiled(batch)
        return found["pred_score"], found["anomaly_map"]

    return infer


def megabytes(path: Path) -> float:
    """Size of a file, and of the weights beside it."""
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists()) / 1e6


def random_image() -> NDArray[np.float32]:
    """A random image for timing, [1, 3, SIZE, SIZE]."""
    return np.random.default_rng(0).random((1, 3, SIZE, SIZE), dtype=np.float32)


def files_of(model: Any, data: Any, folder: Path, *, banks: bool) -> list[tuple[str, str, Path]]:
    """Export to every format and, with ``banks``, with smaller banks: name of the table, row and file of each."""
    from anomalib.deploy import CompressionType

    onnx = model.to_onnx(folder)
    found = [("formats", "torch .pt", model.to_torch(folder)), ("formats", "ONNX Runtime", onnx)]
    for name, kind in COMPRESSIONS.items():
        compression = kind and CompressionType[kind]
        path = model.to_openvino(folder / name, compression_type=compression, datamodule=data)
        found.append(("formats", f"OpenVINO {name}", path))
    if banks:
        whole = len(model.model.structural.bank)
        found.append(("banks", str(whole), onnx))
        for size in (max(1, whole // divisor) for divisor in SMALLER):
            path = model.to_onnx(folder / f"bank_{size}", bank_size=size, datamodule=data)
            found.append(("banks", str(size), path))
    return found


def formats(args: argparse.Namespace) -> None:
    """Train, export, evaluate and time; the first category shows what a smaller bank costs, and the times."""
    from anomalib.data.utils import read_image

    rows: list[Row] = []
    tests = {f"num_test_{kind}": args.test for kind in ("good", "logical", "structural")}
    counts = {"num_train": args.train, "num_validation": 12, **tests, "train_batch_size": 4, "eval_batch_size": 4}
    for category in args.categories:
        data = SyntheticLOCO(args.folder / "data", category, image_size=SIZE, **counts)
        torch.manual_seed(0)
        model = Npgmf(preset="small", composition=True, visualizer=False)
        fit(model, data, max_epochs=args.epochs, accelerator="cpu")
        first = category == args.categories[0]
        for kind, name, path in files_of(model, data, args.folder / category, banks=first):
            run = runner(path)
            images = sorted((args.folder / "data" / category / "test").rglob("*.png"))
            found = [run(read_image(image, as_tensor=True)[None].numpy()) for image in images]
            image_scores, maps = (torch.from_numpy(np.concatenate(part)) for part in zip(*found, strict=True))
            values = scores(images, image_scores.flatten(), maps.reshape(len(images), 1, SIZE, SIZE))
            row: Row = {"table": kind, "name": name, "category": category, "MB": megabytes(path)}
            row |= {column: values[source] for column, source in ACCURACY.items()}
            if first:
                image = random_image()
                seconds = timed(lambda run=run, image=image: run(image), args.repeats, warmup=3)
                row |= {"ms": 1000 * seconds["wall_s"], "cpu_ms": 1000 * seconds["cpu_s"]}
            rows.append(row)
    names = ("train", "epochs", "test", "repeats")
    save(args.out / "export_formats.json", rows, settings={name: getattr(args, name) for name in names})


@torch.no_grad()
def latency(args: argparse.Namespace) -> None:
    """Export, and time the files in alternation."""
    from anomalib.models import Patchcore, ReverseDistillation

    torch.manual_seed(0)
    bank = torch.randn(BANK, DIM).relu()
    ours = Npgmf(preset="fast", backbone_weights="random", text_prior="random", logical_image_size=SIZE)
    ours.model.structural.bank.fill(bank)
    ours.model.merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    ours.post_processor.calibrate(torch.tensor([1.0, 2.0]))
    patchcore = Patchcore("wide_resnet50_2", layers=("layer2", "layer3"), pre_trained=False)
    patchcore.model.memory_bank = bank
    rd = ReverseDistillation("wide_resnet50_2", pre_trained=False)
    for model in (patchcore, rd):
        model.pre_processor = model.configure_pre_processor((SIZE, SIZE))
    # a fixed batch of one: with a dynamic batch anomalib's PatchCore is exported for batches of two
    fixed = {"onnx_kwargs": {"dynamic_axes": None, "dynamic_shapes": None}, "input_size": (SIZE, SIZE)}
    named = {OURS: ours, PATCHCORE: patchcore, RD: rd}
    paths = {name: model.eval().to_openvino(args.folder / name, **fixed) for name, model in named.items()}
    image = random_image()
    runners = {name: runner(path) for name, path in paths.items()}
    calls = {name: lambda run=run: run(image) for name, run in runners.items()}
    medians = 1000 * take_turns(calls, turns=args.repeats, warmup=2).groupby("name", sort=False).median()
    frame = medians.set_axis(["ms", "cpu_ms"], axis=1).rename_axis("model").reset_index()
    frame["MB"] = [megabytes(path) for path in paths.values()]
    save(args.out / "export_latency.json", frame.to_dict("records"), size=SIZE, bank=BANK)


def report(args: argparse.Namespace) -> None:
    """Print the tables: accuracy is a mean of categories, times are of one; the last row is PatchCore plus RD."""
    rows = pd.DataFrame(measured("export_formats", args.out)["rows"])
    columns = dict.fromkeys((*ACCURACY, "MB"), "mean") | dict.fromkeys(("ms", "cpu_ms"), "median")
    for kind, heading in (("formats", "format"), ("banks", "bank size")):
        means = rows[rows.table == kind].groupby("name", sort=False).agg(columns).round(1)
        print(table(means.rename_axis(heading).reset_index()), end="\n\n")
    frame = pd.DataFrame(measured("export_latency", args.out)["rows"]).set_index("model")
    frame.loc[f"{PATCHCORE} + {RD}"] = frame.loc[[PATCHCORE, RD]].sum()
    shown = frame.round().astype(int)
    shown["CPU time / PatchCore"] = (frame.cpu_ms / frame.cpu_ms[PATCHCORE]).map("{:.2f}".format)
    print(table(shown.reset_index()))


def main() -> None:
    sizes = {"train": 60, "test": 60, "epochs": 12, "repeats": 15, "categories": ["filled_vials", "sorting_tray"]}
    run_part(__doc__, formats, latency, report, folder=Path("exported"), **sizes)


if __name__ == "__main__":
    main()
