"""The lower bounds of pyproject.toml are versions that were run, as docs/versions.md says; deprecations are errors."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BOUNDS = re.findall(r'^ +"([A-Za-z_-]+)(?:>=|==)([\d.]+)[^"]*",', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
EXPORT = re.search(r"^openvino = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
assert EXPORT is not None
BOUNDS += re.findall(r'"([a-z]+)>=([\d.]+)"', EXPORT[1])


def test_all_bounds_are_found() -> None:
    assert {"anomalib", "torch", "onnx", "onnxscript", "numpy", "onnxruntime"} <= {name for name, _ in BOUNDS}
    assert len(BOUNDS) >= 25


@pytest.mark.parametrize(("name", "version"), BOUNDS)
def test_bounds_were_run(name: str, version: str) -> None:
    page = (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
    _, _, lowest = page.partition("## Lowest versions")
    assert re.search(rf"\b{re.escape(name)} {re.escape(version)}(\.0)*[,.;\n]", lowest), f"{name} {version}"


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_deprecation_warnings_of_this_package_are_errors(kind: type[Warning]) -> None:
    def warn_in(module: str) -> None:
        warnings.warn_explicit("going away", kind, "file.py", 1, module)

    with pytest.raises(kind, match="going away"):
        warn_in("anomalib_npgmf.host.fit")
    with pytest.warns(kind):
        warn_in("another")
