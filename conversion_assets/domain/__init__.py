"""Frozen vocabulary: what a lead, a touch, an outcome and a pattern document are."""
