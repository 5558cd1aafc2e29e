"""What a refresh knows of a client and a document does not tell: kept for the check of health.

A document is its client's and may be handed on. Who lent to a pool is nobody else's business, and
drift is about rows, not about patterns; both are recorded beside the documents, in the same
transaction.
"""

from pydantic import BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Drift(_Model):
    """One dimension of a client's leads that changed more than chance explains."""

    question: str = Field(description="shares, rates or base_rate")
    dimension: str
    n_old: int
    n_new: int
    change: float = Field(description="PSI; largest factor of a rate (log); ratio of base rates")
    p_value: float
    tests: int = Field(description="Dimensions tested for this question: the level is shared out")


class Borrowing(_Model):
    """What a client's documents borrowed from the pool, at the worst over all cells."""

    cells: int = Field(description="Cells whose prior came from the pool")
    least_contributors: int
    largest_share: float = Field(description="Of one contributor in a cell's pool")
    excess: float = Field(description="Share beyond what the others have; above 0: its own counts")


class LearningFacts(_Model):
    """Facts of one client's last refresh."""

    drift: tuple[Drift, ...] = ()
    drift_error: str | None = None
    borrowing: Borrowing | None = None
