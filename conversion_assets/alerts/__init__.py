"""Alerts: channels, and the delivery of the outbox to them."""
