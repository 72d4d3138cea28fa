"""Checks of arguments and configuration fields against their annotations; every error is one sentence.

An annotation says what a field may hold, for example ``codebooks: Annotated[int, Range(1, 64)]``. Bounds exist where
values beyond them make no sense or ask for more memory than machines have.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """Bounds of a finite number: ``high`` is included, ``low`` too unless ``above_low``.

    Args:
        low: Smallest value.
        high: Largest value.
        above_low: Whether ``low`` itself is excluded.
    """

    low: float
    high: float = math.inf
    above_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether the value is finite and lies within the bounds."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above_low and value == self.low)

    def __str__(self) -> str:
        low = f" above {self.low}" if self.above_low else f" from {self.low}"
        return f"{low} on" if math.isinf(self.high) else f"{low} to {self.high}"


@dataclass(frozen=True)
class Items:
    """Number of items of a list.

    Args:
        at_least: Smallest number of items.
        distinct: Whether none may be repeated.
    """

    at_least: int = 0
    distinct: bool = True

    def holds(self, value: tuple[Any, ...]) -> bool:
        """Whether there are enough, and none is repeated where that is not allowed."""
        return len(value) >= self.at_least and not (self.distinct and len(set(value)) < len(value))

    def __str__(self) -> str:
        return (f", at least {self.at_least}" if self.at_least else "") + (", no two alike" if self.distinct else "")


def checked(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an annotation and convert it: lists to tuples, one value to a pair of equal ones.

    Args:
        name: Name of the value in the error message.
        value: What was given.
        hint: A class, ``Literal``, ``tuple``, ``dict``, a union, or ``Annotated`` with `Range` or `Items`.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is out of range, or not among the choices.

    Example:
        >>> checked("levels", [2, 3], tuple[int, ...] | None), checked("image_size", 64, tuple[int, int])
        ((2, 3), (64, 64))
        >>> checked("share", 2, Annotated[float, Range(0, 1, above_low=True)])
        Traceback (most recent call last):
        ...
        ValueError: share must be a number above 0 to 1, not 2.
    """
    try:
        return _converted(value, hint)
    except (TypeError, ValueError) as error:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        msg = f"{name} must be {_described(hint)}, not {shown}."
        raise type(error)(msg) from None


def check_fields(config: Any, prefix: str = "") -> None:
    """Check all fields of a frozen dataclass in its ``__post_init__``, and store them as `checked` returns them.

    Args:
        config: The dataclass.
        prefix: What precedes the fields' names in error messages.

    Raises:
        TypeError: If a field is of another type.
        ValueError: If a field is out of range.
    """
    hints = get_type_hints(type(config), include_extras=True)
    for entry in fields(config):
        value = checked(prefix + entry.name, getattr(config, entry.name), hints[entry.name])
        object.__setattr__(config, entry.name, value)


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a function, as `checked` does.

    Args:
        function: The function with the annotations.
        given: Values by name; those that are no annotated arguments are left out.

    Returns:
        The converted arguments by name.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range.
    """
    hints = get_type_hints(function, include_extras=True)
    return {name: checked(name, given[name], hint) for name, hint in hints.items() if name in given}


def _converted(value: Any, hint: Any) -> Any:
    """The value, or a TypeError or ValueError without text."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _converted(value, inner[0])
        if value is not None and not all(limit.holds(value) for limit in inner[1:]):
            raise ValueError
        return value
    if origin in (Union, UnionType):
        errors = {part: _error(value, part) for part in inner}
        fitting = [part for part, error in errors.items() if error is None]
        if not fitting:
            raise next((error for error in errors.values() if isinstance(error, ValueError)), TypeError())
        return _converted(value, fitting[0])
    if origin is Literal:
        if not isinstance(value, str):
            raise TypeError
        if value not in inner:
            raise ValueError
        return value
    if origin is tuple:
        return _items(value, inner)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise TypeError
        return value
    return _single(value, hint)


def _error(value: Any, hint: Any) -> Exception | None:
    try:
        _converted(value, hint)
    except (TypeError, ValueError) as error:
        return error
    return None


def _items(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    pair = Ellipsis not in hints
    if pair and not isinstance(value, (list, tuple)):
        value = (value,) * len(hints)
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if pair and len(value) != len(hints):
        raise ValueError
    return tuple(_converted(item, hints[0]) for item in value)


def _single(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, Integral if hint is int else Real):
            raise TypeError
        return int(value) if isinstance(value, Integral) and hint is int else float(value)
    if hint is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, hint):
        raise TypeError
    return value


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _described(inner[0]) + "".join(str(limit) for limit in inner[1:])
    if origin in (Union, UnionType):
        return " or ".join(_described(part) for part in inner)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inner)
    if origin is tuple:
        kind = _described(inner[0])
        return f"a list, each {kind}" if Ellipsis in inner else f"{kind}, or a list of {len(inner)} of them"
    if origin is dict:
        return "fields by name"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "None"}
    return names.get(hint, f"an instance of {getattr(hint, '__name__', hint)}")
