"""Weights of the lead score: which are in force, and why."""
