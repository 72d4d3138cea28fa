"""The codebooks of the logical branch during training: their start, dead codes and statistics."""

import torch
from _branch import SIZE, make_branch, make_features


def test_dead_codes_are_moved_after_every_epoch() -> None:
    branch = make_branch(vq_levels=(4,)).train()
    book = branch.codebooks["4"]
    features = make_features()
    with torch.no_grad():
        book.codes[1:] = 1e4  # out of reach
        before = book.codes.clone()
        branch(features)
        assert torch.equal(book.codes, before), "within an epoch codes stay"
        branch.codebook_statistics()
        branch.eval()(features)
        assert torch.equal(book.codes, before), "evaluation changes nothing"
        branch.train()(features)
    assert torch.equal(book.codes[0], before[0])
    assert (book.codes[1:] < 1e3).all()


def test_literal_codes_start_normal_and_stay() -> None:
    branch = make_branch(codebook_init="normal", codebook_restart=False, vq_levels=(4,)).train()
    book = branch.codebooks["4"]
    with torch.no_grad():
        book.codes[1:] = 1e4
        before = book.codes.clone()
        branch.initialise(make_features())
        branch(make_features())
        branch.codebook_statistics()
        branch(make_features())
    assert torch.equal(book.codes, before)


def test_data_start_uses_the_features() -> None:
    branch = make_branch(vq_levels=(4,)).eval()
    features = make_features()
    z = branch.pre_codes(features)[4]
    branch.initialise(features)
    quantised, _ = branch.codebooks["4"](z)
    assert (quantised - z).square().mean() < 0.5 * z.var()
    maps = branch.code_maps(features)
    assert maps[4].shape == (2, SIZE[0] >> 4, SIZE[1] >> 4)


def test_statistics_name_their_level_and_start_anew() -> None:
    branch = make_branch().train()
    branch(make_features())
    statistics = branch.codebook_statistics()
    assert sorted(statistics) == ["dead_codes_3", "dead_codes_4", "perplexity_3", "perplexity_4"]
    assert 1 <= statistics["perplexity_3"] <= 16
    counted = branch.codebooks["3"].usage.sum()
    branch(make_features())
    assert branch.codebooks["3"].usage.sum() == counted, "the count of the next epoch starts at zero"
