"""Raw rows to columns: titles, local time, touches, content."""

from conversion_assets.features.build import (
    FEATURE_VERSION,
    Features,
    add_content,
    begin_features,
    build_features,
    feature_version,
    finish_features,
)

__all__ = [
    "FEATURE_VERSION",
    "Features",
    "add_content",
    "begin_features",
    "build_features",
    "feature_version",
    "finish_features",
]
