"""Markdown tables and how figures are written in them."""

from __future__ import annotations

from collections.abc import Sequence

from anomalib_npgmf.benchmark.report_records import Spread

EMPTY = ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left, the others to the right.

    Example:
        >>> print(table(["map", "AUROC"], [["logical", "71.0"], ["structural", ""]]))
        | map | AUROC |
        |---|---:|
        | logical | 71.0 |
        | structural |  |
    """
    texts = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in (header, *rows)]
    return "\n".join([texts[0], f"|---|{'---:|' * (len(header) - 1)}", *texts[1:]])


def percent(value: Spread | None, *, signed: bool = False) -> str:
    """A value in [0, 1] in per cent with one decimal, and its spread over seeds.

    Args:
        value: Mean and spread; None for what was not measured.
        signed: Whether a positive value gets its sign, as a difference does.

    Example:
        >>> percent(Spread(0.71234, 0.0151, 3)), percent(Spread(0.5, None, 1)), percent(None)
        ('71.2 ± 1.5', '50.0', '')
        >>> percent(Spread(0.021, 0.01, 3), signed=True)
        '+2.1 ± 1.0'
        >>> percent(Spread(-0.0001, None, 1))
        '0.0'
    """
    if value is None:
        return EMPTY
    mean = f"{round(100 * value.mean, 1) + 0.0:{'+' if signed else ''}.1f}"  # + 0.0: no minus zero
    return mean if value.std is None else f"{mean} ± {100 * value.std:.1f}"


def plain(value: Spread | None, digits: int = 0) -> str:
    """A mean with a number of decimals, without its spread.

    Example:
        >>> plain(Spread(1234.56, 3.0, 3)), plain(None)
        ('1235', '')
    """
    return EMPTY if value is None else f"{value.mean:.{digits}f}"
