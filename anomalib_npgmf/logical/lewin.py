"""LeWin block of Uformer: window attention and a locally enhanced feed-forward network (arXiv 2106.03106)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


def check_windows(height: int, width: int, window: int, what: str) -> None:
    """Raise unless windows tile a map.

    Args:
        height: Rows of the map.
        width: Columns of the map.
        window: Side of a window.
        what: Name of the map in the error.

    Raises:
        ValueError: If a side is above ``window`` and no multiple of it.
    """
    for side in (height, width):
        if side > window and side % window:
            msg = (
                f"{what} is {height} x {width}, which windows of {window} x {window} cannot tile; choose a logical "
                "image size whose sides are 128, 256 or 512."
            )
            raise ValueError(msg)


class WindowAttention(nn.Module):
    """Multi-head attention within windows, with relative position bias and an optional cyclic shift.

    Args:
        dim: Channels.
        size: Height and width of the map.
        window: Side of a window; a side of the map that is not larger has one window.
        heads: Number of attention heads.
        shift: Whether windows are shifted by half their side.
        modulator: Whether a learned embedding is added to each token of a window.
    """

    relative: Tensor
    mask: Tensor

    def __init__(
        self, dim: int, size: tuple[int, int], window: int, heads: int, *, shift: bool, modulator: bool
    ) -> None:
        super().__init__()
        self.size, self.heads = size, heads
        self.rows, self.columns = min(window, size[0]), min(window, size[1])
        self.count = (size[0] // self.rows) * (size[1] // self.columns)
        self.shifts = tuple(w // 2 if shift and side > w else 0 for side, w in zip(size, self.window, strict=True))
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        tokens = self.rows * self.columns
        # Uformer adds its modulator only to windows of full size.
        self.modulator = (
            nn.Parameter(torch.zeros(tokens, dim)) if modulator and self.window == (window, window) else None
        )
        self.bias = nn.Parameter(torch.zeros((2 * self.rows - 1) * (2 * self.columns - 1), heads))
        nn.init.trunc_normal_(self.bias, std=0.02)
        if self.modulator is not None:
            nn.init.trunc_normal_(self.modulator, std=0.02)
        y, x = torch.meshgrid(torch.arange(self.rows), torch.arange(self.columns), indexing="ij")
        dy = y.flatten()[:, None] - y.flatten() + self.rows - 1
        dx = x.flatten()[:, None] - x.flatten() + self.columns - 1
        self.register_buffer("relative", dy * (2 * self.columns - 1) + dx, persistent=False)
        self.register_buffer("mask", self._shift_mask(), persistent=False)

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of a window."""
        return self.rows, self.columns

    def _partition(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, windows, tokens, C]."""
        return rearrange(x, "b (y r) (x c) d -> b (y x) (r c) d", r=self.rows, c=self.columns)

    def _shift_mask(self) -> Tensor:
        """Mask [windows, 1, tokens, tokens] of 0, or -inf between tokens from opposite edges of the map."""
        region = torch.zeros(1, *self.size, 1)
        for axis, (side, shift) in enumerate(zip(self.size, self.shifts, strict=True), start=1):
            if shift:
                # After the cyclic shift the last `shift` lines of the map come from the other edge.
                wrapped = (torch.arange(side) >= side - shift).float() * (2.0 if axis == 1 else 1.0)
                region = region + wrapped.view(1, -1, 1, 1) if axis == 1 else region + wrapped.view(1, 1, -1, 1)
        label = self._partition(region)[0, :, :, 0]
        return torch.zeros(self.count, 1, 1, 1).masked_fill(
            (label[:, None, :, None] != label[:, None, None, :]), -torch.inf
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        if any(self.shifts):
            x = torch.roll(x, (-self.shifts[0], -self.shifts[1]), dims=(1, 2))
        windows = self._partition(x)
        if self.modulator is not None:
            windows = windows + self.modulator
        # Windows are folded into the heads so that one fused attention call serves all of them.
        q = rearrange(self.q(windows), "b n t (h d) -> b (n h) t d", h=self.heads)
        k, v = rearrange(self.kv(windows), "b n t (two h d) -> two b (n h) t d", two=2, h=self.heads)
        bias = self.bias[self.relative].permute(2, 0, 1) + self.mask
        bias = bias.expand(self.count, -1, -1, -1).flatten(0, 1).unsqueeze(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        attended = self.out(rearrange(attended, "b (n h) t d -> b n t (h d)", h=self.heads))
        y = rearrange(
            attended, "b (y x) (r c) d -> b (y r) (x c) d", y=self.size[0] // self.rows, r=self.rows, c=self.columns
        )
        return torch.roll(y, self.shifts, dims=(1, 2)) if any(self.shifts) else y


class LeFF(nn.Module):
    """Locally enhanced feed-forward network: a depth-wise 3x3 convolution between two linear layers.

    Args:
        dim: Channels.
        ratio: Factor by which the hidden layer is wider.
    """

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, ratio * dim)
        self.local = nn.Conv2d(ratio * dim, ratio * dim, 3, padding=1, groups=ratio * dim)
        self.reduce = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        hidden = F.gelu(self.expand(x)).permute(0, 3, 1, 2)
        out: Tensor = self.reduce(F.gelu(self.local(hidden)).permute(0, 2, 3, 1))
        return out


class LeWinBlock(nn.Module):
    """Window attention, then LeFF, each after layer normalisation and with a residual connection.

    Args:
        dim: Channels.
        size: Height and width of the map.
        window: Side of a window.
        head_dim: Channels per head; the number of heads is the largest divisor of ``dim`` up to ``dim / head_dim``.
        shift: Whether windows are shifted by half their side.
        modulator: See `WindowAttention`.

    Example:
        >>> LeWinBlock(48, (16, 16), 8, 32, shift=True, modulator=True)(torch.zeros(1, 16, 16, 48)).shape
        torch.Size([1, 16, 16, 48])
    """

    def __init__(
        self, dim: int, size: tuple[int, int], window: int, head_dim: int, *, shift: bool, modulator: bool
    ) -> None:
        super().__init__()
        heads = next(h for h in range(max(dim // head_dim, 1), 0, -1) if dim % h == 0)
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, size, window, heads, shift=shift, modulator=modulator)
        self.norm_feed_forward = nn.LayerNorm(dim)
        self.feed_forward = LeFF(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] to [B, H, W, C]."""
        x = x + self.attention(self.norm_attention(x))
        out: Tensor = x + self.feed_forward(self.norm_feed_forward(x))
        return out
