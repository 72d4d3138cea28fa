"""What a report's page holds, for the tests that read one."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


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
