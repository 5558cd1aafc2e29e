"""Engines, migrations and the launcher, on both databases."""

from conversion_assets.storage.database import current_revision, head_revision


def test_fresh_database_is_migrated(engine):
    assert current_revision(engine) == head_revision()
