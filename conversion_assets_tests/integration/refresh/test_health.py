"""What a refresh records of its clients, and what the check of health makes of it."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from sqlalchemy import insert, select, text, update

from conversion_assets.domain.config import HealthConfig, LearningConfig
from conversion_assets.domain.facts import LearningFacts
from conversion_assets.domain.terms import PatternType
from conversion_assets.refresh import surveys as refreshing
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.health import check_health
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.storage import tables
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine, write_transaction
from conversion_assets.storage.importer import import_frames
from conversion_assets.storage.outbox import Outbox
from conversion_assets.storage.sources import active_client_ids
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency
from conversion_assets_tests.alerting import message
from conversion_assets_tests.unit.evaluation.test_failing import forecast

AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
NOW = AS_OF + timedelta(hours=6)
DAY = timedelta(days=1)
CLIENTS = [f"client-{number:04d}" for number in range(1, 8)]
DRIFTING = CLIENTS[2]


class Home:
    """A database and a store with learned clients."""

    def __init__(self, template, folder):
        folder.mkdir(exist_ok=True)
        (folder / "conversion.db").write_bytes(template.read_bytes())
        self.engine = create_database_engine(f"sqlite:///{folder}/conversion.db")
        self.store = FeatureStore(str(folder / "store"))
        self.folder = folder

    def fill(self):
        agency = generate_agency(
            SyntheticConfig(
                clients=7, leads=500, base_conversion=0.2, pool_opt_in=1.0, as_of=AS_OF, seed=9
            )
        )
        is_moved = (pl.col("client_id") == DRIFTING) & (pl.col("created_at") > AS_OF - 84 * DAY)
        moved = pl.when(is_moved).then(pl.lit("new market")).otherwise("source")
        import_frames(
            self.engine,
            clients=agency.clients,
            leads=agency.leads.with_columns(source=moved),
            activities=agency.activities,
            quarantine_dir=self.folder,
        )
        refresh_features(self.engine, self.store)
        return self

    def learn(self, as_of=AS_OF, **config):
        return refresh_patterns(
            self.engine,
            self.store,
            client_ids=active_client_ids(self.engine),
            kinds=tuple(PatternType),
            as_of=as_of,
            run_id="test",
            config=LearningConfig(**config),
            now=lambda: as_of + timedelta(minutes=5),
        )

    def check(self, now=NOW, **changes):
        config = changes.pop("config", HealthConfig(stale_after_days=400, minimum_confidence=0))
        return check_health(self.engine, now=now, config=config, channels=["log"], **changes)

    def find(self, rule, now=NOW):
        return [one for one in self.check(now).findings if one.rule == rule]

    def change(self, statement, rows=None):
        with write_transaction(self.engine) as connection:
            return connection.execute(statement, rows) if rows else connection.execute(statement)

    def facts(self):
        with self.engine.connect() as connection:
            rows = connection.execute(select(tables.learning_facts)).all()
        return {row.client_id: LearningFacts.model_validate_json(row.facts) for row in rows}


@pytest.fixture(scope="module")
def learned(sqlite_template, tmp_path_factory):
    home = Home(sqlite_template, tmp_path_factory.mktemp("learned")).fill()
    home.learn()
    home.engine.dispose()
    return home.folder / "conversion.db", home.store


@pytest.fixture
def home(learned, tmp_path):
    template, store = learned
    home = Home(template, tmp_path)
    home.store = store
    return home


def test_only_the_client_whose_leads_changed_has_drifted(home):
    (found,) = home.find("drift")
    assert (found.client_id, found.subject) == (DRIFTING, "shares")
    assert found.numbers["dimension"] == "source_rankings"
    assert found.numbers["amount"] > 0.5
    assert set(home.facts()) == set(CLIENTS)


def test_pools_are_recorded_and_expose_nobody(home):
    borrowed = home.facts()[CLIENTS[0]].borrowing
    assert borrowed.cells > 10
    assert borrowed.least_contributors >= 5
    assert borrowed.largest_share <= 0.25 + 1e-9
    assert borrowed.excess <= 1e-9
    assert home.find("pool_privacy") == []


def test_limits_laxer_than_promised_are_found(home):
    home.change(update(tables.clients).where(tables.clients.c.id > CLIENTS[3]).values(
        pool_opt_in=False, updated_at=AS_OF - DAY))  # fmt: skip
    home.learn(AS_OF + DAY, pool_minimum_contributors=2, pool_maximum_share=0.6)
    found = home.find("pool_privacy", NOW + DAY)
    assert {one.client_id for one in found} == set(CLIENTS[:4])
    assert {one.subject for one in found} == {"contributors", "share"}
    assert {str(one.severity) for one in found} == {"high"}
    home.learn(AS_OF + 2 * DAY)
    assert home.find("pool_privacy", NOW + 2 * DAY) == []
    with home.engine.connect() as connection:
        pools = connection.execute(select(tables.pool_members.c.pool_id).distinct()).all()
    assert len(pools) <= 1


def test_who_lent_without_having_opted_in_is_found_and_who_withdrew_is_not(home):
    out = update(tables.clients).where(tables.clients.c.id == CLIENTS[0])
    home.change(out.values(pool_opt_in=False, updated_at=NOW))
    assert home.find("pool_privacy") == []
    home.change(out.values(pool_opt_in=False, updated_at=AS_OF - DAY))
    found = home.find("pool_privacy")
    assert {one.subject for one in found} == {"strangers"}
    assert len(found) == len(CLIENTS)
    assert CLIENTS[0] not in found[-1].message
    home.change(tables.pool_members.delete())
    assert {one.subject for one in home.find("pool_privacy")} == {"unknown"}


def test_a_client_whose_drift_cannot_be_computed_is_learned_and_told(home, monkeypatch):
    real = refreshing.find_drift

    def find(leads, touches, client_ids, **window):
        if CLIENTS[1] in client_ids:
            raise ValueError("odd leads")
        return real(leads, touches, client_ids, **window)

    monkeypatch.setattr(refreshing, "find_drift", find)
    assert home.learn(AS_OF + DAY).failures == []
    found = {(one.client_id, one.subject) for one in home.find("drift", NOW + DAY)}
    assert found == {(DRIFTING, "shares"), (CLIENTS[1], "error")}


def test_a_record_in_which_most_claims_fail_is_found(home):
    shared = {"code_version": "1", "run_id": "r"}
    rows = [
        forecast(f"v{claim}", window, k=20 if client == CLIENTS[4] else 36, client=client)
        | shared | {"cell": f"{claim}"}
        for client in (CLIENTS[4], CLIENTS[5]) for window in range(8) for claim in range(3)
    ]  # fmt: skip
    shift = AS_OF - max(row["graded_as_of"] for row in rows)
    for row in rows:
        row |= {key: row[key] + shift for key in ("made_as_of", "due_as_of", "graded_as_of")}
    home.change(tables.pattern_forecasts.delete())
    home.change(insert(tables.pattern_forecasts), rows)
    (found,) = home.find("forward_failing")
    assert (found.client_id, found.pattern_type, found.subject) == (CLIENTS[4], "who", "lift")
    assert found.numbers["lost"] == 3
    config = HealthConfig(stale_after_days=400, forward_level=1e-9)
    assert not [f for f in home.check(config=config).findings if f.rule == "forward_failing"]


def test_facts_of_an_older_refresh_do_not_replace_newer_ones(home):
    home.learn(AS_OF + DAY)
    home.learn(AS_OF - DAY)
    with home.engine.connect() as connection:
        moments = set(connection.execute(select(tables.learning_facts.c.as_of)).scalars())
    assert moments == {AS_OF + DAY}


def test_what_was_told_is_forgotten_and_what_was_not_is_kept(engine):
    with write_transaction(engine) as connection:
        connection.execute(insert(tables.clients), [{"id": "a", "created_at": AS_OF}])
    outbox = Outbox(engine)
    long_ago, lately = NOW - 91 * DAY, NOW - 89 * DAY
    outbox.enqueue([message(number) for number in range(4)], ["slack"], long_ago - DAY)
    rows = dict(zip(("old", "recent", "refused", "waiting"), read_ids(engine), strict=True))
    outbox.mark_sent("slack", rows["old"], long_ago)
    outbox.mark_sent("slack", rows["recent"], lately)
    outbox.mark_refused("slack", rows["refused"], long_ago, "too long")
    states = {
        "open": {}, "closed": {"resolved_at": long_ago}, "closed lately": {"resolved_at": lately},
        "end not told": {"resolved_at": long_ago, "told_at": long_ago},
    }  # fmt: skip
    with write_transaction(engine) as connection:
        for name, state in states.items():
            connection.execute(insert(tables.health_findings).values(
                finding_id=name, client_id="a", rule="expired", subject=name, severity="high",
                message="m", numbers="{}", first_seen_at=long_ago, last_seen_at=long_ago, **state,
            ))  # fmt: skip

    def kept():
        with engine.connect() as connection:
            findings = connection.execute(select(tables.health_findings.c.finding_id)).scalars()
            return set(read_ids(engine)), set(findings)

    config = HealthConfig()
    before = set(read_ids(engine))
    check_health(engine, now=NOW, config=config, channels=["slack"], client_ids=["a"])
    assert kept()[1] == set(states)  # a check of some clients forgets nothing
    check_health(engine, now=NOW, config=config, channels=["slack"])
    messages, findings = kept()
    assert before - messages == {rows["old"]}
    assert "closed" not in findings
    assert {"closed lately", "open"} <= findings
    assert "end not told" not in findings  # its end was queued first
    assert len(messages - before) == 1


def read_ids(engine):
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT id FROM alert_outbox ORDER BY id")).scalars())
