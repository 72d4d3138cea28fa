"""The configuration of the logical branch: what it takes and what it refuses."""

from typing import Any

import pytest

from anomalib_npgmf.logical.config import LogicalConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [("codebook_init", "zero"), ("norm", "ln"), ("cosine", "global"), ("codebook_size", 0), ("window", 0)],
)
def test_bad_config_names_the_field(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        LogicalConfig(**{name: value})


def test_config_takes_lists_from_yaml_in_any_order() -> None:
    config = LogicalConfig(vq_levels=[4, 2], loss_levels=[3, 1])
    assert config.vq_levels == (2, 4)
    assert config.loss_levels == (1, 3)


@pytest.mark.parametrize("levels", [(), (2, 4, 4)])
def test_levels_must_be_distinct_and_some(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logical\.levels must be a list, .* at least 1, no two alike or None"):
        LogicalConfig(levels=levels)
