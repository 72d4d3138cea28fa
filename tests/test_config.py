"""Presets: what they stand for and how single choices override them."""

from typing import Any

import pytest

from anomalib_npgmf.backbone.packaged import packaged_weights
from anomalib_npgmf.config import PRESETS, ModelConfig, resolve


def test_defaults_are_the_papers() -> None:
    paper = resolve("paper", {})
    assert paper.backbone.startswith("resnet101.")
    assert paper.structural_backbone is not None
    assert paper.structural_backbone.startswith("resnext101_32x8d.")
    assert (paper.logical_image_size, paper.structural_image_size) == ((256, 256), (512, 512))
    assert paper.image_size == (512, 512)
    assert not paper.shares_backbone
    assert (paper.logical_weight, paper.structural_weight) == (1.0, 3.0)
    assert (paper.epochs, paper.learning_rate, paper.text_prior) == (50, 2e-4, "clip")
    assert paper.logical.codebook_size == 16
    assert paper.logical.vq_levels == (2, 3, 4)
    assert (paper.logical.prior_dim, paper.logical.atrous_width, paper.logical.code_dim) == (512, 256, 256)
    assert paper.logical.loss_levels is None
    assert not paper.logical.standardise
    assert paper.composition is None
    assert paper.structural.levels == (3, 4)
    assert paper.structural.coreset_ratio == 0.01
    weights = {getattr(paper.logical, f"{name}_weight") for name in ("feature_loss", "image_loss", "codebook_loss")}
    assert weights | {paper.logical.commitment_weight} == {1.0}


def test_literal_differs_from_paper_where_it_says() -> None:
    paper, literal = PRESETS["paper"].logical, PRESETS["literal"].logical
    assert (literal.fusion, literal.fusion_depth, literal.norm) == ("concat", 1, "bn")
    assert (literal.codebook_init, literal.codebook_restart) == ("normal", False)
    assert (literal.decoder_blocks, paper.decoder_blocks) == ((1, 3, 4, 23, 3), 3)
    assert literal.rectify_embedding
    assert paper.rectify_embedding
    assert literal.embedding_channels == paper.embedding_channels
    assert literal.code_dim == paper.code_dim


@pytest.mark.parametrize("name", ["fast", "plus", "small"])
def test_one_pass_serves_both_branches(name: str) -> None:
    assert PRESETS[name].shares_backbone


def test_small_needs_no_download() -> None:
    small = PRESETS["small"]
    assert small.backbone_weights is None
    assert packaged_weights(small.backbone) is not None
    assert small.text_prior != "clip"


@pytest.mark.parametrize(
    ("overrides", "shared"),
    [
        ({}, True),
        ({"backbone": "resnet34"}, True),
        ({"backbone_weights": "w.pth"}, True),
        ({"logical_image_size": 128}, True),
        ({"structural_image_size": 512}, False),
        ({"structural_backbone": "resnet34"}, False),
        ({"structural_backbone": "tf_efficientnet_lite0"}, True),
        ({"structural_backbone": "tf_efficientnet_lite0", "structural_backbone_weights": "other.pth"}, False),
        ({"branches": "logical"}, False),
    ],
)
def test_sharing_follows_the_choices(overrides: dict[str, Any], shared: bool) -> None:
    assert resolve("small", overrides).shares_backbone is shared


def test_weights_that_no_network_takes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"belong to structural_backbone, which is not set: both branches use tf_eff"):
        resolve("small", {"structural_backbone_weights": "file.pth"})
    assert resolve("small", {"structural_backbone_weights": "random"}).structural_backbone is None
    assert resolve("paper", {"structural_backbone_weights": "file.pth"}).structural_backbone_weights == "file.pth"


def test_a_single_size_moves_both_where_one_pass_is_shared() -> None:
    assert resolve("small", {"logical_image_size": 128}).structural_image_size == (128, 128)
    assert resolve("paper", {"logical_image_size": 128}).structural_image_size == (512, 512)


@pytest.mark.parametrize(
    ("branches", "expected"), [("both", (512, 256)), ("logical", (128, 256)), ("structural", (512, 256))]
)
def test_image_size_is_the_largest_in_use(branches: str, expected: tuple[int, int]) -> None:
    sizes = {"logical_image_size": (128, 256), "structural_image_size": (512, 256)}
    assert resolve("paper", sizes | {"branches": branches}).image_size == expected


def test_none_keeps_the_presets_value_and_others_override() -> None:
    config = resolve(
        "small",
        {"learning_rate": None, "structural_weight": 0.0, "text_prior": "none"},
        {"codebook_size": 4},
        {"coreset_ratio": 0.5},
    )
    assert config.learning_rate == PRESETS["small"].learning_rate
    assert config.structural_weight == 0.0
    assert config.text_prior == "none"
    assert config.logical.codebook_size == 4
    assert config.logical.prior_dim == PRESETS["small"].logical.prior_dim
    assert config.structural.coreset_ratio == 0.5
    assert PRESETS["small"].structural.coreset_ratio == 0.1, "the preset itself stays"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: resolve("tiny", {}), "no preset 'tiny'; choose one of"),
        (lambda: resolve("small", {"colour": 1}), r"The model has no field \['colour'\]"),
        (lambda: resolve("small", {}, {"colour": 1}), r"logical has no field \['colour'\]"),
        (lambda: resolve("small", {}, None, {"colour": 1}), r"structural has no field \['colour'\]"),
        (lambda: ModelConfig(logical_image_size=(256, 256, 3)), "logical_image_size must be .* or a list of 2"),
        (lambda: ModelConfig(structural_image_size=31), "structural_image_size must be .* not 31"),
        (lambda: ModelConfig(branches="none"), "branches must be"),
        (lambda: ModelConfig(learning_rate=-1.0), "learning_rate must be a number above 0 on, not -1.0"),
    ],
)
def test_bad_choices_get_a_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
