import pytest
import torch

from anomalib_npgmf.logical.code_edits import edit_codes
from anomalib_npgmf.logical.config import LogicalConfig


def maps(images: int = 4) -> dict[int, torch.Tensor]:
    """Code maps whose value tells image and position."""
    fine = torch.arange(images * 16 * 16, dtype=torch.float32).view(images, 1, 16, 16)
    return {3: fine, 4: fine[:, :, ::2, ::2].clone()}


def test_an_edit_is_a_rectangle_of_codes_from_elsewhere_on_all_levels() -> None:
    torch.manual_seed(0)
    codes = maps()
    edited = edit_codes(codes, share=1.0)
    for image in range(4):
        changed = {level: edited[level][image, 0] != codes[level][image, 0] for level in codes}
        assert torch.equal(changed[4].repeat_interleave(2, 0).repeat_interleave(2, 1), changed[3])
        rows, columns = changed[3].any(1), changed[3].any(0)
        assert torch.equal(changed[3], rows[:, None] & columns)
        assert all(4 <= side.sum() <= 8 for side in (rows, columns))
        assert all(torch.isin(edited[level][image], codes[level]).all() for level in codes)
    assert all(torch.equal(codes[level], maps()[level]) for level in codes), "the codes given stay as they are"


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_only_the_share_is_edited(share: float) -> None:
    torch.manual_seed(1)
    codes = maps(images=200)
    edited = edit_codes(codes, share)
    count = int((edited[3] != codes[3]).flatten(1).any(1).sum())
    assert count == 0 if share == 0 else 70 <= count <= 130


def test_bad_share_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"edited_codes must be in \[0, 1\], not 2"):
        LogicalConfig(edited_codes=2.0)
