"""The command group, and the one place where errors become a line and an exit status."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from conversion_assets.cli.statuses import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_NOT_FOUND,
    EXIT_USAGE,
)
from conversion_assets.domain.errors import ConversionError, InputError, NotFoundError

_STATUS: dict[type[ConversionError], int] = {
    InputError: EXIT_USAGE,
    NotFoundError: EXIT_NOT_FOUND,
    ConversionError: EXIT_ERROR,
}

# Command, module and the line for --help: the module is imported when the command runs.
_COMMANDS: dict[str, tuple[str, str]] = {
    "alerts": ("health", "List findings, acknowledge them, try the alert channels."),
    "backfill": ("backfilling", "Rebuild, score and learn a client's whole history."),
    "check": ("service", "Reach every configured service and say what is wrong."),
    "demo": ("demo", "Build a demonstration home and learn every client's patterns."),
    "diff": ("evaluating", "Explain what changed a client's patterns between two moments."),
    "erase": ("erasing", "Erase a client or some of its leads everywhere, and prove it."),
    "evaluate": ("evaluating", "Print how earlier claims did, and replay the last weeks."),
    "health": ("health", "Check the patterns of the chosen or all active clients."),
    "heartbeat": ("health", "Say whether the machinery lives, for a monitor outside."),
    "import": ("importing", "Import clients, leads and activities from files."),
    "learn": ("learning", "Learn the patterns of the chosen or all active clients."),
    "list": ("service", "List jobs, schedules and sensors with their state."),
    "migrate": ("service", "Bring the database to the current schema."),
    "patterns": ("reading", "Print the pattern documents of a client."),
    "prune": ("pruning", "Delete old runs and events of Dagster that newer ones superseded."),
    "rebuild": ("verifying", "Rebuild features from rows, or a client's history of patterns."),
    "schema": ("reading", "Print the JSON Schema of a pattern document."),
    "synth": ("importing", "Write a generated agency as files, with the planted truth."),
    "ui": ("service", "Open the Dagster UI and daemon on this home."),
    "verify": ("verifying", "Compare features and patterns with the system of record."),
    "weights": ("reading", "Print the score weights in force for a client."),
}


class _LazyGroup(click.Group):
    """A group that imports a command's module when the command is used, not for its help line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"conversion_assets.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in sorted(_COMMANDS)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="conversion-assets", prog_name="conversion-assets")
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
def conversion_assets(debug: bool) -> None:
    """Learn, for every client, which outreach turns leads into booked meetings.

    The home is CONVERSION_HOME, by default .conversion in the working directory.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with the documented exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status; errors become one line on standard error."""
    try:
        status: Any = conversion_assets.main(
            list(arguments), prog_name="conversion-assets", standalone_mode=False
        )
    except BrokenPipeError:
        sys.stderr.close()  # the reader of stdout has left; there is nobody to tell
        return EXIT_ERROR
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        message, code = _explain(error)
        click.echo(message, err=True)
        return code
    return status if isinstance(status, int) else 0


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what a person should read about an error, and the exit status."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), EXIT_USAGE
    if isinstance(error, click.ClickException):
        return _line(f"{error.format_message()} (see {_command_of(error)} --help)"), EXIT_USAGE
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return _line("interrupted; run the same command again to finish"), EXIT_INTERRUPTED
    for kind, code in _STATUS.items():
        if isinstance(error, kind):
            return _line(str(error)), code
    hint = "for the traceback: conversion-assets --debug ..."
    return _line(f"unexpected {type(error).__name__}: {error}; {hint}"), EXIT_ERROR


def _line(message: str) -> str:
    return "error: " + " ".join(message.split())


def _command_of(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return context.command_path if context else "conversion-assets"
