"""Checkpoints that former versions wrote load in this one and give the scores that they gave then."""

import gzip
import json
from pathlib import Path

import pytest
from _stored import SCORES, STORED, found

from anomalib_npgmf import Npgmf
from anomalib_npgmf.config import PRESETS

KNOWN = json.loads(SCORES.read_text())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_scores_stay(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.decompress((STORED / f"{name}.gz").read_bytes()))
    model = Npgmf.load_from_checkpoint(path)
    for values, expected in zip(found(model).values(), KNOWN[name].values(), strict=True):
        assert values == pytest.approx(expected, abs=2e-3)


def test_every_preset_is_stored() -> None:
    files = {path.stem for path in STORED.glob("*.gz")}
    assert files == set(KNOWN)
    assert {name.removesuffix(".ckpt").split("_")[-1] for name in files} == set(PRESETS)
