"""What a learning run may be told: every threshold of the statistics in one frozen record."""

from pydantic import BaseModel, ConfigDict, Field

from conversion_assets.domain.terms import Severity


class LearningConfig(BaseModel):
    """Thresholds of detection. The defaults are the specification's; all are per refresh.

    Example:
        >>> LearningConfig(window_days=180).window_days
        180
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window_days: int = Field(365, ge=1, le=3650, description="Leads and touches before as_of, days")
    act_q: float = Field(0.10, gt=0, lt=1, description="Highest q-value of an act")
    watch_q: float = Field(0.25, gt=0, lt=1, description="Highest q-value of a watch")
    credible_mass: float = Field(0.90, gt=0.5, lt=1, description="Mass of every interval")
    reversal_probability: float = Field(
        0.90, gt=0.5, lt=1, description="A stratum reverses an effect when this sure"
    )
    reversal_share: float = Field(
        0.20, ge=0, le=1, description="Share of leads that reversing strata may hold in an act"
    )
    minimum_resolved: int = Field(30, ge=1, description="Resolved leads below: not enough data")
    minimum_conversions: int = Field(5, ge=1, description="Conversions below: not enough data")
    minimum_confidence: float = Field(0.30, ge=0, le=1, description="Below it nothing is stored")
    maturity_quantile: float = Field(
        0.90, gt=0, lt=1, description="Leads younger than this quantile of time to conversion"
    )
    pool_minimum_contributors: int = Field(5, ge=2, description="Fewer: no pool")
    pool_maximum_share: float = Field(0.25, gt=0, le=1, description="Weight cap of a contributor")
    validity_days: int = Field(14, ge=1, description="A stored pattern is valid this long")
    recommend_minimum_conversions: int = Field(
        100, ge=1, description="Fewer conversions: default weights are recommended"
    )
    bootstrap_replicates: int = Field(400, ge=50, description="Replicates of the AUC bootstrap")
    seed: int = Field(20260101, ge=0, description="Seed of the bootstrap's counter-based stream")


class HealthConfig(BaseModel):
    """Thresholds of health and of its alerts; the defaults are the specification's.

    Example:
        >>> HealthConfig(stale_after_days=30).stale_after_days
        30
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expires_soon_days: float = Field(3, ge=0, description="Valid for fewer days: expires soon")
    minimum_sample: int = Field(30, ge=0, description="Resolved leads below: low sample")
    minimum_confidence: float = Field(0.5, ge=0, le=1, description="Below: low confidence")
    highest_weight: float = Field(0.45, gt=0, le=1, description="A WHO weight above is extreme")
    lowest_weight: float = Field(0.08, ge=0, lt=1, description="A WHO weight below is extreme")
    missing_from_conversions: int = Field(
        10, ge=1, description="A client with so many conversions should have every pattern"
    )
    # Learning is weekly: a client without news since the last time learns nothing new.
    stale_after_days: float = Field(7, gt=0, description="No activity for so long: stale")
    # Lists are often bought once a month; a month without news of any lead is an import that broke.
    stale_leads_after_days: float = Field(
        30, gt=0, description="No lead created, changed or converted for so long: stale"
    )
    excluded_share: float = Field(
        0.2, gt=0, le=1, description="Share of a client's touches with one defect"
    )
    drift_level: float = Field(
        0.001, gt=0, lt=1, description="Chance of a false alarm per client, question and refresh"
    )
    drift_psi: float = Field(
        0.1, ge=0, description="A mix that changed by less is no matter, however sure it is"
    )
    drift_factor: float = Field(
        1.25, ge=1, description="A rate that changed by less is no matter, however sure it is"
    )
    forward_level: float = Field(
        0.01, gt=0, lt=1, description="Chance that a record of mostly true claims is called failing"
    )
    keep_days: float = Field(
        # Above the longest look-back of a notice's key, so that nothing is told a second time.
        90,
        ge=30,
        description="Sent alerts and closed findings are kept this long",
    )
    alert_severity: Severity = Field(
        Severity.MEDIUM, description="Findings of this severity or worse alert somebody"
    )
    renotify_days: float = Field(
        7, gt=0, description="An open high finding is told again after so long"
    )
    digest_clients: int = Field(
        20, ge=1, description="More clients at once are told in one digest instead of one by one"
    )
