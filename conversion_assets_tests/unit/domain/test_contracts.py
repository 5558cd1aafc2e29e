import doctest
from datetime import UTC, datetime
from pathlib import Path

import dataframely as dy
import polars as pl
import pytest

from conversion_assets.domain import contracts
from conversion_assets.domain.contracts import CONTRACTS, KEYS
from conversion_assets.storage import tables

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("table", CONTRACTS)
def test_contract_and_sql_table_have_the_same_columns(table):
    stored = tables.metadata.tables[table]
    assert CONTRACTS[table].column_names() == [
        column.name for column in stored.c if column.name != "change_id"
    ]
    assert set(KEYS[table]) == {column.name for column in stored.primary_key}


SQL_TYPES = {
    dy.Datetime: (tables.UtcDateTime,),
    dy.Bool: (tables.Boolean,),
    dy.Int64: (tables.BigInteger,),
    dy.Float64: (tables.Double,),
}


@pytest.mark.parametrize("table", CONTRACTS)
def test_contract_and_sql_table_have_the_same_types(table):
    for name, column in CONTRACTS[table].columns().items():
        stored = tables.metadata.tables[table].c[name].type
        is_json = (column.metadata or {}).get("json", False)
        expected = SQL_TYPES.get(type(column), (tables.JsonText,) if is_json else (tables.Text,))
        assert isinstance(stored, expected), name


def test_a_required_column_is_required_by_the_database_too():
    for table in CONTRACTS:
        for name in contracts.required_columns(table):
            assert not tables.metadata.tables[table].c[name].nullable


def test_id_length_is_that_of_the_tables():
    assert contracts.LONGEST_ID == tables.ID_LENGTH


def test_every_column_is_described():
    for contract in CONTRACTS.values():
        assert all(column.description for column in contract.columns().values())


def test_document_holds_the_contracts():
    assert (ROOT / "docs/import.md").read_text().endswith(contracts.document_contracts())


def test_document_names_every_reason():
    text = (ROOT / "docs/import.md").read_text()
    for contract in CONTRACTS.values():
        empty = contract.create_empty()
        for rule in contract.filter(empty).failure.details().columns:
            if rule in empty.columns:
                continue
            reason = contracts.reason_of(rule)
            assert reason.startswith("missing ") or reason in text, rule


def test_examples_in_docstrings():
    assert doctest.testmod(contracts).failed == 0


def test_zone_rule_takes_no_fixed_offset():
    frame = pl.DataFrame(
        {"timezone": ["Asia/Kathmandu", "UTC", "+02:00", "europe/berlin", "", None]}
    )
    names = [name for name in frame["timezone"] if name is not None and contracts.is_zone(name)]
    assert names == ["Asia/Kathmandu", "UTC"]


@pytest.mark.parametrize("year", [1970, 1979, 2100, 9999])
def test_sentinel_years_are_out_of_range(year):
    row = (
        contracts.ClientRows.create_empty()
        .clear(1)
        .with_columns(
            id=pl.lit("a"),
            created_at=pl.lit(datetime(year, 6, 1, tzinfo=UTC)).cast(pl.Datetime("us", "UTC")),
        )
    )
    counts = contracts.ClientRows.filter(row).failure.counts()
    assert counts == {"created_at|check__timestamp out of range": 1}
