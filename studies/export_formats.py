"""Accuracy, size and CPU latency of every export format and of smaller memory banks.

    python studies/export_formats.py train --folder OUT [--backbone NAME --weights FILE]
    python studies/export_formats.py time --folder OUT
    python studies/export_formats.py report

``train`` draws categories of SyntheticLOCO, trains one model each, exports it and evaluates every file on the test
images through its own runtime. ``time`` measures one image at a time, all files in one process, and writes
``results/export_formats.json``; ``report`` prints its tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _common import Row, load, options, table
from _drawn import scores
from numpy.typing import NDArray

from anomalib_npgmf.benchmark.record import read, write
from anomalib_npgmf.benchmark.timing import measure

COMPRESSIONS = {"FP32": None, "FP16": "FP16", "INT8 weights": "INT8", "INT8_PTQ": "INT8_PTQ"}
BANKS = (8, 64)  # the whole bank divided by these
ACCURACY = {"image AUROC %": "AUROC mean", "sPRO@0.05 %": "sPRO mean"}
Runner = Callable[[NDArray[np.float32], str], NDArray[np.float32]]


def runner(path: Path) -> Runner:
    """Function of a file: images [B, 3, H, W] to its output of a name."""
    threads = torch.get_num_threads()
    if path.suffix == ".pt":
        model = torch.load(path, weights_only=False)["model"].eval()
        return torch.no_grad()(lambda batch, name: getattr(model(torch.from_numpy(batch)), name).numpy())
    if path.suffix == ".onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda batch, name: session.run([name], {"input": batch})[0]
    import openvino

    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda batch, name: compiled(batch)[name]


def megabytes(path: Path) -> float:
    return sum(file.stat().st_size for file in {path, path.with_suffix(".bin")} if file.exists()) / 1e6


def train(args: argparse.Namespace) -> None:
    """Train, export and evaluate."""
    from anomalib.data.utils import read_image
    from anomalib.deploy import CompressionType
    from anomalib.engine import Engine

    from anomalib_npgmf import Npgmf, SyntheticLOCO

    rows: list[Row] = []

    def add(kind: str, name: str, category: str, path: Path) -> None:
        run = runner(path)
        images = sorted((args.folder / "data" / category / "test").rglob("*.png"))
        found = [run(read_image(image, as_tensor=True)[None].numpy(), "anomaly_map") for image in images]
        maps = torch.from_numpy(np.concatenate(found)).reshape(len(images), 1, args.size, args.size)
        values = scores(images, maps.amax((1, 2, 3)), maps)
        row = {"table": kind, "name": name, "category": category, "MB": megabytes(path)}
        row |= {column: values[source] for column, source in ACCURACY.items()}
        rows.append(row | {"path": str(path.relative_to(args.folder))})
        print(rows[-1], flush=True)

    tests = {f"num_test_{kind}": args.test for kind in ("good", "logical", "structural")}
    counts = {"num_train": args.train, "num_validation": 12, **tests, "train_batch_size": 4, "eval_batch_size": 4}
    settings = {"logical_image_size": args.size, "coreset_ratio": args.ratio, "visualizer": False}
    trainer = {"accelerator": "cpu", "devices": 1, "default_root_dir": args.folder, "logger": False}
    for category in args.categories:
        data = SyntheticLOCO(args.folder / "data", category, image_size=args.size, **counts)
        torch.manual_seed(0)
        model = Npgmf(preset="small", backbone=args.backbone, backbone_weights=args.weights, **settings)
        Engine(max_epochs=args.epochs, **trainer).fit(model, datamodule=data)
        model.eval()
        folder = args.folder / category
        onnx = model.to_onnx(folder)
        add("formats", "torch .pt", category, model.to_torch(folder))
        add("formats", "ONNX Runtime", category, onnx)
        for name, kind in COMPRESSIONS.items():
            compression = kind and CompressionType[kind]
            path = model.to_openvino(folder / name, compression_type=compression, datamodule=data)
            add("formats", f"OpenVINO {name}", category, path)
        if category == args.categories[0]:  # one category shows what a smaller bank costs
            whole = len(model.model.structural.bank)
            add("banks", str(whole), category, onnx)
            for size in (max(1, whole // divisor) for divisor in BANKS):
                path = model.to_onnx(folder / f"bank_{size}", bank_size=size, datamodule=data)
                add("banks", str(size), category, path)
    names = ("backbone", "size", "ratio", "train", "epochs", "test")
    write(args.folder / "rows.json", {"settings": {name: getattr(args, name) for name in names}, "rows": rows})


def time_files(args: argparse.Namespace) -> None:
    """Measure the files of the first category."""
    content = read(args.folder / "rows.json")
    rows, settings = content["rows"], content["settings"]
    image = np.random.default_rng(0).random((1, 3, settings["size"], settings["size"]), dtype=np.float32)
    for row in rows:
        path = args.folder / row.pop("path")
        if row["category"] == rows[0]["category"]:
            run = runner(path)
            times = measure(lambda run=run: run(image, "pred_score"), repeats=args.repeats, warmup=3)
            row |= {"ms": 1000 * times["wall_s"], "cpu_ms": 1000 * times["cpu_s"]}
    print(write(args.out / "export_formats.json", rows, settings=settings | {"repeats": args.repeats}))
    report(args)


def report(args: argparse.Namespace) -> None:
    """Print the tables: means of the categories, times of one."""
    rows = pd.DataFrame(load("export_formats", args.out)["rows"])
    columns = dict.fromkeys((*ACCURACY, "MB"), "mean") | dict.fromkeys(("ms", "cpu_ms"), "median")
    for kind, heading in (("formats", "format"), ("banks", "bank size")):
        means = rows[rows.table == kind].groupby("name", sort=False).agg(columns).round(1)
        print(f"\n{table(means.rename_axis(heading).reset_index())}")


def main() -> None:
    parts = {"train": train, "time": time_files, "report": report}
    sizes = {"size": 256, "ratio": 0.02, "train": 24, "test": 16, "epochs": 3, "repeats": 15, "threads": 2}
    network = {"backbone": "resnet18", "weights": "random"}
    args = options(__doc__, *parts, folder=Path, categories=["sorting_tray", "cable_pairs"], **network, **sizes)
    if args.part != "report" and args.folder is None:
        raise SystemExit("--folder OUT is missing.")
    parts[args.part](args)


if __name__ == "__main__":
    main()
