"""System of record, import and columnar store."""
