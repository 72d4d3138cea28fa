from __future__ import annotations

import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from anomalib.data import ImageBatch
from anomalib.metrics import AUROC, Evaluator
from spro_reference import Category, area_under

from anomalib_npgmf.metrics import SPRO, LocoAUROC, base, evaluate_loco, spro, write_anomaly_maps
from anomalib_npgmf.metrics.scores import resize_map

KINDS = ("logical_anomalies", "structural_anomalies")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Smaller than the saturation threshold")
        yield


def batches(category: Category, size: tuple[int, int] = (8, 8), seed: int = 0, count: int = 4) -> list[ImageBatch]:
    """Random maps at the size of a model, as a trainer passes them on."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for start in range(0, len(category.images), count):
        paths = category.images[start : start + count]
        maps = torch.rand(len(paths), *size, generator=generator)
        result.append(
            ImageBatch(
                image=torch.zeros(len(paths), 3, *size),
                anomaly_map=maps,
                pred_score=maps.amax(dim=(1, 2)),
                gt_label=torch.tensor([int("anomalies" in str(path)) for path in paths]),
                image_path=[str(path) for path in paths],
            )
        )
    return result


def feed(metric: torch.nn.Module, given: list[ImageBatch]) -> torch.nn.Module:
    for batch in given:
        metric.update(batch)
    return metric


def expected(category: Category, given: list[ImageBatch], limit: float = 0.05) -> dict[str, float]:
    maps = {
        Path(path): resize_map(scores.float().numpy(), category.size)
        for batch in given
        for path, scores in zip(batch.image_path, batch.anomaly_map, strict=True)
    }
    values = {kind.split("_")[0]: area_under(category.expected(maps, kind), limit) for kind in KINDS}
    return values | {"mean": sum(values.values()) / 2}


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_equals_brute_force_at_original_size(category: Category, limit: float) -> None:
    given = batches(category)
    for kind, value in expected(category, given, limit).items():
        result = feed(SPRO(kind, limit), given).compute()
        assert result.dtype == torch.float32
        assert result.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(category: Category, dtype: torch.dtype) -> None:
    # anomalib's own batches turn every map into float32
    given = [
        SimpleNamespace(anomaly_map=batch.anomaly_map.to(dtype), image_path=batch.image_path)
        for batch in batches(category)
    ]
    metric = feed(SPRO(), given)
    assert metric.predictions[0].dtype == dtype
    assert metric.compute().item() == pytest.approx(expected(category, given)["mean"], abs=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compute_on_cpu", [False, True])
@pytest.mark.parametrize("metric", [SPRO, LocoAUROC])
def test_cuda(category: Category, metric: type, compute_on_cpu: bool) -> None:
    given = batches(category)
    on_cpu = feed(metric(), given).compute()
    for batch in given:
        batch.anomaly_map, batch.pred_score = batch.anomaly_map.cuda(), batch.pred_score.cuda()
    result = feed(metric(compute_on_cpu=compute_on_cpu).cuda(), given).compute()
    assert result.is_cuda
    torch.testing.assert_close(result.cpu(), on_cpu)


@pytest.mark.parametrize("metric", [SPRO, LocoAUROC])
def test_order_batching_and_repeated_images_do_not_matter(category: Category, metric: type) -> None:
    given = batches(category)
    reference = feed(metric(), given).compute()
    assert feed(metric(), given[::-1] + given[:1]).compute() == reference
    whole = batches(category, count=9)
    whole[0].anomaly_map = torch.cat([batch.anomaly_map for batch in given])
    whole[0].pred_score = torch.cat([batch.pred_score for batch in given])
    assert feed(metric(), whole).compute() == reference


@pytest.mark.parametrize("metric", [SPRO, LocoAUROC])
def test_reset_and_pickle(category: Category, metric: type) -> None:
    given, others = batches(category), batches(category, seed=1)
    reference = feed(metric(), others).compute()
    used = feed(metric(), given)
    assert used.compute() != reference
    used.reset()
    assert feed(used, others[:1]).predictions[0].shape[0] == 4
    copy = pickle.loads(pickle.dumps(used))
    assert feed(copy, others[1:]).compute() == reference
    assert copy.state_dict() == {}


def test_state_moves_to_a_file_beyond_the_budget(category: Category, monkeypatch: pytest.MonkeyPatch) -> None:
    given = batches(category)
    reference = feed(SPRO(), given).compute()
    monkeypatch.setattr(spro, "_IN_MEMORY", given[0].anomaly_map.nbytes)
    monkeypatch.setattr(spro, "_last", (b"", {}))
    metric, other = SPRO(), SPRO("logical")
    for batch in given:
        metric.update(batch)
        other.update(batch)
    for stored, shared, batch in zip(metric.predictions, other.predictions, given, strict=True):
        assert torch.equal(stored, batch.anomaly_map)
        assert stored.data_ptr() == shared.data_ptr()
    assert metric.predictions[0].data_ptr() == given[0].anomaly_map.data_ptr()
    assert metric.predictions[1].data_ptr() != given[1].anomaly_map.data_ptr()
    assert metric.compute() == reference
    assert pickle.loads(pickle.dumps(metric)).compute() == reference


def test_three_kinds_share_one_computation(category: Category, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(spro, "_last", (b"", {}))
    original = spro.spro_curves
    monkeypatch.setattr(spro, "spro_curves", lambda *args: calls.append(args) or original(*args))
    metrics = [feed(SPRO(kind), batches(category)) for kind in ("logical", "structural", "mean")]
    logical, structural, mean = (metric.compute() for metric in metrics)
    assert len(calls) == 1
    assert mean == pytest.approx((logical + structural) / 2)
    # other maps, or another limit, are another computation
    assert feed(SPRO(), batches(category, seed=1)).compute() != mean
    assert feed(SPRO(limit=0.3), batches(category)).compute() != mean
    assert len(calls) == 3


def test_other_layouts_are_skipped_with_one_warning(
    category: Category, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base._warn_once.cache_clear()
    other = [tmp_path / "screw" / "test" / name / "000.png" for name in ("good", "scratch")]
    maps = torch.rand(2, 8, 8)
    batch = ImageBatch(
        image=torch.zeros(2, 3, 8, 8),
        anomaly_map=maps,
        pred_score=torch.tensor([0.1, 0.9]),
        gt_label=torch.tensor([0, 1]),
        image_path=[str(path) for path in other],
    )
    auroc = AUROC(fields=["pred_score", "gt_label"])
    evaluator = Evaluator(test_metrics=[SPRO("logical"), SPRO(), LocoAUROC(), auroc])
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            evaluator.on_test_batch_end(None, None, None, batch, 0)
    assert [metric.compute() for metric in evaluator.test_metrics] == [None, None, None, 1.0]
    assert len([r for r in caplog.records if "has not the layout" in r.message]) == 1
    # a category without defects_config.json still has an image AUROC per kind
    (category.folder / "defects_config.json").unlink()
    given = batches(category)
    assert feed(SPRO(), given).compute() is None
    assert feed(LocoAUROC(), given).compute() is not None


def test_a_kind_without_images_is_not_reported(category: Category) -> None:
    given = batches(category, count=3)[:2]  # good and logical ones
    assert feed(SPRO("logical"), given).compute() is not None
    assert feed(LocoAUROC("logical"), given).compute() is not None
    for metric in (SPRO("structural"), SPRO(), LocoAUROC("structural"), LocoAUROC()):
        assert feed(metric, given).compute() is None


def test_bad_input_is_explained(category: Category) -> None:
    (batch, *_) = batches(category)
    with pytest.raises(ValueError, match="Unknown kind 'both'; choose one of mean, logical, structural"):
        SPRO("both")
    with pytest.raises(ValueError, match="must lie in"):
        SPRO(limit=5)
    batch.anomaly_map[2, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"anomaly map of .*good/002\.png holds NaN"):
        SPRO().update(batch)
    batch.pred_score[1] = float("inf")
    with pytest.raises(ValueError, match=r"score of .*good/001\.png is NaN or infinite"):
        LocoAUROC().update(batch)
    with pytest.raises(ValueError, match="one score per image, got 2 for 1"):
        LocoAUROC.__mro__[2].update(LocoAUROC(), torch.rand(2), batch.image_path[:1])
    with pytest.raises(ValueError, match=r"needs one \(H, W\) map per image"):
        SPRO.__mro__[2].update(SPRO(), torch.rand(2, 8, 8), batch.image_path[:1])


@pytest.mark.parametrize("name", ["two\nlines", "a\u2028b", "\udcff"])
@pytest.mark.parametrize("metric", [SPRO, LocoAUROC])
def test_unusual_folders(category: Category, tmp_path: Path, metric: type, name: str) -> None:
    given = batches(category)
    value = feed(metric(), given).compute()
    category.root.rename(tmp_path / name)
    for batch in given:
        batch.image_path = [str(tmp_path / name / Path(path).relative_to(category.root)) for path in batch.image_path]
    assert feed(metric(), given).compute() == value


def test_written_maps_score_the_same(category: Category) -> None:
    given = batches(category)
    written = write_anomaly_maps(given, category.maps_dir)
    assert len(written) == len(category.images)
    results = evaluate_loco(category.root, category.name, category.maps_dir, [0.05])
    spro_values = results["localization"]["auc_spro"]
    for kind in KINDS:
        metric = feed(SPRO(kind.split("_")[0]), given)
        assert spro_values[kind]["0.05"] == pytest.approx(metric.compute().item(), abs=1e-6)
    with pytest.raises(ValueError, match="no predictions"):
        write_anomaly_maps(None, category.maps_dir)
    given[0].anomaly_map = None
    with pytest.raises(ValueError, match="no anomaly maps"):
        write_anomaly_maps(given, category.maps_dir)


def _work(rank: int, store: Path, given: list[ImageBatch], results: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    # as a distributed sampler does: every other batch, and the first one again to even out
    share = given[::2] if rank == 0 else given[1::2] + given[:1]
    values = [float(feed(metric, share).compute()) for metric in some_metrics()]
    results.with_suffix(f".{rank}").write_text(json.dumps(values))
    torch.distributed.destroy_process_group()


def some_metrics() -> list[torch.nn.Module]:
    return [SPRO("logical"), SPRO(), LocoAUROC("logical"), LocoAUROC()]


def test_two_processes(category: Category, tmp_path: Path) -> None:
    given = batches(category)
    # forked: importing anomalib twice would take most of the time of these tests
    arguments = (tmp_path / "store", given, tmp_path / "results")
    torch.multiprocessing.start_processes(_work, arguments, nprocs=2, start_method="fork")
    single = [float(feed(metric, given).compute()) for metric in some_metrics()]
    for rank in range(2):
        assert json.loads((tmp_path / f"results.{rank}").read_text()) == pytest.approx(single, abs=1e-6)


def test_entirely_tied_scores_give_one_half(category: Category) -> None:
    given = batches(category)
    for batch in given:
        batch.pred_score = torch.ones_like(batch.pred_score)
    assert feed(LocoAUROC(), given).compute() == 0.5
    assert torch.isfinite(feed(SPRO(), given).compute())
