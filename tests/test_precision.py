"""The networks alone run in reduced precision; everything else is single precision, whatever surrounds it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL, draw_category, make_engine, make_model, mvtec
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomalib_npgmf.config import resolve
from anomalib_npgmf.logical.codebook import Codebook
from anomalib_npgmf.merging.calibration import calibrate
from anomalib_npgmf.precision import single_precision
from anomalib_npgmf.torch_model import NpgmfModel

REDUCED = (torch.bfloat16, torch.float16)
PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "mkldnn_linear")
# What may run in reduced precision, by the names of the modules.
LOGICAL = ("embedding", "atrous", "decoder", "text_prior")
NETWORKS = ("encoder", "structural_encoder", *(f"logical.{name}" for name in LOGICAL))


def make(*, whiten: bool = True, **changes: Any) -> NpgmfModel:
    torch.manual_seed(0)
    overrides = {"backbone": "test_resnet", "logical_image_size": 64, "structural_image_size": 128} | changes
    logical = SLIM_LOGICAL | {"levels": (2, 3, 4), "loss_levels": None}
    config = resolve("small", overrides, logical, {"coreset_ratio": 0.1, "whiten": whiten}, composition=True)
    return NpgmfModel(config).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(4, 3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(images: Tensor) -> NpgmfModel:
    """Two sizes, two networks and all parts, fitted to noise."""
    model, keys = make(), list("abcd")
    features = model.features(images)
    assert model.structural is not None
    assert model.composition is not None
    model.initialise(images)
    model.structural.collect(features.structural, keys)
    model.structural.finish()
    model.composition.collect(features.composition, keys, images)
    model.composition.finish()
    with torch.no_grad():
        calibrate(model.merger, [model.branch_maps(images + 0.1).maps], model.composition.cv_stats)
    return model


def exact_settings() -> bool:
    """Whether products and convolutions of float32 are computed in float32."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    tf32 = torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() == "highest" and not tf32


class Watch(TorchDispatchMode):
    """Names of operations outside the networks that are not exact, and number of those inside that are reduced."""

    def __init__(self, model: NpgmfModel) -> None:
        super().__init__()
        self.inside = self.reduced = self.products = 0
        self.wrong: set[str] = set()
        self._hooks = []
        for name in NETWORKS:
            module = model.get_submodule(name)
            modules = module.children() if isinstance(module, nn.ModuleDict) else [module]
            for network in modules:
                self._hooks.append(network.register_forward_pre_hook(lambda *_: self._step(1)))
                self._hooks.append(network.register_forward_hook(lambda *_: self._step(-1)))

    def _step(self, by: int) -> None:
        self.inside += by

    def __exit__(self, *details: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*details)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        low = any(isinstance(leaf, Tensor) and leaf.dtype in REDUCED for leaf in tree_leaves(result))
        if self.inside:
            self.reduced += low
            return result
        self.products += name in PRODUCTS
        if low or (name in PRODUCTS and not exact_settings()):
            self.wrong.add(name)
        return result


@contextmanager
def fast_settings() -> Iterator[None]:
    """What users of large GPUs set, and what is torch's default for convolutions there."""
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def predict(model: NpgmfModel, images: Tensor) -> None:
    with torch.no_grad():
        model.merge(model.branch_maps(images, details=True).maps)


def train(model: NpgmfModel, images: Tensor) -> None:
    model.train()(images)
    model.eval()


def fit(model: NpgmfModel, images: Tensor) -> None:
    """Codebooks and calibration as before the first epoch and after each."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialise(images)
    with torch.no_grad():
        assert model.composition is not None
        calibrate(model.merger, [model.branch_maps(images).maps], model.composition.cv_stats)
    model.load_state_dict(state)


@pytest.mark.parametrize("dtype", REDUCED)
@pytest.mark.parametrize("action", [predict, train, fit])
def test_networks_alone_are_reduced(
    trained: NpgmfModel, images: Tensor, action: Callable[[NpgmfModel, Tensor], None], dtype: torch.dtype
) -> None:
    with fast_settings(), torch.autocast("cpu", dtype), Watch(trained) as watch:
        action(trained, images)
    assert watch.wrong == set()
    assert watch.reduced > 10
    assert watch.products > 5 or action is train


@pytest.mark.parametrize("dtype", REDUCED)
def test_all_after_the_networks_is_that_of_single_precision(
    trained: NpgmfModel, images: Tensor, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks that compute in float32 even so, scores and maps are bit for bit those without autocast."""
    for name in NETWORKS:
        module = trained.get_submodule(name)
        for network in module.children() if isinstance(module, nn.ModuleDict) else [module]:
            plain = network.forward

            def forward(*args: Any, plain: Any = plain, **kwargs: Any) -> Any:
                with torch.autocast("cpu", enabled=False):
                    return plain(*args, **kwargs)

            monkeypatch.setattr(network, "forward", forward)
    with torch.no_grad():
        expected = trained(images)
        with torch.autocast("cpu", dtype):
            found = trained(images)
    assert torch.equal(found.pred_score, expected.pred_score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_scores_do_not_tie(trained: NpgmfModel, images: Tensor) -> None:
    """The scores of reduced networks have all digits, and stay near those of single precision."""
    with torch.no_grad():
        expected = trained(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = trained(images)
    assert found.pred_score.dtype == found.anomaly_map.dtype == torch.float32
    assert not torch.equal(found.pred_score, found.pred_score.bfloat16().float())
    assert not torch.equal(found.pred_score, expected.pred_score), "the networks are reduced"
    assert (found.pred_score - expected.pred_score).abs().max() < 0.3  # in standard deviations of normal scores


@pytest.mark.parametrize("whiten", [False, True])
def test_norms_beyond_half_precision(whiten: bool) -> None:
    """Squared norms of patches exceed 65,504, the largest number of float16."""
    structural = make(branches="structural", whiten=whiten).structural
    assert structural is not None
    generator = torch.Generator().manual_seed(0)
    shapes = zip(structural.channels, (8, 4), strict=True)
    maps = [200 * torch.rand(3, channels, side, side, generator=generator) for channels, side in shapes]
    structural.collect([part[:2] for part in maps], ["a", "b"])
    structural.finish()
    expected = structural(maps)
    with torch.autocast("cpu", torch.float16):
        found = structural(maps)
    assert whiten or expected.max() ** 2 > torch.finfo(torch.float16).max
    assert torch.equal(found, expected)


def test_settings_come_back() -> None:
    with fast_settings():
        assert not exact_settings()
        with single_precision(), single_precision():
            assert exact_settings()
        assert not exact_settings()
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(KeyError), single_precision():
            raise KeyError
        assert torch.get_float32_matmul_precision() == "medium"
    before = torch.backends.cudnn.allow_tf32
    with single_precision():
        assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cudnn.allow_tf32 is before


def test_compiled_under_autocast() -> None:
    """Without a break of the graph; the backend "eager" runs the captured graph as it is."""
    torch.manual_seed(0)
    book, z = Codebook(256, 8).eval(), torch.randn(1, 8, 32, 32)  # so many that bfloat16 would choose others
    compiled = torch.compile(book, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = book(z)[0]
        with torch.autocast("cpu", torch.bfloat16):
            found = compiled(z)[0]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_whole_modules_of_another_precision_are_refused(tmp_path: Path, stage: str, precision: str) -> None:
    folder = draw_category(tmp_path / "data", train=2)
    engine = make_engine(tmp_path / "results", precision=precision)
    sentence = f"cannot run with precision={precision!r}; set precision to '32-true'"
    with pytest.raises(ValueError, match=sentence):
        getattr(engine, stage)(make_model(visualizer=False), datamodule=mvtec(folder.parent))
