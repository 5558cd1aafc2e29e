"""Dagster wrappers over settings, the system of record and the columnar store."""
