"""What a run leaves and where: the tested model, exports, pictures, and nothing after a failure."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _factory import draw, draw_category, folder_of, make_engine, make_model, mvtec
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import Padim

from anomalib_npgmf import Npgmf
from anomalib_npgmf.export import describe
from anomalib_npgmf.host.engine import adapt_engine
from anomalib_npgmf.host.places import picture_path


@pytest.fixture(scope="module")
def category(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_category(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(category: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run, ``.../v0``."""
    engine = make_engine(tmp_path_factory.mktemp("run"))
    engine.fit(make_model(), datamodule=mvtec(category.parent))
    assert engine.best_model_path is not None
    return Path(engine.best_model_path).parents[2]


def checkpoint_of(run: Path) -> Path:
    return run / "weights" / "lightning" / "model.ckpt"


def test_training_that_goes_on_is_tested(run: Path, category: Path, tmp_path: Path) -> None:
    model, engine = make_model(visualizer=False), make_engine(tmp_path, max_epochs=2)
    tested: list[dict[str, torch.Tensor]] = []
    model.on_test_start = lambda: tested.append({k: v.clone() for k, v in model.state_dict().items()})
    results = engine.train(model, datamodule=mvtec(category.parent), ckpt_path=checkpoint_of(run))
    assert "image_AUROC" in results[0]
    last = torch.load(str(engine.best_model_path), weights_only=True)
    assert last["epoch"] == 1
    for name, value in last["state_dict"].items():
        assert torch.equal(tested[0][name], value), name


def test_exports_go_beside_their_run(run: Path, tmp_path: Path) -> None:
    export = make_engine(tmp_path).export
    path = export(make_model(), ExportType.TORCH, ckpt_path=checkpoint_of(run))
    assert path == run / "weights" / "torch" / "model.pt"
    assert export(make_model(), "torch", tmp_path / "there", ckpt_path=checkpoint_of(run)).is_relative_to(tmp_path)
    elsewhere = tmp_path / "copied.ckpt"
    elsewhere.write_bytes(checkpoint_of(run).read_bytes())
    path = export(make_model(), ExportType.TORCH, ckpt_path=str(elsewhere))
    assert path == tmp_path / "weights" / "torch" / "model.pt"


@pytest.mark.parametrize("action", ["test", "predict"])
def test_answers_go_beside_the_checkpoints_run(
    run: Path, category: Path, tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not the latest one, and its configuration stays; another folder can be given."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "other" / "v0"
    checkpoint_of(own).parent.mkdir(parents=True)
    checkpoint_of(own).write_bytes(checkpoint_of(run).read_bytes())
    given: dict[str, Any] = {"data_path": category / "test" / "good"}
    if action == "test":
        given = {"datamodule": mvtec(category.parent)}
    getattr(Engine(accelerator="cpu", logger=False), action)(make_model(), ckpt_path=checkpoint_of(own), **given)
    assert {path.name for path in own.iterdir()} == {"weights", "images", action}
    assert not (tmp_path / "results").exists()
    getattr(make_engine(tmp_path / "there"), action)(make_model(), ckpt_path=checkpoint_of(own), **given)
    assert list((tmp_path / "there").rglob("report.html"))


def test_export_refuses_other_arguments(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"made with merging 'sum' \(not 'maximum'\)"):
        make_engine(tmp_path).export(make_model(merging="maximum"), ExportType.TORCH, ckpt_path=checkpoint_of(run))


def test_export_moves_the_threshold(run: Path, tmp_path: Path) -> None:
    """The one argument that may be another than the training's."""
    export = make_engine(tmp_path).export
    stored = describe(export(make_model(), "torch", tmp_path, ckpt_path=checkpoint_of(run)))
    moved = describe(export(make_model(false_alarm_rate=0.3), "torch", tmp_path, ckpt_path=checkpoint_of(run)))
    assert moved["false_alarm_rate"] == 0.3
    assert moved["threshold"] < stored["threshold"]


@pytest.mark.parametrize("action", ["fit", "train"])
@pytest.mark.parametrize("earlier", [None, "v3"])
def test_failed_run_leaves_no_folder(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str, earlier: str | None
) -> None:
    root = tmp_path / "Npgmf" / "MVTecAD" / "square_plate"
    if earlier is not None:
        (root / earlier).mkdir(parents=True)
        (root / "latest").symlink_to(root / earlier)

    def fail(*arguments: Any) -> None:
        (root / "v4" if earlier else root / "v0").joinpath("config.yaml").touch()  # as the command line writes it
        raise OSError("no picture can be read")

    monkeypatch.setattr(Npgmf, "on_fit_start", fail)
    with pytest.raises(OSError, match="no picture"):
        getattr(make_engine(tmp_path), action)(make_model(visualizer=False), datamodule=mvtec(category.parent))
    assert [path.name for path in root.glob("v*")] == ([earlier] if earlier else [])
    assert (root / "latest").is_symlink() is (earlier is not None)
    assert earlier is None or (root / "latest").resolve() == root / earlier


def test_a_folder_that_another_process_removes_does_not_hide_the_error(
    category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of a run fail together, and both clear up."""

    def fail(*arguments: Any) -> None:
        raise ValueError("no picture can be read")

    def gone(path: Path) -> None:
        raise FileNotFoundError(path)

    model = make_model(visualizer=False)
    monkeypatch.setattr(Npgmf, "on_fit_start", fail)
    monkeypatch.setattr(Path, "rmdir", gone)
    with pytest.raises(ValueError, match="no picture"):
        make_engine(tmp_path).fit(model, datamodule=mvtec(category.parent))


def test_failed_run_keeps_a_checkpoint(category: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Npgmf, "test_step", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_engine(tmp_path).train(make_model(visualizer=False), datamodule=mvtec(category.parent))
    assert (
        tmp_path / "Npgmf" / "MVTecAD" / "square_plate" / "latest" / "weights" / "lightning" / "model.ckpt"
    ).is_file()


def test_other_models_and_signatures_stay(category: Path, tmp_path: Path) -> None:
    make_model()
    changed = Engine.train
    adapt_engine(Npgmf)
    assert Engine.train is changed, "changed once"
    engine = make_engine(tmp_path)
    engine._setup_trainer = lambda model: 1 / 0
    padim = Padim(backbone="resnet18", layers=["layer1"], pre_trained=False, n_features=8)
    with pytest.raises(ZeroDivisionError):
        engine.train(padim, datamodule=mvtec(category.parent))
    assert len(list(tmp_path.glob("Padim/*/*/v0"))) == 1


def test_engine_from_a_configuration(tmp_path: Path) -> None:
    """anomalib's command line reads the signatures of the changed methods."""
    make_model()
    file = tmp_path / "config.yaml"
    file.write_text("model: {class_path: Npgmf, init_args: {preset: small, backbone: test_resnet}}\ndata: MVTecAD\n")
    _, model, _ = Engine.from_config(file)
    assert isinstance(model, Npgmf)


def test_pictures_of_folders_of_the_same_name(run: Path, tmp_path: Path) -> None:
    for line in ("line1", "line2"):
        for i in range(2):
            draw(tmp_path / line / "new" / f"{i}.png", i)
        engine = make_engine(tmp_path / "results")
        engine.predict(make_model(), data_path=tmp_path / line / "new", ckpt_path=checkpoint_of(run))
    assert len(list((tmp_path / "results").rglob("images/**/*.png"))) == 4


def test_places_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def place(image: str, datamodule: Any = None) -> str:
        return picture_path(image, tmp_path / "out", datamodule).relative_to(tmp_path / "out").as_posix()

    assert place("a/new/1.png") == place(str(tmp_path / "a" / "new" / "1.png")) == "a/new/1.png"
    assert place("/data/new/1.png") == "data/new/1.png"
    data = mvtec(tmp_path / "MVTecAD", "bottle")
    assert place(f"{tmp_path}/MVTecAD/bottle/test/good/1.png", data) == "test/good/1.png"
    parts = folder_of(tmp_path / "parts")
    assert place(f"{tmp_path}/parts/a/good/1.png", parts) == "a/good/1.png"
    assert place(f"{tmp_path}/parts/b/good/1.png", parts) == "b/good/1.png"
    assert place("/elsewhere/good/1.png", parts) == "elsewhere/good/1.png"
