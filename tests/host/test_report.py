"""What `anomalib predict` and `anomalib test` answer: verdicts, their files, and the page of a run."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _factory import draw, draw_category, make_engine, make_model, mvtec
from _page import Page
from PIL import Image
from rich.console import Console

from anomalib_npgmf.host import report
from anomalib_npgmf.host.report import Report, print_table, table_of
from anomalib_npgmf.host.verdict import Verdict, scores_of_calibration, verdicts_of

ODD = '<img src=x onerror=alert(1)> &amp; "q" [red].png'
PARTS = {"logical", "structural", "composition"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A trained model, its test, and a prediction of a folder of mixed pictures."""
    folder = tmp_path_factory.mktemp("report")
    draw_category(folder / "data", train=12)
    model = make_model(composition={"codebook_sizes": (4,), "codebooks": 1})
    engine = make_engine(folder / "run")
    engine.fit(model, datamodule=mvtec(folder / "data"))
    engine.test(model, datamodule=mvtec(folder / "data"), verbose=False)
    pictures = folder / "mixed"
    draw(pictures / "good.png", 100)
    draw(folder / "drawn" / "here" / "bad.png", 200, defect=True)
    with Image.open(folder / "drawn" / "here" / "bad.png") as file:
        file.resize((384, 256)).save(pictures / "bad.png")
    with Image.open(pictures / "good.png") as file:
        grey = file.convert("L")
        grey.save(pictures / "grey.png")
        file.convert("RGBA").save(pictures / "rgba.png")
        wide = file.resize((320, 160))
        wide.save(pictures / "wide.png")
        turned = Image.Exif()
        turned[0x0112] = 6  # a viewer turns it clockwise
        wide.transpose(Image.Transpose.ROTATE_90).save(pictures / "turned.png", exif=turned)
        file.convert("RGB").save(pictures / ODD)
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(pictures / "sixteen.png")
    batches = make_engine(folder / "predictions").predict(model, data_path=pictures)
    root = next(folder.glob("predictions/**/predict"))
    return {"model": model, "batches": batches, "root": root, "test": next(folder.glob("run/**/test")), "data": folder}


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {Path(r["path"]).name: r for r in json.loads((folder / "scores.json").read_text(encoding="utf-8"))}


def test_files_say_what_the_predictions_say(run: dict[str, Any]) -> None:
    records = read(run["root"])
    assert set(records) == {"good.png", "bad.png", "grey.png", "rgba.png", "wide.png", "turned.png", "sixteen.png", ODD}
    for batch in run["batches"]:
        record = records[Path(batch.image_path[0]).name]
        assert record["score"] == pytest.approx(float(batch.pred_score[0]), abs=1e-6)
        assert record["label"] == ("anomalous" if batch.pred_label[0] else "normal")
        assert record["threshold"] == 0.5
        assert set(record["parts"]) == PARTS
        assert record["decided_by"] in PARTS
        assert (record["reason"] != "") == (record["label"] == "anomalous")
        assert bool(record["regions"]) == bool(batch.pred_mask[0].any())
        assert record["ground_truth"] is None
        assert not hasattr(batch, "branch_maps")  # a list of predictions would keep them all
    assert records["bad.png"]["label"] == "anomalous"
    scores = [r["score"] for r in json.loads((run["root"] / "scores.json").read_text())]
    assert scores == sorted(scores, reverse=True)
    with (run["root"] / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    assert {name: float(row["score"]) for name, row in rows.items()} == {n: r["score"] for n, r in records.items()}
    assert json.loads(rows["bad.png"]["regions"]) == records["bad.png"]["regions"]
    assert float(rows["bad.png"]["score_structural"]) == records["bad.png"]["parts"]["structural"]


def test_the_same_picture_in_another_mode_has_the_same_verdict(run: dict[str, Any]) -> None:
    records = read(run["root"])
    same = (("good.png", "rgba.png"), ("good.png", ODD), ("grey.png", "sixteen.png"), ("wide.png", "turned.png"))
    for one, other in same:
        assert records[one]["score"] == pytest.approx(records[other]["score"], abs=1e-3)


def test_regions_are_in_pixels_of_the_file(run: dict[str, Any]) -> None:
    (mask,) = (batch.pred_mask for batch in run["batches"] if batch.image_path[0].endswith("bad.png"))
    rows, columns = (mask.squeeze().any(dim=dim).nonzero().squeeze(1).tolist() for dim in (1, 0))
    regions = read(run["root"])["bad.png"]["regions"]
    assert min(region["x"] for region in regions) == 3 * columns[0]  # the file has 384 x 256 pixels, the map 128 x 128
    assert min(region["y"] for region in regions) == 2 * rows[0]
    assert max(region["x"] + region["width"] for region in regions) == 3 * (columns[-1] + 1)
    assert max(region["y"] + region["height"] for region in regions) == 2 * (rows[-1] + 1)


def test_page_is_one_file_that_shows_every_picture(run: dict[str, Any]) -> None:
    page = Page(run["root"] / "report.html")
    records = read(run["root"])
    assert set(page.rows) == set(records)
    for name, row in page.rows.items():
        assert float(row["data-score"]) == records[name]["score"]
        assert row["data-label"] == records[name]["label"]
        assert row["data-part"] == records[name]["decided_by"]
        assert records[name]["reason"] in row["text"]
        assert row["images"] == 2
    assert [score for score, _ in page.scores] == [r["score"] for r in records.values()]
    inside = [source for source in page.sources if source.startswith("data:image/jpeg")]
    links = [source for source in page.sources if source not in inside]
    assert len(inside) == 2 * len(records)
    assert len(links) == len(records)  # of the pictures with all maps; nothing else is loaded from anywhere
    assert not any(re.match(r"\w+:", link) for link in links)


def test_file_names_do_not_become_markup(run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    page = Page(run["root"] / "report.html")
    assert ODD in page.rows
    assert not [source for source in page.sources if source == "x"]
    verdict = Verdict(f"/a/{ODD}", 0.7, True, 0.5, part="logical", reason="[b]why[/b]")
    Console(width=200).print(table_of([verdict]))
    printed = capsys.readouterr().out
    assert ODD in printed
    assert "[b]why[/b]" in printed


def test_a_test_tells_false_alarms_and_misses(run: dict[str, Any]) -> None:
    records = list(json.loads((run["test"] / "scores.json").read_text(encoding="utf-8")))
    assert [r["ground_truth"] for r in records].count("anomalous") == 4
    assert len(records) == 8
    for record in records:
        right = record["ground_truth"] == record["label"]
        wrong = "miss" if record["label"] == "normal" else "false alarm"
        assert record["outcome"] == ("right" if right else wrong)
    page = Page(run["test"] / "report.html")
    assert sorted(truth for _, truth in page.scores) == [0] * 4 + [1] * 4


def test_what_was_found_before_an_error_is_kept(run: dict[str, Any], tmp_path: Path) -> None:
    class Broken(Exception):  # noqa: N818
        pass

    class Breaks(report.Callback):
        def on_predict_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int, *_: int) -> None:
            if batch_idx == 3:
                raise Broken

    with pytest.raises(Broken):
        make_engine(tmp_path, callbacks=[Breaks()]).predict(run["model"], data_path=run["data"] / "mixed")
    assert len(read(next(tmp_path.rglob("predict")))) == 3


def test_without_a_visualizer_nothing_is_written(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run["model"], "visualizer", None)
        make_engine(tmp_path).predict(run["model"], data_path=run["data"] / "mixed" / "good.png")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_thresholds(run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(run["model"]._modules, "post_processor", None)
        make_engine(tmp_path).predict(run["model"], data_path=run["data"] / "mixed" / "good.png")
    (record,) = read(next(tmp_path.rglob("predict"))).values()
    assert record["label"] is None
    assert record["threshold"] is None
    assert record["regions"] == []
    assert Page(next(tmp_path.rglob("report.html"))).rows["good.png"]["images"] == 2


def test_thumbnails_of_mistakes_and_of_the_highest_scores_are_kept(
    run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many pictures there are, the memory for them is bounded."""
    monkeypatch.setattr(report, "KEPT_THUMBNAILS", 2)
    monkeypatch.setattr(report, "verdicts_of", as_if_missed)
    make_engine(tmp_path).predict(run["model"], data_path=run["data"] / "mixed")
    rows = Page(next(tmp_path.rglob("report.html"))).rows
    assert {name for name, row in rows.items() if row["images"]} == {"grey.png", "wide.png"}


def as_if_missed(module: Any, batch: Any) -> list[Verdict]:
    """The grey picture is a miss, the others are right, the wide one with the highest score."""
    (found,) = verdicts_of(module, batch)
    name = Path(found.path).name
    score = {"grey.png": 0.1, "wide.png": 0.9}.get(name, 0.6)
    return [Verdict(found.path, score, score > 0.5, 0.5, truth=True)]


def test_good_pictures_that_the_threshold_was_set_on_are_drawn(run: dict[str, Any]) -> None:
    """In a test and in a prediction, on the scale of all scores, in a histogram of their own."""
    post = run["model"].post_processor
    scores = scores_of_calibration(post)
    assert len(scores) == len(post.normal_scores) > 0
    assert np.mean(scores) < 0.5
    for stage in ("root", "test"):
        text = (run[stage] / "report.html").read_text(encoding="utf-8")
        (chart,) = re.findall(r'<div class="chart set".*?</div>\s*</div>', text, flags=re.DOTALL)
        assert sum(int(number) for number in re.findall(r'title="(\d+)"', chart)) == len(scores)
        assert f"the threshold was set on ({len(scores)})" in text
        assert post.statement() in text


def test_a_table_in_a_file_keeps_its_lines_whole(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "unlike anything in the good pictures: " + 10 * "upper left "
    print_table(table_of([Verdict(f"/p/{'long' * 20}.png", 0.7, True, 0.5, part="logical", reason=reason)]))
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_report_is_a_callback_of_the_model() -> None:
    assert [type(callback) for callback in make_model().configure_callbacks()][-1] is Report
    assert Report not in {type(callback) for callback in make_model(visualizer=False).configure_callbacks()}
