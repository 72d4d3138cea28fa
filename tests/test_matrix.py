"""Every preset in every precision, on CPU and GPU, in one process and in two: fit, test, reload, export.

`pytest -m cuda` runs the cells that need a GPU; they are skipped where there is none.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import _matrix
import pytest
import torch
from _factory import draw_category
from _matrix import MIXED, PRESETS, Found, fit, make, reload
from lightning.pytorch import Trainer

# Differences of half precision networks, or of TF32 in those of a GPU, from float32 on the CPU, in parts of the range
# of all maps. Where two codes are nearly as near, another one may be chosen, and a few pixels differ by more.
TOLERANCE = 0.03
BEYOND = 0.1  # share of the pixels
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def device(name: str, count: int = 1) -> object:
    marks = [pytest.mark.cuda, pytest.mark.skipif(count > GPUS, reason=f"needs {count} GPU(s)")]
    return pytest.param(name, marks=marks if name == "cuda" else [])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("matrix")
    draw_category(root / "data", train=9)  # one image calibrates
    return root


@pytest.fixture(scope="module")
def reference(root: Path) -> Callable[[str], Found]:
    """What a preset says in float32 on the CPU, in one process; its checkpoint is `<preset>.ckpt`."""
    kept: dict[str, Found] = {}

    def found(preset: str) -> Found:
        if preset not in kept:
            model = make(preset)
            checkpoint = fit(model, root / "data", root / "reference" / preset)
            (root / f"{preset}.ckpt").write_bytes(checkpoint.read_bytes())
            kept[preset] = _matrix.test(model, root / "data", root / "reference" / preset)
        return kept[preset]

    return found


def assert_near(found: Found, expected: Found, tolerance: float) -> None:
    """Maps and scores agree, and images whose scores differ by more than that have the same order."""
    assert found.keys() == expected.keys()
    maps = torch.stack([amap for _, amap in expected.values()])
    limit = tolerance * (maps.max() - maps.min()).item()
    for name, (score, amap) in expected.items():
        change = (found[name][1] - amap).abs()
        assert abs(found[name][0] - score) <= limit, name
        assert (change > limit).float().mean() <= (BEYOND if tolerance == TOLERANCE else 0), name
        for other, (other_score, _) in expected.items():
            assert score - other_score <= 2 * limit or found[name][0] > found[other][0], (name, other)


@pytest.mark.parametrize("accelerator", [device("cpu"), device("cuda")])
@pytest.mark.parametrize("preset", PRESETS)
class TestOneProcess:
    @pytest.mark.parametrize("precision", MIXED)
    def test_life(
        self, preset: str, accelerator: str, precision: str, root: Path, reference: Callable[[str], Found]
    ) -> None:
        """A fit of its own, which reloads as it was; and the checkpoint of float32 in this precision."""
        if (accelerator, precision) == ("cpu", "16-mixed"):
            trainer = Trainer(accelerator="cpu", precision="16-mixed", logger=False)
            assert trainer.precision == "bf16-mixed", "Lightning replaces it"
            return
        expected = reference(preset)
        options = {"accelerator": accelerator, "precision": precision}
        folder = root / f"{accelerator}_{precision}" / preset
        exact = (accelerator, precision) == ("cpu", "32-true")
        found = _matrix.test(reload(root / f"{preset}.ckpt"), root / "data", folder, **options)
        assert_near(found, expected, 0 if exact else TOLERANCE)
        model = make(preset)
        restored = reload(fit(model, root / "data", folder, **options))
        own = _matrix.test(model, root / "data", folder, **options)
        assert all(amap.isfinite().all() for _, amap in own.values())
        assert_near(_matrix.test(restored, root / "data", folder, **options), own, 0 if accelerator == "cpu" else 1e-4)
        image = torch.rand(2, 3, 100, 100, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            written = torch.load(model.cpu().eval().to_torch(folder), weights_only=False)["model"](image)
            torch.testing.assert_close(written.anomaly_map, restored.cpu().eval()(image).anomaly_map)

    def test_bf16_true_is_refused(self, preset: str, accelerator: str, root: Path) -> None:
        with pytest.raises(ValueError, match="cannot run with precision='bf16-true'"):
            fit(make(preset), root / "data", root, accelerator=accelerator, precision="bf16-true")


@pytest.fixture(scope="module")
def pair(root: Path, reference: Callable[[str], Found]) -> Callable[[str], Path]:
    """Folder of the results of two processes, all presets and precisions in one run of them."""
    done: set[str] = set()

    def folder(accelerator: str) -> Path:
        results = root / f"pair_{accelerator}"
        if accelerator not in done:
            results.mkdir()
            for preset in PRESETS:
                reference(preset)
                (results / f"{preset}.ckpt").write_bytes((root / f"{preset}.ckpt").read_bytes())
            command = [sys.executable, _matrix.__file__, str(root / "data"), str(results), accelerator]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            finished = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=900, check=False
            )
            own = [line for line in finished.stderr.splitlines() if "[rank1]" not in line]
            assert finished.returncode == 0, "\n".join(own)[-3000:]
            done.add(accelerator)
        return results

    return folder


@pytest.mark.parametrize("accelerator", [device("cpu"), device("cuda", 2)])
@pytest.mark.parametrize("preset", PRESETS)
class TestTwoProcesses:
    @pytest.mark.parametrize("precision", MIXED)
    def test_life(
        self,
        preset: str,
        accelerator: str,
        precision: str,
        pair: Callable[[str], Path],
        reference: Callable[[str], Found],
    ) -> None:
        """Both end with one model, and say together what one process says of the checkpoint of float32."""
        precision = "bf16-mixed" if accelerator == "cpu" and precision == "16-mixed" else precision
        names = [f"{preset}_{precision}_{rank}.pt" for rank in (0, 1)]
        (first, seen), (second, rest) = (torch.load(pair(accelerator) / name, weights_only=True) for name in names)
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())
        assert len(seen) == len(rest) == 4
        exact = (accelerator, precision) == ("cpu", "32-true")
        assert_near(seen | rest, reference(preset), 1e-4 if exact else TOLERANCE)


@pytest.mark.parametrize("accelerator", [device("cpu"), device("cuda", 2)])
def test_bf16_true_is_refused_in_both_processes(accelerator: str, pair: Callable[[str], Path]) -> None:
    for rank in (0, 1):
        said = (pair(accelerator) / f"refused_{rank}.txt").read_text()
        assert said.startswith("Npgmf cannot run with precision='bf16-true'")
