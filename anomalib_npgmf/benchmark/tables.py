"""Markdown tables, and numbers as they are written in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

import pandas as pd


def table(header: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right.

    Example:
        >>> print(table(["map", "AUROC"], [["logical", "71.0"], ["structural", ""]]))
        | map        |   AUROC |
        |:-----------|--------:|
        | logical    |    71.0 |
        | structural |         |
    """
    frame = pd.DataFrame(rows, columns=list(header)).replace(r"\|", r"\\|", regex=True)
    align = ("left", *["right"] * (frame.shape[1] - 1))
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def spread(values: Iterable[float], *, signed: bool = False, scale: float = 100.0) -> str:
    """Mean and, of several values, sample standard deviation with one decimal; NaN is left out.

    Args:
        values: Value by seed; empty for what was not measured.
        signed: Whether a positive value gets its sign, as a difference does.
        scale: Factor of the values, 100 for per cent.

    Example:
        >>> spread([0.70, 0.75, 0.71]), spread([0.5]), spread([])
        ('72.0 ± 2.6', '50.0', '')
        >>> spread([0.021], signed=True), spread([-0.0001])
        ('+2.1', '0.0')
    """
    known = [value for value in values if not pd.isna(value)]
    if not known:
        return ""
    mean = f"{round(scale * fmean(known), 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no minus zero
    return mean if len(known) == 1 else f"{mean} ± {scale * stdev(known):.1f}"
