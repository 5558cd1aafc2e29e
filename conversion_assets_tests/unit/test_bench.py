"""`make bench`: its lines, its file, its table and plot, and that the runner still runs."""

import json
import re
from dataclasses import asdict

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.fleet import Costs, draw_sizes, fit_costs, plan
from benchmarks.goals import JUDGES, Line, at_least, at_most, growth, judge
from benchmarks.measurements import MEASUREMENTS


def side(seconds, ratio=1.0, peak_mb=100):
    return {"seconds": seconds, "ratio": ratio, "peak_mb": peak_mb}


def point(clients, ours, **others):
    return {
        "clients": clients,
        "touches": 10 * clients,
        "floor": side(ours / 2),
        "ours": side(ours, 2.0),
        **{name: side(seconds) for name, seconds in others.items()},
    }


CLIENTS = {
    "leads_a_client": 100,
    "points": [
        point(1, 0.5, rows=1.0),
        point(100, 1.0, pandas=2.0, duckdb=1.5),
        point(10_000, 110.0),
    ],
}


def document(**results):
    lines = [line.as_row() for line in judge(results)]
    machine = {"cores": 2, "python": "3.11.9", "polars": "2.1.0"}
    return {"quick": False, "machine": machine, "results": results, "lines": lines}


def test_every_measurement_has_a_judge():
    assert set(JUDGES) == set(MEASUREMENTS)


@pytest.mark.parametrize(("value", "state"), [(4.0, "reached"), (4.01, "not reached")])
def test_a_line_is_reached_at_its_goal_and_not_beyond(value, state):
    assert at_most("n", "w", value, 4, unit=" ×", why="because").state == state
    assert at_least("n", "w", 8 - value, 4, unit=" ×").state == state


def test_a_reason_is_told_only_where_the_goal_is_missed():
    assert at_most("n", "w", 5, 4, unit="", note="made of", why="why").remarks == "made of; why"
    assert at_most("n", "w", 4, 4, unit="", note="made of", why="why").remarks == "made of"


def test_growth_is_the_exponent():
    assert growth([1, 10, 100], [3, 3 * 10**1.3, 3 * 100**1.3]) == pytest.approx(1.3)


def test_growth_counts_from_a_hundred_clients():
    (line,) = judge({"clients": CLIENTS})
    assert line.what == "growth exponent, 100 to 10,000 clients"
    assert line.measured == "1.02"
    assert line.state == "reached"


def test_what_could_not_be_measured_says_so_and_is_valid_json():
    (line,) = judge({"fifty": {"error": "the floor fell in"}})
    assert line.state == "not measured"
    assert line.remarks == "the floor fell in"
    json.loads(json.dumps(line.as_row(), allow_nan=False))


def test_the_table_has_every_line_and_the_reasons_of_the_missed():
    lines = [
        Line("a", "what is fast", "at most 4", "3", 0.75, why="never told"),
        Line("b", "what is slow", "at most 4", "5", 1.25, why="it waits for the disk"),
    ]
    table = report.write_table({"lines": [line.as_row() for line in lines]})
    assert "| what is fast | at most 4 | 3 | reached |" in table
    assert "| what is slow | at most 4 | 5 | not reached (1) |" in table
    assert table.endswith("(1) It waits for the disk.")


def full():
    """Results as far as the report needs them."""
    return document(
        fifty=point(50, 2.0) | {"pandas": side(3.0)},
        thousand=point(1000, 20.0),
        clients=CLIENTS,
        one_client={"points": [point(1, 0.5), point(1, 2.0) | {"touches": 100_000}]},
        refresh={
            "fifty": {
                "clients": 50,
                "activities": 400_000,
                "floor": side(6.0),
                "first": {"seconds": 8.0, "ratio_to_floor": 1.33, "peak_mb": 700},
                "incremental": {"seconds": 0.7, "ratio_to_first": 0.09, "peak_mb": 300},
            },
            "thousand": {
                "clients": 1000,
                "activities": 760_000,
                "again": {"seconds": 1.0, "peak_mb": 200},
            },
        },
    )


def test_costs_are_not_negative_and_a_larger_fleet_needs_more():
    costs = fit_costs(full()["results"])
    assert min(asdict(costs).values()) >= 0
    assert costs.load_million_s == pytest.approx(20)
    small, large = (plan(n, 10_000 * n, costs) for n in (100, 1000))
    for name in ("shards", "record_gb", "store_gb"):
        assert small[name] < large[name]
    assert large["week_workers_s"] <= large["week_s"]


def test_a_drawn_fleet_is_divided_within_the_budget():
    found = plan(1000, 20_000_000, Costs(), budget=100_000)
    sizes = draw_sizes(1000, 20_000_000)
    assert found["largest_shard_rows"] == max(sizes.max(), found["largest_shard_rows"])
    assert found["shards"] >= sizes.sum() / found["largest_shard_rows"]


def write_files(folder, measured):
    (folder / "docs" / "images").mkdir(parents=True)
    (folder / "docs" / "scale.md").write_text(f"x\n{report.BEGIN}\n{report.END}\n")
    (folder / "README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    (folder / "bench.json").write_text(json.dumps(measured))
    return [str(folder / "bench.json"), "--root", str(folder)]


def test_one_command_refreshes_table_and_plot_and_the_second_time_changes_nothing(tmp_path):
    arguments = write_files(tmp_path, full())
    assert report.main(arguments) == 0
    readme, plot = tmp_path / "README.md", tmp_path / report.PLOT
    first = readme.read_text(), plot.read_bytes()
    assert first[0].startswith("before\n")
    assert first[0].endswith("after\n")
    assert "old" not in first[0]
    assert "at most 1.05" in first[0]
    assert "100,000 clients" in (tmp_path / "docs" / "scale.md").read_text()
    assert b"dc:date" not in first[1]
    for label, _ in report.LOOKS.values():
        assert label.encode() in first[1]
    assert report.main(arguments) == 0
    assert (readme.read_text(), plot.read_bytes()) == first


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"quick": True}, "--quick"),
        ({"results": {}}, "'clients' is missing"),
        ({"results": {"clients": CLIENTS}}, "'one_client' is missing"),
        ({"machine": {}}, "'cores' is missing"),
    ],
)
def test_what_cannot_be_reported_is_said_in_a_line_and_nothing_is_written(
    tmp_path, capsys, broken, reason
):
    arguments = write_files(tmp_path, full() | broken)
    before = (tmp_path / "README.md").read_text()
    assert report.main(arguments) == 2
    assert re.fullmatch(rf".*bench\.json: .*{reason}.*\n", capsys.readouterr().err)
    assert (tmp_path / "README.md").read_text() == before
    assert not (tmp_path / report.PLOT).exists()


@pytest.mark.slow
def test_the_runner_measures_in_processes_of_their_own_and_keeps_what_it_has(tmp_path, capsys):
    out = tmp_path / "bench.json"
    for name in ("import", "fifty"):
        assert main(["--quick", "--only", name, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "detection over the floor, 2 clients" in table
    assert "import of 2,000 rows" in table
    measured = json.loads(out.read_text())
    assert set(measured["results"]) == {"import", "fifty"}
    assert {line["measurement"] for line in measured["lines"]} == {"import", "fifty"}
    assert all(
        measured["results"]["fifty"][name]["peak_mb"] > 50 for name in ("floor", "ours", "pandas")
    )
