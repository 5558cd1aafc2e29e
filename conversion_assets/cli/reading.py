"""Commands that read what was learned: patterns, weights, schema."""

import click

from conversion_assets.cli.output import json_option, print_json
from conversion_assets.domain.terms import PatternType

PATTERN_TYPE = click.Choice([str(kind) for kind in PatternType])


@click.command("schema")
@click.argument("pattern_type", metavar="TYPE", type=PATTERN_TYPE)
@json_option
def schema_command(pattern_type: str, as_json: bool) -> None:
    """Print the JSON Schema of a pattern document: who, what, when or how."""
    from conversion_assets.domain.patterns import DOCUMENTS  # noqa: PLC0415

    document = DOCUMENTS[PatternType(pattern_type)]
    schema = document.model_json_schema(mode="serialization")
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
