"""JSON documents as text: checked, in one compact form, without null members.

The fast parser of Polars reads numbers of many digits not quite exactly, so the same document
could come out differently after one reading and after two. Documents with such numbers take the
slow and exact way.
"""

import json
from collections.abc import Callable
from typing import Any

import polars as pl

_EXACT_NEEDED = r"[:,\[]\s*-?[0-9.]{16,}|[:,\[]\s*-?[0-9.]+[eE]"
"""A number of more than 15 digits or with an exponent; below that any parser is exact, because
digits and power of ten are both exact doubles."""


def compact_documents(texts: pl.Series) -> pl.Series:
    """Write each JSON object in compact form, without members that are null.

    Returns:
        Null where the text is no JSON object.

    Example:
        >>> compact_documents(pl.Series(['{"a": 1, "b": null}', "[1]", "{"])).to_list()
        ['{"a":1}', None, None]
    """
    fast = texts.str.json_path_match("$")
    is_slow = texts.str.contains(_EXACT_NEEDED) | fast.str.contains(":null", literal=True)
    compact = _where(is_slow, texts, fast, _compact)
    # A string that holds an object is an object to the path, but no object.
    is_object = texts.str.strip_chars().str.starts_with("{") & compact.str.starts_with("{")
    return pl.select(pl.when(is_object).then(compact)).to_series()


def take_members(lines: pl.Series, name: str) -> pl.Series:
    """Take one member of each JSON object: an object as text, a text as it is.

    A line that is no valid JSON is returned whole, so that its row is refused later.

    Args:
        lines: One JSON object each.
        name: A plain name, without characters that mean something in a JSON path.
    """
    member = lines.str.json_path_match(f"$.{name}")
    is_broken = lines.str.json_path_match("$").is_null()
    taken = pl.select(pl.when(is_broken).then(lines).otherwise(member)).to_series()
    is_slow = lines.str.contains(_EXACT_NEEDED) & ~is_broken

    def take(line: str) -> str | None:
        value = json.loads(line).get(name)
        return value if isinstance(value, str | None) else _write(value)

    return _where(is_slow, lines, taken, take)


def _where(
    mask: pl.Series, source: pl.Series, otherwise: pl.Series, convert: Callable[[str], str | None]
) -> pl.Series:
    """Convert the texts under the mask one by one; leave the others."""
    positions = mask.fill_null(value=False).arg_true()
    if positions.is_empty():
        return otherwise
    values = pl.Series([convert(text) for text in source.gather(positions)], dtype=pl.String)
    return otherwise.clone().scatter(positions, values)


def _compact(text: str) -> str | None:
    try:
        compact = _write(_without_nulls(json.loads(text, parse_constant=_refuse)))
        # A lone surrogate is no character: it can be parsed, but not stored.
        compact.encode()
    except (ValueError, RecursionError):
        return None
    return compact


def _write(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
