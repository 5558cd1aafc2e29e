"""A backfill in a process of its own, to be killed. Run: python -m ... DATABASE_URL STORE PAGE."""

import sys
from datetime import UTC, datetime
from functools import partial

from conversion_assets.domain.backfills import BackfillStage
from conversion_assets.domain.config import LearningConfig
from conversion_assets.refresh.backfill import BackfillTools, backfill_client
from conversion_assets.storage.columnar.store import FeatureStore
from conversion_assets.storage.database import create_database_engine
from conversion_assets_tests.backfilling import CLIENT
from conversion_assets_tests.homes import AS_OF


def main(database_url: str, store: str, page_activities: str) -> int:
    """Backfill the one client with small pages, so that there are many instants to die at."""
    tools = BackfillTools(
        create_database_engine(database_url),
        FeatureStore(store),
        LearningConfig(),
        partial(datetime.now, UTC),
        page_activities=int(page_activities),
    )
    report = backfill_client(
        tools, client_id=CLIENT, stages=list(BackfillStage), run_id="worker", as_of=AS_OF
    )
    return 0 if report.record.finished_at else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
