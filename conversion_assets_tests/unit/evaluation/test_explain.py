from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from conversion_assets.evaluation.explain import (
    STEPS,
    Version,
    explain_change,
    read_settings,
    tabulate_cells,
)
from conversion_assets.learning import detect_patterns
from conversion_assets_tests.unit.evaluation.forward_agency import AS_OF, SETTINGS, frames

pytestmark = pytest.mark.slow  # six refreshes an explanation

CLIENT = "client-0001"
EARLIER = AS_OF - timedelta(days=56)


def learner(leads, touches, clients):
    def learn(leads, touches, as_of, settings, said_before):
        found = detect_patterns(
            leads, touches, clients, as_of=as_of, client_ids=[CLIENT], config=settings
        )
        return list(found.documents.values())

    return learn


def version(learn, leads, touches, as_of, code="1", **told):
    settings = SETTINGS.model_copy(update=told)
    documents = learn(leads, touches, as_of, settings, as_of)
    return Version(as_of, settings.window_days, documents, code, settings)


@pytest.fixture(scope="module")
def world():
    leads, touches, _ = frames()
    # Copies of the other client make a pool large enough to be listened to.
    other = "client-0002"
    copies = [other, *(f"copy-{i}" for i in range(6))]

    def repeat(frame):
        own = frame.filter(pl.col("client_id") == CLIENT)
        theirs = frame.filter(pl.col("client_id") == other)
        return pl.concat([own, *(theirs.with_columns(client_id=pl.lit(c)) for c in copies)])

    members = pl.DataFrame({"client_id": [CLIENT, *copies], "pool_opt_in": [True] * 8})
    leads, touches = repeat(leads), repeat(touches)
    return leads, touches, learner(leads, touches, members)


def explain(world, earlier, later, leads=None, code="1"):
    return explain_change(
        world[0] if leads is None else leads, world[1], client_id=CLIENT, earlier=earlier,
        later=later, learn=world[2], code_version=code, config=SETTINGS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def ends(world):
    leads, touches, learn = world
    return version(learn, leads, touches, EARLIER), version(learn, leads, touches, AS_OF)


@pytest.fixture(scope="module")
def plain(world, ends):
    return explain(world, *ends)


def test_steps_multiply_to_the_whole_change(plain):
    assert plain.cells
    for cell in plain.cells:
        factors = list(cell["factors"].values())
        if None in factors or cell["lift_from"] is None or cell["lift_to"] is None:
            continue
        product = 1.0
        for factor in factors:
            product *= factor
        assert product == pytest.approx(cell["lift_to"] / cell["lift_from"])
        assert cell["decided_by"] in STEPS


def test_unchanged_code_and_rows_are_reproduced_exactly(plain):
    steps = {row["step"]: row for row in plain.steps}
    for step in ("not reproduced (from)", "not reproduced (to)", "settings", "said before"):
        assert steps[step]["verdicts"] == 0
        assert steps[step]["moved"] == 0.0
    for step in ("matured outcomes", "new leads", "old leads", "pool"):
        assert steps[step]["moved"] > 0.0
    assert plain.notes == []


def test_a_pool_that_stands_still_moves_nothing(world, ends):
    """Only the pool's rows differ between the last two steps before settings."""
    leads, touches, learn = world
    alone = pl.col("client_id") == CLIENT
    own = (leads.filter(alone), touches.filter(alone))
    found = explain_change(
        *own, client_id=CLIENT, earlier=version(learn, *own, EARLIER),
        later=version(learn, *own, AS_OF), learn=learn, code_version="1", config=SETTINGS,
    )  # fmt: skip
    assert {r["step"]: r["moved"] for r in found.steps}["pool"] == 0.0


def test_no_time_between_moves_only_what_was_not_reproduced(world, ends):
    """A version computed from other rows: all the difference is in the first step."""
    leads, touches, learn = world
    keep = pl.int_range(pl.len()) % 10 != 0
    other = version(learn, leads.filter(keep), touches, EARLIER)
    found = explain(world, other, Version(EARLIER, 365, ends[0].documents, "1"))
    moved = {row["step"]: row["moved"] for row in found.steps}
    assert moved.pop("not reproduced (from)") > 0.0
    assert set(moved.values()) == {0.0}


def test_another_window_is_a_change_of_settings(world, ends):
    leads, touches, learn = world
    short = version(learn, leads, touches, AS_OF, window_days=200)
    found = {row["step"]: row["moved"] for row in explain(world, ends[0], short).steps}
    assert found["settings"] > 0.0
    assert found["not reproduced (to)"] == 0.0


def test_another_threshold_is_a_change_of_settings(world, ends):
    """Neither version was made with today's: both are computed again as they were."""
    leads, touches, learn = world
    strict = version(learn, leads, touches, AS_OF, act_q=0.001, credible_mass=0.8)
    found = explain(world, ends[0], strict)
    steps = {row["step"]: row for row in found.steps}
    assert steps["settings"]["verdicts"] > 0
    for step in ("not reproduced (from)", "not reproduced (to)"):
        assert (steps[step]["verdicts"], steps[step]["moved"]) == (0, 0.0)
    assert found.notes == ["settings that differ: act_q 0.1 to 0.001, credible_mass 0.9 to 0.8"]


def test_a_version_without_settings_is_said_to_be_one(world, ends):
    leads, touches, learn = world
    strict = version(learn, leads, touches, AS_OF, act_q=0.001)
    found = explain(world, ends[0], replace(strict, settings=None))
    assert sum("the version to was stored without its settings" in n for n in found.notes) == 1
    steps = {row["step"]: row for row in found.steps}
    assert steps["settings"]["verdicts"] == 0
    assert steps["not reproduced (to)"]["verdicts"] > 0


@pytest.mark.parametrize(
    ("text", "window_days"),
    [(SETTINGS.model_dump_json(), SETTINGS.window_days), ("{}", 365),
     ('{"window_days": 30, "of_other_code": 1}', 30)],
)  # fmt: skip
def test_settings_of_any_code_are_read(text, window_days):
    assert read_settings(text).window_days == window_days
    assert read_settings(None) is None


def test_other_code_is_named(world, ends):
    older = replace(ends[0], code_version="0")
    notes = explain(world, older, Version(EARLIER, 365, ends[0].documents, "1")).notes
    assert sum("was computed by code 0, not by 1" in note for note in notes) == 1


def test_cells_of_all_documents_have_one_row_each(ends):
    cells = tabulate_cells(ends[0].documents)
    assert cells.select("pattern_type", "dimension", "value").is_duplicated().sum() == 0
    assert cells["pattern_type"].n_unique() == 4
