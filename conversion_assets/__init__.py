"""Learns, for every client, which outreach turns leads into booked meetings."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conversion_assets.notebook import LearnedPatterns, learn_patterns

__all__ = ["LearnedPatterns", "learn_patterns"]


def __getattr__(name: str) -> Any:
    """Load the notebook door on first use: the command line's `--help` must not wait for it."""
    if name in __all__:
        from conversion_assets import notebook  # noqa: PLC0415

        return getattr(notebook, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
