"""Score images with an exported model: python run_onnx.py model.onnx image.png ...

Needs onnxruntime, numpy and pillow; neither torch nor anomalib.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
for path in map(Path, sys.argv[2:]):
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32) / 255  # [H, W, 3] in [0, 1], any size
    outputs = session.run(None, {"input": pixels.transpose(2, 0, 1)[None]})
    result = dict(zip(names, outputs, strict=True))
    label = "anomalous" if result["pred_label"].item() else "normal"
    print(f"{path} {label} {result['pred_score'].item():.4f}")
    heat = (255 * result["anomaly_map"][0, 0]).astype(np.uint8)
    Image.fromarray(heat).save(f"{path.stem}_map.png")
