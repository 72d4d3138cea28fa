"""The composition branch as a part of the whole model."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _factory import draw_category, make_engine, make_model, mvtec

from anomalib_npgmf import Npgmf
from anomalib_npgmf.composition import CompositionBranch, CompositionConfig
from anomalib_npgmf.config import resolve
from anomalib_npgmf.host.visualizer import maps_of
from anomalib_npgmf.merging.composition import CompositionMerger
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.torch_model import NpgmfModel

COMPOSED = {"composition", "composition_scores"}
SETTINGS = {"codebook_sizes": (4, 6), "codebooks": 2, "grid_codebook_sizes": (5,)}


def test_composition_alone_and_nothing() -> None:
    merger = MapMerger((16, 16), composition=[1, 2], blur=torch.nn.Identity())
    assert merger.composition is not None
    merger.composition.calibrate(torch.ones(3), torch.tensor([0.5, 1.0, 1.5]), normal_level=0.0)
    surplus = torch.rand(3, 2, 16, 16)
    scores = torch.tensor([[2.5, 0.0], [1.0, 0.0], [0.0, 1.25]])
    alone = merger({"composition": surplus, "composition_scores": scores})
    assert alone.scores.tolist() == pytest.approx([3.0, 0.0, 0.5])
    # the whole image up to a lead of 2 with weight 45, cells up to 1 with weight 240
    expected = torch.stack([45 * 2.0 * surplus[0, :1], 0 * surplus[1, :1], 240 * 0.5 * surplus[2, 1:]])
    torch.testing.assert_close(alone.maps, expected)
    with pytest.raises(ValueError, match="nothing to merge"):
        merger({})


@pytest.mark.parametrize("count", [1, 3])
def test_calibration_images_that_agree_do_not_blow_scores_up(count: int) -> None:
    merger = CompositionMerger([1])
    merger.calibrate(torch.full((count,), 4.0), torch.full((count,), 4.0), normal_level=3.0)
    assert merger(torch.full((1, 1, 2, 2), 4.4), torch.zeros(1, 1, 2, 2), torch.zeros(1, 1)).scores <= 2.001


@pytest.mark.parametrize("branches", ["both", "logical", "structural"])
def test_composition_beside_any_branch(branches: str) -> None:
    changes = {"backbone": "test_resnet", "logical_image_size": 128, "structural_image_size": 128, "branches": branches}
    model = NpgmfModel(resolve("small", changes, {"embedding_channels": 8}, None, SETTINGS)).eval()
    images = torch.randn(6, 3, 128, 128)
    with torch.no_grad():
        features = model.features(images)
        assert model.composition is not None
        assert [f.shape[1] for f in features.composition] == list(model.composition.channels)
        model.composition.collect(features.composition, list("abcdef"), torch.rand(6, 3, 64, 64))
        model.composition.finish()
        if model.structural is not None:
            model.structural.collect(features.structural, list("abcdef"))
            model.structural.finish()
        maps = model.branch_maps(images).maps
        with_memory = model.branch_maps(images, {part: maps[part] for part in maps if part != "logical"}).maps
    assert set(maps) == {"both": {"logical", "structural"}}.get(branches, {branches}) | COMPOSED
    assert all(torch.equal(maps[name], with_memory[name]) for name in maps)
    explanations = model.branch_maps(images, details=True).explanations
    assert len(explanations) == 6
    assert explanations[0].mask.shape == (128, 128)


def test_level_that_the_network_lacks() -> None:
    with pytest.raises(ValueError, match="set composition levels"):
        make_model(composition={"levels": (3, 9)})


def test_presets() -> None:
    assert Npgmf(preset="small").model.composition is None
    assert resolve("plus", {}).composition == CompositionConfig()
    assert {resolve(name, {}).merging for name in ("paper", "literal", "fast", "plus", "small")} == {"sum"}
    assert resolve("plus", {}, composition=False).composition is None
    assert resolve("fast", {}).composition is None
    assert resolve("paper", {}, composition=SETTINGS).composition == CompositionConfig(**SETTINGS)
    with pytest.raises(ValueError, match="composition has no field"):
        resolve("plus", {}, composition={"clusters": 3})


def test_fit_checkpoint_and_test(tmp_path: Path) -> None:
    draw_category(tmp_path / "data", train=8)
    data = mvtec(tmp_path / "data")
    model = make_model(composition=SETTINGS)
    engine = make_engine(tmp_path / "run")
    engine.fit(model, datamodule=data)
    merger = model.model.merger.composition
    assert merger is not None
    assert (merger.std > 0).all()
    assert model.model.composition is not None
    for part in model.model.composition.histograms:
        assert part.variations[0].precision.abs().sum() > 0
    (results,) = engine.test(model, datamodule=data)
    assert results["image_AUROC"] > 0.7
    batch = next(iter(data.test_dataloader()))
    batch.image = model.normalised(batch.image)
    carried = maps_of(model.eval().test_step(batch, 0))
    assert carried is not None
    assert set(carried.maps) == {"logical", "structural"} | COMPOSED
    path = tmp_path / "model.ckpt"
    engine.trainer.save_checkpoint(path)
    again = Npgmf.load_from_checkpoint(path).eval()
    image = torch.rand(2, 3, 128, 128)
    assert torch.equal(again(image).pred_score, model.eval()(image).pred_score)


def _image(index: int) -> torch.Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(index))


def _fit(indices: list[int]) -> CompositionBranch:
    branch = CompositionBranch(
        [3], [3], CompositionConfig(levels=(3,), codebook_sizes=(3,), codebooks=1, grid_codebook_sizes=(4,))
    )
    for index in indices:
        branch.collect([_image(index)], [f"{index:03d}.png"], torch.zeros(1, 3, 32, 32))
    branch.finish()
    return branch


def _worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    torch.save(_fit([i % 7 for i in range(rank, 8, 2)]).state_dict(), folder / f"{rank}.pt")  # one image twice
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(_worker, args=(tmp_path,), nprocs=2)
    alone = _fit(list(range(7))).state_dict()
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            assert torch.allclose(state[name], value, atol=1e-5), name


def test_distances_from_cross_validation_join_those_of_calibration() -> None:
    few, more = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0, 8.0])
    merger = CompositionMerger([1])
    others = torch.tensor([3.0, 6.0, 8.0])  # number, mean, sum of squared deviations
    merger.calibrate(few, few, others, normal_level=0.0)
    assert merger.mean.tolist() == pytest.approx([1.5, torch.cat([few, more]).mean().item()])
    assert merger.std.tolist() == pytest.approx([few.std().item(), torch.cat([few, more]).std().item()])
