"""Refreshes of what is stored: features from changed rows, patterns from features."""
