"""The logical branch as a whole: shapes over backbones, what takes part, what is refused."""

from typing import Any

import pytest
import torch
from _branch import CHANNELS, LEVELS, SIZE, SLIM, make_branch, make_features
from torch import nn

from anomalib_npgmf.backbone.network import Backbone
from anomalib_npgmf.logical.codebook import dilations_of
from anomalib_npgmf.logical.config import LogicalConfig
from anomalib_npgmf.logical.model import LogicalBranch


@pytest.mark.parametrize("size", [(128, 128), (128, 256)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto", "efficientnet_b0"])
def test_decoder_rebuilds_every_level_in_shape(name: str, size: tuple[int, int]) -> None:
    """Channels and strides come from the network; stems of stride 4 have four levels only."""
    backbone = Backbone(name)
    config = LogicalConfig(**(SLIM | {"embedding_channels": 32}))
    branch = LogicalBranch(backbone.levels, backbone.channels, backbone.rectified(), size, "none", config=config).eval()
    features = backbone(torch.randn(1, 3, *size))
    with torch.no_grad():
        out = branch(features)
        assert [f.shape for f in out.decoded] == [f.shape for f in features]
        assert out.reconstruction.shape == (1, 3, *size)
        scores = branch.anomaly_map(features, out)
    assert scores.shape == (1, 1, *size)
    assert scores.min() >= 0
    assert scores.max() <= 2 * len(backbone.levels) + 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decoder_channels": 8},
        {"decoder_channels": 8, "loss_levels": (3, 4)},
        {"fusion": "concat"},
        {"norm": "bn"},
        {"prior_grid": 2},
        {"cosine": "flat"},
    ],
)
def test_gradients_reach_every_parameter(changes: dict[str, Any]) -> None:
    branch = make_branch(**changes).train()
    features = make_features(batch=4)  # batch normalisation needs several values at the 1 x 1 context
    branch.initialise(features)
    branch.losses(features, torch.randn(4, 3, *SIZE))["loss"].backward()
    silent = [n for n, p in branch.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert silent == []
    unused = [n for n, p in branch.named_parameters() if p.grad is not None and not p.grad.any()]
    # codes that no vector chose have no gradient; every other tensor must have some
    assert [n for n in unused if "bias" not in n and "kv" not in n and "attention.q" not in n] == []


def test_training_lowers_every_loss() -> None:
    branch = make_branch(size=(64, 64)).train()
    features = make_features((64, 64))
    image = torch.randn(2, 3, 64, 64)
    branch.initialise(features)
    optimiser = torch.optim.Adam(branch.parameters(), lr=3e-3)
    first = last = branch.losses(features, image)
    for _ in range(25):
        optimiser.zero_grad()
        last = branch.losses(features, image)
        last["loss"].backward()
        optimiser.step()
    assert last["feature"] < 0.7 * first["feature"]
    assert last["image"] < first["image"]
    assert torch.isfinite(last["loss"])


def test_batch_of_one_trains_at_the_smallest_size() -> None:
    """The embedding's map is 1 x 1 there, so a group of one channel would hold a single value."""
    branch = make_branch(size=(64, 64)).train()
    branch.losses(make_features((64, 64), batch=1), torch.randn(1, 3, 64, 64))["loss"].backward()
    branch.eval()(make_features((64, 64), batch=1))
    one, other = make_features((64, 64), batch=1), [f + 1 for f in make_features((64, 64), batch=1)]
    embed = branch.decoder.fusions[0](branch.embedding(one[-1])), branch.decoder.fusions[0](branch.embedding(other[-1]))
    with torch.no_grad():
        outs = [branch.decoder.stages[0](e) for e in embed]
    assert not torch.allclose(*outs), "normalisation must not wipe out a 1 x 1 map"


def test_rectified_levels_are_rebuilt_rectified_and_signed_ones_signed() -> None:
    branch = make_branch().eval()
    decoded = branch(make_features()).decoded
    assert decoded[0].min() >= 0
    assert decoded[1].min() < 0
    assert decoded[2].min() >= 0


def test_narrow_decoder_rebuilds_the_encoders_channels() -> None:
    branch, wide = make_branch(decoder_channels=9).eval(), make_branch()
    decoded = branch(make_features()).decoded
    assert [f.shape[1] for f in decoded] == list(CHANNELS)
    assert [stage[-1].body[-2].out_channels for stage in branch.decoder.stages] == [9, 9, 8]  # coarse to fine
    assert decoded[1].min() < 0, "a signed level stays signed"
    assert decoded[2].min() >= 0
    assert sum(p.numel() for p in branch.parameters()) < sum(p.numel() for p in wide.parameters())


def test_embedding_is_normalised_and_rectified_twice() -> None:
    """Convolution, normalisation and rectifier, two times, as in RD4AD."""
    kinds = [type(module) for module in make_branch().embedding]
    assert kinds == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * 2
    embedding = make_branch().eval().embedding(make_features()[-1])
    assert embedding.min() == 0
    assert make_branch(rectify_embedding=False).eval().embedding(make_features()[-1]).min() < 0


def test_decoding_blocks_of_each_level() -> None:
    branch = make_branch(decoder_blocks=(1, 4, 2))
    assert [len(stage) for stage in branch.decoder.stages] == [2, 4, 1], "deepest first"
    with pytest.raises(ValueError, match=r"one for each of the 3 levels, not \(1, 4\)"):
        make_branch(decoder_blocks=[1, 4])


@pytest.mark.parametrize("side", [128, 256, 512])
def test_dilations_stay_within_the_map(side: int) -> None:
    """Beyond it only the centre of a kernel would count."""
    for level in (2, 3, 4):
        dilations = dilations_of(level, (side, side), "map")
        assert max(dilations) < side >> level
        assert max(dilations) == (18 if side >> level >= 32 else 6)
    config = LogicalConfig(**SLIM | {"vq_levels": (3,)})
    branch = LogicalBranch((3, 4, 5), (8, 8, 8), (True,) * 3, (side, side), "none", config=config)
    convolutions = [m.dilation[0] for m in branch.atrous["3"].modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert max(convolutions) == max(dilations_of(3, (side, side), "map"))


@pytest.mark.parametrize("scored", [None, (3, 4), (4,)])
def test_map_needs_no_reconstruction(scored: tuple[int, ...] | None) -> None:
    """Without it the decoder stops at the finest scored level, and nothing else changes."""
    branch = make_branch(loss_levels=scored).eval()
    features = make_features()
    whole, short = branch(features), branch(features, reconstruct=False)
    assert short.reconstruction is None
    assert len(short.decoded) == len(scored or LEVELS)
    assert torch.equal(branch.anomaly_map(features, whole), branch.anomaly_map(features, short))


def test_each_prior_takes_part() -> None:
    branch = make_branch().eval()
    features = make_features()
    base = branch(features)
    assert branch.text_prior is not None
    with torch.no_grad():
        branch.text_prior.embedding.add_(5.0)
    assert not torch.equal(branch(features).reconstruction, base.reconstruction)
    for level in ("3", "4"):
        before = branch(features).reconstruction
        with torch.no_grad():
            branch.codebooks[level].codes.mul_(-3.0).add_(1.0)
        assert not torch.equal(branch(features).reconstruction, before)


def test_codes_reach_the_level_below_theirs() -> None:
    """f_D^(k-1) = D(Fuse([f_D^k ; g ; z_q^k])): codes of level 4 leave f_D^4 alone and change f_D^3."""
    branch = make_branch(vq_levels=(4,)).eval()
    features = make_features()
    before = branch(features).decoded
    with torch.no_grad():
        branch.codebooks["4"].codes.add_(7.0)
    after = branch(features).decoded
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])


def test_without_priors_nothing_of_them_is_built() -> None:
    branch = make_branch("none", vq_levels=())
    names = [n for n, _ in branch.named_parameters()]
    assert not [n for n in names if n.startswith(("text_prior", "codebooks", "atrous"))]
    assert not [n for n in names if "project_prior" in n or "project_codes" in n]
    losses = branch.train().losses(make_features(), torch.randn(2, 3, *SIZE))
    assert losses["codebook"] == 0
    assert branch.codebook_statistics() == {}


def test_loss_levels_are_those_that_count() -> None:
    branch = make_branch(loss_levels=(3,)).eval()
    features = make_features()
    out = branch(features)
    changed = [features[0] * 2 - 1, features[1], 1 - features[2]]
    assert torch.equal(branch.anomaly_map(features, out), branch.anomaly_map(changed, out))
    changed = [features[0], 1 - features[1], features[2]]
    assert not torch.equal(branch.anomaly_map(features, out), branch.anomaly_map(changed, out))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"text_prior": "poem"}, "text_prior must be one of .*not 'poem'"),
        ({"size": (96, 128)}, "multiples of 64 .* not 96 x 128"),
        ({"size": (192, 192)}, "cannot tile"),
        ({"vq_levels": (5,)}, r"vq_levels \[5\] are not among the encoder's levels \(2, 3, 4\)"),
        ({"loss_levels": (1, 2)}, r"loss_levels \[1\] are not among the encoder's levels"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_branch(**arguments)


def test_image_head_ends_linear() -> None:
    branch = make_branch().eval()
    convolutions = [m for m in branch.decoder.head if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        convolutions[-1].bias.fill_(-4.0)
    assert branch(make_features()).reconstruction.min() < 0


def test_standardised_channels_have_mean_0_and_standard_deviation_1() -> None:
    branch = make_branch(standardise=True)
    features = [3 + 5 * feature for feature in make_features()]
    branch.initialise(features)
    for level in branch.standardise(features):
        torch.testing.assert_close(level.mean((0, 2, 3)), torch.zeros(level.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(level.std((0, 2, 3)), torch.ones(level.shape[1]), atol=1e-4, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(make_branch().standardise(features), features, strict=True))


@pytest.mark.parametrize("changes", [{}, {"fusion": "concat"}, {"prior_grid": 2}])
def test_embedding_of_an_image_takes_the_place_of_the_models_own(changes: dict[str, Any]) -> None:
    """Images of several categories in one batch: each is rebuilt under its own text embedding."""
    torch.manual_seed(0)
    branch = make_branch("random", **changes).eval()
    features = make_features()
    assert branch.text_prior is not None
    own, other = branch.text_prior.embedding, branch.text_prior.embedding + 5.0
    plain = branch(features).decoded
    mixed = branch(features, embedding=torch.stack([own, other])).decoded
    for level, given in zip(plain, mixed, strict=True):
        assert torch.allclose(level[0], given[0], atol=1e-5)
        assert not torch.allclose(level[1], given[1], atol=1e-3)
