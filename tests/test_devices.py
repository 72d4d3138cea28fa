"""No tensor is made on another device than that of the data: torch's ``meta`` and fake tensors show it on a CPU."""

from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.config import resolve
from anomalib_npgmf.host.splits import sample_images
from anomalib_npgmf.host.visualizer import dominant_part
from anomalib_npgmf.merging.calibration import calibrate
from anomalib_npgmf.structural.coreset import draw_projection
from anomalib_npgmf.torch_model import NpgmfModel

SIZE, KEYS = (128, 128), list("abcde")


def make(**changes: Any) -> NpgmfModel:
    """Two sizes, two networks of different normalisation, and all parts."""
    torch.manual_seed(0)
    overrides = {"backbone": "test_resnet", "structural_backbone": "test_efficientnet", "text_prior": "learned"}
    sizes = {"logical_image_size": 64, "structural_image_size": 128}
    logical = SLIM_LOGICAL | {"levels": (2, 3, 4), "loss_levels": None, "standardise": True, "prior_grid": 2}
    structural = {"coreset_ratio": 0.2, "reduce_to": 8}
    return NpgmfModel(resolve("small", overrides | sizes | changes, logical, structural, composition=True)).eval()


def images() -> Tensor:
    return torch.randn(len(KEYS), 3, *SIZE, generator=torch.Generator().manual_seed(1), device="cpu")


def train(model: NpgmfModel, image: Tensor) -> dict[str, Tensor]:
    """All that a fit does to the model, but for the steps of the optimiser."""
    assert model.logical is not None
    assert model.structural is not None
    assert model.composition is not None
    model.initialise(image)
    features = model.features(image)
    model.structural.collect(features.structural, KEYS)
    model.structural.finish()
    model.composition.collect(features.composition, KEYS, image)
    model.composition.finish()
    losses = dict(model.train()(image))
    model.logical.codebook_statistics()
    losses |= {f"second {name}": value for name, value in model(image).items()}  # codes that are dead move
    model.eval()
    with torch.no_grad():
        calibrate(model.merger, [model.branch_maps(image + 0.1).maps], model.composition.cv_stats)
    return losses


@torch.no_grad()
def predict(model: NpgmfModel, image: Tensor) -> dict[str, Tensor]:
    found = model.branch_maps(image, details=True)
    merged = model.merge(found.maps)
    dominant_part(model.merger, found.maps)
    masks = torch.stack([explanation.mask for explanation in found.explanations])
    assert found.reconstruction is not None
    assert merged.pred_score is not None
    assert merged.anomaly_map is not None
    whole = {"score": merged.pred_score, "map": merged.anomaly_map, "image": found.reconstruction, "masks": masks}
    return found.maps | whole


def test_tensors_are_made_on_the_device_of_the_data() -> None:
    """With a default device that computes nothing, training and predicting on the CPU give what they always give."""
    results = []
    for default in ("cpu", "meta"):
        model = make()
        draw_projection.cache_clear()
        with torch.device(default):
            results.append(train(model, images()) | predict(model, images()) | model.state_dict())
    expected, found = results
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def test_a_model_is_built_on_the_device_of_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "rectified", lambda self: (True,) * len(self.levels))  # it runs the network
    with torch.device("meta"):
        model = make()
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}


def test_whether_a_network_is_rectified_does_not_depend_on_the_context() -> None:
    network = Backbone("test_resnet")
    expected = network.rectified()
    with torch.device("meta"):
        assert network.rectified() == expected


class Rows(list[int]):
    """What the draw of images needs of an anomalib dataset."""

    def subsample(self, indices: list[int]) -> "Rows":
        return Rows(self[index] for index in indices)


def test_the_draw_of_images_does_not_depend_on_the_context() -> None:
    expected = sample_images(Rows(range(40)), 8)
    with torch.device("meta"):
        assert sample_images(Rows(range(40)), 8) == expected


class Devices(TorchDispatchMode):
    """Collects the operations whose result is not on the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        literal = function is torch.ops.aten.lift_fresh.default  # numbers of the code, on their way to the GPU
        if not literal and any(isinstance(leaf, Tensor) and leaf.device.type != "cuda" for leaf in tree_leaves(result)):
            self.wrong.append(str(function))
        return result


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch 2.8 asks the driver, fake tensors or not")
def test_every_module_stays_on_a_gpu() -> None:
    """Fake tensors know their device and compute nothing; an operation on two devices raises."""
    model, image = make(), images()
    train(model, image)
    called: set[nn.Module] = set()

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        called.add(module)
        assert {leaf.device.type for leaf in tree_leaves(output) if isinstance(leaf, Tensor)} == {"cuda"}

    def moved(value: Tensor) -> Tensor:
        fake = torch.empty_like(mode.from_tensor(value), device="cuda")
        return nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake

    with FakeTensorMode() as mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                tensors.update({name: moved(value) for name, value in tensors.items() if value is not None})
        image = moved(image)
        handle = register_module_forward_hook(see)
        try:
            with Devices() as devices:
                losses = model.train()(image)
                merged = model.eval().merge(model.branch_maps(image).maps)
        finally:
            handle.remove()
    assert devices.wrong == []
    assert {value.device.type for value in (*losses.values(), merged.pred_score, merged.anomaly_map)} == {"cuda"}
    containers = (nn.ModuleList, nn.ModuleDict)
    passed_by = {n for n, m in model.named_modules() if m not in called and not isinstance(m, containers)}
    passed_by = {name for name in passed_by if "._features." not in name}  # timm keeps identities that it skips
    passed_by = {name for name in passed_by if ".examples." not in name}  # shown in reasons, never called
    banks = {"structural.bank"}
    assert passed_by <= {"", *banks}, "the model's parts are called, and the banks are searched"
