from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from spro_reference import Category


@pytest.fixture
def make_category(tmp_path: Path) -> Callable[..., Category]:
    return lambda **kwargs: Category(tmp_path / "data", **kwargs)


@pytest.fixture
def category(make_category: Callable[..., Category]) -> Category:
    return make_category()
