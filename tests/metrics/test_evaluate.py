from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from sklearn.metrics import roc_auc_score
from spro_reference import CONFIG, Category, area_under

from anomalib_npgmf.metrics import category as category_module
from anomalib_npgmf.metrics import evaluate_loco
from anomalib_npgmf.metrics.__main__ import main

LIMITS = (0.01, 0.05, 0.3, 1.0)
KINDS = ("logical_anomalies", "structural_anomalies")


def write_maps(category: Category, seed: int = 1, decimals: int | None = None) -> dict[Path, np.ndarray]:
    rng = np.random.default_rng(seed)
    maps = {}
    for path in category.images:
        scores = rng.random(category.size) + 0.3 * category.masks[path].any(axis=0)
        maps[path] = (np.round(scores, decimals) if decimals else scores).astype(np.float32)
        target = map_path(category, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(target, maps[path])
    return maps


def map_path(category: Category, image: Path) -> Path:
    return category.maps_dir / category.name / "test" / image.parent.name / f"{image.stem}.tiff"


def evaluate(category: Category, limits=LIMITS) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate_loco(category.root, category.name, category.maps_dir, limits)


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


def _remove_map(category: Category) -> None:
    map_path(category, category.images[3]).unlink()


def _shrink_map(category: Category) -> None:
    tifffile.imwrite(map_path(category, category.images[3]), np.zeros((8, 8), np.float32))


def _nan_map(category: Category) -> None:
    scores = np.zeros(category.size, np.float32)
    scores[2, 2] = np.nan
    tifffile.imwrite(map_path(category, category.images[3]), scores)


def _remove_config(category: Category) -> None:
    (category.folder / "defects_config.json").unlink()


def _cut_config(category: Category) -> None:
    (category.folder / "defects_config.json").write_text('[{"defect_name": "x", "pixel_value": 1}]')


def _repeat_config(category: Category) -> None:
    path = category.folder / "defects_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * 2))


def _negative_config(category: Category) -> None:
    path = category.folder / "defects_config.json"
    path.write_text(path.read_text().replace("5000", "-1"))


def _remove_ground_truth(category: Category) -> None:
    category.mask_path(category.of("structural_anomalies")[0], 0).unlink()


def _unknown_value(category: Category) -> None:
    category.write_mask(category.of("structural_anomalies")[0], 0, np.full(category.size, 7))


def _two_values(category: Category) -> None:
    pixels = np.zeros(category.size)
    pixels[:2], pixels[2] = 253, 252
    category.write_mask(category.of("structural_anomalies")[0], 0, pixels)


def _empty_mask(category: Category) -> None:
    category.write_mask(category.of("structural_anomalies")[0], 0, np.zeros(category.size))


def _colour_mask(category: Category) -> None:
    category.write_mask(category.of("structural_anomalies")[0], 0, np.full((*category.size, 3), 253))


def _small_mask(category: Category) -> None:
    category.write_mask(category.of("structural_anomalies")[0], 0, np.full((5, 5), 253))


def _no_good_images(category: Category) -> None:
    for path in category.of("good"):
        path.unlink()


def _only_good_images(category: Category) -> None:
    for path in (*category.of("logical_anomalies"), *category.of("structural_anomalies")):
        path.unlink()


def _complex_map(category: Category) -> None:
    tifffile.imwrite(map_path(category, category.images[3]), np.full(category.size, 1 + 2j, np.complex64))


def _cut_map(category: Category) -> None:
    path = map_path(category, category.images[3])
    path.write_bytes(path.read_bytes()[:-100])


def _scramble_compressed_map(category: Category) -> None:
    path = map_path(category, category.images[3])
    tifffile.imwrite(path, np.random.default_rng(0).random(category.size, np.float32), compression="zlib")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def _no_tiff(category: Category) -> None:
    map_path(category, category.images[3]).write_text("Buy milk.")


def _cut_mask(category: Category) -> None:
    path = category.mask_path(category.of("structural_anomalies")[0], 0)
    path.write_bytes(path.read_bytes()[:60])


def _no_mask(category: Category) -> None:
    category.mask_path(category.of("structural_anomalies")[0], 0).write_text("Buy milk.")


def _no_image(category: Category) -> None:
    category.images[3].write_text("Buy milk.")


def _config(text: str) -> Callable[[Category], None]:
    return lambda category: (category.folder / "defects_config.json").write_text(text) and None


def _entry(**changes: object) -> Callable[[Category], None]:
    return _config(json.dumps([CONFIG[0] | changes]))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_complex_map, r"000\.tiff holds complex numbers"),
        (_cut_map, r"000\.tiff cannot be read as TIFF"),
        (_scramble_compressed_map, r"000\.tiff cannot be read as TIFF"),
        (_no_tiff, r"000\.tiff cannot be read as TIFF"),
        (_cut_mask, r"000\.png cannot be read as an image"),
        (_no_mask, r"000\.png cannot be read as an image"),
        (_no_image, r"000\.png cannot be read as an image"),
        (_config("[{"), r"defects_config\.json cannot be read as JSON"),
        (_config("9" * 10_000), r"defects_config\.json cannot be read as JSON"),
        (_config("5"), r"defects_config\.json has an entry 5"),
        (_config("null"), r"defects_config\.json has an entry None"),
        (_config("[5]"), r"defects_config\.json has an entry 5"),
        (_entry(saturation_threshold="0.4"), r"defects_config\.json has an entry"),
        (_entry(saturation_threshold=None), r"defects_config\.json has an entry"),
        (_entry(saturation_threshold=True), r"defects_config\.json has an entry"),
        (_entry(saturation_threshold=float("inf")), r"defects_config\.json: .* must be positive and finite"),
        (_entry(saturation_threshold=float("nan")), r"defects_config\.json: .* must be positive and finite"),
        (_entry(saturation_threshold=1.5), r"defects_config\.json: the relative .* is 1\.5, but a fraction"),
        (_entry(relative_saturation="false"), r"defects_config\.json has an entry"),
        (_entry(pixel_value=255.5), r"defects_config\.json has an entry"),
        (_entry(defect_name=None), r"defects_config\.json has an entry"),
        (_remove_map, r"1 of 9 anomaly maps are missing, .*000\.tiff first"),
        (_shrink_map, r"has shape \(8, 8\), but its image is \(17, 23\)"),
        (_nan_map, r"000\.tiff holds NaN"),
        (_remove_config, r"defects_config\.json is missing"),
        (_cut_config, "without defect_name"),
        (_repeat_config, "pixel value 255 to two defect types"),
        (_negative_config, "must be positive"),
        (_remove_ground_truth, "No ground truth for"),
        (_unknown_value, r"pixel value 7, which defects_config\.json does not list"),
        (_two_values, "more than one positive value"),
        (_empty_mask, "marks no pixel"),
        (_colour_mask, r"has shape \(17, 23, 3\)"),
        (_small_mask, r"has shape \(5, 5\), but its image"),
        (_no_good_images, "No good test images"),
        (_only_good_images, "No logical_anomalies or structural_anomalies test images"),
    ],
)
def test_bad_input_is_explained(
    category: Category, capsys: pytest.CaptureFixture[str], spoil: Callable[[Category], None], message: str
) -> None:
    write_maps(category)
    spoil(category)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(category)
    assert main(command(category)) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


def test_a_byte_order_mark_does_no_harm(category: Category) -> None:
    write_maps(category)
    expected = evaluate(category)
    path = category.folder / "defects_config.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert evaluate(category) == expected


def test_bad_limits_are_explained(category: Category) -> None:
    write_maps(category)
    with pytest.raises(ValueError, match="at least one"):
        evaluate(category, [])
    with pytest.raises(ValueError, match="must lie in"):
        evaluate(category, [0.05, 2])


def command(category: Category, *more: str) -> list[str]:
    return [
        f"--dataset-root={category.root}",
        f"--category={category.name}",
        f"--anomaly-maps={category.maps_dir}",
        *more,
    ]


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
    assert np.trapezoid(spro, fpr) == pytest.approx(expected, abs=1e-3)
