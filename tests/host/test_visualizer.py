"""The pictures of `anomalib test`: what they hold, which branch dominates, and when the composition is explained."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec
from PIL import Image
from torch import Tensor

from anomalib_npgmf import Npgmf
from anomalib_npgmf.composition import Explanation
from anomalib_npgmf.host.drawing import HEADER, Picture, heat_map, outline
from anomalib_npgmf.host.verdict import part_scores
from anomalib_npgmf.host.visualizer import NpgmfVisualizer, dominant_part, maps_of, title_of
from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.torch_model import gaussian_blur

SIDE = 256  # of a panel
TRAIN = 20
DRAW = NpgmfVisualizer.draw


class Drawn:
    """A test pass drawn three times: as it is, and with a composition that never or always decides."""

    def __init__(self) -> None:
        self.pictures: dict[str, list[Picture]] = {"as it is": [], "never": [], "always": []}
        self.merged: list[Tensor] = []
        self.anomalous: list[bool] = []
        self.explanations: list[Explanation] = []

    def draw(self, visualizer: NpgmfVisualizer, module: Npgmf, batch: Any) -> list[Picture]:
        """Stands for the visualiser's method."""
        assert module.model.merger.composition is not None
        mean = module.model.merger.composition.mean
        self.merged += list(batch.anomaly_map)
        self.anomalous += batch.gt_label.bool().tolist()
        carried = maps_of(batch)
        assert carried is not None
        self.explanations += carried.explanations
        before = mean[1].clone()
        for name, shift in (("as it is", 0.0), ("never", 1e6), ("always", -1e6)):
            mean[1] = before + shift
            self.pictures[name] += DRAW(visualizer, module, batch)
        mean[1] = before
        return self.pictures["as it is"][-len(batch.image) :]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Npgmf, Drawn, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = Drawn()
    model = make_model(composition={"codebook_sizes": (4,), "codebooks": 2})
    engine = make_engine(folder / "results")
    datamodule = mvtec(draw_category(folder / "images", train=TRAIN).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NpgmfVisualizer, "draw", lambda *arguments: drawn.draw(*arguments))
        engine.fit(model, datamodule=datamodule)
        engine.test(model, datamodule=datamodule, verbose=False)
    return model, drawn, folder


def panel(picture: Picture, index: int) -> Picture:
    x = 4 + index * (SIDE + 4)
    return picture[-SIDE:, x : x + SIDE]


def test_one_file_per_image(run: tuple[Npgmf, Drawn, Path]) -> None:
    model, drawn, folder = run
    assert isinstance(model.visualizer, NpgmfVisualizer)  # without being asked for
    files = sorted((folder / "results").rglob("images/**/*.png"))
    assert len(files) == 8
    assert {file.parent.name for file in files} == {"good", "blot"}
    saved = {np.asarray(Image.open(file)).tobytes() for file in files}
    assert saved == {picture.tobytes() for picture in drawn.pictures["as it is"]}


def test_panels(run: tuple[Npgmf, Drawn, Path]) -> None:
    _, drawn, _ = run
    for index, picture in enumerate(drawn.pictures["never"]):
        # image, ground truth, logical, structural, composition and merged map, reconstruction
        assert picture.shape == (SIDE + 2 * HEADER, 7 * (SIDE + 4) + 4, 3)
        merged = cv2.resize(drawn.merged[index].squeeze().cpu().numpy(), (SIDE, SIDE))
        np.testing.assert_array_equal(panel(picture, 5), heat_map(panel(picture, 0), merged, threshold=0.5))
        assert (panel(picture, 1) != panel(picture, 0)).any() == drawn.anomalous[index]
    assert len(drawn.pictures["never"]) == 8


def test_composition_explains_itself_only_where_it_decides(run: tuple[Npgmf, Drawn, Path]) -> None:
    _, drawn, _ = run
    for never, always, explanation in zip(
        drawn.pictures["never"], drawn.pictures["always"], drawn.explanations, strict=True
    ):
        assert len(always) == len(never) + HEADER  # a second line
        marked = outline(np.zeros((SIDE, SIDE, 3), np.uint8), explanation.mask.numpy(), (255, 255, 255)) == 255
        assert (panel(always, 4)[marked] == 255).all()
    assert any(explanation.mask.any() for explanation in drawn.explanations)


@pytest.mark.parametrize("drawn", [True, False])
def test_predictions_do_not_keep_the_maps_of_the_branches(run: tuple[Npgmf, Drawn, Path], drawn: bool) -> None:
    """A list of predictions would hold them all in memory."""
    model, _, folder = run
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr(model, "visualizer", None)
        batches = make_engine(folder / f"predict_{drawn}").predict(model, datamodule=mvtec(folder / "images"))
    assert sum(len(batch.image) for batch in batches) == 8
    assert all(maps_of(batch) is None for batch in batches)


@pytest.mark.parametrize("action", ["test", "predict"])
def test_pictures_and_reasons_need_no_second_pass_of_the_network(run: tuple[Npgmf, Drawn, Path], action: str) -> None:
    model, _, folder = run
    assert model.model.encoder is not None
    passes: list[int] = []
    handle = model.model.encoder.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    try:
        getattr(make_engine(folder / f"passes_{action}"), action)(model, datamodule=mvtec(folder / "images"))
    finally:
        handle.remove()
    assert passes == [4, 4]


def test_title() -> None:
    explanation = Explanation(4, 16, 7, 0.02, 0.05, torch.zeros(2, 2, dtype=torch.bool))
    assert title_of(0.8, True, "composition", explanation) == (
        "score 0.80, anomalous; the composition branch dominates\n"
        "composition: less of code 7 than normal (level 4, 16 codes, 2.0 % of the image instead of 5.0 %)"
    )
    assert title_of(0.2, False, "structural", None) == "score 0.20, normal; the structural branch dominates"
    assert title_of(0.2, None, None, None) == "score 0.20"


def spot(y: int, x: int, value: float) -> Tensor:
    """A map of ones with a bright square."""
    plane = torch.ones(1, 1, 64, 64)
    plane[..., y : y + 16, x : x + 16] = value
    return plane


def test_which_branch_dominates_and_on_what_scale() -> None:
    merger = MapMerger((64, 64), 1.0, 3.0, composition=[1], blur=gaussian_blur((64, 64)))
    merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    assert merger.composition is not None
    merger.composition.calibrate(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0]), normal_level=0.0)
    # means 1 and 2, sd sqrt(2) each
    maps = {
        "logical": torch.cat([spot(4, 4, 11.0), spot(4, 4, 11.0), spot(4, 4, 11.0)]),
        "structural": torch.cat([spot(40, 40, 3.0), spot(4, 4, 7.0), spot(40, 40, 3.0)]),
        "composition": torch.cat([spot(0, 0, 1.0) - 1, spot(0, 0, 2.0) - 1, spot(0, 0, 2.0) - 1]),
        "composition_scores": torch.tensor([[9.0], [9.0], [12.0]]),
    }
    # above the mean: branches 9, 27 and 9 at their peaks; composition 7, 7 and 10
    assert dominant_part(merger, maps) == ["logical", "structural", "composition"]
    scores = part_scores(merger, maps)  # on the scale of the merged score, which the larger of two decides
    assert scores["logical"].tolist() == pytest.approx([9 / 2**0.5] * 3, rel=0.05)
    assert scores["composition"].tolist() == pytest.approx([7 / 2**0.5, 7 / 2**0.5, 10 / 2**0.5])
    parts = merger.calibrated_maps(maps)
    assert float(parts["composition"][0].max()) == 0  # no surplus
    assert float(parts["composition"][1].max()) == 0  # the branches score higher
    shown = 45 * (10 / 2**0.5 - (9 / 2**0.5 - 1))
    assert float(parts["composition"][2].max()) == pytest.approx(shown, rel=0.05)  # smoothing
    quiet = dict(maps, structural=torch.ones(3, 1, 64, 64), composition=torch.zeros(3, 1, 64, 64))
    torch.testing.assert_close(parts["logical"], merger(quiet).maps)  # alone, a part is the merged map


def test_of_a_maximum_the_larger_map_dominates() -> None:
    merger = MapMerger((64, 64), 1.0, 3.0, maximum=True, blur=gaussian_blur((64, 64)))
    merger.calibrate({"logical": (1.0, 1.0), "structural": (1.0, 1.0)})
    maps = {
        "logical": spot(4, 4, 5.0),
        "structural": spot(40, 40, 4.0),
    }  # 4 and 3, weighted 4 and 9
    assert dominant_part(merger, maps) == ["logical"]
    assert dominant_part(merger, maps | {"structural": spot(40, 40, 7.0)}) == ["structural"]


def test_single_parts() -> None:
    merger = MapMerger((64, 64), 1.0, 3.0, blur=gaussian_blur((64, 64)))
    merger.calibrate({"structural": (1.0, 1.0)})
    assert dominant_part(merger, {"structural": spot(0, 0, 2.0)}) == ["structural"]
    assert list(merger.calibrated_maps({"structural": spot(0, 0, 2.0)})) == ["structural"]
