"""Import of foreign tables through a declared mapping: YAML in, canonical rows out.

A mapping names source files, joins and filters, and says for each canonical column where its
value comes from. It is data, never code: the operations below are all there are.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NoReturn

import polars as pl
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import Engine

from conversion_assets.domain.contracts import CONTRACTS, is_zone, required_columns
from conversion_assets.domain.errors import InputError
from conversion_assets.storage import files
from conversion_assets.storage.canonical import encode_struct, parse_instants
from conversion_assets.storage.importer import SOURCE, ImportReport, Progress, import_frames


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _zone(name: str) -> str:
    if not is_zone(name):
        raise ValueError(f"unknown time zone {name!r}; want an IANA name as Europe/Amsterdam")
    return name


Zone = Annotated[str, BeforeValidator(_zone)]
Scalar = str | int | float | bool


class TimeSpec(_Model):
    """How a time is written in a source.

    Without a format it is ISO 8601. Where no zone is written, `zone` says whose clock it was;
    without that the time is naive and its row refused. A format without a time of day (a date)
    means the start of that day.
    """

    format: str | None = Field(None, description="strftime format, for example %Y-%m-%d %H:%M:%S")
    zone: Zone | None = Field(None, description="IANA zone of times written without one")
    ambiguous: Literal["earliest", "latest"] | None = Field(
        None,
        description="Which of two equal clock times is meant when clocks go back; "
        "without it such a time is refused",
    )

    @model_validator(mode="after")
    def _knows_its_zone(self) -> "TimeSpec":
        if self.format and "%z" not in self.format and self.zone is None:
            raise ValueError("a format without %z needs the zone of its times")
        return self


class Condition(_Model):
    """What must hold for a row; several keys must hold together."""

    column: str
    equals: Scalar | None = None
    in_: list[Scalar] | None = Field(None, alias="in")
    starts_with: str | None = None
    is_null: bool | None = None
    negate: bool = Field(False, description="Turn the answer round")

    @model_validator(mode="after")
    def _says_something(self) -> "Condition":
        tests = (self.equals, self.in_, self.starts_with, self.is_null)
        if all(test is None for test in tests):
            raise ValueError("want one of equals, in, starts_with, is_null")
        return self


class Case(_Model):
    """A value for rows in which all conditions hold."""

    when: list[Condition] = Field(min_length=1)
    then: "Value"


class Value(_Model):
    """Where the value of one canonical column comes from: exactly one of the sources below.

    A plain text in YAML is short for `column`.
    """

    column: str | None = Field(None, description="A column of the source, or NAME.COLUMN of a join")
    constant: Scalar | None = None
    concat: list["Value"] | None = Field(None, description="Texts put together; null if one is")
    separator: str = ""
    first_of: list["Value"] | None = Field(None, description="First that is not null")
    cases: list[Case] | None = Field(None, description="First case that holds, else otherwise")
    otherwise: "Value | None" = None
    object: "dict[str, Value] | None" = Field(None, description="A JSON object without nulls")
    time: TimeSpec | None = Field(None, description="Read the column as a time")
    vocabulary: dict[str, str | None] | None = Field(
        None, description="Words of the source and ours; a word that is not listed stays"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"column": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_one(self) -> "Value":
        sources = ("column", "constant", "concat", "first_of", "cases", "object")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"want exactly one of {', '.join(sources)}")
        if (self.time or self.vocabulary) and self.column is None:
            raise ValueError("time and vocabulary need a column")
        return self


class First(_Model):
    """One row of each group: the earliest, or with `last` the latest."""

    by: str = Field(description="Column that names the group")
    order: str = Field(description="Column with the time")
    time: TimeSpec = TimeSpec()
    last: bool = False


class Source(_Model):
    """A file, or rows chosen from another source."""

    file: str | None = Field(None, description="Name in the input folder")
    of: str | None = Field(None, description="Another source, named earlier")
    where: list[Condition] = []
    first: First | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        if (self.file is None) == (self.of is None):
            raise ValueError("want exactly one of file and of")
        if self.file and (PurePosixPath(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError("want a file inside the input folder")
        return self


class Join(_Model):
    """Columns of another source beside each row; that source has at most one row per key."""

    source: str
    # Not "on": YAML reads that word as true.
    match: dict[str, str] = Field(min_length=1, description="Our column: column of the other")
    how: Literal["left", "inner", "anti"] = "left"


class TableMapping(_Model):
    """How rows of one source become rows of a canonical table."""

    source: str
    joins: list[Join] = []
    where: list[Condition] = []
    columns: dict[str, Value]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


class ImportMapping(_Model):
    """A whole mapping: sources, and how they become clients, leads and activities."""

    version: Literal[1]
    sources: dict[str, Source] = Field(min_length=1)
    clients: list[dict[str, Scalar]] = Field([], description="Clients, written out")
    leads: Annotated[list[TableMapping], BeforeValidator(_as_list)] = []
    activities: Annotated[list[TableMapping], BeforeValidator(_as_list)] = []


def load_mapping(path: Path) -> ImportMapping:
    """Read and check a mapping file.

    Raises:
        InputError: Not readable, or not a mapping; one line that names the place in the YAML.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(f"mapping {path}: {reason}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise InputError(
            f"mapping {path}: {place}not valid YAML: {getattr(error, 'problem', error)}"
        ) from None
    try:
        mapping = ImportMapping.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "top level"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"mapping {path}: {place}: {message}") from None
    for place, problem in _problems(mapping):
        raise InputError(f"mapping {path}: {place}: {problem}")
    return mapping


def _problems(mapping: ImportMapping) -> Iterator[tuple[str, str]]:
    """Places that contradict each other or the contracts."""
    known: list[str] = []
    for name, source in mapping.sources.items():
        if source.of is not None and source.of not in known:
            yield f"sources.{name}.of", f"no source {source.of!r} above it"
        known.append(name)
    for table in ("leads", "activities"):
        for index, part in enumerate(getattr(mapping, table)):
            place = f"{table}.{index}"
            yield from _column_problems(table, list(part.columns), f"{place}.columns")
            for source in (part.source, *(join.source for join in part.joins)):
                if source not in known:
                    yield place, f"no source {source!r}; there are {', '.join(known)}"
    for index, client in enumerate(mapping.clients):
        yield from _column_problems("clients", list(client), f"clients.{index}")


def _column_problems(table: str, names: list[str], place: str) -> Iterator[tuple[str, str]]:
    known = CONTRACTS[table].column_names()
    for name in names:
        if name not in known:
            yield f"{place}.{name}", f"{table} have no such column; they have {', '.join(known)}"
    for name in required_columns(table):
        if name not in names:
            yield place, f"{table} need {name}"


def import_mapping(
    engine: Engine,
    mapping_path: Path,
    input_dir: Path,
    *,
    quarantine_dir: Path,
    dry_run: bool = False,
    allow_erased: bool = False,
    progress: Progress | None = None,
    now: Callable[[], datetime] | None = None,
) -> ImportReport:
    """Import foreign tables as a mapping declares; else as `importer.import_files`.

    Raises:
        InputError: The mapping or a source is unreadable or they do not fit; nothing was stored.
    """
    frames = map_tables(load_mapping(mapping_path), input_dir, where=str(mapping_path))
    return import_frames(
        engine,
        **frames,
        quarantine_dir=quarantine_dir,
        dry_run=dry_run,
        allow_erased=allow_erased,
        progress=progress,
        now=now,
    )


def map_tables(
    mapping: ImportMapping, input_dir: Path, *, where: str = "mapping"
) -> dict[str, pl.DataFrame]:
    """Read the sources and make canonical rows of them, as text still to be checked.

    Besides the canonical columns each row keeps the file and the number of the row it came from.

    Args:
        mapping: What to do.
        input_dir: Folder of the source files.
        where: Name of the mapping for messages.

    Raises:
        InputError: A source is unreadable, lacks a column, or has a join key twice.
    """
    if not input_dir.is_dir():
        raise InputError(f"input folder {input_dir}: no such folder")
    sources = _Sources(mapping, input_dir, where)
    frames = {}
    if mapping.clients:
        frames["clients"] = _write_out(mapping.clients, where)
    for table in ("leads", "activities"):
        parts = [
            _map_part(sources, part, f"{table}.{index}")
            for index, part in enumerate(getattr(mapping, table))
        ]
        if parts:
            frames[table] = pl.concat(parts, how="diagonal")
    return frames


def _write_out(clients: list[dict[str, Scalar]], where: str) -> pl.DataFrame:
    names = {name: None for client in clients for name in client}
    rows = [{name: _as_text(client.get(name)) for name in names} for client in clients]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String))
    return frame.with_columns(pl.lit(Path(where).name).alias(SOURCE))


def _as_text(value: Scalar | None) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else str(value)


class _Sources:
    """Frames of the declared sources, each read when first asked for and then kept."""

    def __init__(self, mapping: ImportMapping, folder: Path, where: str) -> None:
        self._declared = mapping.sources
        self._folder = folder
        self._where = where
        self._frames: dict[str, pl.DataFrame] = {}

    def frame(self, name: str) -> pl.DataFrame:
        if name not in self._frames:
            self._frames[name] = self._load(name)
        return self._frames[name]

    def fail(self, place: str, problem: str) -> NoReturn:
        raise InputError(f"{self._where}: {place}: {problem}")

    def require(self, frame: pl.DataFrame, names: Iterable[str], place: str) -> None:
        for name in names:
            if name not in frame.columns:
                known = ", ".join(c for c in frame.columns if "__" not in c)
                self.fail(place, f"no column {name!r}; there are {known}")

    def _load(self, name: str) -> pl.DataFrame:
        source, place = self._declared[name], f"sources.{name}"
        if source.file is not None:
            frame = files.read_rows(self._folder / source.file)
            frame = frame.with_columns(pl.lit(source.file).alias(SOURCE))
        else:
            frame = self.frame(str(source.of))
        frame = self.choose(frame, source.where, f"{place}.where")
        if source.first is None:
            return frame
        first = source.first
        self.require(frame, (first.by, first.order), f"{place}.first")
        instant = _instant(pl.col(first.order), frame.schema[first.order], first.time)
        # All columns break ties, so that the order of the file decides nothing.
        ties = [c for c in frame.columns if not c.startswith("__")]
        return (
            frame.with_columns(instant.alias("__instant"))
            .sort("__instant", *ties, descending=first.last, nulls_last=True)
            .unique(first.by, keep="first", maintain_order=True)
            .drop("__instant")
        )

    def choose(self, frame: pl.DataFrame, where: list[Condition], place: str) -> pl.DataFrame:
        if not where:
            return frame
        self.require(frame, (condition.column for condition in where), place)
        return frame.filter(_holds(where))


def _holds(conditions: list[Condition]) -> pl.Expr:
    return pl.all_horizontal([_test(condition) for condition in conditions])


def _test(condition: Condition) -> pl.Expr:
    text = pl.col(condition.column).cast(pl.String)
    tests = []
    if condition.equals is not None:
        tests.append(text == _as_text(condition.equals))
    if condition.in_ is not None:
        tests.append(text.is_in([_as_text(value) for value in condition.in_]))
    if condition.starts_with is not None:
        tests.append(text.str.starts_with(condition.starts_with))
    if condition.is_null is not None:
        tests.append(text.is_null() == condition.is_null)
    # A null passes no test but is_null.
    holds = pl.all_horizontal(tests).fill_null(value=False)
    return ~holds if condition.negate else holds


def _map_part(sources: _Sources, part: TableMapping, place: str) -> pl.DataFrame:
    frame = sources.frame(part.source)
    for index, join in enumerate(part.joins):
        frame = _join(sources, frame, join, f"{place}.joins.{index}")
    frame = sources.choose(frame, part.where, f"{place}.where")
    columns = []
    for name, value in part.columns.items():
        sources.require(frame, _columns_of(value), f"{place}.columns.{name}")
        columns.append(_express(value, frame.schema).alias(name))
    return frame.select(SOURCE, files.ROW, *columns)


def _join(sources: _Sources, frame: pl.DataFrame, join: Join, place: str) -> pl.DataFrame:
    other = sources.frame(join.source)
    sources.require(frame, join.match.keys(), f"{place}.match")
    sources.require(other, join.match.values(), f"{place}.match")
    keys = list(join.match.values())
    keyed = other.drop_nulls(keys)
    repeated = keyed.filter(pl.struct(keys).is_duplicated())
    if repeated.height and join.how != "anti":
        example = ", ".join(str(value) for value in repeated.select(keys).row(0))
        sources.fail(
            place,
            f"{join.source} has {repeated.height} rows that share a key, for example {example}; "
            "choose one with `first`",
        )
    prefix = f"{join.source}."
    return frame.join(
        keyed.rename(lambda name: prefix + name),
        left_on=list(join.match),
        right_on=[prefix + key for key in keys],
        how=join.how,
        coalesce=False if join.how != "anti" else None,
        maintain_order="left",
    )


def _columns_of(value: Value) -> Iterator[str]:
    """Columns a value reads."""
    if value.column is not None:
        yield value.column
    for case in value.cases or []:
        yield from (condition.column for condition in case.when)
        yield from _columns_of(case.then)
    parts = [*(value.concat or []), *(value.first_of or []), *(value.object or {}).values()]
    for part in (*parts, *([value.otherwise] if value.otherwise else [])):
        yield from _columns_of(part)


def _express(value: Value, schema: pl.Schema) -> pl.Expr:
    """The expression of a value, as text."""
    if value.constant is not None:
        return pl.lit(_as_text(value.constant))
    if value.concat is not None:
        parts = [_express(part, schema) for part in value.concat]
        return pl.concat_str(parts, separator=value.separator)
    if value.first_of is not None:
        return pl.coalesce(_express(part, schema) for part in value.first_of)
    if value.cases is not None:
        return _express_cases(value, schema)
    if value.object is not None:
        members = {name: _express(member, schema) for name, member in value.object.items()}
        return encode_struct(
            pl.struct(*(member.alias(name) for name, member in members.items())),
            pl.Struct(dict.fromkeys(members, pl.String)),
        )
    return _express_column(value, schema)


def _express_column(value: Value, schema: pl.Schema) -> pl.Expr:
    column = pl.col(str(value.column))
    if value.time is not None:
        instant = _instant(column, schema[str(value.column)], value.time)
        # What is no such time stays as it is, for the check of the rows to refuse.
        return pl.coalesce(instant.dt.to_string("iso:strict"), column.cast(pl.String))
    text = column.cast(pl.String)
    if value.vocabulary is None:
        return text
    words = list(value.vocabulary)
    return text.replace(words, pl.Series(list(value.vocabulary.values()), dtype=pl.String))


def _express_cases(value: Value, schema: pl.Schema) -> pl.Expr:
    result = _express(value.otherwise, schema) if value.otherwise else pl.lit(None, pl.String)
    for case in reversed(value.cases or []):
        result = pl.when(_holds(case.when)).then(_express(case.then, schema)).otherwise(result)
    return result


_TIME_OF_DAY = ("%H", "%I", "%T", "%R", "%X", "%c", "%s", "%r", "%k", "%l")
"""What a strftime format has if it tells the time of day."""

_NAIVE_ISO = "%Y-%m-%d %H:%M:%S%.f"


def _instant(column: pl.Expr, dtype: pl.DataType, spec: TimeSpec) -> pl.Expr:
    """A column as UTC times; null where it is none, or none in its zone."""
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is not None:
            return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
        return _localise(column.dt.cast_time_unit("us"), spec)
    if dtype == pl.Date:
        return _start_of_day(column, spec)
    return _read_instant(column.cast(pl.String), spec)


def _read_instant(text: pl.Expr, spec: TimeSpec) -> pl.Expr:
    if spec.format is None:
        naive = text.str.replace("T", " ", literal=True).str.to_datetime(
            _NAIVE_ISO, time_unit="us", strict=False
        )
        return pl.coalesce(parse_instants(text), _localise(naive, spec))
    if "%z" in spec.format:
        return text.str.to_datetime(spec.format, time_unit="us", time_zone="UTC", strict=False)
    if not any(token in spec.format for token in _TIME_OF_DAY):
        return _start_of_day(text.str.to_date(spec.format, strict=False), spec)
    return _localise(text.str.to_datetime(spec.format, time_unit="us", strict=False), spec)


def _localise(naive: pl.Expr, spec: TimeSpec) -> pl.Expr:
    if spec.zone is None:
        return pl.lit(None, dtype=pl.Datetime("us", "UTC"))
    local = naive.dt.replace_time_zone(
        spec.zone, ambiguous=spec.ambiguous or "null", non_existent="null"
    )
    return local.dt.convert_time_zone("UTC")


def _start_of_day(date: pl.Expr, spec: TimeSpec) -> pl.Expr:
    """First instant of a local day: midnight, or later where clocks go forward at midnight."""
    if spec.zone is None:
        return pl.lit(None, dtype=pl.Datetime("us", "UTC"))
    midnight = date.cast(pl.Datetime("us"))
    earliest = spec.model_copy(update={"ambiguous": "earliest"})
    # Twelve hours earlier no clock is changed; so many hours after it the day begins.
    before = _localise(midnight - pl.duration(hours=12), earliest) + pl.duration(hours=12)
    return pl.coalesce(_localise(midnight, earliest), before)
