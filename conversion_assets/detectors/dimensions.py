"""Every dimension that is looked at, over all four detectors."""

from collections.abc import Sequence

from conversion_assets.detectors import how, what, when, who
from conversion_assets.detectors.cells import Dimension


def list_dimensions(touch_columns: Sequence[str]) -> list[Dimension]:
    """Dimensions of WHO, WHAT, WHEN and HOW, in this order.

    Args:
        touch_columns: Columns of `touch_features`; the vocabulary's become dimensions' cells.

    Example:
        >>> list_dimensions([])[0].name
        'title_rankings.seniority'
    """
    return [
        *who.build_dimensions(),
        *what.build_dimensions(list(touch_columns)),
        *when.build_dimensions(),
        *how.build_dimensions(),
    ]
