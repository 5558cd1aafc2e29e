"""Goals of the issues beside what this machine measures. Run: make bench."""

import sys

from benchmarks import import_speed, learning_speed

# Rows of the import benchmark here; `python -m benchmarks.import_speed` takes the full million.
IMPORT_ROWS = 200_000


def main() -> int:
    """Print goal, measured and whether it was reached, a line each; 1 when one was missed."""
    fleet = learning_speed.run(50, 1000)
    imported = import_speed.run(IMPORT_ROWS)["sqlite"]
    lines = [
        ("detection, 50 clients of 1,000 leads", "<= 5 s", f"{fleet['detection_s']:.2f} s",
         fleet["detection_s"] <= 5),
        ("peak memory of that process tree's largest", "< 1500 MB", f"{fleet['peak_mb']} MB",
         fleet["peak_mb"] < 1500),
        (f"import of {IMPORT_ROWS:,} rows over a bare insert, same table", ">= 0.25",
         f"{imported['share_of_real_table']:.2f}", imported["share_of_real_table"] >= 0.25),
        (f"import of {IMPORT_ROWS:,} rows over one into a table without keys", ">= 0.25",
         f"{imported['share']:.2f}", imported["share"] >= 0.25),
    ]  # fmt: skip
    print(f"{'what':64} {'goal':>10} {'measured':>10}")
    for what, goal, measured, reached in lines:
        print(f"{what:64} {goal:>10} {measured:>10}{'' if reached else '  missed'}")
    return 0 if all(reached for *_, reached in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
