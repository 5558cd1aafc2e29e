"""The forward record in real refreshes, on both databases."""

from datetime import timedelta
from functools import partial

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.errors import NotFoundError
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.refresh import forward
from conversion_assets.refresh.evaluation import evaluate_clients, explain_client
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.storage.forecasts import read_forecasts
from conversion_assets.storage.importer import import_frames
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import generate_agency

CONFIG = SyntheticConfig(
    clients=2, leads=1500, base_conversion=0.25, seed=4, with_text=False, pool_opt_in=0.0
)
AS_OF = CONFIG.as_of
CLIENTS = ["client-0001", "client-0002"]
WEEK = timedelta(days=7)
SETTINGS = LearningConfig()


@pytest.fixture(scope="module")
def agency():
    return generate_agency(CONFIG)


@pytest.fixture
def home(engine, agency, tmp_path):
    import_frames(
        engine, clients=agency.clients, leads=agency.leads, activities=agency.activities,
        quarantine_dir=tmp_path / "quarantine",
    )  # fmt: skip
    store = FeatureStore(str(tmp_path / "store"))
    refresh_features(engine, store)
    return engine, store


def learn(home, as_of, clients=CLIENTS, kinds=tuple(PatternType)):
    return refresh_patterns(
        *home, client_ids=clients, kinds=kinds, as_of=as_of, run_id="r", config=SETTINGS,
        now=partial(lambda moment: moment, as_of),
    )  # fmt: skip


def dump(home):
    engine, _ = home
    documents = {
        (client, kind): canonical_json(stored.document)
        for client in CLIENTS
        for kind, stored in PatternRepository(engine).current(client).items()
    }
    return documents, read_forecasts(engine, CLIENTS)


@pytest.mark.slow
def test_claims_are_graded_by_a_later_refresh_and_travel_with_the_pattern(home):
    engine, store = home
    start = AS_OF - 14 * WEEK
    learn(home, start)
    made = read_forecasts(engine, CLIENTS)
    assert made.height
    assert made["graded_as_of"].null_count() == made.height

    learn(home, AS_OF)
    forecasts = read_forecasts(engine, CLIENTS)
    earlier = forecasts.filter(pl.col("made_as_of") == start)
    assert earlier["graded_as_of"].to_list() == [AS_OF] * made.height
    documents, _ = before = dump(home)
    assert any('"forward":{' in text for text in documents.values())

    # The same again, and one type alone: nothing changes.
    learn(home, AS_OF)
    learn(home, AS_OF, kinds=[PatternType.WHO])
    after = dump(home)
    assert after[0] == before[0]
    assert_frame_equal(after[1], before[1])

    # A replay of the past neither knows nor spoils what came later.
    learn(home, start)
    assert_frame_equal(dump(home)[1], before[1])
    then = PatternRepository(engine).in_force(CLIENTS[0], start + timedelta(hours=1))
    assert all('"forward":{' not in canonical_json(s.document) for s in then.values())

    # Looking stores nothing, and sees the same.
    found = evaluate_clients(
        engine, store, client_ids=CLIENTS[:1], as_of=AS_OF, weeks=0, config=SETTINGS
    )
    assert found.backtest is None
    assert found.record["windows"].sum() == earlier.filter(client_id=CLIENTS[0]).height
    assert_frame_equal(dump(home)[1], before[1])

    # Nothing was changed in between, so the change is reproduced in full.
    moved = explain_client(
        engine, store, CLIENTS[0], start=start + WEEK, end=AS_OF, config=SETTINGS
    ).explanation.steps
    assert [r["moved"] for r in moved if r["step"].startswith("not reproduced")] == [0.0, 0.0]


def test_only_stored_types_make_forecasts(home):
    engine, _ = home
    learn(home, AS_OF, kinds=[PatternType.WHEN])
    assert set(read_forecasts(engine, CLIENTS)["pattern_type"]) <= {"when"}


def test_a_client_that_cannot_be_graded_fails_alone(home, monkeypatch):
    engine, _ = home
    learn(home, AS_OF - 14 * WEEK)
    grade = forward.grade_forecasts

    def fragile(forecasts, *given, **named):
        if CLIENTS[1] in set(forecasts["client_id"]):
            raise ValueError("two\nlines")
        return grade(forecasts, *given, **named)

    monkeypatch.setattr(forward, "grade_forecasts", fragile)
    outcomes = learn(home, AS_OF).outcomes
    failed = {o.client_id for o in outcomes if o.outcome == OutcomeKind.FAILED}
    assert failed == {CLIENTS[1]}
    assert {o.error for o in outcomes if o.error} == {"grading of forecasts: two lines"}
    graded = read_forecasts(engine, CLIENTS).filter(pl.col("graded_as_of").is_not_null())
    assert set(graded["client_id"]) == {CLIENTS[0]}


def test_an_unknown_client_is_named(home):
    with pytest.raises(NotFoundError, match="nobody"):
        evaluate_clients(*home, client_ids=["nobody"], as_of=AS_OF, weeks=0, config=SETTINGS)
