"""Reading of Parquet, CSV and JSONL files into frames, one row per record, nothing interpreted.

CSV and JSONL values arrive as text: an id keeps its leading zeros and a time its zone.
"""

import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from conversion_assets.domain.errors import InputError
from conversion_assets.storage.json_text import take_members

MAXIMUM_UNPACKED_BYTES = 4 * 2**30
"""Largest content of a .gz file: about 15 million activities, and less than a server's memory.
A gzip file can grow a thousandfold, so a size must be refused before it is in memory."""

ROW = "__row"
"""Number of the record in its file: the row after the header in CSV and Parquet, from 1, and the
line in JSONL."""


class UnreadableError(Exception):
    """What is wrong with a file, without its name."""


_FORMATS = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def read_rows(path: Path, *, json_columns: Sequence[str] = ()) -> pl.DataFrame:
    """Read one file: its columns as they stand, and `ROW`, the number of each record.

    Args:
        path: A .parquet, .csv, .jsonl or .ndjson file; the text formats also with .gz.
        json_columns: Columns of a JSONL file that may hold objects; they become JSON text.

    Raises:
        InputError: The file is missing, of another kind, damaged, or its header names a column
            twice. The message is one line and names the file.
    """
    kind = _kind(path)
    try:
        if kind == "parquet":
            frame = pl.read_parquet(io.BytesIO(_read_bytes(path)))
            return frame.with_row_index(ROW, offset=1)
        content = _read_bytes(path).removeprefix(b"\xef\xbb\xbf")
        return _read_csv(content) if kind == "csv" else _read_jsonl(content, json_columns)
    except UnreadableError as error:
        raise InputError(f"{path}: {error}") from error
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not readable as {kind}: {_first_line(error)}") from error


def _kind(path: Path) -> str:
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give one .parquet, .csv or .jsonl file")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    packed = path.suffix.lower() == ".gz"
    kind = _FORMATS.get(Path(path.stem).suffix.lower() if packed else path.suffix.lower())
    if kind is None or (packed and kind == "parquet"):
        raise InputError(
            f"{path}: unknown kind of file; want .parquet, .csv, .jsonl, .csv.gz or .jsonl.gz"
        )
    return kind


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    with gzip.open(path) as packed:
        content = packed.read(MAXIMUM_UNPACKED_BYTES + 1)
    if len(content) > MAXIMUM_UNPACKED_BYTES:
        raise UnreadableError(
            f"unpacks to more than {MAXIMUM_UNPACKED_BYTES:,} bytes; split it into smaller files"
        )
    return content


def _read_csv(content: bytes) -> pl.DataFrame:
    if not content.strip():
        raise UnreadableError("is empty; want a header line with column names")
    header = pl.read_csv(io.BytesIO(content), has_header=False, infer_schema=False, n_rows=1)
    names = [str(name) for name in header.row(0)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UnreadableError(f"names a column twice in its header: {', '.join(repeated)}")
    # Without inference every value is text; 007 stays 007.
    frame = pl.read_csv(io.BytesIO(content), infer_schema=False).with_row_index(ROW, offset=1)
    # A blank line reads as a row without any value.
    return frame.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))


def _read_jsonl(content: bytes, json_columns: Sequence[str]) -> pl.DataFrame:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"is not UTF-8 at byte {error.start}") from error
    lines = pl.DataFrame({"line": text.split("\n")}).with_row_index(ROW, offset=1)
    lines = lines.filter(pl.col("line").str.strip_chars() != "")
    if lines.height == 0:
        return lines.select(ROW)
    stream = io.BytesIO("\n".join(lines["line"]).encode())
    try:
        names = _jsonl_names(stream, lines["line"])
        stream.seek(0)
        frame = pl.read_ndjson(stream, schema=dict.fromkeys(names, pl.String))
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise UnreadableError(_explain_jsonl(lines)) from error
    frame = frame.with_columns(
        take_members(lines["line"], name).alias(name) for name in json_columns if name in names
    )
    return frame.select(lines[ROW], pl.all())


def _jsonl_names(stream: io.BytesIO, lines: pl.Series) -> list[str]:
    try:
        return pl.scan_ndjson(stream, infer_schema_length=None).collect_schema().names()
    except pl.exceptions.PolarsError:
        # Values of one key that have no common type: only the names matter here.
        names: dict[str, None] = {}
        for line in lines:
            record = json.loads(line)
            names.update(dict.fromkeys(record if isinstance(record, dict) else ()))
        return list(names)


def _explain_jsonl(lines: pl.DataFrame) -> str:
    for number, line in lines.iter_rows():
        try:
            record = json.loads(line)
        except ValueError as error:
            return f"line {number} is not valid JSON: {_first_line(error)}"
        if not isinstance(record, dict):
            return f"line {number} is not a JSON object"
    return "is not readable as JSON lines; want one JSON object a line"


def _first_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0][:200]
