"""Other ways to count what converts, measured beside ours: same breakdowns, point rates only."""
