"""Every notebook runs from first cell to last, without a network, and shows nothing of the machine it ran on."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
EPOCHS = re.compile(r"(?<=EPOCHS )= \d+")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NO_NETWORK = """
import socket
for name in ("connect", "connect_ex"):
    def guarded(self, address, original=getattr(socket.socket, name)):
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            raise AssertionError(f"a notebook tried to connect to {address[0]}")
        return original(self, address)
    setattr(socket.socket, name, guarded)
"""
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def command() -> ModuleType:
    """notebooks/execute.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("execute_notebooks", ROOT / "notebooks" / "execute.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each
def test_runs(path: Path, command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")  # for the kernel, which starts elsewhere
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    working = tmp_path / "working"
    working.mkdir()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:  # notebooks/execute.py runs them in full
        cell.source = EPOCHS.sub("= 1", cell.source)
    notebook.cells.insert(0, new_code_cell(NO_NETWORK))
    command.execute(notebook, working)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not list(working.iterdir())  # a notebook writes into its own folder alone
    assert not machine_paths(notebook)


@each
def test_what_is_committed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert not machine_paths(notebook)


def test_cleaning(command: ModuleType) -> None:
    picture = {"image/png": "/tmp/npgmf_abcd1234", "text/plain": "/tmp/npgmf_abcd1234/a"}
    outputs = [new_output("stream", name=name, text="in /tmp/npgmf_abcd1234/a b") for name in ("stdout", "stderr")]
    outputs.append(new_output("stream", name="stdout", text="The training takes about 50 s more (6 epochs of 8 batches).\n"))
    outputs.append(new_output("display_data", data=picture))
    notebook = new_notebook(cells=[new_code_cell("run()", outputs=outputs)])
    command.clean(notebook)
    kept = notebook.cells[0].outputs
    assert [output.get("text") for output in kept] == ["in WORK/a b", None]
    assert kept[1].data == {"image/png": "/tmp/npgmf_abcd1234", "text/plain": "WORK/a"}
    assert not machine_paths(notebook)


def test_size() -> None:
    assert len(NOTEBOOKS) == 4
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_500_000


def machine_paths(notebook: nbformat.NotebookNode) -> list[str]:
    """Absolute paths in the text of the outputs."""
    texts = [
        text
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        for key, text in {**output, **output.get("data", {})}.items()
        if isinstance(text, str) and not key.startswith("image/")
    ]
    return [found for text in texts for found in re.findall(r"/(?:home|root|tmp|var|opt|work|Users|usr)/\S+", text)]
