"""The weights in force: function, bulk form, command and SQL view say the same."""

import json
import math
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event, insert, text

from conversion_assets.cli.shell import run
from conversion_assets.domain.errors import NotFoundError
from conversion_assets.domain.terms import DEFAULT_WEIGHTS, SCORE_COMPONENTS
from conversion_assets.scoring.weights import choose_weights, weights_in_force
from conversion_assets.storage import tables
from conversion_assets.storage.database import write_transaction
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets.storage.scores import load_settings
from conversion_assets.storage.sources import open_snapshot

T0 = datetime(2026, 1, 1, tzinfo=UTC)
LEARNED = '{"data_quality":0.1,"authority":0.4,"company_fit":0.2,"timing":0.15}'
STORED = '{"data_quality":0.15,"authority":0.3,"company_fit":0.25,"timing":0.15}'

good = st.sampled_from(
    [
        ("0.1", "0.4", "0.2", "0.15"),
        ("0.2", "0.25", "0.25", "0.15"),
        ("5e-2", "0.5", "25E-2", "0.05"),
        ("0.2125", "0.2125", "0.2125", "0.2125"),
        ("0.20000000000000001", "0.250000000000000000000001", "0.25", "0.15"),
        # Sums on either side of the tolerance of 0.000001.
        ("0.2", "0.25", "0.25", "0.150000999"),
        ("0.2", "0.25", "0.25", "0.1500011"),
    ]
)
odd = st.sampled_from(
    [
        "null", "true", "false", '"0.15"', '""', "[]", "[0.15]", "{}", '{"a":0.1}', "0", "1",
        "-0.0", "-0.15", "0.05", "0.5", "0.049999999999999996", "0.050000000000000003",
        "0.5000000000000001", "0.49999999999999994", "1e999", "-1e999", "1e-999", "15e-2",
        "123456789012345678901234567890", "0.15000000000000000000000000000000000001",
    ]
)  # fmt: skip
number = st.floats(0.0, 0.6).map(repr)


@st.composite
def weight_objects(draw):
    """An object of weights: right, or with something odd in it."""
    members = dict(zip(SCORE_COMPONENTS, draw(good), strict=True))
    for name in draw(st.lists(st.sampled_from(SCORE_COMPONENTS), max_size=2)):
        members[name] = draw(st.one_of(odd, number))
    kept = (
        draw(st.lists(st.sampled_from(SCORE_COMPONENTS), min_size=4, max_size=8))
        if draw(st.integers(0, 5).map(lambda n: n == 0))
        else list(members)
    )
    parts = [f'"{name}":{members[name]}' for name in kept]
    if draw(st.integers(0, 7)) == 0:
        # A member that stands twice: the last counts.
        parts += [f'"{draw(st.sampled_from(SCORE_COMPONENTS))}":{draw(odd)}', '"extra":[1,null]']
    return "{" + ",".join(parts) + "}"


weights = st.one_of(weight_objects(), weight_objects(), odd)
evaluations = st.sampled_from(
    ['{"recommended":true,"reason":"better"}'] * 4
    + ['{"recommended":false}', '{"recommended":"true"}', '{"recommended":1}']
    + ["{}", "null", "[true]", "7"]
)


def document_of(weights, evaluation='{"recommended":true}'):
    return f'{{"type":"who","recommended_weights":{weights},"score_evaluation":{evaluation}}}'


documents = st.one_of(
    st.none(),
    st.sampled_from(["{}", "[]", "null", '"text"', "5", '{"recommended_weights":null}']),
    st.builds(document_of, weights, evaluations),
    st.builds(document_of, weight_objects()),
    st.builds(lambda w: f'{{"type":"who","recommended_weights":{w}}}', weights),
)
validity = st.sampled_from(
    [timedelta(hours=1), timedelta(days=365), timedelta(hours=-1), timedelta(days=-400)]
)
stored_clients = st.lists(
    st.tuples(documents, validity, st.one_of(st.none(), weights)), min_size=3, max_size=12
)


PATTERN = {
    "sample_size": 1, "confidence": 0.5, "as_of": T0, "computed_at": T0, "code_version": "1",
    "input_fingerprint": "f", "run_id": "r",
}  # fmt: skip


def store(engine, rows, now):
    """Replace everything stored by these clients."""
    stored, patterns = [], []
    for n, (document, valid_for, client_weights) in enumerate(rows):
        client = f"client-{n}"
        stored.append({"id": client, "created_at": T0, "als_learned_weights": client_weights})
        # Another question's document never counts.
        patterns += [
            {**PATTERN, "client_id": client, "pattern_type": kind, "patterns": document,
             "valid_until": now + valid_for}
            for kind in ("who", "what") if document is not None
        ]  # fmt: skip
    with write_transaction(engine) as connection:
        connection.execute(tables.conversion_patterns.delete())
        connection.execute(tables.clients.delete())
        connection.execute(insert(tables.clients), stored)
        if patterns:
            connection.execute(insert(tables.conversion_patterns), patterns)


def read_view(engine):
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM score_weights_in_force")).mappings()
        return {row["client_id"]: dict(row) for row in rows}


def in_bulk(engine, now, client_ids=None):
    with open_snapshot(engine) as snapshot:
        chosen = choose_weights(load_settings(snapshot, client_ids), now)
    return {row["client_id"]: row for row in chosen.iter_rows(named=True)}


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=stored_clients)
def test_function_bulk_form_and_view_agree(engine, rows):
    now = datetime.now(UTC)
    store(engine, rows, now)
    view, bulk = read_view(engine), in_bulk(engine, now)
    repository = PatternRepository(engine)
    assert view.keys() == bulk.keys() == {f"client-{n}" for n in range(len(rows))}
    for client, row in view.items():
        stored = repository.load_weights_inputs(client)
        single = weights_in_force(
            stored.who_document, stored.valid_until, now, stored.client_weights
        )
        assert row["source"] == single.source == bulk[client]["source"], single.reason
        assert single.reason == bulk[client]["reason"]
        for name in SCORE_COMPONENTS:
            assert bulk[client][name] == single.weights[name]
            assert row[name] == pytest.approx(single.weights[name], rel=1e-15)
        assert math.isclose(sum(row[name] for name in SCORE_COMPONENTS), 0.85, abs_tol=1.1e-6)
        assert (row["valid_until"] is None) == (single.source != "pattern")


def test_the_command_says_the_same(engine, monkeypatch, tmp_path, capsys):
    rows = [
        (document_of(LEARNED), timedelta(days=1), STORED),
        (document_of(LEARNED, '{"recommended":false}'), timedelta(days=1), STORED),
        (document_of(LEARNED), timedelta(days=-1), None),
    ]
    store(engine, rows, datetime.now(UTC))
    monkeypatch.setenv("CONVERSION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CONVERSION_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    found = []
    for client, row in sorted(read_view(engine).items()):
        assert run(["weights", client, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["source"] == row["source"]
        assert told["weights"] == {name: row[name] for name in SCORE_COMPONENTS}
        found.append(told["source"])
    assert found == ["pattern", "client", "default"]
    assert told["weights"] == DEFAULT_WEIGHTS


def test_deleted_and_unknown_clients(engine):
    store(engine, [(None, timedelta(0), STORED)] * 2, T0)
    with write_transaction(engine) as connection:
        connection.execute(
            tables.clients.update().where(tables.clients.c.id == "client-1").values(deleted_at=T0)
        )
    assert in_bulk(engine, T0).keys() == {"client-0"}
    assert in_bulk(engine, T0, ["client-1"]).keys() == {"client-1"}
    assert in_bulk(engine, T0, []) == {}
    with pytest.raises(NotFoundError, match="there is no client 'nobody'"):
        in_bulk(engine, T0, ["client-0", "nobody"])
    with pytest.raises(NotFoundError):
        in_bulk(engine, T0, ["client-0' OR '1'='1"])


def explain(engine, statement):
    prefix = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(prefix + statement).all()
    return "\n".join(str(row[-1]) for row in rows)


def test_weights_of_one_client_cost_one_query_by_key(engine):
    store(engine, [(document_of(LEARNED), timedelta(days=1), STORED)] * 2000, datetime.now(UTC))
    leads = [
        {"client_id": f"client-{n}", "id": "x", "status": "new", "created_at": T0}
        for n in range(2000)
    ]
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.leads), leads)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    one = "client_id = 'client-0'"
    # What a scorer needs for one lead: its client's weights, by the lead's own key.
    of_lead = f"""SELECT w.* FROM leads l JOIN score_weights_in_force w ON w.client_id = l.client_id
        WHERE l.{one} AND l.id = 'x'"""
    for statement in (f"SELECT * FROM score_weights_in_force WHERE {one}", of_lead):
        plan = explain(engine, statement)
        # Members of one JSON object are walked through; no table is.
        scans = re.findall(r"(?:Seq Scan|SCAN (?!m VIRTUAL)).*", plan)
        assert not scans, plan
        assert "conversion_patterns" in plan or " p " in plan


def test_the_repository_reads_one_client_in_one_query(engine):
    store(engine, [(None, timedelta(0), STORED)], T0)
    seen = []
    event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    PatternRepository(engine).load_weights_inputs("client-0")
    queries = [sql for sql in seen if sql.lstrip().upper().startswith("SELECT")]
    assert len(queries) == 1
