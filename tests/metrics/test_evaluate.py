"""The evaluation of a category of MVTec LOCO AD equals the definition, from Python and from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from _evaluation import KINDS, LIMITS, command, evaluate, map_path, write_maps
from sklearn.metrics import auc, roc_auc_score
from spro_reference import Category, area_under

from anomalib_npgmf.merging.rule import MapMerger
from anomalib_npgmf.metrics import category as category_module
from anomalib_npgmf.metrics import evaluate_loco
from anomalib_npgmf.metrics.__main__ import main
from anomalib_npgmf.metrics.scores import resize_map
from anomalib_npgmf.torch_model import gaussian_blur


@pytest.mark.parametrize("decimals", [None, 1])
def test_equals_brute_force(category: Category, decimals: int | None) -> None:
    maps = write_maps(category, decimals=decimals)
    localization = evaluate(category)["localization"]
    assert list(localization["auc_spro"]) == [*KINDS, "mean"]
    curves = {kind: category.expected(maps, kind) for kind in KINDS}
    for limit in LIMITS:
        expected = {kind: area_under(curves[kind], limit) for kind in KINDS}
        for kind in KINDS:
            assert localization["auc_spro"][kind][str(limit)] == pytest.approx(expected[kind], abs=1e-6)
        assert localization["auc_spro"]["mean"][str(limit)] == pytest.approx(sum(expected.values()) / 2, abs=1e-6)
    assert sorted(localization["auc_spro_per_defect"]) == ["missing", "scratch", "stain", "swapped"]
    for name, values in localization["auc_spro_per_defect"].items():
        curve = category.expected(maps, name)
        for limit in LIMITS:
            assert values[str(limit)] == pytest.approx(area_under(curve, limit), abs=1e-6)


def test_small_chunks_and_failed_estimates_change_nothing(category: Category, monkeypatch: pytest.MonkeyPatch) -> None:
    write_maps(category)
    expected = evaluate(category)
    monkeypatch.setattr(category_module, "_CHUNK", 700)  # less than one image
    assert evaluate(category) == expected
    low_limit = evaluate(category, [0.05])["localization"]["auc_spro"]["mean"]["0.05"]
    assert low_limit == pytest.approx(expected["localization"]["auc_spro"]["mean"]["0.05"], abs=1e-12)
    # an estimate that leaves out too much must be noticed and repaired
    monkeypatch.setattr(category_module, "_estimate_cut", lambda *_: 1.29)
    low_limit = evaluate(category, [0.05])["localization"]["auc_spro"]["mean"]["0.05"]
    assert low_limit == pytest.approx(expected["localization"]["auc_spro"]["mean"]["0.05"], abs=1e-12)


def test_auroc_of_map_maxima(category: Category) -> None:
    maps = write_maps(category)
    results = evaluate(category)["classification"]

    def auroc(chosen: list[Path]) -> float:
        good = [maps[path].max() for path in category.of("good")]
        found = [maps[path].max() for path in chosen]
        return roc_auc_score([0] * len(good) + [1] * len(found), good + found)

    expected = {kind: auroc(category.of(kind)) for kind in KINDS}
    assert results["auc_roc"] == pytest.approx(expected | {"mean": sum(expected.values()) / 2})
    assert results["auc_roc_per_defect"] == pytest.approx({
        name: auroc([p for p in category.images if any(t["defect_name"] == name for t in category.types[p])])
        for name in ("missing", "swapped", "scratch", "stain")
    })  # fmt: skip


@pytest.mark.parametrize("side", [256, 512])
def test_maxima_at_the_size_of_the_image_are_nearly_the_models_scores(side: int) -> None:
    """Of a smoothed map, so that ranks agree with `LocoAUROC` unless two scores nearly tie."""
    merger = MapMerger((256, 256), blur=gaussian_blur((256, 256)), output_size=(side, side))
    merger.calibrate({"logical": (0.0, 1.0), "structural": (0.0, 1.0)})
    generator = torch.Generator().manual_seed(0)
    shapes = {"logical": (8, 1, 256, 256), "structural": (8, 1, 64, 64)}
    merged = merger({name: torch.rand(shape, generator=generator) ** 8 for name, shape in shapes.items()})
    for size in ((1280, 1600), (1600, 800)):
        maxima = torch.tensor([resize_map(found[0].numpy(), size).max() for found in merged.maps])
        lost = (merged.scores - maxima) / (merged.maps.max() - merged.maps.min())
        assert lost.min() > -1e-5
        assert lost.max() < 0.002


def test_reports_plain_floats(category: Category) -> None:
    write_maps(category)
    results = evaluate(category)
    assert json.loads(json.dumps(results)) == results
    assert type(results["localization"]["auc_spro"]["mean"]["0.05"]) is float
    assert type(results["classification"]["auc_roc"]["mean"]) is float


def test_a_category_of_one_kind_has_no_mean(category: Category, capsys: pytest.CaptureFixture[str]) -> None:
    write_maps(category)
    both = evaluate(category)
    for path in category.of("structural_anomalies"):
        path.unlink()
    results = evaluate(category)
    for part, name in (("localization", "auc_spro"), ("classification", "auc_roc")):
        assert list(results[part][name]) == ["logical_anomalies"]
        assert results[part][name]["logical_anomalies"] == both[part][name]["logical_anomalies"]
    assert main(command(category)) == 0
    printed = capsys.readouterr().out
    assert f"{100 * results['classification']['auc_roc']['logical_anomalies']:.2f}" in printed
    assert "mean" not in printed


def test_names_what_it_warns_of(category: Category) -> None:
    maps = write_maps(category)
    logical = category.of("logical_anomalies")[0]
    category.write_mask(logical, 0, np.full(category.size, 255))
    tifffile.imwrite(map_path(category, category.of("good")[0]), np.zeros(category.size, np.float32))
    with pytest.warns(UserWarning, match="Smaller than the saturation threshold") as caught:
        evaluate_loco(category.root, category.name, category.maps_dir, [0.3])
    texts = "\n".join(str(warning.message) for warning in caught)
    assert "(stain)" in texts
    assert f"Every pixel is marked as defective, so the image adds no false positives: {logical}" in texts
    assert f"Constant anomaly maps, which locate nothing: {category.of('good')[0]}" in texts
    # and the values are still those of the definition
    maps[category.of("good")[0]] = np.zeros(category.size, np.float32)
    category.masks[logical] = np.ones((1, *category.size), bool)
    value = evaluate(category, [0.3])["localization"]["auc_spro"]["logical_anomalies"]["0.3"]
    assert value == pytest.approx(area_under(category.expected(maps, "logical_anomalies"), 0.3), abs=1e-6)


def test_a_byte_order_mark_does_no_harm(category: Category) -> None:
    write_maps(category)
    expected = evaluate(category)
    path = category.folder / "defects_config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert evaluate(category) == expected


def test_command_writes_results_curve_and_table(
    category: Category, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    write_maps(category)
    output, curve = tmp_path / "metrics.json", tmp_path / "curve.csv"
    assert main(command(category, f"--output={output}", f"--curve={curve}", "--limits", "0.05", "0.3", "1.0")) == 0
    results = json.loads(output.read_text())
    assert results == evaluate(category, [0.05, 0.3, 1.0])
    printed = capsys.readouterr()
    assert f"{100 * results['localization']['auc_spro']['mean']['0.05']:.2f}" in printed.out
    assert f"{100 * results['classification']['auc_roc']['logical_anomalies']:.2f}" in printed.out
    assert "swapped" in printed.out
    assert "warning: Smaller than the saturation threshold" in printed.err
    rows = list(csv.DictReader(curve.open()))
    assert {row["subset"] for row in rows} == {*KINDS, "missing", "scratch", "stain", "swapped"}
    fpr, spro = np.array([[r["fpr"], r["mean_spro"]] for r in rows if r["subset"] == KINDS[0]], dtype=float).T
    expected = results["localization"]["auc_spro"][KINDS[0]]["1.0"]
    assert auc(fpr, spro) == pytest.approx(expected, abs=1e-3)
