"""Quarantine: rows an import refused, as they came, with the reasons, for a person to repair.

A row of somebody who was erased is not kept as it came: only its file, number and reason are.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
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
    return _place(folder, {table: _lines(rows) for table, rows in sorted(tables.items())})


def _store(folder: Path, tables: Mapping[str, list[str]]) -> None:
    if tables:
        _place(
            folder,
            {
                table: (f"{line}\n".encode(errors="surrogateescape") for line in lines)
                for table, lines in sorted(tables.items())
            },
        )


def _place(folder: Path, tables: Mapping[str, Iterator[bytes]]) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = folder / f".draft-{uuid.uuid4().hex}"
    draft.mkdir(mode=0o700)
    try:
        digest = hashlib.sha256()
        for table, lines in tables.items():
            digest.update(table.encode())
            with (draft / f"{table}.jsonl").open("wb") as file:
                for line in lines:
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


def count_rows(folder: Path) -> dict[str, int]:
    """Refused rows by quarantine and table, as "HASH/TABLE"; nothing where there is no folder.

    Raises:
        InputError: A file cannot be read.
    """
    return {f"{path.parent.name}/{path.stem}": len(_read(path)) for path in _files(folder)}


def find_rows(folder: Path, is_meant: Callable[[str, str], bool]) -> dict[str, int]:
    """Rows for which `is_meant` says yes, by quarantine and table; see `erase_rows`."""
    found = {
        f"{path.parent.name}/{path.stem}": sum(is_meant(path.stem, line) for line in _read(path))
        for path in _files(folder)
    }
    return {name: rows for name, rows in found.items() if rows}


def erase_rows(folder: Path, is_meant: Callable[[str, str], bool]) -> int:
    """Remove rows from every quarantine; returns how many.

    A quarantine's name is the hash of what it holds, so one that loses rows gets a new name; one
    that loses all goes. Killed in between, it leaves the old one, the new one or both; the same
    call again finishes.

    Args:
        folder: Where quarantines are kept.
        is_meant: Told the table and the row as JSON text; says whether it goes.

    Raises:
        InputError: A file cannot be read or written.
    """
    removed = 0
    for quarantine in sorted({path.parent for path in _files(folder)}):
        lines = {path.stem: _read(path) for path in _files(folder) if path.parent == quarantine}
        kept = {
            table: [line for line in rows if not is_meant(table, line)]
            for table, rows in lines.items()
        }
        lost = sum(map(len, lines.values())) - sum(map(len, kept.values()))
        if not lost:
            continue
        try:
            _store(folder, {table: rows for table, rows in kept.items() if rows})
            shutil.rmtree(quarantine)
        except OSError as error:
            raise InputError(f"quarantine {quarantine}: {error.strerror or error}") from error
        removed += lost
    for draft in folder.glob(".draft-*"):
        # What a killed import left half-written.
        shutil.rmtree(draft, ignore_errors=True)
    return removed


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.jsonl") if not path.parent.name.startswith("."))


def _read(path: Path) -> list[str]:
    try:
        # Not splitlines: a record may hold a line separator of another alphabet.
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"quarantine {path}: {error.strerror or error}") from error
    return [line for line in text.split("\n") if line]
