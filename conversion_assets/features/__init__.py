"""Raw rows to columns: titles, local time, touches, content."""

from conversion_assets.features.build import (
    FEATURE_VERSION,
    Features,
    build_features,
    feature_version,
)

__all__ = ["FEATURE_VERSION", "Features", "build_features", "feature_version"]
