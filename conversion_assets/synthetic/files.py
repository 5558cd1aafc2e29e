"""Write a generated agency to a folder: three Parquet files and the truth."""

import json
import os
from contextlib import suppress
from pathlib import Path

from conversion_assets.domain.errors import InputError
from conversion_assets.synthetic.generator import Agency

FILES = ("clients.parquet", "leads.parquet", "activities.parquet", "truth.json")


def write_agency(agency: Agency, folder: Path) -> list[Path]:
    """Write clients.parquet, leads.parquet, activities.parquet and truth.json.

    Each file appears whole or not at all; truth.json comes last, so that a folder that has it is
    complete.

    Args:
        agency: what to write.
        folder: made when missing.

    Returns:
        Paths in the order of FILES.

    Raises:
        InputError: the folder cannot be written.
    """
    paths = [folder / name for name in FILES]
    parts = [path.with_name(f".{path.name}.part") for path in paths]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frames = (agency.clients, agency.leads, agency.activities)
        for part, frame in zip(parts, frames, strict=False):
            frame.write_parquet(part)
        parts[-1].write_text(json.dumps(agency.truth, indent=1) + "\n", encoding="utf-8")
        for part, path in zip(parts, paths, strict=True):
            os.replace(part, path)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        for part in parts:
            with suppress(OSError):  # what cannot be removed was not made here
                part.unlink()
    return paths
