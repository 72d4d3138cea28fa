"""Any combination of arguments builds, trains a step and predicts, or says in one sentence why not.

``NPGMF_EXAMPLES=300 pytest tests/test_surface.py`` tries more combinations.
"""

import os
from typing import Any

import pytest
import torch
from _factory import SLIM_LOGICAL
from hypothesis import event, given, settings
from hypothesis import strategies as st

from anomalib_npgmf import Npgmf
from anomalib_npgmf.config import PRESETS
from anomalib_npgmf.host.calibration import Calibrator
from anomalib_npgmf.host.command_line import is_sentence

EXAMPLES = int(os.environ.get("NPGMF_EXAMPLES", "12"))
_LEVELS = st.sampled_from([(), (1, 2), (2, 3), (3, 4), (3, 4, 5), (4, 3), (5,), (3, 3), (4, 6)])
_SIZES = st.sampled_from([64, 128, (128, 128), (128, 256), 192])


def _some(**choices: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Values for some of the names."""
    return st.fixed_dictionaries({}, optional=choices)


LOGICAL = _some(
    levels=st.none() | _LEVELS,
    vq_levels=_LEVELS,
    loss_levels=st.none() | _LEVELS,
    standardise=st.booleans(),
    embedding_channels=st.none() | st.integers(1, 40),
    prior_grid=st.integers(1, 3),
    codebook_size=st.integers(1, 40),
    codebook_init=st.sampled_from(["data", "normal"]),
    codebook_restart=st.booleans(),
    fusion=st.sampled_from(["proj", "concat"]),
    fusion_depth=st.integers(1, 2),
    window=st.integers(1, 9),
    head_dim=st.integers(1, 40),
    modulator=st.booleans(),
    decoder_channels=st.none() | st.integers(1, 40),
    norm=st.sampled_from(["gn", "bn"]),
    cosine=st.sampled_from(["local", "flat"]),
    feature_loss_weight=st.sampled_from([0.0, 1.0]),
    image_loss_weight=st.sampled_from([0.0, 1.0]),
    commitment_weight=st.sampled_from([0.0, 1.0]),
)
STRUCTURAL = _some(
    levels=_LEVELS.map(sorted),
    coreset_ratio=st.sampled_from([0.0005, 0.05, 1.0]),
    coreset_method=st.sampled_from(["fast", "exact"]),
    bank_dtype=st.sampled_from(["float32", "float16"]),
    reduce_to=st.none() | st.integers(1, 99),
)
COMPOSITION = (
    st.none()
    | st.booleans()
    | _some(
        levels=_LEVELS,
        codebook_sizes=st.lists(st.integers(2, 6), max_size=2),
        codebooks=st.integers(1, 2),
        grids=st.lists(st.integers(2, 3), max_size=2),
        grid_codebook_sizes=st.lists(st.integers(2, 4), max_size=2),
    )
)
ARGUMENTS = _some(
    structural_backbone=st.sampled_from(["test_resnet", "test_convnext"]),
    text_prior=st.sampled_from(["clip", "learned", "random", "none"]),
    logical_image_size=_SIZES,
    structural_image_size=_SIZES,
    coreset_ratio=st.sampled_from([0.01, 0.5]),
    logical_weight=st.sampled_from([0.0, 1.0]),
    structural_weight=st.sampled_from([0.0, 3.0]),
    merging=st.sampled_from(["sum", "maximum"]),
    use_codebooks=st.booleans(),
    branches=st.sampled_from(["both", "logical", "structural"]),
)


def _step_and_predict(arguments: dict[str, Any]) -> torch.Tensor:
    """Build the model as its constructor does, fit it to five noisy images, and score two."""
    module = Npgmf(backbone="test_resnet", visualizer=False, evaluator=False, **arguments)
    model, size = module.model, module.settings.image_size
    images = torch.rand(5, 3, *size)
    keys = [str(index) for index in range(len(images))]
    model.train()
    model.initialise(images)
    loss = model(images[:2])["loss"]
    loss.backward()
    optimiser = module.configure_optimizers()
    if optimiser is not None:
        optimiser.step()
    with torch.no_grad():
        features = model.features(images)
        for part, of_part in ((model.structural, features.structural), (model.composition, features.composition)):
            if part is not None:
                shown = (images,) if part is model.composition else ()
                part.collect(of_part, keys, *shown)
                part.finish()
        batch = _Batch(images[3:], keys[3:])
        scores, peaks = Calibrator(model, lambda given: given).run([batch])  # type: ignore[list-item]
        module.post_processor.calibrate(scores, peaks)
        found = module.post_processor(model.eval()(images[:2]))
    assert found.anomaly_map.shape == (2, 1, *size)
    return found.pred_score


class _Batch:
    def __init__(self, image: torch.Tensor, image_path: list[str]) -> None:
        self.image, self.image_path = image, image_path


@settings(max_examples=EXAMPLES)
@given(
    preset=st.sampled_from(sorted(PRESETS)),
    arguments=ARGUMENTS,
    logical=LOGICAL,
    structural=STRUCTURAL,
    composition=COMPOSITION,
)
def test_any_combination(
    preset: str, arguments: dict[str, Any], logical: dict[str, Any], structural: dict[str, Any], composition: Any
) -> None:
    torch.manual_seed(0)
    defaults = {"structural_backbone": "test_resnet", "logical_image_size": 128, "structural_image_size": 128}
    given_arguments = {"preset": preset, **defaults, **arguments, "composition": composition}
    parts = {"logical": SLIM_LOGICAL | logical, "structural": structural}
    try:
        scores = _step_and_predict({**given_arguments, **parts})
    except (TypeError, ValueError, RuntimeError) as error:
        if not is_sentence(error) or "\n" in str(error):
            raise
        event("refused")
        return
    event("ran")
    assert ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset(preset: str) -> None:
    torch.manual_seed(0)
    small = {"structural_backbone": "test_resnet", "logical_image_size": 128, "structural_image_size": 128}
    scores = _step_and_predict({"preset": preset, "logical": SLIM_LOGICAL, "coreset_ratio": 0.1, **small})
    assert scores.isfinite().all()
