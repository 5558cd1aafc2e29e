import json

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from conversion_assets.domain.errors import InputError
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.files import FILES, write_agency
from conversion_assets.synthetic.generator import generate_agency

AGENCY = generate_agency(SyntheticConfig(clients=2, leads=20))


def test_what_is_written_can_be_read(tmp_path):
    paths = write_agency(AGENCY, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(FILES)
    assert_frame_equal(pl.read_parquet(paths[0]), AGENCY.clients)
    assert_frame_equal(pl.read_parquet(paths[1]), AGENCY.leads)
    assert_frame_equal(pl.read_parquet(paths[2]), AGENCY.activities)
    assert json.loads(paths[3].read_text(encoding="utf-8")) == AGENCY.truth


def test_the_same_agency_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    first = [path.read_bytes() for path in write_agency(AGENCY, tmp_path)]
    again = [path.read_bytes() for path in write_agency(AGENCY, tmp_path)]
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="taken"):
        write_agency(AGENCY, tmp_path / "taken")


def test_a_failed_write_leaves_the_old_state(tmp_path):
    write_agency(AGENCY, tmp_path)
    (tmp_path / ".truth.json.part").mkdir()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    with pytest.raises(InputError):
        write_agency(generate_agency(SyntheticConfig(clients=1, leads=5)), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
