"""Asset checks: claims about what is stored, shown in the UI beside the assets."""
