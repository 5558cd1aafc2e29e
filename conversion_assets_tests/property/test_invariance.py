"""What must not change a byte: order, chunks, threads, other clients, the way features came."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion_assets.domain.config import LearningConfig
from conversion_assets.features import Features, build_features
from conversion_assets.learning import conclude, detect_patterns
from conversion_assets.survey import survey_clients
from conversion_assets_tests.property import worlds


@pytest.fixture(scope="module")
def expected() -> dict[str, str]:
    agency = worlds.make_agency()
    written = worlds.write(worlds.detect(worlds.make_features(), agency.clients))
    assert sum(not key.endswith("outcome") for key in written) >= 20
    return written


def _map(features: Features, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Features:
    return Features(change(features.leads), change(features.touches), features.notes)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_feature_rows(expected, seed):
    agency = worlds.make_agency()
    shuffled = _map(
        worlds.make_features(), lambda f: f.sample(fraction=1.0, shuffle=True, seed=seed)
    )
    clients = agency.clients.sample(fraction=1.0, shuffle=True, seed=seed)
    assert worlds.write(worlds.detect(shuffled, clients)) == expected


def test_order_of_raw_rows(expected):
    agency = worlds.make_agency()
    rows = [
        frame.sample(fraction=1.0, shuffle=True, seed=7)
        for frame in (agency.clients, agency.leads, agency.activities)
    ]
    assert worlds.write(worlds.detect_raw(*rows)) == expected


def test_order_of_columns(expected):
    agency = worlds.make_agency()
    turned = _map(worlds.make_features(), lambda f: f.select(reversed(f.columns)))
    # The vocabulary's columns may stand in any order in a file.
    assert worlds.write(worlds.detect(turned, agency.clients)) == expected


@pytest.mark.parametrize("pieces", [2, 17])
def test_chunks(expected, pieces):
    agency = worlds.make_agency()

    def cut(frame: pl.DataFrame) -> pl.DataFrame:
        size = -(-frame.height // pieces)
        parts = [frame.slice(i * size, size) for i in range(pieces)]
        return pl.concat(parts, rechunk=False)

    chunked = _map(worlds.make_features(), cut)
    assert chunked.touches.n_chunks() > 1
    assert worlds.write(worlds.detect(chunked, agency.clients)) == expected


@settings(max_examples=6, deadline=None)
@given(st.sets(st.integers(0, 7), min_size=1, max_size=7))
def test_other_clients_outside_the_pool(chosen):
    """A client that nobody shares with is the same with or without any of the others."""
    agency = worlds.make_agency()
    alone = agency.clients.with_columns(pool_opt_in=pl.lit(value=False))
    ids = [agency.clients["id"][i] for i in chosen]
    features = worlds.make_features()
    together = worlds.write(worlds.detect(features, alone), ids)
    few = _map(features, lambda f: f.filter(pl.col("client_id").is_in(ids)))
    assert worlds.write(worlds.detect(few, alone.filter(pl.col("id").is_in(ids)))) == together


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=8, max_size=8), st.booleans())
def test_shards(expected, places, turned):
    """However clients are spread over surveys, and in whichever order these come."""
    agency, features = worlds.make_agency(), worlds.make_features()
    ids = agency.clients["id"].to_list()
    config = LearningConfig()
    surveys = []
    for shard in sorted(set(places), reverse=turned):
        own = [client for client, place in zip(ids, places, strict=True) if place == shard]
        rows = _map(features, lambda f, own=own: f.filter(pl.col("client_id").is_in(own)))
        found, errors = survey_clients(
            rows.leads, rows.touches, own, as_of=worlds.CONFIG.as_of, config=config
        )
        assert errors == {}
        surveys += pickle.loads(pickle.dumps(found))
    members = worlds.list_members(agency.clients).filter("pool_opt_in")["client_id"].to_list()
    written = {}
    for detection in conclude(
        surveys, {}, members=members, client_ids=ids, as_of=worlds.CONFIG.as_of, config=config
    ):
        written |= worlds.write(detection)
    assert written == expected


def test_strangers_change_no_member(expected):
    """Clients outside the pool beside it: members and their pool stay what they were."""
    agency = worlds.make_agency()
    strangers = worlds.make_strangers()
    # Ids before, between and after: the numbers of clients inside detection all move.
    names = dict(zip(strangers.clients["id"], ["aaa", "client-0003x", "zzz"], strict=True))

    def rename(frame: pl.DataFrame, column: str) -> pl.DataFrame:
        return frame.with_columns(pl.col(column).replace_strict(names))

    found = worlds.detect_raw(
        pl.concat([agency.clients, rename(strangers.clients, "id")]),
        pl.concat([agency.leads, rename(strangers.leads, "client_id")]),
        pl.concat([agency.activities, rename(strangers.activities, "client_id")]),
    )
    assert worlds.write(found, agency.clients["id"]) == expected


@pytest.mark.parametrize("chosen", [["client-0001"], ["client-0002", "client-0007"]])
def test_choosing_clients_changes_none_of_them(expected, chosen):
    """One partition alone gives what the refresh of all gives: the pool is read either way."""
    agency, features = worlds.make_agency(), worlds.make_features()
    found = detect_patterns(
        features.leads,
        features.touches,
        worlds.list_members(agency.clients),
        as_of=worlds.CONFIG.as_of,
        client_ids=chosen,
    )
    assert worlds.write(found) == {k: v for k, v in expected.items() if k.split("/")[0] in chosen}


def test_features_in_two_halves(expected):
    """Leads imported in two halves, each with its activities."""
    agency = worlds.make_agency()
    is_first = pl.col("id").str.ends_with("1") | pl.col("id").str.ends_with("4")
    first, second = agency.leads.filter(is_first), agency.leads.filter(~is_first)
    halves = [
        build_features(
            agency.clients,
            leads,
            agency.activities.filter(pl.col("lead_id").is_in(leads["id"].implode())),
        )
        for leads in (second, first)
    ]
    joined = Features(
        pl.concat([h.leads for h in halves]), pl.concat([h.touches for h in halves]),
        pl.concat([h.notes for h in halves]),
    )  # fmt: skip
    assert worlds.write(worlds.detect(joined, agency.clients)) == expected


SCRIPT = """
from conversion_assets_tests.property import worlds
agency = worlds.make_agency()
print(worlds.digest(worlds.write(worlds.detect(worlds.make_features(), agency.clients))))
"""


@pytest.mark.parametrize(
    "environment",
    [{"POLARS_MAX_THREADS": "1"}, {"POLARS_MAX_THREADS": "5", "PYTHONHASHSEED": "77"}],
)
def test_number_of_threads(expected, environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == worlds.digest(expected)
