"""Small worlds of raw rows, drawn or seeded, and their feature frames."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st

from conversion_assets.features import Features, build_features
from conversion_assets.features.frames import ACTIVITY_COLUMNS, LEAD_COLUMNS

AS_OF = datetime(2025, 7, 1, 12, tzinfo=UTC)
CHANNELS = {"email": "email_sent", "linkedin": "linkedin_sent", "voice": "voice_completed"}
Row = dict[str, Any]

seeds = st.integers(0, 2**32 - 1)


def draw_world(seed: int, clients: int = 2, leads: int = 14) -> tuple[list[Row], list[Row]]:
    """Leads and activities around AS_OF: before the window, in it, and later than as_of.

    Days and half days, so that ties and exact borders happen.
    """
    dice = random.Random(seed)
    lead_rows: list[Row] = []
    activity_rows: list[Row] = []
    for client in range(clients):
        for number in range(dice.randint(0, leads)):
            created = AS_OF - timedelta(days=dice.randint(-10, 90) / dice.choice([1, 2]))
            lead = f"c{client}-{number}"
            converted = dice.random() < 0.45
            at = created + timedelta(days=dice.randint(0, 30) / 2)
            lead_rows.append(
                {
                    "id": lead,
                    "client_id": f"c{client}",
                    "status": "converted" if converted else dice.choice(["dead", "in_sequence"]),
                    "created_at": created,
                    "updated_at": at,
                    "converted_at": at if converted else None,
                    "source": dice.choice([None, "a", "b"]),
                    "industry": dice.choice([None, "x", "y", "z"]),
                    "als_tier": dice.choice([None, "hot", "warm"]),
                    "timezone": dice.choice([None, "Asia/Kolkata", "Europe/Berlin"]),
                    "is_hiring": dice.choice([None, True, False]),
                }
            )
            touched = created
            for touch in range(dice.choice([0, 1, 3, 10])):
                touched += timedelta(days=dice.randint(0, 6) / 2)
                channel = dice.choice(list(CHANNELS))
                activity_rows.append(
                    {
                        "id": f"{lead}-{dice.randint(0, 999):03d}-{touch}",
                        "client_id": f"c{client}",
                        "lead_id": lead,
                        "channel": channel,
                        "action": CHANNELS[channel],
                        "occurred_at": touched,
                        "led_to_booking": dice.choice([None, None, True, False]),
                    }
                )
    return lead_rows, activity_rows


def build(lead_rows: list[Row], activity_rows: list[Row]) -> Features:
    """Feature frames of raw rows."""
    return build_features(
        None,
        pl.DataFrame(lead_rows, schema=LEAD_COLUMNS),
        pl.DataFrame(activity_rows, schema=ACTIVITY_COLUMNS),
    )
