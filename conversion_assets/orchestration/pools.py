"""Which steps exclude each other across runs; dagster.yaml gives every pool one slot."""

LEARNING_POOL = "learning"
"""Steps that write features or patterns. Two learning runs, or learning and a backfill, would only
repeat each other's work and wait for each other's locks. Slots are held by whole runs
(`pools.granularity: run`): a run that was killed leaves none behind."""
