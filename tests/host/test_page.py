"""The page of verdicts: what it lists, and its controls in a browser."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from _page import Page

from anomalib_npgmf.host.page import Thumbnails, write_page
from anomalib_npgmf.host.report import summary_of, worst_first
from anomalib_npgmf.host.verdict import Region, Verdict

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


def test_scores_that_are_no_numbers_leave_the_page_readable(tmp_path: Path) -> None:
    write_page([Verdict("a.png"), Verdict("b.png", 0.4, False, 0.5)], {}, tmp_path / "report.html", summary="")
    page = Page(tmp_path / "report.html")
    assert set(page.rows) == {"a.png", "b.png"}
    assert page.scores == [[0.4, None]]


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
