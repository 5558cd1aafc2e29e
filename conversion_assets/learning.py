"""The one way from feature frames to pattern documents, shared by assets, CLI and notebooks."""
