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
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from _common import RESULTS, fix_threads, measure, print_table, save
from anomalib.data.utils import read_image
from anomalib.deploy import CompressionType
from anomalib.engine import Engine

from anomalib_npgmf import Npgmf, SyntheticLOCO, evaluate_loco
from anomalib_npgmf.metrics.writer import write_anomaly_maps

COMPRESSIONS = {
    "OpenVINO FP32": None,
    "OpenVINO FP16": CompressionType.FP16,
    "OpenVINO INT8 weights": CompressionType.INT8,
    "OpenVINO INT8_PTQ": CompressionType.INT8_PTQ,
}
BANKS = (1, 8, 64)  # the whole bank divided by these
Runner = Callable[[np.ndarray], np.ndarray]


def datamodule(args: argparse.Namespace, category: str) -> SyntheticLOCO:
    return SyntheticLOCO(
        args.folder / "data",
        category,
        image_size=args.size,
        num_train=args.train,
        num_validation=12,
        num_test_good=args.test,
        num_test_logical=args.test,
        num_test_structural=args.test,
        train_batch_size=4,
        eval_batch_size=4,
    )


def train_model(args: argparse.Namespace, category: str) -> Npgmf:
    torch.manual_seed(0)
    model = Npgmf(
        preset="small",
        backbone=args.backbone,
        backbone_weights=args.weights,
        logical_image_size=args.size,
        coreset_ratio=args.ratio,
        visualizer=False,
    )
    engine = Engine(max_epochs=args.epochs, accelerator="cpu", devices=1, default_root_dir=args.folder, logger=False)
    engine.fit(model, datamodule=datamodule(args, category))
    return model.eval()


def runner(path: Path, output: str) -> Runner:
    """Function of a file: images [B, 3, H, W] to its output of that name."""
    if path.suffix == ".pt":
        model = torch.load(path, weights_only=False)["model"].eval()

        @torch.no_grad()
        def run(batch: np.ndarray) -> np.ndarray:
            return getattr(model(torch.from_numpy(batch)), output).numpy()

        return run
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda batch: session.run([output], {"input": batch})[0]
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", config)
    return lambda batch: compiled(batch)[output]


def accuracy(path: Path, args: argparse.Namespace, category: str) -> dict[str, float]:
    """Image AUROC and AU-sPRO, means of the two anomaly types, in percent."""
    run = runner(path, "anomaly_map")
    images = sorted((args.folder / "data" / category / "test").rglob("*.png"))
    with TemporaryDirectory() as maps:
        for image in images:
            anomaly_map = torch.from_numpy(run(read_image(image, as_tensor=True)[None].numpy()))
            write_anomaly_maps([SimpleNamespace(anomaly_map=anomaly_map, image_path=[str(image)])], maps)
        result = evaluate_loco(args.folder / "data", category, maps, limits=(0.05,))
    return {
        "image AUROC %": 100 * result["classification"]["auc_roc"]["mean"],
        "sPRO@0.05 %": 100 * result["localization"]["auc_spro"]["mean"]["0.05"],
    }


def compressed(onnx: Path, model: Npgmf, name: str, data: SyntheticLOCO) -> Path:
    """What ``to_openvino`` does with its ONNX file, for several formats of one file."""
    compression = COMPRESSIONS[name]
    converted = openvino.convert_model(onnx)
    if compression not in (None, CompressionType.FP16):
        converted = model._compress_ov_model(converted, compression, data)
    path = onnx.with_name(f"{name.replace(' ', '_')}.xml")
    openvino.save_model(converted, path, compress_to_fp16=compression == CompressionType.FP16)
    return path


def megabytes(path: Path) -> float:
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(part.stat().st_size for part in parts) / 1e6


def train(args: argparse.Namespace) -> None:
    rows: list[dict[str, Any]] = []

    def add(table: str, name: str, category: str, path: Path) -> None:
        row = {"table": table, "name": name, "category": category, "MB": megabytes(path)}
        rows.append(row | accuracy(path, args, category) | {"path": str(path.relative_to(args.folder))})
        print(rows[-1], flush=True)

    for category in args.categories:
        model, data = train_model(args, category), datamodule(args, category)
        folder = args.folder / category
        onnx = model.to_onnx(folder)
        add("formats", "torch .pt", category, model.to_torch(folder))
        add("formats", "ONNX Runtime", category, onnx)
        for name in COMPRESSIONS:
            add("formats", name, category, compressed(onnx, model, name, data))
        whole = len(model.model.structural.bank)
        if category != args.categories[0]:  # one category shows what a smaller bank costs
            continue
        add("banks", str(whole), category, onnx)
        for divisor in BANKS[1:]:
            size = max(1, whole // divisor)
            path = model.to_onnx(folder / f"bank_{size}", bank_size=size, datamodule=data)
            add("banks", str(size), category, path)
    names = ("backbone", "size", "ratio", "train", "epochs", "test")
    content = {"settings": {name: getattr(args, name) for name in names}, "rows": rows}
    (args.folder / "rows.json").write_text(json.dumps(content))


def time_files(args: argparse.Namespace) -> None:
    content = json.loads((args.folder / "rows.json").read_text())
    rows, size = content["rows"], content["settings"]["size"]
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    first = rows[0]["category"]
    for row in [row for row in rows if row["category"] == first]:
        run = runner(args.folder / row["path"], "pred_score")
        times = measure(lambda run=run: run(image), repeats=args.repeats, warmup=3)
        row["ms"], row["cpu_ms"] = 1000 * times["wall_s"], 1000 * times["cpu_s"]
    for row in rows:
        del row["path"]
    settings = content["settings"] | {"repeats": args.repeats}
    print(save("export_formats", rows, settings=settings))
    report()


def report() -> None:
    rows = json.loads((RESULTS / "export_formats.json").read_text())["rows"]
    for table, column in (("formats", "format"), ("banks", "bank size")):
        print()
        names = list(dict.fromkeys(row["name"] for row in rows if row["table"] == table))
        lines = []
        for name in names:
            group = [row for row in rows if row["table"] == table and row["name"] == name]
            line: dict[str, Any] = {column: name}
            line |= {key: round(mean(row[key] for row in group), 1) for key in ("image AUROC %", "sPRO@0.05 %", "MB")}
            line |= {key: round(median(row[key] for row in group if key in row), 1) for key in ("ms", "cpu_ms")}
            lines.append(line)
        print_table(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "time", "report"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="random", help="local weights file of the backbone")
    parser.add_argument("--categories", nargs="+", default=["sorting_tray", "cable_pairs"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--ratio", type=float, default=0.02)
    parser.add_argument("--train", type=int, default=24)
    parser.add_argument("--test", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args(arguments)
    fix_threads(args.threads)
    if args.part == "report":
        report()
    elif args.folder is None:
        parser.error("--folder is missing")
    else:
        {"train": train, "time": time_files}[args.part](args)


if __name__ == "__main__":
    main()
