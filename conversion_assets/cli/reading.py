"""Commands that read what was learned: patterns, weights, schema."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from conversion_assets.cli.output import json_option, print_json, print_table, say
from conversion_assets.cli.session import open_database, open_settings
from conversion_assets.domain.moments import parse_moment
from conversion_assets.domain.terms import PatternType

if TYPE_CHECKING:
    from conversion_assets.domain.patterns import StoredPattern

PATTERN_TYPE = click.Choice([str(kind) for kind in PatternType])
_TOP_FINDINGS = 10


@click.command("schema")
@click.argument("pattern_type", metavar="TYPE", type=PATTERN_TYPE)
@json_option
def schema_command(pattern_type: str, as_json: bool) -> None:
    """Print the JSON Schema of a pattern document: who, what, when or how."""
    from conversion_assets.domain.patterns import DOCUMENTS  # noqa: PLC0415

    document = DOCUMENTS[PatternType(pattern_type)]
    schema = document.model_json_schema(mode="serialization")
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


@click.command("patterns")
@click.argument("client_id", metavar="CLIENT")
@click.option("--type", "pattern_type", type=PATTERN_TYPE, help="Only this one.")
@click.option("--as-of", metavar="ISO", help="Documents in force at this time, with zone.")
@json_option
def patterns_command(
    client_id: str, pattern_type: str | None, as_of: str | None, as_json: bool
) -> None:
    """Print the current pattern documents of a client, or those in force at a time.

    Without --json a table of the strongest findings. Exit status 6: unknown client, or nothing
    is stored.
    """
    moment = parse_moment(as_of, "--as-of") if as_of is not None else None
    kind = PatternType(pattern_type) if pattern_type else None
    engine = open_database(open_settings())
    from conversion_assets.storage.document_text import canonical_json  # noqa: PLC0415 - late
    from conversion_assets.storage.patterns import PatternRepository  # noqa: PLC0415 - polars

    repository = PatternRepository(engine)
    if moment is None:
        found = repository.current(client_id, kind)
    else:
        found = repository.in_force(client_id, moment, kind)
    if as_json:
        # The text that is compared byte for byte, read back: sorted keys, shortest numbers.
        documents = {str(k): json.loads(canonical_json(p.document)) for k, p in found.items()}
        stored = {str(k): p.model_dump(mode="json", exclude={"document"}) for k, p in found.items()}
        print_json({"client_id": client_id, "patterns": documents, "stored": stored})
        return
    for stored_pattern in found.values():
        _print_pattern(stored_pattern)


def _print_pattern(stored: "StoredPattern") -> None:
    from conversion_assets.domain.findings import rank_findings  # noqa: PLC0415

    document = stored.document
    low, high = document.base_rate.interval
    title = (
        f"{str(document.type).upper()} of {document.client_id} as of {document.as_of:%Y-%m-%d}: "
        f"{document.conversions} of {document.sample_size} leads converted "
        f"({low:.1%} to {high:.1%}), confidence {document.confidence:.2f}"
    )
    rows = [
        [
            finding.standing,
            finding.path,
            finding.label,
            f"{finding.estimate.lift:.2f}",
            "{:.2f} to {:.2f}".format(*finding.estimate.lift_interval),
            f"{finding.estimate.k}/{finding.estimate.n}",
            f"{finding.estimate.q_value:.3f}",
        ]
        for finding in rank_findings(document, _TOP_FINDINGS)
    ]
    columns = ["verdict", "where", "value", "lift", "90 % interval", "converted", "q"]
    print_table(columns, rows, title=title)
    say(f"valid until {stored.valid_until.isoformat()}; all estimates with --json")


@click.command("weights")
@click.argument("client_id", metavar="CLIENT")
@json_option
def weights_command(client_id: str, as_json: bool) -> None:
    """Print the score weights in force for a client and where they come from."""
    engine = open_database(open_settings())
    from conversion_assets.scoring.weights import weights_in_force  # noqa: PLC0415
    from conversion_assets.storage.patterns import PatternRepository  # noqa: PLC0415 - polars

    stored = PatternRepository(engine).load_weights_inputs(client_id)
    in_force = weights_in_force(
        stored.who_document, stored.valid_until, datetime.now(UTC), stored.client_weights
    )
    if as_json:
        print_json(
            {
                "client_id": client_id,
                "weights": in_force.weights,
                "source": in_force.source,
                "reason": in_force.reason,
            }
        )
        return
    print_table(
        ["component", "weight"],
        [[name, f"{weight:.4f}"] for name, weight in in_force.weights.items()],
        title=f"{client_id}: from {in_force.source}",
    )
    say(in_force.reason)
