"""Damaged, missing and contradictory files of a category get an error of one sentence, as do bad limits."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from _evaluation import command, evaluate, map_path, write_maps
from spro_reference import CONFIG, Category

from anomalib_npgmf.metrics.__main__ import main


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


def test_bad_limits_are_explained(category: Category) -> None:
    write_maps(category)
    with pytest.raises(ValueError, match="at least one"):
        evaluate(category, [])
    for wrong in (2, "0.05", None, True, float("nan")):
        with pytest.raises(ValueError, match="must lie in"):
            evaluate(category, [0.05, wrong])
    with pytest.raises(ValueError, match="at least one"):
        evaluate(category, 0.05)
