"""No file that the package reads can run code: what SECURITY.md says."""

import re
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch

import anomalib_npgmf
from anomalib_npgmf import Npgmf
from anomalib_npgmf.backbone.weights import read_state_dict
from anomalib_npgmf.export.metadata import describe

PACKAGE = Path(anomalib_npgmf.__file__).parent


class _Trap:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("weights.pth", read_state_dict),
        ("weights.pt", read_state_dict),
        ("model.ckpt", Npgmf.load_from_checkpoint),
        ("model.ckpt", describe),
        ("model.pt", describe),
    ],
)
def test_a_malicious_pickle_runs_no_code(tmp_path: Path, name: str, read: object) -> None:
    trace, path = tmp_path / "trace", tmp_path / name
    torch.save({"state_dict": {"x": torch.zeros(1)}, "more": _Trap(trace)}, path)
    with pytest.raises((ValueError, UnpicklingError)):
        read(path)  # type: ignore[operator]
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the trap works"


def test_nothing_switches_the_protection_off() -> None:
    for path in PACKAGE.rglob("*.py"):
        code = path.read_text(encoding="utf-8")
        assert "weights_only=False" not in code, path
        assert not re.search(r"yaml\.(load|unsafe_load|full_load)\(|TRUST_REMOTE_CODE|shell=True", code), path
        assert code.count("torch.load(") == code.count("weights_only=True"), path
