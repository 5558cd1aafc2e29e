"""How commands speak: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.progress import Progress

Command = TypeVar("Command", bound=Callable[..., Any])

# Wide enough for a line per client where the terminal's width is unknown (a pipe, CI).
_PIPE_WIDTH = 140


def json_option(command: Command) -> Command:
    """Add `--json`, passed on as `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print exactly one JSON document on stdout."
    )(command)


def print_json(document: object) -> None:
    """Print one JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def say(message: str) -> None:
    """Tell a person something on standard error."""
    click.echo(message, err=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table on standard output; numbers look best when the caller formats them."""
    from rich.console import Console  # noqa: PLC0415 - costs 60 ms
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    if title:
        click.echo(title)
    table = Table(header_style="bold")
    for column in columns:
        # A path that is too wide is folded: half a path helps nobody.
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    width = None if sys.stdout.isatty() else _PIPE_WIDTH
    Console(file=sys.stdout, width=width, highlight=False).print(table)


class Advance(Protocol):
    """Told how far the work is: done of total, and what is being worked on."""

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Move the bar."""


@contextmanager
def progress_bar(description: str) -> Iterator[Advance]:
    """Show a bar on standard error while a terminal watches; yield what moves it."""
    if not sys.stderr.isatty():
        yield lambda done, total, what="": None
        return
    with _rich_progress() as progress:
        task = progress.add_task(description, total=None)

        def advance(done: int, total: int, what: str = "") -> None:
            words = f"{description} {what}".rstrip()
            progress.update(task, completed=done, total=total, description=words)

        yield advance


@contextmanager
def spinner(description: str) -> Iterator[None]:
    """Show on standard error that work goes on, while a terminal watches."""
    if not sys.stderr.isatty():
        yield
        return
    with _rich_progress() as progress:
        progress.add_task(description, total=None)
        yield


def _rich_progress() -> "Progress":
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    return Progress(console=Console(stderr=True), transient=True)
