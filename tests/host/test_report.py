"""What `anomalib predict` and `anomalib test` answer: verdicts, their files, and the page, also in a browser."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _factory import draw, draw_category, make_engine, make_model, mvtec
from PIL import Image
from rich.console import Console

from anomalib_npgmf.host import report
from anomalib_npgmf.host.page import Thumbnails, write_page
from anomalib_npgmf.host.report import Report, print_table, summary_of, table_of, worst_first
from anomalib_npgmf.host.verdict import Region, Verdict, scores_of_calibration, verdicts_of

ODD = '<img src=x onerror=alert(1)> &amp; "q" [red].png'
PARTS = {"logical", "structural", "composition"}


class Page(HTMLParser):
    """Rows of the page by file, with their cells' text, and its embedded scores."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: dict[str, dict[str, Any]] = {}
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.scores: list[Any] = []
        self._row: dict[str, Any] | None = None
        self._data = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._data = str(given.get("id") if tag == "script" else "")
        self.sources += [str(given[name]) for name in ("src", "href") if name in given]
        if tag == "tr" and "data-name" in given:
            self._row = {"text": "", **given, "images": 0}
            self.rows[Path(str(given["data-name"])).name] = self._row
        if tag == "img" and self._row is not None:
            self._row["images"] += 1

    def handle_endtag(self, tag: str) -> None:
        self._data = ""

    def handle_data(self, data: str) -> None:
        if self._data == "scores":
            self.scores = json.loads(data)
        elif self._row is not None:
            self._row["text"] += data


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


def test_long_lists_are_cut_with_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_npgmf.host.page.LISTED", 3)
    verdicts = [Verdict(f"{i}.png", i / 10, i > 5, 0.5) for i in range(10)]
    verdicts.append(Verdict("torn.png", error="truncated"))
    verdicts.sort(key=worst_first)
    write_page(verdicts, {}, tmp_path / "report.html", summary=summary_of(verdicts))
    page = Page(tmp_path / "report.html")
    assert list(page.rows) == ["torn.png", "9.png", "8.png"]
    assert len(page.scores) == 10  # the slider counts all of them
    assert "The 3 highest scores of 11 are listed" in (tmp_path / "report.html").read_text()
    assert summary_of(verdicts) == "11 pictures: 4 anomalous, 6 normal, 1 unreadable; threshold 0.5."


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


def test_scores_that_are_no_numbers_leave_the_page_readable(tmp_path: Path) -> None:
    write_page([Verdict("a.png"), Verdict("b.png", 0.4, False, 0.5)], {}, tmp_path / "report.html", summary="")
    page = Page(tmp_path / "report.html")
    assert set(page.rows) == {"a.png", "b.png"}
    assert page.scores == [[0.4, None]]


def test_a_table_in_a_file_keeps_its_lines_whole(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "unlike anything in the good pictures: " + 10 * "upper left "
    print_table(table_of([Verdict(f"/p/{'long' * 20}.png", 0.7, True, 0.5, part="logical", reason=reason)]))
    assert len(capsys.readouterr().out.splitlines()) == 3


# ------------------------------------------------------------------ in a browser

PICTURES = [
    Verdict("/p/a.png", 0.9, True, 0.5, {"logical": 0.9}, "logical", "why", (Region(1, 2, 3, 4, 0.9),), truth=True),
    Verdict("/p/b.png", 0.6, True, 0.5, {"structural": 0.6}, "structural", "why", truth=False),
    Verdict("/p/c.png", 0.4, False, 0.5, {"structural": 0.4}, "structural", truth=True),
    Verdict("/p/d.png", 0.2, False, 0.5, {"logical": 0.2}, "logical", truth=False),
    Verdict("/p/torn.png", error="cannot be read"),
]
STEPS = """<script>
const seen = [];
const visible = () => [...byId("rows").rows].filter((row) => !row.hidden);
const files = () => visible().map((row) => row.dataset.name.slice(3, -4)).join(" ");
function set(id, value) {
  byId(id).value = value;
  byId(id).dispatchEvent(new Event("input"));
}
seen.push(["start", files(), byId("rejected").textContent]);
for (const value of ["anomalous", "miss", "false alarm", "unreadable"]) {
  set("verdict", value);
  seen.push([value, files()]);
}
set("verdict", "");
set("part", "structural"); seen.push(["structural", files()]);
set("part", "");
set("from", "0.3"); set("to", "0.7"); seen.push(["range", files()]);
set("from", ""); set("to", "");
set("sort", "score"); seen.push(["lowest", files()]);
set("sort", "name"); seen.push(["name", files()]);
for (const title of ["file", "score", "score", "verdict", "truth", "decided by"]) {
  const headings = [...document.querySelectorAll("th")];
  headings.find((heading) => heading.textContent === title).querySelector("button").click();
  seen.push([title, files(), headings.map((heading) => heading.ariaSort).filter(Boolean).join()]);
}
set("threshold", "0.3");
seen.push(["slider", byId("rejected").textContent, document.querySelector(".line").style.left]);
byId("reset").click(); seen.push(["reset", byId("rejected").textContent]);
document.body.dataset.seen = JSON.stringify(seen);
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser chromium")
def test_controls_in_a_browser(tmp_path: Path) -> None:
    verdicts = sorted(PICTURES, key=worst_first)
    path = tmp_path / "report.html"
    write_page(verdicts, {"/p/a.png": Thumbnails(b"", b"")}, path, summary=summary_of(verdicts))
    path.write_text(path.read_text(encoding="utf-8").replace("</body>", f"{STEPS}</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    command = ["chromium", *options, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    class Body(HTMLParser):
        seen: Any = None

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "body":
                self.seen = json.loads(dict(attrs).get("data-seen") or "null")

    body = Body()
    body.feed(shown)
    at_half = "Threshold 0.500: 2 of 4 pictures rejected. False alarms: 1 of 2 good. Misses: 1 of 2 bad."
    at_lower = "Threshold 0.300: 3 of 4 pictures rejected. False alarms: 1 of 2 good. Misses: 0 of 2 bad."
    assert body.seen == [
        ["start", "torn a b c d", at_half],
        ["anomalous", "a b"],
        ["miss", "c"],
        ["false alarm", "b"],
        ["unreadable", "torn"],
        ["structural", "b c"],
        ["range", "b c"],
        ["lowest", "d c b a torn"],
        ["name", "a b c d torn"],
        ["file", "torn d c b a", "descending"],
        ["score", "torn a b c d", "descending"],
        ["score", "d c b a torn", "ascending"],
        ["verdict", "a b c d torn", "ascending"],
        ["truth", "torn a c b d", "ascending"],
        ["decided by", "torn a d b c", "ascending"],
        ["slider", at_lower, "calc(30% - 1px)"],
        ["reset", at_half],
    ]


def test_the_report_is_a_callback_of_the_model() -> None:
    assert [type(callback) for callback in make_model().configure_callbacks()][-1] is Report
    assert Report not in {type(callback) for callback in make_model(visualizer=False).configure_callbacks()}
