"""Quarantine: rows an import refused, as they came, with the reasons, for a person to repair."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl

from conversion_assets.domain.errors import InputError


def write_quarantine(folder: Path, refused: Mapping[str, pl.DataFrame]) -> Path | None:
    """Write refused rows to `folder/<content hash>/<table>.jsonl`; all files or none.

    The folder's name is a hash of what it holds: the same wrong file twice is one quarantine.
    Rows are personal data, so only the owner may read them.

    Args:
        folder: Where quarantines are kept; made if need be.
        refused: Per table a frame with `source` (file), `row` (number in it), `reasons` (list of
            text) and `record` (a struct of the columns as they came).

    Returns:
        The folder of this quarantine; None where nothing was refused.

    Raises:
        InputError: The folder cannot be written.
    """
    tables = {table: rows for table, rows in refused.items() if rows.height}
    if not tables:
        return None
    try:
        return _write(folder, tables)
    except OSError as error:
        raise InputError(f"quarantine folder {folder}: {error.strerror or error}") from error


def _write(folder: Path, tables: Mapping[str, pl.DataFrame]) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder / f".draft-{uuid.uuid4().hex}"
    draft.mkdir(mode=0o700)
    try:
        digest = hashlib.sha256()
        for table, rows in sorted(tables.items()):
            digest.update(table.encode())
            with (draft / f"{table}.jsonl").open("wb") as file:
                for line in _lines(rows):
                    digest.update(line)
                    file.write(line)
                file.flush()
                os.fsync(file.fileno())
        final = folder / digest.hexdigest()[:16]
        if not final.exists():
            draft.rename(final)
        return final
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _lines(rows: pl.DataFrame) -> Iterator[bytes]:
    for row in rows.iter_rows(named=True):
        yield json.dumps(row, ensure_ascii=False, default=_as_text).encode() + b"\n"


def _as_text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
