"""Codebooks: eq. 1 and eq. 2, their gradients, their start and their restart."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalib_npgmf.logical.codebook import AtrousBlock, Codebook


def clusters(centres: int, per_centre: int, dim: int, *, seed: int = 0, offset: float = 3.0) -> torch.Tensor:
    """Vectors around far-apart centres with a common offset, as a map [1, dim, centres, per_centre]."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(centres, 1, dim, generator=generator) + offset
    points = means + 0.05 * torch.randn(centres, per_centre, dim, generator=generator)
    return points.permute(2, 0, 1).unsqueeze(0)


def as_rows(z: torch.Tensor) -> torch.Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**16))
def test_indices_are_the_nearest_codes(size: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    book = Codebook(size, dim)
    with torch.no_grad():
        book.codes.copy_(torch.randn(size, dim, generator=generator))
    z = torch.randn(2, dim, 3, 5, generator=generator)
    distances = torch.cdist(as_rows(z).double(), book.codes.detach().double())
    chosen = distances.gather(1, book.indices(z).flatten().unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen, distances.min(dim=1).values, rtol=1e-5, atol=1e-6)


def test_loss_and_quantised_by_hand() -> None:
    book = Codebook(2, 2, commitment=0.5)
    with torch.no_grad():
        book.codes.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    z = torch.tensor([[1.0, 2.0], [3.0, 1.0]]).T.view(1, 2, 1, 2).requires_grad_()
    quantised, loss = book(z)
    # squared distances 1 + 4 and 1 + 1 over four elements, for the code term and half of it for the commitment
    assert loss.item() == pytest.approx((7 / 4) * 1.5)
    torch.testing.assert_close(quantised, torch.tensor([[0.0, 0.0], [4.0, 0.0]]).T.view(1, 2, 1, 2))
    loss.backward()
    # d/dcode of mean((q - z)^2) = 2 (q - z) / 4; d/dz of half of it = 2 (z - q) / 4 / 2
    torch.testing.assert_close(book.codes.grad, torch.tensor([[-0.5, -1.0], [0.5, -0.5]]))
    torch.testing.assert_close(as_rows(z.grad), torch.tensor([[0.25, 0.5], [-0.25, 0.25]]))


def test_straight_through_gradient_is_the_identity() -> None:
    book = Codebook(4, 3)
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    quantised, _ = book(z)
    (quantised * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)
    assert book.codes.grad is None, "the codes learn from eq. 2 alone"


def test_evaluation_gives_codes_and_counts_nothing() -> None:
    book = Codebook(4, 3).eval()
    quantised, loss = book(torch.randn(1, 3, 4, 4))
    assert loss == 0
    assert book.usage.sum() == 0
    nearest = torch.cdist(as_rows(quantised), book.codes.detach()).min(dim=1).values
    assert nearest.max() == 0


def test_statistics_by_hand() -> None:
    book = Codebook(4, 1)
    book.usage.copy_(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    assert book.perplexity().item() == pytest.approx(2.0)
    assert book.dead().tolist() == [False, False, True, True]
    book.usage.copy_(torch.tensor([997.0, 1.0, 1.0, 0.9]))  # 0.9 of 999.9 is below one in a thousand
    assert book.dead().tolist() == [False, False, False, True]
    book.usage.copy_(torch.full((4,), 5.0))
    assert book.perplexity().item() == pytest.approx(4.0)
    book.reset_usage()
    assert book.usage.sum() == 0


def test_training_counts_every_position() -> None:
    book = Codebook(4, 2)
    z = torch.randn(3, 2, 5, 7)
    book(z)
    book(z)
    torch.testing.assert_close(book.usage, 2.0 * torch.bincount(book.indices(z).flatten(), minlength=4))


def test_data_start_uses_all_codes_and_lowers_the_error() -> None:
    z = clusters(centres=8, per_centre=40, dim=16)
    book = Codebook(8, 16)
    error_before = F.mse_loss(book.eval()(z)[0], z)
    book.fit(z)
    error_after = F.mse_loss(book.eval()(z)[0], z)
    assert error_after < 0.05 * error_before
    assert len(book.indices(z).unique()) == 8
    # one code per cluster, at its mean
    means = z.mean(dim=3)[0].T
    assert torch.cdist(means, book.codes.detach()).min(dim=1).values.max() < 1e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("repeats", [1, 8])
def test_data_start_is_seeded_and_copes_with_few_points(repeats: int) -> None:
    z = clusters(centres=3, per_centre=1, dim=4).repeat(1, 1, repeats, 1)
    first, second = Codebook(16, 4), Codebook(16, 4)
    first.fit(z)
    second.fit(z)
    torch.testing.assert_close(first.codes, second.codes, rtol=0, atol=0)
    assert torch.isfinite(first.codes).all()
    assert {tuple(code) for code in first.codes.tolist()} == {tuple(vector) for vector in as_rows(z).tolist()}


def test_data_start_depends_on_the_seed_and_leaves_global_random_states() -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second = Codebook(16, 4), Codebook(16, 4)
    state = torch.get_rng_state()
    first.fit(z, seed=0)
    second.fit(z, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first.codes, second.codes)


def test_data_start_keeps_the_type_of_the_codes() -> None:
    book = Codebook(4, 4).to(torch.float16)
    book.fit(clusters(centres=4, per_centre=5, dim=4).half())
    assert book.codes.dtype == torch.float16


@pytest.mark.parametrize("restart", [True, False])
def test_renewal_moves_dead_codes_only(restart: bool) -> None:
    book = Codebook(5, 3)
    before = book.codes.detach().clone()
    book.usage.copy_(torch.tensor([100.0, 0.0, 50.0, 0.0, 10.0]))
    z = torch.randn(1, 3, 4, 4)
    assert book.renew(z, torch.Generator().manual_seed(0), restart=restart) == (2 if restart else 0)
    moved = (book.codes.detach() != before).any(dim=1)
    assert moved.tolist() == [False, restart, False, restart, False]
    if restart:
        assert torch.cdist(book.codes.detach()[moved], as_rows(z)).min(dim=1).values.max() == 0, "moved onto data"
    assert book.usage.sum() == 0


@pytest.mark.parametrize(("start", "restart"), [("data", False), ("normal", True)])
def test_codes_do_not_collapse(start: str, restart: bool) -> None:
    """Sixteen clusters with a common offset, trained by gradient: a start from data, or restarts, keep codes alive."""
    torch.manual_seed(0)
    z = clusters(centres=16, per_centre=16, dim=32, offset=10.0)
    book = Codebook(16, 32)
    if start == "data":
        book.fit(z)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(book.parameters(), lr=1e-2, betas=(0.5, 0.999))
    for step in range(120):
        optimiser.zero_grad()
        book(z)[1].backward()
        optimiser.step()
        if restart and step % 20 == 19:
            book.renew(z, generator, restart=True)
    book.reset_usage()
    book(z)
    assert book.perplexity() > 8


def test_literal_start_collapses() -> None:
    """The reason for the two remedies; if this ever passes without them they can go."""
    torch.manual_seed(0)
    z = clusters(centres=16, per_centre=16, dim=32, offset=10.0)
    book = Codebook(16, 32)
    optimiser = torch.optim.Adam(book.parameters(), lr=1e-2, betas=(0.5, 0.999))
    for _ in range(120):
        optimiser.zero_grad()
        book(z)[1].backward()
        optimiser.step()
    book.reset_usage()
    book(z)
    assert book.perplexity() < 4


def test_atrous_block_is_the_projected_concatenation() -> None:
    """The sum over branches equals one 1x1 convolution of the concatenation with the expanded pooled branch."""
    block = AtrousBlock(6, 8, 5, (2, 4), "gn").eval()
    features = torch.randn(2, 6, 9, 7)
    pooled = block.pooled(F.adaptive_avg_pool2d(features, 1)).expand(-1, -1, 9, 7)
    joined = torch.cat([*(branch(features) for branch in block.branches), pooled], dim=1)
    weight = torch.cat([block.project.weight, block.project_pooled.weight], dim=1)
    torch.testing.assert_close(block(features), F.conv2d(joined, weight, block.project.bias), rtol=1e-5, atol=1e-5)
    assert block(features).min() < 0, "codes may be signed, so the block ends without a rectifier"


def test_atrous_branches_reach_as_far_as_their_dilation() -> None:
    block = AtrousBlock(1, 4, 1, (3,), "bn").eval()
    features = torch.zeros(1, 1, 9, 9)
    spot = features.clone()
    spot[..., 4, 4] = 1.0
    reached = (block.branches[1](spot) != block.branches[1](features)).any(dim=1)[0]
    rows, columns = reached.nonzero(as_tuple=True)
    assert set(rows.tolist()) <= {1, 4, 7}
    assert set(columns.tolist()) <= {1, 4, 7}
    assert {1, 7} <= set(rows.tolist())
