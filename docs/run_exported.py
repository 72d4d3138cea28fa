"""Score images with an exported model.

    python run_exported.py MODEL IMAGE_OR_FOLDER ... --csv scores.csv --maps maps

MODEL is an .onnx file, which needs onnxruntime, or an .xml file of OpenVINO, which needs openvino. Besides that it
needs numpy and pillow; neither torch nor anomalib. Exit status: 0 if all images are normal, 1 if one is anomalous, 2 if
none is but one could not be scored.
"""

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
Outputs = dict[str, np.ndarray]


def load(model: Path) -> Callable[[np.ndarray], Outputs]:
    """A function from pixels [1, 3, H, W] to pred_score, pred_label, anomaly_map and pred_mask."""
    if model.suffix == ".xml":
        import openvino

        # Without the hint, processors with units for bfloat16 compute in it, which changes scores by up to 0.01.
        compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda pixels: {port.get_any_name(): value for port, value in compiled(pixels).items()}
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda pixels: dict(zip(names, session.run(None, {"input": pixels}), strict=True))


def read(path: Path) -> np.ndarray:
    """An image as the model was trained on it: upright, [1, 3, H, W] in [0, 1]; 16-bit grey keeps 16 bits."""
    with Image.open(path) as opened:
        file = ImageOps.exif_transpose(opened)
        if file.mode == "I" or file.mode.startswith("I;16"):
            grey = np.asarray(file).astype(np.float32) / 65535
            return np.broadcast_to(grey.clip(0, 1), (1, 3, *grey.shape)).copy()
        return (np.asarray(file.convert("RGB"), np.float32) / 255).transpose(2, 0, 1)[None].copy()


def images_in(path: Path) -> list[Path]:
    """The file itself, or all images of a folder and of the folders in it."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def save_map(outputs: Outputs, image: Path, folder: Path) -> None:
    """Write the anomaly map in grey, 128 at the threshold, to the image's own path below a folder."""
    image = image.resolve()
    target = folder / image.relative_to(image.anchor).with_name(f"{image.name}_map.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * outputs["anomaly_map"].squeeze()).astype(np.uint8)).save(target)


def main() -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--csv", type=Path, help="table to write: path, label, score")
    parser.add_argument("--maps", type=Path, help="folder to write the anomaly maps to")
    options = parser.parse_args()
    score = load(options.model)
    rows: list[tuple[str, str, str]] = []
    failed = 0
    for given in options.images:
        paths = images_in(given)
        if not paths:
            failed += 1
            print(f"{given}: there are no images in this folder", file=sys.stderr)
        for path in paths:
            try:
                outputs = score(read(path))
            except Exception as error:  # one bad file must not stop the others
                failed += 1
                print(f"{path}: could not be scored: {error}", file=sys.stderr)
                continue
            label = "anomalous" if outputs["pred_label"].item() else "normal"
            rows.append((str(path), label, f"{outputs['pred_score'].item():.4f}"))
            print(*rows[-1], flush=True)
            if options.maps is not None:
                save_map(outputs, path, options.maps)
    if options.csv is not None:
        with options.csv.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("path", "label", "score"), *rows])
    return 1 if any(label == "anomalous" for _, label, _ in rows) else 2 * bool(failed)


if __name__ == "__main__":
    sys.exit(main())
