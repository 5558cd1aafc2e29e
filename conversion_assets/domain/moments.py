"""Moments given as text."""

from datetime import UTC, datetime

from conversion_assets.domain.errors import InputError


def parse_moment(text: str, name: str = "as_of") -> datetime:
    """Read an ISO 8601 time with zone, as UTC.

    Raises:
        InputError: not a time, or no zone: a naive time would mean something else elsewhere.

    Example:
        >>> parse_moment("2026-01-04T01:00:00+01:00").isoformat()
        '2026-01-04T00:00:00+00:00'
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InputError(
            f"{name} {text!r} is not a time; write it as 2026-01-04T00:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise InputError(f"{name} {text!r} has no zone; write it as 2026-01-04T00:00:00Z")
    return moment.astimezone(UTC)
