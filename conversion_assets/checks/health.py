"""Health of the patterns as asset checks: one claim per rule and asset, clients in its table.

The truth per client is in the table of findings; a check shows it. The checks have no partitions on
purpose: one evaluation per claim, however many clients there are.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckKey,
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetKey,
    MetadataValue,
    TableColumn,
    TableRecord,
    TableSchema,
    multi_asset_check,
)

from conversion_assets.domain.health import HealthFinding
from conversion_assets.domain.terms import HealthRule, PatternType, Severity
from conversion_assets.orchestration.retries import RETRY_TRANSIENT, transient_faults_only
from conversion_assets.refresh.health import check_health
from conversion_assets.resources.alerts import AlertsResource
from conversion_assets.resources.database import DatabaseResource
from conversion_assets.resources.settings import SettingsResource

MOST_ROWS = 200
"""Clients listed in a check's table; the count is always complete, `alerts list` has them all."""


class Claim(NamedTuple):
    """What a check says of one asset, and which findings contradict it."""

    name: str
    rule: HealthRule
    severity: Severity
    description: str
    subject: str | None = None


HIGH, MEDIUM = Severity.HIGH, Severity.MEDIUM
PATTERN_CLAIMS = (
    Claim("patterns_have_not_expired", HealthRule.EXPIRED, HIGH, "Every pattern is still valid."),
    Claim(
        "patterns_do_not_expire_soon",
        HealthRule.EXPIRES_SOON,
        MEDIUM,
        "Every valid pattern stays so for some days.",
    ),
    Claim(
        "samples_are_large_enough",
        HealthRule.LOW_SAMPLE,
        MEDIUM,
        "Every pattern rests on enough resolved leads.",
    ),
    Claim(
        "confidence_is_high_enough",
        HealthRule.LOW_CONFIDENCE,
        MEDIUM,
        "Every pattern's confidence is above the threshold.",
    ),
    Claim(
        "documents_fit_their_schema",
        HealthRule.INVALID_DOCUMENT,
        HIGH,
        "Every stored document fits its published schema.",
    ),
    Claim(
        "no_pattern_is_missing",
        HealthRule.MISSING_PATTERN,
        MEDIUM,
        "Every client with enough conversions has the pattern.",
    ),
    Claim("last_learning_succeeded", HealthRule.FAILED, HIGH, "No client's last learning failed."),
    Claim(
        "claims_come_true",
        HealthRule.FORWARD_FAILING,
        MEDIUM,
        "No client's claims fail on later leads beyond what chance allows.",
    ),
    Claim(
        "every_client_has_a_result",
        HealthRule.NO_RESULT,
        HIGH,
        "Every active client has an outcome; a check that produced nothing is a failure.",
    ),
)
WEIGHT_CLAIMS = (
    Claim(
        "no_weight_is_too_high", HealthRule.EXTREME_WEIGHT, HIGH, "No score weight is above 0.45."
    ),
    Claim(
        "no_weight_is_too_low", HealthRule.EXTREME_WEIGHT, MEDIUM, "No score weight is below 0.08."
    ),
    Claim(
        "weights_are_within_bounds",
        HealthRule.INVALID_WEIGHTS,
        HIGH,
        "The score weights sum to 0.85, each within [0.05, 0.50].",
    ),
)
ACTIVITY_CLAIMS = (
    Claim(
        "sources_are_fresh",
        HealthRule.STALE_SOURCE,
        MEDIUM,
        "Every active client had an activity in the last days.",
        subject="activities",
    ),
    Claim(
        "few_rows_have_defects",
        HealthRule.EXCLUDED_ROWS,
        MEDIUM,
        "Few of a client's touches had to be left out or corrected.",
    ),
)
LEAD_CLAIMS = (
    Claim(
        "sources_are_fresh",
        HealthRule.STALE_SOURCE,
        MEDIUM,
        "Every active client had news of a lead in the last weeks.",
        subject="leads",
    ),
    Claim(
        "leads_have_not_drifted",
        HealthRule.DRIFT,
        MEDIUM,
        "Leads and their conversion are still those that were learned from.",
    ),
)
CLIENT_CLAIMS = (
    Claim(
        "pools_expose_nobody",
        HealthRule.POOL_PRIVACY,
        HIGH,
        "Whatever was borrowed came from five or more opted-in others, none above a quarter.",
    ),
)
CLAIMS: dict[tuple[AssetKey, str], tuple[Claim, PatternType | None]] = {
    **{
        (AssetKey(f"{kind}_patterns"), claim.name): (claim, kind)
        for kind in PatternType
        for claim in (*PATTERN_CLAIMS, *(WEIGHT_CLAIMS if kind == PatternType.WHO else ()))
    },
    **{
        (AssetKey(source), claim.name): (claim, None)
        for source, claims in (
            ("clients", CLIENT_CLAIMS),
            ("leads", LEAD_CLAIMS),
            ("activities", ACTIVITY_CLAIMS),
        )
        for claim in claims
    },
}

_SCHEMA = TableSchema(
    columns=[TableColumn(name) for name in ("client_id", "what", "numbers", "finding_id")]
)


@multi_asset_check(
    name="pattern_health",
    specs=[
        AssetCheckSpec(name, asset=key, description=claim.description)
        for (key, name), (claim, _) in CLAIMS.items()
    ],
    # Without it nobody could materialize a single asset from the UI, which selects its checks too.
    can_subset=True,
    retry_policy=RETRY_TRANSIENT,
)
def pattern_health(
    context: AssetCheckExecutionContext,
    database: DatabaseResource,
    alerts: AlertsResource,
    settings: SettingsResource,
) -> Iterator[AssetCheckResult]:
    """Check every active client, record the findings with their messages, and show them."""
    with transient_faults_only():
        done = check_health(
            database.engine(),
            now=datetime.now(UTC),
            config=settings.load().health,
            learning=settings.load().learning,
            channels=alerts.channel_names(),
        )
    context.log.info(
        f"{len(done.client_ids):,} clients checked in {done.seconds:.1f} s: "
        f"{len(done.findings):,} findings, {done.recorded.opened:,} new, "
        f"{done.recorded.resolved:,} resolved, {len(done.recorded.messages):,} messages queued"
    )
    for (key, name), (claim, kind) in CLAIMS.items():
        if AssetCheckKey(key, name) not in context.selected_asset_check_keys:
            continue
        against = [
            one
            for one in done.findings
            if (one.rule, one.severity, one.pattern_type) == (claim.rule, claim.severity, kind)
            and claim.subject in {None, one.subject}
        ]
        yield describe_claim(key, name, claim, against, len(done.client_ids))


def describe_claim(
    key: AssetKey, name: str, claim: Claim, against: Sequence[HealthFinding], checked: int
) -> AssetCheckResult:
    """Return the result of one claim with the clients that contradict it."""
    records = [
        TableRecord(
            {
                "client_id": one.client_id,
                "what": one.message,
                "numbers": ", ".join(f"{name} {value}" for name, value in one.numbers.items()),
                "finding_id": one.finding_id,
            }
        )
        for one in against[:MOST_ROWS]
    ]
    return AssetCheckResult(
        asset_key=key,
        check_name=name,
        passed=not against,
        severity=AssetCheckSeverity.ERROR if claim.severity == HIGH else AssetCheckSeverity.WARN,
        description=f"{len({one.client_id for one in against}):,} of {checked:,} clients",
        metadata={
            "clients_checked": checked,
            "findings": len(against),
            "rule": str(claim.rule),
            "clients": MetadataValue.table(records, _SCHEMA),
        },
    )
