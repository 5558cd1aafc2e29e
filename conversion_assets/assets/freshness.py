"""How old an asset may grow before the UI calls it stale: one policy for all, learning is weekly.

Dagster looks at an asset as a whole: one fresh client makes it fresh. Whether each client is fresh
is told by our own checks (`sources_are_fresh`, `patterns_have_not_expired`).
"""

from datetime import timedelta

from dagster import AssetSpec, FreshnessPolicy, apply_freshness_policy

WEEKLY = FreshnessPolicy.time_window(
    # As the heartbeat: a day late is a missed week.
    fail_window=timedelta(days=8),
    # A run over a large fleet takes hours.
    warn_window=timedelta(days=7, hours=6),
)


def expect_weekly(spec: AssetSpec) -> AssetSpec:
    """Give an asset the policy, unless it has one of its own."""
    fresh: AssetSpec = apply_freshness_policy(spec, WEEKLY, overwrite_existing=False)
    return fresh
