"""Small tested adapters to Dagster: its instance, its event log, its launch from a process."""
