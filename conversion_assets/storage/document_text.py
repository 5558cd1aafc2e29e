"""The one text of a pattern document.

Pydantic's writer is twice as fast as the standard library's, most of whose time goes into the
digits of numbers. It differs from it in three ways, which are made good here: it keeps the order of
fields, it spells numbers below 0.0001 in another way (`0.00001`, `1e-7`), and it writes what is no
number. `_write_slowly` says what the text is; whatever is rare goes through it.
"""

import json
import re
from enum import Enum
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_json

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.patterns import AnyPattern

_SMALL = tuple(re.compile(re.escape(sign)) for sign in ("0.0000", "e-", "-0.0"))
"""What a number that the two writers spell differently has in it; most finds are other numbers or
words. One after the other: a search for any of them takes three times as long."""
_NUMBER = re.compile(r"-?[0-9][0-9.]*(?:e-[0-9]+)?")
_LONGEST = 30
"""More characters than a number has; the longest are like -2.2250738585072014e-308."""
_MINUS_ZERO = re.compile(r"-0\.0\b")


def canonical_json(document: AnyPattern) -> str:
    """Text of a document: sorted keys, no spaces, shortest numbers that read back the same.

    Equal documents are equal texts, on either database and after any number of round trips:
    JSONB forgets the order of keys, the spelling of numbers and the sign of zero, so none of
    these is left open here.

    Raises:
        InputError: a text in the document holds a NUL, which PostgreSQL cannot store.
        ValueError: a number is not finite.
    """
    try:
        text = to_json(_in_order(document)).decode()
    except PydanticSerializationError:
        return _write_slowly(document)
    # Without backslashes every quote begins or ends a text.
    if "\\" in text or "NaN" in text or "Infinity" in text:
        return _write_slowly(document)
    return _respell(text)


def _in_order(value: Any) -> Any:
    """A value with keys in order, models and members of enumerations as what they are written as.

    The writer knows those too, but keeps the order of fields, and takes as long again.
    """
    if isinstance(value, Enum):
        return value._value_  # as `value`, which takes three times as long
    if isinstance(value, list | tuple):
        return [_in_order(one) for one in value]
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    if (plan := _plan(value.__class__)) is None:
        return value
    names, others = plan
    given = value.__dict__
    fields = {name: given[name] for name in names}
    for name in others:
        if fields[name]:
            fields[name] = _in_order(fields[name])
    return fields


@cache
def _plan(kind: type) -> tuple[list[str], list[str]] | None:
    """Fields of a model in order, and those that are not written as they are; None of the rest."""
    if not issubclass(kind, BaseModel):
        return None
    names = sorted(kind.model_fields)
    return names, [name for name in names if not _is_plain(kind.model_fields[name].annotation)]


def _is_plain(annotation: Any) -> bool:
    """Whether values of a type are numbers, texts, times, or lists of these."""
    if get_origin(annotation) is Literal:
        return all(one.__class__ is str for one in get_args(annotation))
    if get_origin(annotation) is dict:
        return False
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return not issubclass(annotation, BaseModel | Enum | dict)
    return all(_is_plain(one) for one in get_args(annotation))


def _respell(text: str) -> str:
    """Spell small numbers as Python does, and minus zero as zero.

    Args:
        text: JSON without backslashes.

    Example:
        >>> _respell('{"a":[0.00001,1.5e-7,-0.0,-0.05],"b":"one,1e-7,two"}')
        '{"a":[1e-05,1.5e-07,0.0,-0.05],"b":"one,1e-7,two"}'
    """
    parts = []
    done = quotes = 0
    for at in sorted(found.start() for sign in _SMALL for found in sign.finditer(text)):
        start = 1 + max(text.rfind(mark, max(at - _LONGEST, 0), at) for mark in ":,[")
        number = _NUMBER.match(text, start)
        if start < done or number is None or number.end() <= at:
            continue
        quotes += text.count('"', done, start)
        parts.append(text[done:start])
        # Within a text there is no number.
        parts.append(number[0] if quotes % 2 else repr(float(number[0]) + 0.0))
        done = number.end()
    return "".join([*parts, text[done:]])


def _write_slowly(document: AnyPattern) -> str:
    """What `canonical_json` writes, by the standard library."""
    plain = document.model_dump(mode="json")
    text = _dump(plain)
    if not _MINUS_ZERO.search(text) and "\\u0000" not in text:
        return text
    return _dump(_plain(plain, document))


def _dump(plain: object) -> str:
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any, document: AnyPattern) -> Any:
    if isinstance(value, dict):
        return {_plain(key, document): _plain(item, document) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, document) for item in value]
    if isinstance(value, float):
        return value + 0.0  # minus zero becomes zero
    if isinstance(value, str) and "\0" in value:
        raise InputError(
            f"{document.type} pattern of client {document.client_id!r}: text {value!r} holds a NUL,"
            " which PostgreSQL cannot store"
        )
    return value
