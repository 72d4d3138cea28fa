"""Plain transformers, whose blocks have one stride, serve like a pyramid; random weights, mechanics only."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from _factory import SLIM_LOGICAL, draw_category, make_engine, make_model, mvtec

from anomalib_npgmf.backbone import Backbone


@pytest.mark.parametrize(
    ("name", "size", "levels"),
    [
        ("vit_small_patch14_dinov2", (128, 256), (3, 4, 5)),
        ("vit_tiny_patch16_224", (256, 128), (3, 4, 5)),
        ("vit_small_patch16_dinov3", (128, 128), (3, 4, 5)),
        ("vit_base_patch32_clip_224", (128, 128), (4, 5, 6)),
    ],
)
def test_levels(name: str, size: tuple[int, int], levels: tuple[int, ...]) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this version of timm has no {name}")
    backbone = Backbone(name, image_size=size)
    assert backbone.levels == levels
    maps = backbone(torch.randn(2, 3, *size))
    for level, channels, features in zip(levels, backbone.channels, maps, strict=True):
        assert features.shape == (2, channels, size[0] >> level, size[1] >> level)
        assert features.std() > 0
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_image_that_patches_cannot_tile() -> None:
    with pytest.raises(ValueError, match=r"patches of 16 pixels takes .* multiples of 16, not 120 x 128"):
        Backbone("vit_tiny_patch16_224", image_size=(120, 128))


def test_training_calibration_and_export(tmp_path: Path) -> None:
    """Both branches and the composition on DINOv2, whose patches have 14 pixels."""
    model = make_model(
        backbone="vit_small_patch14_dinov2",
        logical=SLIM_LOGICAL | {"vq_levels": (3, 4), "loss_levels": None},
        composition={"codebook_sizes": (3,), "codebooks": 1, "grid_codebook_sizes": (4,)},
    )
    draw_category(tmp_path / "data", train=8)
    engine = make_engine(tmp_path / "run")
    engine.fit(model, datamodule=mvtec(tmp_path / "data"))
    path = model.to_onnx(tmp_path, input_size=(128, 128))
    image = torch.rand(3, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(image)
    score, _, anomaly_map, _ = onnxruntime.InferenceSession(path).run(None, {"input": image.numpy()})
    np.testing.assert_allclose(score.ravel(), expected.pred_score.numpy().ravel(), atol=1e-4)
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map.numpy(), atol=1e-3)
