"""Small data sets: they work, or a sentence says why not and what to do."""

from pathlib import Path

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec
from torch import nn

from anomalib_npgmf.logical.blocks import make_norm
from anomalib_npgmf.structural.bank import MemoryBank


@pytest.mark.parametrize("batch_size", [3, 1])
def test_batch_norm_with_a_last_batch_of_one_image(tmp_path: Path, batch_size: int) -> None:
    folder = draw_category(tmp_path / "data", train=5)  # one of five is set aside for calibration
    model = make_model(visualizer=False, branches="logical", logical={"norm": "bn"})
    make_engine(tmp_path).fit(model, datamodule=mvtec(folder.parent, train_batch_size=batch_size))
    assert model.model.merger.calibrated
    assert all(value.isfinite().all() for value in model.model.state_dict().values())


def test_one_value_per_channel_takes_the_running_statistics() -> None:
    norm = make_norm("bn", 4).train()
    assert isinstance(norm, nn.BatchNorm2d)
    batch = torch.randn(8, 4, 3, 3, generator=torch.manual_seed(0))
    torch.testing.assert_close(norm(batch), nn.BatchNorm2d(4)(batch))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    single = torch.full((1, 4, 1, 1), 2.0)
    expected = (single - norm.running_mean.view(1, 4, 1, 1)) / (norm.running_var.view(1, 4, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(norm(single), expected)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(("dtype", "advised"), [(torch.float16, True), (torch.float32, False)])
def test_float32_is_advised_only_where_it_helps(dtype: torch.dtype, advised: bool) -> None:
    with pytest.raises(ValueError, match="hold NaN or Inf") as caught:
        MemoryBank(dtype=dtype).append(torch.full((1, 4, 8), float("nan")))
    assert ("float32" in str(caught.value).split(";")[1]) is advised
    patches = torch.randn(4, 8) * (1e5 if dtype == torch.float16 else float("inf"))
    with pytest.raises(ValueError, match="exceed the range of") as caught:
        MemoryBank(dtype=dtype).fill(patches)
    assert ("store the bank in float32" in str(caught.value)) is advised
