"""What a learning run may be told: every threshold of the statistics in one frozen record."""

from pydantic import BaseModel, ConfigDict, Field


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
    credible_mass: float = Field(0.90, gt=0.5, lt=1, description="Mass of every credible interval")
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
