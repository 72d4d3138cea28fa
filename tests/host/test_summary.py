"""The table at the end of a test: counts by folder and part, from the predictions themselves."""

from pathlib import Path

import pytest
from _factory import draw_category, make_engine, make_model, mvtec

from anomalib_npgmf.host.summary import TestSummary


def test_counts_equal_the_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_category(tmp_path / "data", train=8)
    data, model = mvtec(tmp_path / "data"), make_model(composition={"codebook_sizes": (4,), "codebooks": 1})
    engine = make_engine(tmp_path / "run")
    engine.fit(model, datamodule=data)
    capsys.readouterr()
    engine.test(model, datamodule=data)
    printed = capsys.readouterr().out
    (summary,) = (callback for callback in engine.trainer.callbacks if isinstance(callback, TestSummary))
    predictions = engine.predict(model, datamodule=data)
    expected = {"good": 0, "blot": 0}
    for batch in predictions or []:
        for path, label in zip(batch.image_path, batch.pred_label.tolist(), strict=True):
            expected[Path(path).parent.name] += bool(label)
    assert dict(summary.images) == {"good": 4, "blot": 4}
    assert {f: sum(n for (g, _), n in summary.found.items() if g == f) for f in expected} == expected
    assert expected["blot"] > 0
    rows = [line.split() for line in printed.splitlines() if "blot" in line or "good" in line]
    assert [row[0] for row in rows if row[0] in expected] == ["good", "blot"]


def test_without_labels_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_category(tmp_path / "data", train=4)
    data, model = mvtec(tmp_path / "data"), make_model(branches="structural", post_processor=False, evaluator=False)
    engine = make_engine(tmp_path / "run")
    engine.fit(model, datamodule=data)
    engine.test(model, datamodule=data, verbose=False)
    assert "test folder" not in capsys.readouterr().out
