"""One test pass gives the three maps of one model; their metrics equal those of the command for folders of maps."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from anomalib.engine import Engine
from sklearn.metrics import auc

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.benchmark.evaluate import Prediction, TestPass, evaluate
from anomalib_npgmf.metrics import evaluate_loco
from anomalib_npgmf.metrics.ground_truth import list_test_images

CATEGORY = "cable_pairs"


@pytest.fixture(scope="module")
def datamodule(tmp_path_factory: pytest.TempPathFactory) -> SyntheticLOCO:
    counts = dict.fromkeys(("num_validation", "num_test_good", "num_test_structural"), 3) | {"num_train": 6}
    datamodule = SyntheticLOCO(
        tmp_path_factory.mktemp("images"), CATEGORY, image_size=(64, 96), num_test_logical=4, **counts
    )
    datamodule.prepare_data()
    return datamodule


def test_metrics_equal_those_of_a_folder_of_maps(datamodule: SyntheticLOCO, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = list_test_images(datamodule.root / CATEGORY)
    maps = {path: random.random((64, 96), dtype=np.float32) for path in images}
    for path, scores in maps.items():
        file = tmp_path / CATEGORY / "test" / path.parent.name / f"{path.stem}.tiff"
        file.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(file, scores)
    predictions = {path: Prediction(float(scores.max()), scores) for path, scores in maps.items()}
    found = evaluate(predictions, {path: path.parent.name != "good" for path in images}, {})
    expected = evaluate_loco(datamodule.root, CATEGORY, tmp_path)

    auroc, spro = expected["classification"], expected["localization"]
    kinds = {"logical": "logical_anomalies", "structural": "structural_anomalies", "mean": "mean"}
    assert found["loco_auroc"] == pytest.approx({short: auroc["auc_roc"][kind] for short, kind in kinds.items()})
    assert found["loco_auroc_per_defect"] == pytest.approx(auroc["auc_roc_per_defect"])
    assert set(found["spro"]) == {"0.01", "0.05", "0.1", "0.3", "1.0"}
    for limit, values in found["spro"].items():
        assert values == pytest.approx({short: spro["auc_spro"][kind][limit] for short, kind in kinds.items()})
    for defect, values in found["spro_per_defect"].items():
        assert values == pytest.approx(spro["auc_spro_per_defect"][defect])
    for kind in ("logical", "structural"):
        rates, values = found["spro_curve"][kind]
        area = float(auc(rates, values))
        assert area == pytest.approx(found["spro"]["1.0"][kind], abs=0.01)
    assert "pixel_auroc" not in found


def test_images_without_the_layout_of_loco() -> None:
    maps = {"good/0": [[0.0, 0.1]], "bad/0": [[0.2, 0.9]], "bad/1": [[0.05, 0.3]]}
    masks = {"good/0": [[0, 0]], "bad/0": [[0, 1]], "bad/1": [[1, 0]]}
    predictions = {Path(k): Prediction(max(v[0]), np.array(v, dtype=np.float32)) for k, v in maps.items()}
    labels = {path: path.parent.name == "bad" for path in predictions}
    found = evaluate(predictions, labels, {Path(k): np.array(v, dtype=bool) for k, v in masks.items()})
    # marked 0.9 and 0.05 against 0, 0.1, 0.2, 0.3: 4 + 1 of 8 pairs in order
    assert found == {"image_auroc": 1.0, "pixel_auroc": pytest.approx(5 / 8)}


def test_one_pass_gives_the_maps_of_both_branches(datamodule: SyntheticLOCO, tmp_path: Path) -> None:
    parts = {"post_processor": False, "evaluator": False, "visualizer": False}
    model = Npgmf(preset="small", logical_image_size=128, **parts)
    test_pass = TestPass()
    engine = Engine(
        max_epochs=1, default_root_dir=tmp_path, logger=False, enable_progress_bar=False, callbacks=[test_pass]
    )
    engine.fit(model, datamodule=datamodule)
    engine.test(model, datamodule=datamodule, verbose=False)

    assert set(test_pass.predictions) == {"merged", "logical", "structural", "1:3", "3:1", "1:1", "maximum"}
    images = set(list_test_images(datamodule.root / CATEGORY))
    for predictions in test_pass.predictions.values():
        assert set(predictions) == images
        for prediction in predictions.values():
            assert prediction.anomaly_map is not None
            assert prediction.anomaly_map.shape == (128, 128)
            assert prediction.score == pytest.approx(prediction.anomaly_map.max())
    for path, merged in test_pass.predictions["merged"].items():
        logical, structural = (test_pass.predictions[branch][path].anomaly_map for branch in ("logical", "structural"))
        assert logical is not None
        assert structural is not None
        # eq. 11 with the weights 1 and 3; smoothing is linear
        np.testing.assert_allclose(merged.anomaly_map, logical + 3 * structural, rtol=1e-4, atol=1e-4)
    anomalous = {path for path in images if path.parent.name != "good"}
    assert {path for path, label in test_pass.labels.items() if label} == anomalous
    assert {path for path, mask in test_pass.masks.items() if mask.any()} == anomalous
