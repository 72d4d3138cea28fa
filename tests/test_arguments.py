"""Every wrong argument of the constructors ends in one sentence that names it, its range and what was given."""

from collections.abc import Callable
from dataclasses import fields
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from _factory import make_model

from anomalib_npgmf import Npgmf, SyntheticLOCO
from anomalib_npgmf.composition.config import CompositionConfig
from anomalib_npgmf.config import ModelConfig
from anomalib_npgmf.data.synthetic.writer import DrawingPlan
from anomalib_npgmf.fields import checked
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.structural.config import StructuralConfig

PLAN = dict.fromkeys(("num_train", "num_validation", "num_test_good", "num_test_logical", "num_test_structural"), 1)
REFUSED = (TypeError, ValueError)
MAKERS: dict[str, Callable[..., Any]] = {
    "model": ModelConfig,
    "logical": LogicalConfig,
    "structural": StructuralConfig,
    "composition": CompositionConfig,
    "drawing": lambda **changes: DrawingPlan(
        **{"category": "cable_pairs", "image_size": 64, "seed": 0, **PLAN, **changes}
    ),
}
WRONG = [
    None,
    True,
    nan,
    inf,
    -inf,
    0,
    -4,
    2.5,
    10**9,
    "",
    "text",
    b"",
    [],
    [1.5],
    [[]],
    [None],
    {},
    {"a": 1},
    object(),
]
REFUSED = (TypeError, ValueError)


def _names() -> list[tuple[str, str]]:
    classes = {**MAKERS, "drawing": DrawingPlan}
    return [(room, entry.name) for room, cls in classes.items() for entry in fields(cls)]


def _refusal(room: str, name: str, value: Any) -> str | None:
    try:
        MAKERS[room](**{name: value})
    except REFUSED as error:
        return str(error)
    return None


@pytest.mark.parametrize(("room", "name"), _names())
def test_every_field_holds_a_value_or_says_why_not(room: str, name: str) -> None:
    sentences = [said for said in (_refusal(room, name, value) for value in WRONG) if said is not None]
    assert len(sentences) > len(WRONG) / 2
    for sentence in sentences:
        assert name in sentence
        assert "\n" not in sentence
        assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"learning_rate": nan}, "learning_rate must be a number above 0 on, not nan"),
        ({"logical_weight": inf}, "logical_weight must be a number from 0 on, not inf"),
        ({"structural_weight": "3"}, "structural_weight must be a number or None, not '3'"),
        ({"coreset_ratio": [0.1]}, "coreset_ratio must be a number or None"),
        ({"preset": ["small"]}, r"preset must be a text or None, not \['small'\]"),
        ({"backbone": 50}, "backbone must be a text or None, not 50"),
        ({"use_codebooks": "no"}, "use_codebooks must be true or false, not 'no'"),
        ({"composition": "yes"}, "composition must be true or false or fields by name or None, not 'yes'"),
        ({"logical": [1]}, r"logical must be fields by name or None, not \[1\]"),
        ({"logical_image_size": 10**6}, "logical_image_size must be .*from 32 to 8192, or a list of 2 of them"),
        ({"logical_image_size": (128, 128, 128)}, "logical_image_size must be"),
        ({"pre_processor": "resize"}, "pre_processor must be an instance of Module or true or false, not 'resize'"),
        ({"logical": {"embedding_channels": 0}}, "logical.embedding_channels must be a whole number from 1 .* not 0"),
        ({"logical": {"embedding_channels": -4}}, "logical.embedding_channels must be .* or None, not -4"),
        ({"logical": {"image_loss_weight": -1}}, "logical.image_loss_weight must be a number from 0 on, not -1"),
        ({"logical": {"vq_levels": 3}}, "logical.vq_levels must be a list, each a whole number .* not 3"),
        ({"logical": {"vq_levels": (3, 3)}}, "logical.vq_levels must be a list.*, no two alike, not"),
        ({"logical": {"loss_levels": ()}}, "logical.loss_levels must be a list.*at least 1, no two alike or None"),
        ({"logical": {"prior_grid": 1000}}, "logical.prior_grid must be a whole number from 1 to 32, not 1000"),
        ({"structural": {"reduce_to": 2.5}}, "structural.reduce_to must be a whole number from 1 on or None, not 2.5"),
        (
            {"composition": {"grids": [1000]}},
            r"composition.grids must be a list.* from 1 to 64, no two alike, not \[1000\]",
        ),
        (
            {"composition": {"grids": [64], "grid_codebook_sizes": [8]}},
            "composition.grids .* takes too much memory; lower either for at most 8192",
        ),
        ({"composition": {"codebook_sizes": 8}}, "composition.codebook_sizes must be a list"),
    ],
)
def test_arguments_of_the_model(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(REFUSED, match=sentence):
        Npgmf(**{"preset": "small", **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_train": 2.5}, "num_train must be a whole number, not 2.5"),
        ({"num_train": 10**9}, "num_train must be a whole number from 1 to 1000000, not 1000000000"),
        ({"image_size": nan}, "image_size must be"),
        ({"image_size": 10**6}, "image_size must be a whole number from 64 to 8192"),
        ({"train_batch_size": 0}, "train_batch_size must be a whole number from 1 on, not 0"),
        ({"eval_batch_size": -1}, "eval_batch_size must be a whole number from 1 on, not -1"),
        ({"num_workers": -1}, "num_workers must be a whole number from 0 on, not -1"),
        ({"seed": "0"}, "seed must be a whole number, not '0'"),
        ({"category": 3}, "category must be a text, not 3"),
        ({"root": 3}, "root must be .* or a text or None, not 3"),
        ({"augmentations": "flip"}, "augmentations must be an instance of Transform or None, not 'flip'"),
    ],
)
def test_arguments_of_the_data_module(tmp_path: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(REFUSED, match=sentence):
        SyntheticLOCO(**{"root": tmp_path, **arguments})


def test_what_yaml_and_numpy_give_is_stored_as_annotated() -> None:
    np = pytest.importorskip("numpy")
    config = LogicalConfig(
        levels=[np.int64(3), 4], code_dim=np.int64(8), image_loss_weight=1, codebook_loss_weight=np.float32(0.5)
    )  # type: ignore[arg-type]
    assert (config.levels, config.code_dim, config.image_loss_weight) == ((3, 4), 8, 1.0)
    assert {type(level) for level in config.levels or ()} == {int}
    assert [type(v) for v in (config.code_dim, config.image_loss_weight, config.codebook_loss_weight)] == [
        int,
        float,
        float,
    ]
    assert ModelConfig(logical_image_size=128).logical_image_size == (128, 128)  # type: ignore[arg-type]


def test_weights_may_be_given_as_a_path(tmp_path: Path) -> None:
    assert make_model(backbone_weights=tmp_path / "w.pth").settings.backbone_weights == str(tmp_path / "w.pth")


def test_long_values_are_cut_in_the_sentence() -> None:
    with pytest.raises(TypeError, match=r"^levels must be a list, each a whole number, not 'xxx.*\.\.\.\.$") as caught:
        checked("levels", "x" * 10_000, tuple[int, ...])
    assert len(str(caught.value)) < 160
