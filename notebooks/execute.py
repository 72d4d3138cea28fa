"""Run the notebooks and keep their outputs: ``python notebooks/execute.py [NAME ...]``, all of them without a name.

Outputs are cleaned, so that running them again elsewhere changes figures at most: no warnings, no folders of the
machine, no times.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
_TIMEOUT = 900  # seconds for one cell
_TIME = re.compile(r"The training takes about .*\n+")
_SCRATCH = re.compile(r"[^\s'\"<>]*npgmf_\w{8}")  # the folder that a notebook works in


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run a notebook's cells in order.

    Args:
        notebook: The notebook; its cells get their outputs.
        folder: Working directory.

    Returns:
        The same notebook, its outputs cleaned.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )
    client.execute()
    clean(notebook)
    return notebook


def clean(notebook: NotebookNode) -> None:
    """Drop what differs between machines from the outputs.

    Args:
        notebook: An executed notebook; it is changed in place.
    """
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                for place in (output, output.get("data", {})):
                    for key, value in place.items():
                        if isinstance(value, str) and not key.startswith("image/"):
                            place[key] = _TIME.sub("", _SCRATCH.sub("WORK", value))
            cell.outputs = [output for output in cell.outputs if output.get("text") != ""]


def main(names: list[str]) -> None:
    """Run notebooks and write them back."""
    for path in [(FOLDER / name).with_suffix(".ipynb") for name in names] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
