"""Fusion of decoder features, global context (the text prior) and codes by LeWin blocks (paper, section III-A4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomalib_npgmf.logical.lewin import LeWinBlock, check_windows


class Fusion(nn.Module):
    """``LeWin([h ; g ; z_q])`` at one resolution.

    Args:
        channels: Channels C of the decoder feature.
        prior_dim: Channels of the global context; 0 without text prior.
        code_dim: Channels of the codes; 0 if the level has no codebook.
        size: Height and width of the map.
        mode: ``"proj"`` projects the concatenation to C channels first, ``"concat"`` keeps the concatenated width.
        depth: Number of LeWin blocks.
        window: Side of the attention windows.
        head_dim: Channels per attention head.
        modulator: See `anomalib_npgmf.logical.lewin.WindowAttention`.

    Attributes:
        out_channels: Channels of the result.

    Raises:
        ValueError: If windows cannot tile the map.

    Example:
        >>> fusion = Fusion(16, 8, 4, (8, 8), mode="concat", depth=1, window=8, head_dim=32, modulator=False)
        >>> fusion(torch.zeros(2, 16, 8, 8), torch.zeros(1, 8, 1, 1), torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 28, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        prior_dim: int,
        code_dim: int,
        size: tuple[int, int],
        *,
        mode: str,
        depth: int,
        window: int,
        head_dim: int,
        modulator: bool,
    ) -> None:
        super().__init__()
        check_windows(*size, window, "A map of the decoder")
        self.size, self.mode = size, mode
        self.out_channels = channels + (prior_dim + code_dim if mode == "concat" else 0)
        if mode == "proj":
            # One 1x1 convolution of the concatenation, written as a sum over its inputs. 1x1 convolution and bilinear
            # upsampling commute, so the context is projected first, at its small size, and upsampled afterwards.
            self.project = nn.Conv2d(channels, channels, 1)
            self.project_prior = nn.Conv2d(prior_dim, channels, 1, bias=False) if prior_dim else None
            self.project_codes = nn.Conv2d(code_dim, channels, 1, bias=False) if code_dim else None
        self.blocks = nn.Sequential(
            *(
                LeWinBlock(self.out_channels, size, window, head_dim, shift=bool(i % 2), modulator=modulator)
                for i in range(depth)
            )
        )

    def _upsample(self, prior: Tensor) -> Tensor:
        """Upsample the global context to the size of the map (AGU in the paper); 1 x 1 broadcasts by itself."""
        if prior.shape[-2:] == (1, 1):
            return prior
        return F.interpolate(prior, size=self.size, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor, prior: Tensor | None = None, codes: Tensor | None = None) -> Tensor:
        """Concatenate or project the inputs, then apply the LeWin blocks.

        Args:
            x: Decoder feature, [B, C, H, W].
            prior: Global context, [1 or B, prior_dim, s, s] with s = 1 or larger.
            codes: Quantised features, [B, d_q, H, W].

        Returns:
            [B, out_channels, H, W].
        """
        if self.mode == "proj":
            fused = self.project(x)
            if prior is not None and self.project_prior is not None:
                fused = fused + self._upsample(self.project_prior(prior))
            if codes is not None and self.project_codes is not None:
                fused = fused + self.project_codes(codes)
        else:
            parts = [x]
            if prior is not None:
                parts.append(self._upsample(prior).expand(len(x), -1, *self.size))
            if codes is not None:
                parts.append(codes)
            fused = torch.cat(parts, dim=1)
        out: Tensor = self.blocks(fused.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return out
