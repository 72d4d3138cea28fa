"""The look at the pictures before a run: unreadable files, duplicates, the split, how many there are."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from _factory import draw, draw_category, folder_of, make_engine, make_model, mvtec
from anomalib.data import Folder

from anomalib_npgmf.host.duration import Duration
from anomalib_npgmf.host.folder_check import CheckPictures, describe, look_at


def spoil(folder: Path) -> list[Path]:
    """A truncated picture, a text and an empty file, each named as a picture."""
    truncated, text, empty = (folder / f"{name}.png" for name in ("truncated", "text", "empty"))
    draw(truncated, 77)
    content = truncated.read_bytes()
    truncated.write_bytes(content[: len(content) // 2])
    text.write_text("no picture at all", encoding="utf-8")
    empty.touch()
    return [truncated, text, empty]


@pytest.fixture
def category(tmp_path: Path) -> Path:
    return draw_category(tmp_path / "data", train=8)


def check(datamodule: Any, stage: str = "fit", **options: Any) -> CheckPictures:
    """The callback's look at a data module."""
    datamodule.setup()
    callback = CheckPictures(**options)
    trainer: Any = SimpleNamespace(datamodule=datamodule, is_global_zero=True)
    callback.setup(trainer, SimpleNamespace(evaluator=None), stage)  # type: ignore[arg-type]
    return callback


def test_a_training_names_all_unreadable_files_and_does_not_start(category: Path, tmp_path: Path) -> None:
    torn = [*spoil(category / "train" / "good"), *spoil(category / "test" / "good")]
    with pytest.raises(ValueError, match=r"6 pictures cannot be read: .*set skip_unreadable to leave") as caught:
        make_engine(tmp_path / "run").fit(make_model(), datamodule=folder_of(category))
    assert all(str(path) in str(caught.value) for path in torn)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_training_leaves_them_out_on_request(
    category: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(category / "train" / "good")
    data = folder_of(category)
    model = make_model(branches="structural", skip_unreadable=True, visualizer=False)
    make_engine(tmp_path / "run").fit(model, datamodule=data)
    assert model.model.merger.calibrated
    assert len(data.train_data) == 8
    (message,) = (record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage())
    assert message.startswith("3 pictures cannot be read and will be left out: ")
    assert "truncated.png" in message


@pytest.mark.parametrize("action", ["predict", "test"])
def test_a_run_goes_on_without_them_and_reports_them(
    category: Path, tmp_path: Path, action: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model(branches="structural")
    make_engine(tmp_path / "fit").fit(model, datamodule=mvtec(category.parent))
    torn = spoil(category / "test" / "good")
    given = {"data_path": category / "test"} if action == "predict" else {"datamodule": mvtec(category.parent)}
    getattr(make_engine(tmp_path / "run"), action)(model, **given)
    (file,) = (tmp_path / "run").rglob("scores.json")
    records = json.loads(file.read_text(encoding="utf-8"))
    unreadable = [record for record in records if record["label"] == "unreadable"]
    assert {Path(record["path"]) for record in unreadable} == set(torn)
    assert all(record["reason"] and record["score"] is None for record in unreadable)
    assert len(records) == 11
    assert "3 pictures cannot be read and will be left out" in caplog.text
    assert (file.parent / "report.html").read_text(encoding="utf-8").count('data-label="unreadable"') == 3


def test_a_folder_without_any_readable_picture(tmp_path: Path) -> None:
    spoil(tmp_path / "pictures")
    model = make_model(branches="structural")
    model.model.merger.calibrate({"structural": (1.0, 1.0)})
    with pytest.raises(ValueError, match=r"None of the 3 pictures can be read, the first is .*empty\.png"):
        make_engine(tmp_path / "run").predict(model, data_path=tmp_path / "pictures")


def test_one_good_picture_gets_a_sentence(tmp_path: Path) -> None:
    draw(tmp_path / "good" / "0.png", 0)
    data = Folder(name="one", root=tmp_path, normal_dir="good", num_workers=0)
    with pytest.raises(ValueError, match=r"good has 1 good picture; at least 5 are needed, of which 20% are kept"):
        make_engine(tmp_path / "run").fit(make_model(), datamodule=data)


def test_test_pictures_that_are_training_pictures_are_named(category: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(folder_of(category))
    assert "has the content" not in caplog.text
    copied = category / "test" / "blot" / "copy.png"
    shutil.copy(category / "train" / "good" / "003.png", copied)
    with caplog.at_level(logging.WARNING):
        check(folder_of(category, val_split_mode="same_as_test"))  # once, though two sets hold it
    assert "1 picture for test or validation has the content of a training picture" in caplog.text
    assert f"{copied} = {category / 'train' / 'good' / '003.png'}" in caplog.text


def test_what_is_used_for_what(category: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(folder_of(category))
    printed = capsys.readouterr().out
    assert "Training: 6 good pictures, and 2 that the threshold is set on. Test: 2 good and 2 bad ones." in printed
    assert "Sizes: 128 x 128; modes: RGB." in printed
    assert "Not used: 2 good and 2 bad pictures" in printed
    assert "with --data.val_split_mode none the test has them" in printed
    assert "drawn anew in each run; --data.seed 0 keeps it" in printed
    assert "8 good pictures are few" in printed
    check(folder_of(category, val_split_mode="none", seed=0))
    printed = capsys.readouterr().out
    assert "Test: 4 good and 4 bad ones." in printed
    assert "Not used" not in printed
    assert "drawn anew" not in printed


def test_a_validation_set_that_something_reads_is_not_called_unused(category: Path) -> None:
    data = folder_of(category)
    data.setup()
    files = look_at([str(path) for path in data.train_data.samples.image_path])
    assert "Not used" in " ".join(describe(data, files, validation_is_used=False))
    assert "Not used" not in " ".join(describe(data, files, validation_is_used=True))


def test_without_a_data_module_nothing_is_checked(tmp_path: Path) -> None:
    callback = CheckPictures()
    callback.setup(SimpleNamespace(), SimpleNamespace(), "fit")  # type: ignore[arg-type]
    assert callback.unreadable == []


class Clock:
    """A training whose steps take a second, and whose epochs take five seconds more, the first one a minute."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, batches: int, epochs: int) -> None:
        self.now = 0.0
        monkeypatch.setattr("anomalib_npgmf.host.duration.time.monotonic", lambda: self.now)
        self.trainer: Any = SimpleNamespace(
            num_training_batches=batches, max_epochs=epochs, max_steps=-1, callbacks=[], is_global_zero=True
        )

    def run(self) -> None:
        """The whole training; it ends at ``now``."""
        duration, module = Duration(), SimpleNamespace()
        duration.on_train_start(self.trainer, module)  # type: ignore[arg-type]
        for epoch in range(self.trainer.max_epochs):
            self.trainer.current_epoch = epoch
            duration.on_train_epoch_start(self.trainer, module)  # type: ignore[arg-type]
            for _ in range(self.trainer.num_training_batches):
                self.now += 1
                duration.on_train_batch_end(self.trainer, module)  # type: ignore[arg-type]
            self.now += 5 if epoch else 60


@pytest.mark.parametrize(("batches", "epochs"), [(2, 50), (100, 3)])
def test_the_announced_time_is_right(
    batches: int, epochs: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, batches, epochs)
    said: list[tuple[float, float]] = []
    original = Duration._say

    def say(self: Duration, trainer: Any, seconds: float) -> None:
        said.append((clock.now, seconds))
        original(self, trainer, seconds)

    monkeypatch.setattr(Duration, "_say", say)
    clock.run()
    ((when, seconds),) = said
    assert seconds == pytest.approx(clock.now - when, rel=0.3)
    assert "The training takes about" in capsys.readouterr().out


def test_of_a_training_that_is_limited_by_steps_nothing_is_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch, 2, 50)
    clock.trainer.max_steps = 1000
    clock.run()
    assert capsys.readouterr().out == ""
