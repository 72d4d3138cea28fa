"""A checkpoint is used with `Npgmf()`, without an argument of its training; other arguments are refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import draw_category, make_engine, make_model, mvtec
from anomalib.deploy import ExportType
from anomalib.post_processing import PostProcessor

from anomalib_npgmf import Npgmf, config
from anomalib_npgmf.config import CompositionConfig, resolve
from anomalib_npgmf.export import describe
from anomalib_npgmf.export.metadata import KEY
from anomalib_npgmf.host.rebuild import _before_0_2, check_given

COMPOSITION = {"codebook_sizes": (3,), "codebooks": 1, "grids": [2], "grid_codebook_sizes": (4,)}
# Everything that the default preset has otherwise: sizes, parts, merging, text prior, one network.
CHANGES: dict[str, Any] = {
    "merging": "maximum",
    "composition": COMPOSITION,
    "structural_image_size": 192,
    "structural": {"coreset_ratio": 0.5, "levels": [3]},
    "learning_rate": 3e-3,
}
# The same with what versions before knew.
FORMER = CHANGES | {
    "composition": COMPOSITION | {"levels": (3, 4)},
    "structural": {"coreset_ratio": 0.5, "levels": [3], "whiten": False},
}


@pytest.fixture(autouse=True)
def small_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset of `Npgmf()` is quick to build: one branch, another network, another size."""
    tiny = replace(
        config.PRESETS["paper"],
        structural_backbone="test_efficientnet",
        structural_image_size=(64, 64),
        branches="structural",
    )
    monkeypatch.setitem(config.PRESETS, "paper", tiny)


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("rebuild"))


def train(category: Path, root: Path, **changes: Any) -> tuple[Npgmf, Path]:
    model, engine = make_model(**changes), make_engine(root)
    engine.fit(model, datamodule=mvtec(category.parent))
    assert engine.best_model_path is not None
    return model, Path(engine.best_model_path)


@pytest.fixture(scope="module")
def trained(category: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Npgmf, Path]:
    return train(category, tmp_path_factory.mktemp("run"), **CHANGES)


@pytest.fixture(scope="module")
def trained_before(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(category, tmp_path_factory.mktemp("before"), **FORMER)[1]


@pytest.fixture
def former_checkpoint(trained_before: Path) -> dict[str, Any]:
    """As versions before wrote it, without the configuration."""
    loaded: dict[str, Any] = torch.load(trained_before, weights_only=True)
    del loaded[KEY]["configuration"]
    loaded["hyper_parameters"] |= CHANGES  # they had no name for what has come since
    return loaded


@pytest.fixture
def checkpoint(trained: tuple[Npgmf, Path]) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(trained[1], weights_only=True)
    return loaded


def scores(model: Npgmf, category: Path, root: Path, path: Path | None = None) -> list[float]:
    batches = make_engine(root).predict(model, datamodule=mvtec(category.parent), ckpt_path=path)
    assert batches is not None
    return [float(score) for batch in batches for score in batch.pred_score]


def test_predict_without_arguments(trained: tuple[Npgmf, Path], category: Path, tmp_path: Path) -> None:
    model, path = trained
    bare = Npgmf()
    found = scores(bare, category, tmp_path, path)
    assert found == scores(model, category, tmp_path)
    assert bare.settings == model.settings
    assert bare.preset == "small"
    assert tuple(bare.input_size or ()) == (192, 192)
    assert len(list(tmp_path.rglob("images/**/*.png"))) == 8, "the visualizer draws all parts of the model"


def test_test_without_arguments(trained: tuple[Npgmf, Path], category: Path, tmp_path: Path) -> None:
    model, path = trained
    found = make_engine(tmp_path).test(Npgmf(), datamodule=mvtec(category.parent), ckpt_path=path)
    assert found == make_engine(tmp_path).test(model, datamodule=mvtec(category.parent))


def test_export_without_arguments(trained: tuple[Npgmf, Path], tmp_path: Path) -> None:
    path = make_engine(tmp_path).export(Npgmf(), ExportType.TORCH, export_root=tmp_path, ckpt_path=trained[1])
    assert path is not None
    assert describe(path)["configuration"]["structural"]["coreset_ratio"] == 0.5
    assert describe(path)["image_size"] == [192, 192]


def test_training_goes_on_without_arguments(trained: tuple[Npgmf, Path], category: Path, tmp_path: Path) -> None:
    """The images that were set aside before the checkpoint was read calibrate the new parts."""
    bare, engine = Npgmf(), make_engine(tmp_path, max_epochs=2)
    engine.fit(bare, datamodule=mvtec(category.parent), ckpt_path=trained[1])
    now, before = bare.state_dict(), trained[0].state_dict()
    assert now.keys() == before.keys()
    assert any(not torch.equal(now[name], before[name]) for name in now if name.startswith("model.logical.decoder"))
    assert not torch.equal(now["model.merger.mean"], before["model.merger.mean"])
    again = Npgmf.load_from_checkpoint(engine.best_model_path)
    assert again.settings == trained[0].settings
    assert again.hparams["structural_image_size"] == 192


def test_calibrating_a_rebuilt_model(trained: tuple[Npgmf, Path], category: Path, checkpoint: dict[str, Any]) -> None:
    bare = Npgmf()
    bare.on_load_checkpoint(checkpoint)
    bare.load_state_dict(checkpoint["state_dict"])
    bare.calibrate(mvtec(category.parent))
    torch.testing.assert_close(bare.model.merger.mean, trained[0].model.merger.mean)
    assert bare.post_processor.image_threshold == pytest.approx(trained[0].post_processor.image_threshold.item())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"preset": "paper"}, r"preset 'small' \(not 'paper'\)"),
        ({"merging": "sum"}, r"merging 'maximum' \(not 'sum'\); leave"),
        ({"logical_image_size": 256}, r"logical_image_size \(128, 128\) \(not \(256, 256\)\)"),
        ({"structural_image_size": 256}, r"structural_image_size \(192, 192\) \(not \(256, 256\)\)"),
        ({"logical": {"standardise": False}}, r"logical.standardise True \(not False\)"),
        ({"structural": {"levels": [4]}}, r"structural.levels \(3,\) \(not \(4,\)\)"),
        ({"branches": "structural"}, r"branches 'both' \(not 'structural'\)"),
        ({"logical": {"code_dim": 16}}, r"logical.code_dim 8 \(not 16\)"),
        ({"use_codebooks": False}, r"logical.vq_levels \(3, 4\) \(not \(\)\)"),
        ({"coreset_ratio": 0.1}, r"structural.coreset_ratio 0.5 \(not 0.1\)"),
        ({"composition": False}, r"composition True \(not False\)"),
        ({"composition": {"grids": (3,)}}, r"composition.grids \(2,\) \(not \(3,\)\)"),
        (
            {"composition": {"grids": (2, 3), "grid_codebook_sizes": (4, 5)}},
            r"composition.grids \(2,\) \(not \(2, 3\)\), composition.grid_codebook_sizes \(4,\) \(not \(4, 5\)\)",
        ),
        (
            {"prompt": "A plate", "learning_rate": 1.0},
            r"learning_rate 0.003 \(not 1.0\), prompt None \(not 'A plate'\)",
        ),
    ],
)
def test_other_arguments_are_named(checkpoint: dict[str, Any], given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^The checkpoint was made with {sentence}"):
        Npgmf(**given).on_load_checkpoint(checkpoint)


def test_equal_arguments_are_accepted(checkpoint: dict[str, Any], trained: tuple[Npgmf, Path]) -> None:
    given: dict[str, Any] = {
        "preset": "small",
        "logical_image_size": [128, 128],
        "coreset_ratio": 0.5,
        "structural": {"levels": (3,)},
        "composition": COMPOSITION,
        "backbone_weights": "elsewhere.pth",  # where the training started
    }
    model = Npgmf(**given, backbone="test_resnet")
    model.on_load_checkpoint(checkpoint)
    assert model.settings == trained[0].settings


def test_arguments_of_load_from_checkpoint_are_named(trained: tuple[Npgmf, Path]) -> None:
    assert Npgmf.load_from_checkpoint(trained[1]).settings == trained[0].settings
    with pytest.raises(ValueError, match=r"backbone 'test_resnet' \(not 'resnet18'\)"):
        Npgmf.load_from_checkpoint(trained[1], backbone="resnet18")


def test_presets_may_change(trained: tuple[Npgmf, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the configuration of the training, not the preset of today."""
    monkeypatch.setitem(
        config.PRESETS,
        "small",
        replace(config.PRESETS["small"], branches="structural", composition=CompositionConfig()),
    )
    assert Npgmf.load_from_checkpoint(trained[1]).settings == trained[0].settings


@pytest.mark.parametrize("bare", [True, False])
def test_checkpoints_without_configuration(former_checkpoint: dict[str, Any], bare: bool) -> None:
    """The arguments of the training are there, and the names of network and merging."""
    former_checkpoint["hyper_parameters"]["backbone"] = None  # the preset's at that time
    model = Npgmf() if bare else make_model(**CHANGES)
    model.on_load_checkpoint(former_checkpoint)
    model.load_state_dict(former_checkpoint["state_dict"])
    assert model.settings.backbone == "test_resnet"
    assert model.settings.structural_image_size == (192, 192)


def test_checkpoints_without_configuration_and_arguments(former_checkpoint: dict[str, Any]) -> None:
    del former_checkpoint["hyper_parameters"]
    model = make_model(**CHANGES)
    model.on_load_checkpoint(former_checkpoint)
    model.load_state_dict(former_checkpoint["state_dict"])
    with pytest.raises(ValueError, match=r"made with logical_image_size \[128, 128\] \(not \[256, 256\]\)"):
        Npgmf(preset="small", merging="maximum").on_load_checkpoint(former_checkpoint)
    with pytest.raises(ValueError, match="architecture is not the model's"):
        make_model(**CHANGES, logical={"code_dim": 16}).on_load_checkpoint(former_checkpoint)


def test_settings_of_a_newer_version(checkpoint: dict[str, Any]) -> None:
    checkpoint[KEY]["version"] = "9.0"
    checkpoint[KEY]["configuration"]["logical"]["depth"] = 3
    with pytest.raises(ValueError, match=r"settings that this version does not know \(depth\); install 9\.0"):
        Npgmf().on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("action", ["test", "predict"])
def test_components_that_the_training_switched_off(category: Path, tmp_path: Path, action: str) -> None:
    off = {"visualizer": False, "evaluator": False, "post_processor": False}
    _, path = train(category, tmp_path, branches="structural", **off)
    bare, engine = Npgmf(), make_engine(tmp_path)
    getattr(engine, action)(bare, datamodule=mvtec(category.parent), ckpt_path=path)
    assert bare.visualizer is bare.evaluator is bare.post_processor is None
    assert not any(isinstance(callback, PostProcessor) for callback in engine.trainer.callbacks)
    assert not list(tmp_path.rglob("images"))


def test_sizes_of_codebooks_in_other_words() -> None:
    stored = resolve("small", {}, composition={"grids": (2, 4), "grid_codebook_sizes": (32,)})
    check_given({"composition": {"grid_codebook_sizes": (32, 32)}}, stored, "small", None)
    check_given({"composition": {}}, stored, "small", None)
    with pytest.raises(ValueError, match=r"composition.grid_codebook_sizes \(32,\) \(not \(\)\)"):
        check_given({"composition": {"grid_codebook_sizes": ()}}, stored, "small", None)


@pytest.mark.parametrize(
    ("given", "stored", "expected"),
    [
        ({}, {"composition": True}, {}),
        ({"composition": True}, {"composition": {"grids": (2, 4)}}, {"grids": (2, 4)}),
        ({"composition": {"codebooks": 1}}, {"composition": {"levels": (4,)}}, {"levels": (4,), "codebooks": 1}),
        ({}, {"preset": "plus"}, {}),
        ({"composition": {}}, {}, {}),
    ],
)
def test_composition_of_before(given: dict[str, Any], stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Its defaults were others; what was given stays."""
    settings = _before_0_2(given, {"preset": "small"} | stored, {})
    assert settings is not None
    assert settings.composition == replace(CompositionConfig(grids=(2, 3), grid_codebook_sizes=(32,)), **expected)
    assert _before_0_2({}, {"preset": "small"}, {}).composition is None  # type: ignore[union-attr]
