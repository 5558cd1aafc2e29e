"""The command line: a thin shell over the functions that Dagster and notebooks use.

Nothing heavy is imported until a command needs it: `--help` and `schema` must answer at once.
"""

from conversion_assets.cli.shell import main

__all__ = ["main"]
