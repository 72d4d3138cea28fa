"""Markdown tables and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

import pandas as pd


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right.

    Example:
        >>> print(table(["map", "AUROC"], [["logical", "71.0"], ["structural", ""]]))
        | map        |   AUROC |
        |:-----------|--------:|
        | logical    |    71.0 |
        | structural |         |
    """
    frame = pd.DataFrame(rows, columns=list(header)).replace(r"\|", r"\\|", regex=True)
    align = ("left", *["right"] * (len(header) - 1))
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def percent(values: pd.Series[float], *, signed: bool = False) -> str:
    """Mean over seeds of values in [0, 1], in per cent with one decimal, and their sample standard deviation.

    Args:
        values: Value by seed; empty for what was not measured.
        signed: Whether a positive value gets its sign, as a difference does.

    Example:
        >>> percent(pd.Series([0.70, 0.75, 0.71])), percent(pd.Series([0.5])), percent(pd.Series([]))
        ('72.0 ± 2.6', '50.0', '')
        >>> percent(pd.Series([0.021]), signed=True), percent(pd.Series([-0.0001]))
        ('+2.1', '0.0')
    """
    if values.empty:
        return ""
    mean = f"{round(100 * fmean(values), 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no minus zero
    return mean if len(values) == 1 else f"{mean} ± {100 * stdev(values):.1f}"
