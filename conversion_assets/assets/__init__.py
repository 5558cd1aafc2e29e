"""Thin assets: read through a resource, one pure call, write, metadata."""
