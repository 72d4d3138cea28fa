"""The commands that a document prints."""

import re
from pathlib import Path

import nbformat

PROGRAMS = ("anomalib ", "python ", "python3 ", "pip ")
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
# alone on its line, or after a sentence that ends in a colon
_COMMENT = re.compile(r"^#(?: .*:)? +((?:anomalib|python) -.*|anomalib [a-z]+ --.*)$", re.MULTILINE)
_CONTINUED = re.compile(r"\\\n\s*")


def title(path: Path, heading: str) -> str:
    """Name of a section: ``README: Export``, ``docs/export: Sizes``, ``fast``."""
    document = f"docs/{path.stem}" if path.parent.name == "docs" else path.stem
    return f"{document}: {heading}" if heading else document


def sections(path: Path) -> dict[str, str]:
    """Text of a document by heading: Markdown, a notebook's Markdown cells, or the comments of a YAML file.

    What stands before the first heading, and a whole YAML file, has the heading "".
    """
    if path.suffix == ".yaml":
        found_in_comments = _COMMENT.findall(path.read_text(encoding="utf-8"))
        return {"": "".join(f"```console\n$ {command}\n```\n" for command in found_in_comments)}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    blocks = _FENCE.findall(text)
    outside = _FENCE.sub("\0", text)  # a comment in a block is no heading
    found: dict[str, str] = {}
    heading = ""
    for line in outside.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
            continue
        while "\0" in line:
            language, block = blocks.pop(0)
            line = line.replace("\0", f"```{language}\n{block}```", 1)
        found[heading] = found.get(heading, "") + line + "\n"
    return found


def commands(text: str) -> list[str]:
    """The commands in a section's text, in order: after a ``$`` in a block of the console, or quoted in a sentence."""
    found = []
    position = 0
    for fence in _FENCE.finditer(text):
        found += _quoted(text[position : fence.start()])
        position = fence.end()
        if fence["language"] == "console":
            block = _CONTINUED.sub(" ", fence["text"])
            found += [line[2:].split("  # ")[0].strip() for line in block.splitlines() if line.startswith("$ ")]
    return found + _quoted(text[position:])


def _quoted(prose: str) -> list[str]:
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [span for span in spans if span.startswith(PROGRAMS)]


def files(text: str) -> dict[str, str]:
    """Files that a section prints: a YAML block after a line that is the file's name and a colon."""
    named = re.compile(r"^`(?P<name>[\w.]+\.yaml)`:\n+```yaml\n(?P<content>.*?)^```$", re.MULTILINE | re.DOTALL)
    return {found["name"]: found["content"] for found in named.finditer(text)}


def python_blocks(text: str) -> list[str]:
    """Blocks of Python in a section."""
    return [fence["text"] for fence in _FENCE.finditer(text) if fence["language"] == "python"]
