"""From files to documents on real and generated data: the same documents by every road."""

import os
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from sqlalchemy import Engine

from conversion_assets import learn_patterns
from conversion_assets.domain.config import LearningConfig
from conversion_assets.domain.terms import OutcomeKind, PatternType
from conversion_assets.refresh.features import refresh_features
from conversion_assets.refresh.patterns import refresh_patterns
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets.storage.document_text import canonical_json
from conversion_assets.storage.importer import import_files, import_frames
from conversion_assets.storage.mapping import import_mapping
from conversion_assets.storage.patterns import PatternRepository
from conversion_assets.storage.sources import active_client_ids
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("CONVERSION_TEST_DATA", ROOT.parent / "shared" / "data"))
AS_OF = datetime(2026, 1, 4, tzinfo=UTC)
Documents = dict[tuple[str, PatternType], str]


def learn(
    engine: Engine, folder: Path, as_of: datetime, clients: set[str] | None = None
) -> Documents:
    """Refresh features and patterns, and read back what was stored."""
    store = FeatureStore(str(folder / "store"))
    refresh_features(engine, store)
    chosen = active_client_ids(engine) if clients is None else clients
    result = refresh_patterns(
        engine,
        store,
        client_ids=chosen,
        kinds=tuple(PatternType),
        as_of=as_of,
        run_id="test",
        config=LearningConfig(),
        now=lambda: datetime.now(UTC),
    )
    assert not [o for o in result.outcomes if o.outcome == OutcomeKind.FAILED]
    repository = PatternRepository(engine)
    return {
        (one.client_id, one.pattern_type): canonical_json(
            repository.current(one.client_id)[one.pattern_type].document
        )
        for one in result.stored
    }


@pytest.fixture(scope="module")
def agency() -> Agency:
    return generate_agency(
        SyntheticConfig(clients=4, leads=700, seed=31, base_conversion=0.2, pool_opt_in=0.0)
    )


@pytest.fixture(scope="module")
def expected(agency: Agency) -> Documents:
    """The notebook door: no database, no store."""
    learned = learn_patterns(agency.leads, agency.activities, agency.clients, as_of=AS_OF)
    return {key: canonical_json(document) for key, document in learned.documents.items()}


def fresh(template: Path, folder: Path) -> Engine:
    folder.mkdir()
    (folder / "conversion.db").write_bytes(template.read_bytes())
    return create_database_engine(f"sqlite:///{folder}/conversion.db")


def test_database_and_store_give_the_documents_of_the_notebook(engine, tmp_path, agency, expected):
    assert {kind for _, kind in expected} == set(PatternType)
    import_frames(
        engine,
        clients=agency.clients,
        leads=agency.leads,
        activities=agency.activities,
        quarantine_dir=tmp_path,
    )
    assert learn(engine, tmp_path, AS_OF) == expected


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_file_format_and_row_order_change_no_byte(
    sqlite_template, tmp_path, agency, expected, ending
):
    engine = fresh(sqlite_template, tmp_path / "home")
    files = {}
    for number, name in enumerate(("clients", "leads", "activities")):
        frame = getattr(agency, name).sample(fraction=1.0, shuffle=True, seed=number)
        files[name] = tmp_path / f"{name}.{ending}"
        if ending == "csv":
            times = pl.col(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            frame.with_columns(times).write_csv(files[name])
        elif ending == "jsonl":
            times = pl.col(pl.Datetime("us", "UTC")).dt.strftime("%Y-%m-%d %H:%M:%S%.6f+00:00")
            frame.with_columns(times).write_ndjson(files[name])
        else:
            frame.write_parquet(files[name])
    report = import_files(engine, **files, quarantine_dir=tmp_path / "quarantine")
    assert report.leads.rejected == report.activities.rejected == 0
    assert learn(engine, tmp_path, AS_OF) == expected


def test_two_halves_and_strangers_change_no_byte(sqlite_template, tmp_path, agency, expected):
    """Half the rows, a refresh; then the others and two clients outside any pool, a refresh."""
    engine = fresh(sqlite_template, tmp_path / "home")
    first = pl.int_range(pl.len()) % 2 == 0
    import_frames(
        engine,
        clients=agency.clients,
        leads=agency.leads.filter(first),
        quarantine_dir=tmp_path,
    )
    here = agency.leads.filter(first)["id"].implode()
    import_frames(
        engine,
        activities=agency.activities.filter(pl.col("lead_id").is_in(here)),
        quarantine_dir=tmp_path,
    )
    refresh_features(engine, FeatureStore(str(tmp_path / "store")))
    strangers = generate_agency(
        SyntheticConfig(clients=2, first_client=50, leads=300, seed=31, pool_opt_in=0.0)
    )
    import_frames(
        engine,
        clients=strangers.clients,
        leads=pl.concat([agency.leads.filter(~first), strangers.leads]),
        quarantine_dir=tmp_path,
    )
    import_frames(
        engine,
        activities=pl.concat([agency.activities, strangers.activities]),
        quarantine_dir=tmp_path,
    )
    learned = learn(engine, tmp_path, AS_OF)
    assert {key: text for key, text in learned.items() if key in expected} == expected


@pytest.mark.skipif(
    not DATA.is_dir() and not os.environ.get("CI"),
    reason="the data sets are not shipped; set CONVERSION_TEST_DATA",
)
def test_real_data_give_equal_documents_on_both_databases(sqlite_url, postgresql_url, tmp_path):
    """olist and bpi2012 as two clients of one home; each as of a month when its data were young."""
    found = []
    for url in (sqlite_url, postgresql_url):
        engine = create_database_engine(url)
        folder = tmp_path / engine.dialect.name
        for name in ("olist", "bpi2012"):
            import_mapping(
                engine, ROOT / "examples" / f"{name}.yaml", DATA / name, quarantine_dir=folder
            )
        olist = learn(engine, folder, datetime(2018, 6, 15, tzinfo=UTC), {"olist"})
        bpi = learn(engine, folder, datetime(2012, 3, 15, tzinfo=UTC), {"bpi2012"})
        found.append(olist | bpi)
        engine.dispose()
    assert found[0] == found[1]
    assert set(found[0]) == {
        ("olist", PatternType.WHO),
        ("bpi2012", PatternType.WHO),
        ("bpi2012", PatternType.WHEN),
        ("bpi2012", PatternType.HOW),
    }
