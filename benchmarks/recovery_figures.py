"""The figures of the README: what is called a win, ours beside raw rates.

Run: python -m benchmarks.recovery_figures [name ...]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import NAIVE, OURS, STYLE, TRUTH
from conversion_assets_tests.recovery import worlds
from conversion_assets_tests.recovery.agencies import Learned

FOLDER = Path(__file__).parents[1] / "docs" / "images"
LEADS = 1000
LARGEST_LIFT = 3.0
"""Lifts beyond are drawn at the edge."""


def count_wins(learned: Learned) -> tuple[np.ndarray, np.ndarray]:
    """Acts upward, and wins by raw rates, of every client; both of shape (clients,)."""
    ids = pl.DataFrame({"client_id": [c["client_id"] for c in learned.truth["clients"]]})

    def count(rows: pl.DataFrame) -> np.ndarray:
        counted = ids.join(rows.group_by("client_id").len(), on="client_id", how="left")
        return counted["len"].fill_null(0).to_numpy()

    is_up = (pl.col("verdict") == "act") & (pl.col("lift") > 1)
    return count(learned.cells.filter(is_up)), count(learned.baseline.filter("is_win"))


def draw_noise(ax: Axes, learned: Learned) -> None:
    """Clients by the number of wins that they are told, where nothing works."""
    ours, theirs = count_wins(learned)
    edges = np.arange(-0.5, max(theirs.max(), 1) + 5, 3)
    ax.hist(theirs, edges, color=NAIVE["color"], label="raw rates, minimum sample, lift > 1")
    ax.hist(ours, edges, color=OURS["color"], label="act")
    ax.set(xlabel="wins that a client is told, none of them real", ylabel="clients")
    ax.legend(loc="upper center")


def draw_winners(ax: Axes, learned: Learned) -> None:
    """Estimated over true lift of everything that is declared a winner."""
    wins = learned.baseline.filter("is_win").drop_nulls("true_lift")
    acts = learned.cells.filter(pl.col("verdict") == "act", pl.col("lift") > 1).drop_nulls(
        "true_lift"
    )
    for rows, style, name, size in ((wins, NAIVE, "raw rates", 3), (acts, OURS, "act", 4)):
        ax.plot(
            rows["true_lift"].clip(0, LARGEST_LIFT), rows["lift"].clip(0, LARGEST_LIFT),
            color=style["color"], marker=style["marker"], linestyle="none", markersize=size,
            alpha=0.25 if name == "raw rates" else 0.9, markeredgewidth=0, rasterized=True,
            label=f"{name}: {rows.height / learned.clients:.1f} winners a client",
        )  # fmt: skip
    ends = (0.6, LARGEST_LIFT + 0.05)
    ax.plot(ends, ends, label="as it is", **TRUTH)
    ax.axvline(1.0, color="#999999", linewidth=0.8)
    ax.set(xlabel="true lift", ylabel="lift stated", xlim=ends, ylim=(0.9, ends[1]))
    ax.legend(loc="upper left")


@dataclass(frozen=True)
class Drawing:
    """A figure: how it is drawn, from which clients, and how many of them."""

    paint: Callable[[Axes, Learned], None]
    learn: Callable[[int], Learned]
    clients: int


FIGURES = {
    "noise": Drawing(draw_noise, partial(worlds.learn_null, worlds.HAZARD, leads=LEADS, seed=1),
                     clients=200),
    "winners": Drawing(draw_winners,
                       partial(worlds.learn_mixed, worlds.HAZARD, leads=LEADS, seed=2), clients=60),
}  # fmt: skip


def draw(name: str, path: Path, clients: int | None = None) -> None:
    """Draw one figure into a file; the ending chooses the format."""
    drawing = FIGURES[name]
    learned = drawing.learn(clients or drawing.clients)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.0), layout="constrained")
        drawing.paint(figure.add_subplot(), learned)
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata, dpi=110)


def main(names: Sequence[str] = ()) -> None:
    """Write the named figures, or both."""
    for name in names or FIGURES:
        path = FOLDER / f"{name}.svg"
        draw(name, path)
        print(f"{path.name:20} {path.stat().st_size / 1000:6.1f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
