"""LeWin blocks: attention against a loop, windows, shift and bias."""

from itertools import product

import pytest
import torch

from anomalib_npgmf.logical.lewin import LeWinBlock, WindowAttention, check_windows


def make_attention(
    size: tuple[int, int], *, dim: int = 6, window: int = 4, heads: int = 2, shift: bool = False
) -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(dim, size, window, heads, shift=shift, modulator=True)
    with torch.no_grad():
        attention.bias.normal_()
        if attention.modulator is not None:
            attention.modulator.normal_()
    return attention.eval()


def loop_attention(attention: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """The same function, pixel by pixel.

    A pixel sees the pixels of its window; windows of a shifted grid start half a window later, and at the edges of the
    map they are cut, so that nothing wraps around.
    """
    height, width, dim = x.shape
    rows, columns = attention.window
    head_dim = dim // attention.heads

    def place(pixel: tuple[int, int]) -> tuple[int, int, int, int]:
        """Window and position within it."""
        y, col = pixel[0] - attention.shifts[0], pixel[1] - attention.shifts[1]
        return y // rows, col // columns, y % rows, col % columns

    out = torch.empty_like(x)
    pixels = list(product(range(height), range(width)))
    for pixel in pixels:
        window_y, window_x, y, col = place(pixel)
        mates = [other for other in pixels if place(other)[:2] == (window_y, window_x)]
        tokens = torch.stack([x[other] for other in [pixel, *mates]])
        if attention.modulator is not None:
            places = [place(other)[2:] for other in [pixel, *mates]]
            tokens = tokens + attention.modulator[[py * columns + px for py, px in places]]
        query = attention.q(tokens[0])
        keys, values = attention.kv(tokens[1:]).chunk(2, dim=-1)
        heads = []
        for head in range(attention.heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            offsets = [
                (y - place(m)[2] + rows - 1) * (2 * columns - 1) + col - place(m)[3] + columns - 1 for m in mates
            ]
            logits = keys[:, part] @ query[part] / head_dim**0.5 + attention.bias[offsets, head]
            heads.append(logits.softmax(dim=0) @ values[:, part])
        out[pixel] = attention.out(torch.cat(heads))
    return out


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (4, 12), (8, 4), (2, 2), (12, 3)])
def test_attention_equals_the_loop(size: tuple[int, int], shift: bool) -> None:
    attention = make_attention(size, shift=shift)
    x = torch.randn(2, *size, 6)
    with torch.no_grad():
        expected = torch.stack([loop_attention(attention, image) for image in x])
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shift", "pixel", "rows", "columns"),
    [
        (False, (1, 6), range(4), range(4, 8)),  # its window
        (True, (0, 0), range(2), range(2)),  # the corner that the shift wraps around
        (True, (7, 3), range(6, 8), range(2, 6)),
        (True, (3, 5), range(2, 6), range(2, 6)),
    ],
)
def test_a_token_is_seen_in_its_window_alone(shift: bool, pixel: tuple[int, int], rows: range, columns: range) -> None:
    attention = make_attention((8, 8), shift=shift)
    x = torch.randn(1, 8, 8, 6)
    changed = x.clone()
    changed[0, pixel[0], pixel[1]] += 1.0
    with torch.no_grad():
        difference = (attention(changed) - attention(x)).abs().amax(dim=-1)[0]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[rows.start : rows.stop, columns.start : columns.stop] = True
    assert difference[~inside].max() == 0
    assert difference[inside].min() > 0


def test_small_maps_are_one_window_without_shift_or_modulator() -> None:
    attention = make_attention((2, 3), shift=True)
    assert attention.window == (2, 3)
    assert attention.shifts == (0, 0)
    assert attention.modulator is None, "Uformer adds it to windows of full size only"
    assert make_attention((4, 8)).modulator is not None


@pytest.mark.parametrize(("dim", "heads"), [(64, 2), (48, 1), (7, 1), (96, 3), (320, 10), (100, 2)])
def test_heads_divide_the_channels(dim: int, heads: int) -> None:
    block = LeWinBlock(dim, (4, 4), 4, 32, shift=False, modulator=True)
    assert block.attention.heads == heads
    assert block(torch.randn(1, 4, 4, dim)).shape == (1, 4, 4, dim)


def test_block_is_residual_and_pre_normalised() -> None:
    block = LeWinBlock(8, (8, 8), 4, 4, shift=True, modulator=True).eval()
    x = torch.randn(1, 8, 8, 8)
    with torch.no_grad():
        middle = x + block.attention(block.norm_attention(x))
        torch.testing.assert_close(block(x), middle + block.feed_forward(block.norm_feed_forward(middle)))
        block.attention.out.weight.zero_()
        block.attention.out.bias.zero_()
        block.feed_forward.reduce.weight.zero_()
        block.feed_forward.reduce.bias.zero_()
        torch.testing.assert_close(block(x), x, rtol=0, atol=0)


def test_feed_forward_mixes_neighbours_only() -> None:
    block = LeWinBlock(4, (8, 8), 8, 4, shift=False, modulator=False).eval()
    x = torch.randn(1, 8, 8, 4)
    changed = x.clone()
    changed[0, 3, 3] += 1.0
    with torch.no_grad():
        moved = (block.feed_forward(changed) != block.feed_forward(x)).any(dim=-1)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:5, 2:5] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("size", [(12, 8), (8, 20), (9, 9)])
def test_maps_that_windows_cannot_tile(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"map is {size[0]} x {size[1]}.*cannot tile.*128, 256 or 512"):
        check_windows(*size, 8, "The map")


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (16, 8), (64, 5)])
def test_maps_that_windows_tile(size: tuple[int, int]) -> None:
    check_windows(*size, 8, "The map")
