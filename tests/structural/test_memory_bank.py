import io

import pytest
import torch
from torch import Tensor

from anomalib_npgmf.structural import MemoryBank, covering_radius
from anomalib_npgmf.structural.collector import PatchCollector
from anomalib_npgmf.structural.reduction import principal_components
from anomalib_npgmf.structural.search import half_precision_match


def smooth_images(images: int, dim: int = 48, seed: int = 0, offset: float = 0.0) -> Tensor:
    """Patches of smooth random feature maps ``[images, 64, dim]``."""
    coarse = torch.randn(images, dim, 3, 3, generator=torch.Generator().manual_seed(seed))
    maps = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return maps.flatten(2).transpose(1, 2) + offset


def built(**kwargs: object) -> MemoryBank:
    bank = MemoryBank(0.25, **kwargs)  # type: ignore[arg-type]
    bank.append(smooth_images(6))
    bank.finish()
    return bank


def reference(bank: MemoryBank, queries: Tensor) -> Tensor:
    stored = bank.embeddings.double() + bank.center.double()
    return torch.cdist(queries.double(), stored, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_search_equals_brute_force(dtype: torch.dtype) -> None:
    bank = built(dtype=dtype)
    assert bank.embeddings.dtype == dtype
    assert len(bank) == 96
    queries = smooth_images(2, seed=9).flatten(0, 1)
    torch.testing.assert_close(bank.search(queries).double(), reference(bank, queries), rtol=1e-5, atol=1e-5)


def test_search_is_exact_near_zero_far_from_the_origin() -> None:
    bank = MemoryBank(1.0)
    patches = smooth_images(2, offset=100.0)
    bank.append(patches)
    bank.finish()
    queries = patches.flatten(0, 1) + 1e-3  # distance 1e-3 * sqrt(48), against norms of 700
    expected = torch.full((128,), 1e-3 * 48**0.5)
    torch.testing.assert_close(bank.search(queries), expected, rtol=0.02, atol=0)
    assert bank.search(patches.flatten(0, 1)).max() < 1e-4


def test_search_does_not_depend_on_the_chunk() -> None:
    bank = built()
    queries = smooth_images(3, seed=4).flatten(0, 1)
    whole = bank.search(queries)
    bank.search_bytes = 5 * 4 * len(bank)
    torch.testing.assert_close(bank.search(queries), whole)


def test_reduced_bank_keeps_distances() -> None:
    full, reduced = built(), built(reduce_to=24)
    queries = smooth_images(2, seed=9).flatten(0, 1)
    assert reduced.embeddings.shape == (96, 25)
    a, b = full.search(queries), reduced.search(queries)
    assert bool((b <= a + 1e-4).all())  # a projection shortens
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9


def test_reduced_bank_sees_what_lies_outside_its_span() -> None:
    """What no normal patch has lies in no principal component; its length counts all the same."""
    bank = MemoryBank(1.0, reduce_to=2)
    flat = torch.cat([torch.rand(1, 40, 2), torch.zeros(1, 40, 3)], dim=2)
    bank.append(flat)
    bank.finish()
    distances = bank.search(flat[0] + torch.tensor([0.0, 0.0, 0.0, 3.0, 4.0]))
    torch.testing.assert_close(distances, torch.full((40,), 5.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bank.search(flat[0]), torch.zeros(40), rtol=0, atol=1e-3)


@pytest.mark.parametrize("reduce_to", [48, 500])
def test_nothing_is_reduced_to_more_dimensions_than_there_are(reduce_to: int) -> None:
    queries = smooth_images(2, seed=9).flatten(0, 1)
    bank = built(reduce_to=reduce_to)
    assert bank.basis.numel() == 0
    assert torch.equal(bank.search(queries), built().search(queries))


def test_principal_components_are_those_of_the_svd() -> None:
    points = smooth_images(4).flatten(0, 1)
    points -= points.mean(0)
    basis = principal_components(points, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close((points @ basis).norm(dim=0), torch.linalg.svdvals(points)[:5], rtol=1e-4, atol=1e-4)


def test_shrunk_bank_is_the_smaller_coreset() -> None:
    bank = built()
    bank.shrink(32)
    smaller = MemoryBank(32 / 384)
    smaller.append(smooth_images(6))
    smaller.finish()
    torch.testing.assert_close(bank.embeddings + bank.center, smaller.embeddings + smaller.center)
    with pytest.raises(ValueError, match="32 patches"):
        bank.shrink(33)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float16}, {"reduce_to": 8}])
def test_state_loads_into_a_fresh_bank(options: dict[str, object]) -> None:
    bank = built(**options)
    file = io.BytesIO()
    torch.save(torch.nn.Sequential(bank).state_dict(), file)
    file.seek(0)
    fresh = torch.nn.Sequential(MemoryBank())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    queries = smooth_images(1, seed=2)[0]
    assert torch.equal(fresh[0].search(queries), bank.search(queries))


def test_order_batches_and_repeats_do_not_matter() -> None:
    images, names = smooth_images(5), list("abcde")
    first, second = MemoryBank(0.2), MemoryBank(0.2)
    first.append(images, names)
    for i in (3, 0, 3, 4, 2, 1, 0):
        second.append(images[i : i + 1], [names[i]])
    first.finish()
    second.finish()
    assert torch.equal(first.embeddings, second.embeddings)


def test_thinning_bounds_memory_and_keeps_the_cover() -> None:
    images = smooth_images(40)
    patches = images.flatten(0, 1)
    one_shot, thinned = MemoryBank(0.02), MemoryBank(0.02, collect_bytes=images[:8].nbytes)
    for index, image in enumerate(images):
        for bank in (one_shot, thinned):
            bank.append(image[None], [f"{index:03d}"])
    stored = sum(block.nbytes for block in thinned.collector.blocks.values())
    assert stored == patches.nbytes // 4
    one_shot.finish()
    thinned.finish()
    assert len(one_shot) == len(thinned) == 51
    stored_rows = [torch.cdist(b.embeddings + b.center, patches).argmin(1) for b in (one_shot, thinned)]
    radii = [covering_radius(patches, rows) for rows in stored_rows]
    assert radii[1] <= 1.1 * radii[0]


def test_thinning_does_not_depend_on_when_it_began() -> None:
    images = smooth_images(12)
    names = [f"{i:02d}" for i in range(12)]
    forward = PatchCollector(torch.float32, budget=images[:5].nbytes, ratio=0.02)
    backward = PatchCollector(torch.float32, budget=images[:5].nbytes, ratio=0.02)
    forward.append(images, names)
    backward.append(images.flip(0), names[::-1])
    assert torch.equal(torch.cat(forward.ordered()), torch.cat(backward.ordered()))


def test_collected_patches_are_freed() -> None:
    assert not built().collector.blocks


def test_half_precision_match_cannot_overflow() -> None:
    points = (smooth_images(1)[0] * 2000).half()  # unscaled products would reach 1e8
    queries = points.float() + 1.0
    index = half_precision_match(queries, points, points.float().square().sum(1))
    assert torch.equal(index, torch.arange(len(points)))


def test_errors_are_sentences() -> None:
    bank = MemoryBank(0.01)
    with pytest.raises(RuntimeError, match="memory bank is empty; train"):
        bank.search(torch.rand(2, 3))
    with pytest.raises(ValueError, match="at least one normal image"):
        bank.finish()
    bank.append(torch.rand(1, 50, 3))
    with pytest.raises(ValueError, match="empty memory bank; raise the ratio"):
        bank.finish()
    with pytest.raises(ValueError, match=r"'x\.png' hold NaN or Inf"):
        bank.append(torch.full((1, 4, 3), float("nan")), ["x.png"])
    with pytest.raises(ValueError, match="2 images came with 1 keys"):
        bank.append(torch.rand(2, 4, 3), ["a"])


def test_half_precision_overflow_is_refused() -> None:
    with pytest.raises(ValueError, match="store the bank in float32"):
        MemoryBank(dtype=torch.float16).append(torch.full((1, 4, 3), 1e5))


def test_reduced_patches_must_fit_half_precision() -> None:
    """Each value fits, but the length along a component is that of the whole patch."""
    patches = torch.full((8, 1600), 4000.0) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    with pytest.raises(ValueError, match=r"exceed the range of torch\.float16"):
        MemoryBank(dtype=torch.float16, reduce_to=2).fill(patches)


def test_a_filled_bank_forgets_an_earlier_basis() -> None:
    bank = MemoryBank(reduce_to=2)
    bank.fill(smooth_images(1).flatten(0, 1))
    bank.reduce_to = None
    points = smooth_images(1, seed=3).flatten(0, 1)
    bank.fill(points)
    torch.testing.assert_close(bank.search(points[:5]), torch.zeros(5), rtol=0, atol=1e-3)
