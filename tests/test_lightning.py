"""The life of a model on a drawn data set: fit, test, predict, checkpoint, resume."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec
from anomalib.data import MVTecAD
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from lightning.pytorch import Callback
from torchvision.transforms.v2 import RandomInvert

from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.host import fit
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.structural.bank import MemoryBank
from anomalib_npgmf.structural.model import StructuralBranch

EMBEDDING = torch.nn.functional.normalize(torch.arange(512.0), dim=0)
ARGUMENTS = {"text_prior": "clip", "coreset_ratio": 1.0, "visualizer": False}


class Scores(Callback):
    """Keeps the batches of test and predict; the post-processor fills them in place."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_test_batch_end(self, trainer: Any, model: Any, outputs: Any, *rest: Any) -> None:
        self.batches.append(outputs)

    on_predict_batch_end = on_test_batch_end

    def take(self) -> dict[str, tuple[float, torch.Tensor]]:
        """Score and map by file, and forget them."""
        found = {
            Path(path).parent.name + Path(path).name: (score.item(), amap)
            for batch in self.batches
            for path, score, amap in zip(batch.image_path, batch.pred_score, batch.anomaly_map, strict=True)
        }
        self.batches = []
        return found


@dataclass
class Run:
    """A trained model and what was seen on the way."""

    folder: Path
    root: Path
    model: Npgmf = field(default_factory=lambda: make_model(**ARGUMENTS))
    captions: list[str] = field(default_factory=list)
    stepped: set[str] = field(default_factory=set)
    collected: list[str] = field(default_factory=list)
    calibrated: list[str] = field(default_factory=list)
    searched: list[int] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)

    def datamodule(self) -> MVTecAD:
        return mvtec(self.folder.parent, train_augmentations=RandomInvert(p=1.0))

    def engine(self, epochs: int) -> Engine:
        return make_engine(self.root, max_epochs=epochs, callbacks=[self.scores])

    @property
    def checkpoint(self) -> Path:
        return next(self.root.rglob("v0/weights/lightning/model.ckpt"))

    def test(self, model: Npgmf) -> dict[str, tuple[float, torch.Tensor]]:
        self.scores.take()
        self.engine(1).test(model, datamodule=self.datamodule())
        return self.scores.take()


def spy(patch: pytest.MonkeyPatch, owner: Any, name: str, see: Any) -> None:
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        see(*args, **kwargs)
        return original(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    run = Run(draw_category(root / "data"), root / "results")
    with pytest.MonkeyPatch.context() as patch:

        def encode(caption: str, **kwargs: Any) -> torch.Tensor:
            run.captions.append(caption)
            return EMBEDDING

        patch.setattr(fit, "encode_caption", encode)
        spy(patch, Npgmf, "training_step", lambda self, batch, index: run.stepped.update(map(str, batch.image_path)))
        spy(patch, StructuralBranch, "collect", lambda self, maps, keys: run.collected.extend(keys))
        spy(patch, Calibrator, "maps", lambda self, image, paths: run.calibrated.extend(paths))
        spy(patch, MemoryBank, "search", lambda self, queries: run.searched.append(len(queries)))
        datamodule = run.datamodule()
        run.engine(2).fit(run.model, datamodule=datamodule)
        assert len(datamodule.train_data) == 10, "the images set aside are given back"
    return run


@pytest.fixture(scope="module")
def tested(run: Run) -> dict[str, tuple[float, torch.Tensor]]:
    return run.test(run.model)


def same(first: dict[str, tuple[float, torch.Tensor]], second: dict[str, tuple[float, torch.Tensor]]) -> bool:
    """Bit by bit."""
    return first.keys() == second.keys() and all(
        first[k][0] == second[k][0] and torch.equal(first[k][1], second[k][1]) for k in first
    )


def test_it_learns(run: Run, tested: dict[str, tuple[float, torch.Tensor]]) -> None:
    assert len(tested) == 8
    blots = [score for name, (score, _) in tested.items() if name.startswith("blot")]
    good = [score for name, (score, _) in tested.items() if name.startswith("good")]
    assert min(blots) > max(good)
    assert min(blots) > 0.5
    assert all(amap.squeeze().shape == (128, 128) for _, amap in tested.values())


def test_calibration_images_are_neither_fitted_nor_tested(run: Run) -> None:
    training = {str(p) for p in (run.folder / "train").rglob("*.png")}
    aside = set(run.calibrated)
    assert len(aside) == 2
    assert aside < training
    assert run.stepped == training - aside
    assert set(run.collected) == training - aside
    assert len(run.collected) == 8, "each image once"


def test_bank_holds_images_without_augmentations(run: Run) -> None:
    """Every patch of a training image is in the bank (ratio 1), none of the inverted image that the decoder saw."""
    image = torch.stack([read_image(path, as_tensor=True) for path in sorted(run.collected)[:2]])
    model = run.model.model.eval()
    assert run.model.pre_processor is not None
    for pictures, expected in ((image, True), (1 - image, False)):
        features = model.features(run.model.pre_processor.transform(pictures)).structural
        assert model.structural is not None
        distance = model.structural(features)
        assert bool(distance.max() < 1e-2 * distance.new_tensor(1.0) * features[0].abs().max()) is expected


def test_search_runs_once_for_each_calibration_image(run: Run) -> None:
    """Two epochs, two images of 16 x 16 patches."""
    assert run.searched == [512]
    assert len(run.calibrated) == 4


def test_category_is_embedded_once_and_stored(run: Run) -> None:
    assert run.captions == ["Square Plate"]
    state = torch.load(run.checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(state["model.logical.text_prior.embedding"], EMBEDDING)


def test_post_processing_keeps_the_raw_order(run: Run, tested: dict[str, tuple[float, torch.Tensor]]) -> None:
    kept = run.model.post_processor, run.model.evaluator
    run.model.post_processor = run.model.evaluator = None
    try:
        raw = run.test(run.model)
    finally:
        run.model.post_processor, run.model.evaluator = kept
    assert sorted(raw, key=lambda k: raw[k][0]) == sorted(tested, key=lambda k: tested[k][0])
    assert len({score for score, _ in tested.values()}) == 8
    for score, amap in raw.values():
        assert amap.amax().item() == score, "the image score is the maximum of the merged map"


def test_predict_equals_test(run: Run, tested: dict[str, tuple[float, torch.Tensor]]) -> None:
    run.engine(1).predict(run.model, datamodule=run.datamodule())
    assert same(run.scores.take(), tested)


def test_checkpoint_gives_bit_equal_maps_without_hub_or_clip(
    run: Run, tested: dict[str, tuple[float, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.setattr(Backbone, "load_weights", lambda *a: pytest.fail("a checkpoint brings its weights"))
    restored = Npgmf.load_from_checkpoint(run.checkpoint)
    restored.visualizer = None
    assert restored.settings == run.model.settings
    assert same(run.test(restored), tested)


def test_forward_equals_test(run: Run, tested: dict[str, tuple[float, torch.Tensor]]) -> None:
    """What an exported model computes: raw image in, normalised score out."""
    image = read_image(run.folder / "test" / "blot" / "001.png", as_tensor=True).unsqueeze(0)
    with torch.no_grad():
        out = run.model.eval()(image)
    score, amap = tested["blot001.png"]
    assert out.pred_score.item() == pytest.approx(score, abs=1e-5)
    torch.testing.assert_close(out.anomaly_map.squeeze(), amap.squeeze(), rtol=0, atol=1e-5)
    assert out.pred_label.item() is (score > 0.5)


def test_resuming_a_finished_run_changes_nothing(
    run: Run, tested: dict[str, tuple[float, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "encode_caption", lambda *a, **k: pytest.fail("the checkpoint has it"))
    fresh = make_model(**ARGUMENTS)
    run.engine(2).fit(fresh, datamodule=run.datamodule(), ckpt_path=run.checkpoint)
    assert same(run.test(fresh), tested)


def test_resuming_goes_on_where_it_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "encode_caption", lambda *a, **k: pytest.fail("the checkpoint has it"))
    monkeypatch.setattr(Backbone, "load_weights", lambda *a: pytest.fail("a checkpoint brings its weights"))
    monkeypatch.setattr(StructuralBranch, "collect", lambda *a, **k: pytest.fail("the checkpoint has the bank"))
    saved = torch.load(run.checkpoint, weights_only=True)
    fresh, engine = make_model(**ARGUMENTS), run.engine(3)
    engine.fit(fresh, datamodule=run.datamodule(), ckpt_path=run.checkpoint)
    assert engine.trainer.global_step == saved["global_step"] + 2, "eight images in batches of four"
    now, before = fresh.state_dict(), saved["state_dict"]
    for name in before:
        if "bank." in name or "encoder" in name:
            assert torch.equal(now[name], before[name]), name
    moved = [n for n, p in fresh.named_parameters() if p.requires_grad and not torch.equal(now[n], before[n])]
    assert any(n.startswith("model.logical.decoder") for n in moved)
    assert not torch.equal(now["model.merger.mean"], before["model.merger.mean"]), "calibrated anew"


def test_calibration_statistics_are_those_of_the_raw_maps(run: Run) -> None:
    image = torch.stack([read_image(path, as_tensor=True) for path in sorted(set(run.calibrated))])
    model = run.model.model.eval()
    assert run.model.pre_processor is not None
    with torch.no_grad():
        maps = model.branch_maps(run.model.pre_processor.transform(image)).maps
    for index, branch in enumerate(("logical", "structural")):
        pixels = model.merger.resize(maps[branch]).double()
        assert model.merger.mean[index].item() == pytest.approx(pixels.mean().item(), rel=1e-4)
        assert model.merger.std[index].item() == pytest.approx(pixels.std(correction=0).item(), rel=1e-4)
