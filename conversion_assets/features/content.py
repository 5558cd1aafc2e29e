"""What a touch says: vocabulary matches, lengths, call to action and personal touches.

Text comes from the content snapshot, else from the metadata; where there is no text the labels of
the snapshot are taken. Every distinct text is normalised and matched once per chunk, with one pass
of a multi-pattern automaton for each category.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl

from conversion_assets.domain.content import (
    PERSONAL_TOUCHES,
    SUBJECT_LENGTHS,
    ContentVocabulary,
    normalized_words,
)

MAXIMUM_JSON_BYTES = 1_000_000
"""Longer snapshots are not decoded: no message is that long, and one row must not fill memory."""
MAXIMUM_TEXT_CHARS = 20_000
"""Characters of a subject or body that are searched; 3,000 words are past any outreach message."""
CHUNK_ROWS = 50_000
"""Rows decoded and matched at once: about 50 MB of text, so memory does not grow with the input."""
_ROW_END = 0xFF
"""Parts plain texts in one buffer: no byte of ASCII has this value."""
_ROW_END_BYTE = bytes([_ROW_END])
_SPACES = b"\t\n\v\f\r "
"""White space of ASCII, as ``\\s`` of a regular expression has it."""
_WORD_ROWS = 8_000
"""Plain texts in one buffer: about 2 MB, so that each pass finds it in the processor's cache."""
_BISECT_ROWS = 64
"""Below this many rows a chunk that does not decode is decoded row by row."""

_GREETINGS = ("hi", "hey", "hello", "dear", "morning", "afternoon", "evening", "thanks")
_LEGAL_FORMS = (
    "inc", "incorporated", "llc", "llp", "lp", "ltd", "limited", "gmbh", "plc", "pty", "pte", "co",
    "corp", "corporation", "sa", "srl", "spa", "bv", "nv", "ag", "oy", "ab", "as", "kk", "ltda",
)  # fmt: skip

_TEXTS = ("subject", "body", "message", "template_id", "sequence_id", "cta", "cta_type")
_COUNTS = ("word_count", "subject_word_count", "char_count")
_LABELS = ("pain_points", "angles", "subject_patterns")
_SNAPSHOT = pl.Struct(
    {
        **dict.fromkeys(_TEXTS, pl.String()),
        **dict.fromkeys(_COUNTS, pl.Float64()),
        **dict.fromkeys(_LABELS, pl.List(pl.String())),
        **dict.fromkeys(PERSONAL_TOUCHES, pl.Boolean()),
    }
)

PERSONAL_VALUES: dict[str, pl.DataType] = {
    "company_words": pl.String(),
    "first_name_words": pl.String(),
    "greeted_name_words": pl.String(),
    "industry_words": pl.String(),
}
"""Normalised values of a lead that its own touches are searched for."""


def content_schema(vocabulary: ContentVocabulary) -> dict[str, pl.DataType]:
    """Content columns of ``touch_features`` and their types, in order."""
    return {
        "has_content": pl.Boolean(),
        "has_subject": pl.Boolean(),
        "subject_length": pl.String(),
        "word_count": pl.Int32(),
        "char_count": pl.Int32(),
        "cta": pl.String(),
        "cta_type": pl.String(),
        "template_id": pl.String(),
        "sequence_id": pl.String(),
        **dict.fromkeys(vocabulary.feature_columns(), pl.Boolean()),
    }


def normalize_words(text: pl.Expr) -> pl.Expr:
    """Column form of :func:`conversion_assets.domain.content.normalized_words`.

    Example:
        >>> frame = pl.DataFrame({"text": ["Sales-driven: thoughts?"]})
        >>> frame.select(normalize_words(pl.col("text"))).item()
        ' sales driven thoughts ? '
    """
    return _split_words(text.str.head(MAXIMUM_TEXT_CHARS).str.normalize("NFKC"))


def _split_words(composed: pl.Expr) -> pl.Expr:
    spaced = pl.concat_str(pl.lit(" "), composed, pl.lit(" ")).str.to_lowercase()
    spaced = spaced.str.replace_all("?", " ? ", literal=True)
    return spaced.str.replace_all(r"[^\p{L}\p{N}?]+", " ")


def _composed(texts: pl.Series) -> pl.Series:
    """Bounded texts in the composed Unicode form."""
    return texts.str.head(MAXIMUM_TEXT_CHARS).str.normalize("NFKC")


class _Words(NamedTuple):
    """Normalised words of texts, and how many words of the text as it is."""

    words: pl.Series
    counts: pl.Series


def _read_words(texts: pl.Series) -> _Words:
    """Normalised words and number of words of each text, null where there is none.

    Plain ASCII of a usual length, nearly all of what is sent, goes through a table of bytes: an
    eighth of the time that the regular expressions take, which read everything else.
    """
    size = texts.str.len_bytes()
    usual = (size == texts.str.len_chars()) & (size <= MAXIMUM_TEXT_CHARS)
    is_plain = usual.fill_null(False).to_numpy()
    at_plain, at_other = np.flatnonzero(is_plain), np.flatnonzero(~is_plain)
    plain, other = texts.gather(at_plain), texts.gather(at_other)
    parts = [_read_plain_words(part) for part in plain.to_frame().iter_slices(_WORD_ROWS)]
    parts.append(
        _Words(
            pl.select(_split_words(pl.lit(_composed(other)))).to_series(),
            other.str.count_matches(r"\S+"),
        )
    )
    places = np.empty(len(texts), dtype=np.int64)
    places[at_plain] = np.arange(len(at_plain))
    places[at_other] = np.arange(len(at_plain), len(texts))
    return _Words(*(pl.concat(columns).gather(places) for columns in zip(*parts, strict=True)))


def _lower_table() -> bytes:
    """Each byte of ASCII to its lower case, and whatever is no letter, digit or "?" to a space."""
    kept = {byte: chr(byte).lower() for byte in range(128) if chr(byte).isalnum()}
    kept |= {ord("?"): "?", _ROW_END: chr(_ROW_END)}
    return "".join(kept.get(byte, " ") for byte in range(256)).encode("latin-1")


_LOWER = _lower_table()
_IS_SPACE = bytes(byte in (*_SPACES, _ROW_END) for byte in range(256))


def _read_plain_words(texts: pl.DataFrame) -> _Words:
    """Words of the texts of one column, plain ASCII, none of them null."""
    end = chr(_ROW_END)
    given = end.join(["", *texts.to_series().to_list(), ""]).encode("latin-1")
    is_space = np.frombuffer(given.translate(_IS_SPACE), dtype=bool)
    begins = np.zeros(len(given), dtype=bool)
    np.greater(is_space[:-1], is_space[1:], out=begins[1:])
    ends = np.flatnonzero(np.frombuffer(given, dtype=np.uint8) == _ROW_END)
    counts = np.add.reduceat(begins, ends[:-1], dtype=np.uint32)
    spaced = given.replace(b"?", b" ? ").replace(_ROW_END_BYTE, b" " + _ROW_END_BYTE + b" ")
    buffer = np.frombuffer(spaced.translate(_LOWER), dtype=np.uint8)
    is_blank = buffer == ord(" ")
    is_kept = np.ones(len(buffer), dtype=bool)
    np.logical_not(is_blank[1:] & is_blank[:-1], out=is_kept[1:])
    words = buffer[is_kept].tobytes().decode("latin-1").split(end)[1:-1]
    return _Words(pl.Series(words, dtype=pl.String), pl.Series(counts, dtype=pl.UInt32))


def compute_personal_values(leads: pl.DataFrame, vocabulary: ContentVocabulary) -> pl.DataFrame:
    """Normalised company, first name and industry of each lead, null where not searchable.

    Args:
        leads: frame with company_name, first_name and industry.
        vocabulary: names the values that say nothing.

    Returns:
        ``leads`` with the columns of :data:`PERSONAL_VALUES` added.
    """
    useless = [normalized_words(value) for value in vocabulary.unmatchable_values]
    common = [normalized_words(value) for value in vocabulary.ambiguous_first_names]
    legal = rf"(?: (?:{'|'.join(_LEGAL_FORMS)}))+ $"

    def useful(words: pl.Expr) -> pl.Expr:
        # Two letters and the two spaces around them: a single letter is no name.
        return pl.when(words.str.len_chars() >= 4, ~words.is_in(useless)).then(words)

    company = normalize_words(pl.col("company_name"))
    bare = company.str.replace(legal, " ")
    name = useful(normalize_words(pl.col("first_name")))
    return leads.with_columns(
        company_words=pl.coalesce(useful(bare), useful(company)),
        first_name_words=pl.when(~name.is_in(common)).then(name),
        greeted_name_words=pl.when(name.is_in(common)).then(name),
        industry_words=useful(normalize_words(pl.col("industry"))),
    )


def compute_content(touches: pl.DataFrame, vocabulary: ContentVocabulary) -> pl.DataFrame:
    """Content features of touches, row by row.

    Args:
        touches: content_snapshot, metadata (JSON text), sequence_id and the columns of
            :data:`PERSONAL_VALUES` of the touch's own lead.
        vocabulary: what to look for.

    Returns:
        Frame of the same length and order with the columns of :func:`content_schema`, and
        ``is_invalid_json``: a snapshot or metadata is no JSON object.
    """
    schema = {**content_schema(vocabulary), "is_invalid_json": pl.Boolean()}
    parts = [
        _compute_chunk(touches.slice(start, CHUNK_ROWS), vocabulary).select(
            pl.col(name).cast(dtype) for name, dtype in schema.items()
        )
        for start in range(0, touches.height, CHUNK_ROWS)
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema)


def decode_json(texts: pl.Series, dtype: pl.Struct) -> tuple[pl.Series, pl.Series]:
    """Decode a column of JSON objects, tolerating rows that are none.

    Args:
        texts: String series.
        dtype: fields to read; others are skipped, absent ones are null.

    Returns:
        Struct series of the same length (null where there is no object), and a Boolean series that
        is true where a text was given that is no JSON object or is too long.
    """
    given = texts.str.strip_chars()
    blank = given.is_null() | (given == "") | (given == "null")
    too_long = given.str.len_bytes() > MAXIMUM_JSON_BYTES
    # Only what looks like one object reaches the decoder, which would recurse into deep lists.
    looks = given.str.starts_with("{") & given.str.ends_with("}") & ~too_long
    usable = (looks & ~blank).fill_null(False)
    index = usable.arg_true()
    decoded = _decode_or_split(given.gather(index), dtype)
    whole = pl.DataFrame(
        {"at": index, "value": decoded}, schema={"at": index.dtype, "value": dtype}
    )
    rows = pl.DataFrame({"at": pl.Series(range(len(texts)), dtype=index.dtype)})
    values = rows.join(whole, on="at", how="left", maintain_order="left")["value"]
    return values, (~blank).fill_null(False) & values.is_null()


def _decode_or_split(texts: pl.Series, dtype: pl.Struct) -> pl.Series:
    """Decode all at once; where that fails, halves; single rows that fail are read leniently."""
    if texts.is_empty():
        return pl.Series(dtype=dtype)
    try:
        decoded = texts.str.json_decode(dtype)
    except pl.exceptions.ComputeError:
        decoded = pl.Series(dtype=dtype)
    # One text that holds two objects would decode to two rows and shift all that follow.
    if len(decoded) == len(texts):
        return decoded
    if len(texts) == 1:
        return pl.Series([_decode_leniently(texts.item(), dtype)], dtype=dtype)
    middle = 1 if len(texts) <= _BISECT_ROWS else len(texts) // 2
    first = _decode_or_split(texts.head(middle), dtype)
    return pl.concat([first, _decode_or_split(texts.tail(len(texts) - middle), dtype)])


def _decode_leniently(text: str, dtype: pl.Struct) -> dict[str, object] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return {field.name: _field_value(value.get(field.name), field.dtype) for field in dtype.fields}


def _field_value(value: object, dtype: object) -> object:
    """A JSON value as a field's type, or None where it is of another kind."""
    if isinstance(dtype, pl.List):
        values = value if isinstance(value, list) else [value]
        return [item for item in values if isinstance(item, str)] or None
    if isinstance(dtype, pl.Boolean):
        return value if isinstance(value, bool) else None
    if isinstance(dtype, pl.Float64):
        return float(value) if isinstance(value, int | float) else None
    return value if isinstance(value, str) else None


def _compute_chunk(touches: pl.DataFrame, vocabulary: ContentVocabulary) -> pl.DataFrame:
    return describe_texts(read_texts(touches), vocabulary)


def read_texts(touches: pl.DataFrame) -> pl.DataFrame:
    """Decode what touches say: text of the snapshot, else of the metadata.

    Args:
        touches: content_snapshot, metadata (JSON text), sequence_id and the columns of
            :data:`PERSONAL_VALUES` of the touch's own lead.

    Returns:
        Frame of the same length and order: subject, body, template_id, sequence_id (null where
        blank), ``is_invalid_json``, the personal values, and both documents decoded.
    """
    snapshot, bad_snapshot = decode_json(touches["content_snapshot"], _SNAPSHOT)
    metadata, bad_metadata = decode_json(touches["metadata"], _SNAPSHOT)
    frame = touches.select("sequence_id", *PERSONAL_VALUES).with_columns(
        s=snapshot, m=metadata, is_invalid_json=bad_snapshot | bad_metadata
    )
    return frame.with_columns(
        subject=_first_text("s.subject", "m.subject"),
        body=_first_text("s.body", "s.message", "m.body", "m.message"),
        template_id=_first_text("s.template_id", "m.template_id"),
        sequence_id=pl.coalesce(
            _blank_to_null(pl.col("sequence_id")), _first_text("s.sequence_id", "m.sequence_id")
        ),
    )


def describe_texts(texts: pl.DataFrame, vocabulary: ContentVocabulary) -> pl.DataFrame:
    """Match the texts of :func:`read_texts`, row by row; columns as of :func:`compute_content`."""
    frame = pl.concat(
        [
            texts,
            _match_subjects(texts["subject"], vocabulary),
            _match_bodies(texts["body"], vocabulary),
        ],
        how="horizontal",
    )
    return frame.select(
        "is_invalid_json",
        "template_id",
        "sequence_id",
        *_lengths(),
        *_vocabulary_columns(vocabulary),
        *_personal_columns(),
    )


def _blank_to_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.strip_chars() != "").then(text)


def _field(path: str) -> pl.Expr:
    root, name = path.split(".")
    return pl.col(root).struct.field(name)


def _first_text(*paths: str) -> pl.Expr:
    return pl.coalesce(*(_blank_to_null(_field(path)) for path in paths))


def _once_per_text(texts: pl.Series, compute: Callable[[pl.Series], pl.DataFrame]) -> pl.DataFrame:
    """Compute a frame from the distinct values of a text column and spread its rows again."""
    name = texts.name
    distinct = texts.drop_nulls().unique(maintain_order=True)
    # Personalised bodies are all different: looking each up again would cost more than it saves.
    if len(distinct) * 2 > len(texts):
        return compute(texts)
    known = distinct.to_frame().hstack(compute(distinct))
    return texts.to_frame().join(known, on=name, how="left", maintain_order="left").drop(name)


def _categories(vocabulary: ContentVocabulary) -> dict[str, list[str]]:
    """Normalised keywords of each column that tells whether one of them is in a text."""
    categories = {
        **{f"pain__{name}": keys for name, keys in vocabulary.pain_points.items()},
        **{f"angle__{name}": keys for name, keys in vocabulary.angles.items()},
        "personal__recent_news": vocabulary.recent_news,
        "personal__mutual_connection": vocabulary.mutual_connection,
    }
    return {name: [normalized_words(key) for key in keys] for name, keys in categories.items()}


def _match_categories(words: pl.Series, prefix: str, vocabulary: ContentVocabulary) -> pl.DataFrame:
    """Whether each text has a keyword of each category: one pass for all of them.

    The automaton lists all keywords of a text. Few different lists come up, so categories are
    looked for in those; a keyword is in the list exactly when it is in the text.
    """
    categories = _categories(vocabulary)
    phrases = sorted({phrase for listed in categories.values() for phrase in listed})
    if not phrases:
        none = pl.repeat(False, len(words), dtype=pl.Boolean, eager=True)
        return pl.DataFrame({prefix + name: none for name in categories})
    # No keyword has a line's end in it, so none is found across two of them.
    found = words.str.extract_many(phrases, overlapping=True).list.join("\n").alias("found")
    distinct = found.unique()
    flags = distinct.to_frame().with_columns(
        pl.col("found").str.contains_any(listed).fill_null(False).alias(prefix + name)
        if listed
        else pl.lit(False).alias(prefix + name)
        for name, listed in categories.items()
    )
    return (
        found.to_frame()
        .join(flags, on="found", how="left", maintain_order="left", nulls_equal=True)
        .drop("found")
    )


def _match_subjects(subjects: pl.Series, vocabulary: ContentVocabulary) -> pl.DataFrame:
    def compute(texts: pl.Series) -> pl.DataFrame:
        bounded = texts.str.head(MAXIMUM_TEXT_CHARS).alias("subject")
        read = _read_words(bounded)
        patterns = bounded.to_frame().select(
            pl.col("subject").str.contains(f"(?i){pattern}").alias(f"in_subject_{name}")
            for name, pattern in vocabulary.subject_patterns.items()
        )
        return pl.concat(
            [
                pl.DataFrame({"subject_words": read.words, "subject_count": read.counts}),
                patterns,
                _match_categories(read.words, "subject_", vocabulary),
            ],
            how="horizontal",
        )

    return _once_per_text(subjects, compute)


def _match_bodies(bodies: pl.Series, vocabulary: ContentVocabulary) -> pl.DataFrame:
    def compute(texts: pl.Series) -> pl.DataFrame:
        read = _read_words(texts)
        frame = pl.DataFrame(
            {
                "body_words": read.words,
                "body_count": read.counts,
                "body_chars": texts.str.len_chars(),
            }
        )
        matches = _match_categories(read.words, "body_", vocabulary)
        return pl.concat([frame.with_columns(_first_cta(vocabulary)), matches], how="horizontal")

    return _once_per_text(bodies, compute)


def _first_cta(vocabulary: ContentVocabulary) -> pl.Expr:
    if not vocabulary.ctas:
        return pl.lit(None, dtype=pl.String).alias("body_cta")
    # Longer phrases first: of two that begin at the same word the automaton takes the earlier one.
    phrases = sorted(vocabulary.ctas, key=lambda phrase: (-len(normalized_words(phrase)), phrase))
    found = pl.col("body_words").str.extract_many(
        [normalized_words(phrase) for phrase in phrases], leftmost=True
    )
    named = {normalized_words(phrase): phrase for phrase in reversed(phrases)}
    first = found.list.first().replace_strict(named, default=None, return_dtype=pl.String)
    return first.alias("body_cta")


def _count(path: str) -> pl.Expr:
    """A given count as a whole number that fits, else null."""
    value = _field(path)
    return pl.when(value.is_between(0, 2**31 - 1)).then(value.floor()).cast(pl.Int32)


def _lengths() -> list[pl.Expr]:
    has_subject_text = pl.col("subject").is_not_null()
    has_body = pl.col("body").is_not_null()
    given_words = _count("s.subject_word_count")
    words = pl.when(has_subject_text).then(pl.col("subject_count")).otherwise(given_words)
    labelled = [_field(f"s.{name}").is_not_null() for name in (*_LABELS, "cta", "cta_type")]
    labelled += [_field(f"s.{name}").is_not_null() for name in PERSONAL_TOUCHES]
    has_subject = has_subject_text | (given_words > 0) | (_given("subject_patterns").list.len() > 0)
    (short, short_words), (medium, medium_words), (long, _) = SUBJECT_LENGTHS
    return [
        pl.any_horizontal(has_subject, has_body, *labelled).fill_null(False).alias("has_content"),
        has_subject.fill_null(False).alias("has_subject"),
        pl.when(words <= 0)
        .then(None)
        .when(words <= short_words)
        .then(pl.lit(short))
        .when(words <= medium_words)
        .then(pl.lit(medium))
        .when(words.is_not_null())
        .then(pl.lit(long))
        .alias("subject_length"),
        pl.when(has_body)
        .then(pl.col("body_count"))
        .otherwise(_count("s.word_count"))
        .alias("word_count"),
        pl.when(has_body)
        .then(pl.col("body_chars"))
        .otherwise(_count("s.char_count"))
        .alias("char_count"),
    ]


def _given(name: str) -> pl.Expr:
    return _field(f"s.{name}")


def _labelled(name: str, value: str) -> pl.Expr:
    return _given(name).list.contains(value).fill_null(False)


def _vocabulary_columns(vocabulary: ContentVocabulary) -> list[pl.Expr]:
    no_body = pl.col("body").is_null()
    no_subject = pl.col("subject").is_null()
    columns = []
    for name in vocabulary.subject_patterns:
        matched = pl.col(f"in_subject_{name}").fill_null(False)
        labelled = no_subject & _labelled("subject_patterns", name)
        columns.append((matched | labelled).alias(f"subject__{name}"))
    for prefix, field, names in (
        ("pain__", "pain_points", vocabulary.pain_points),
        ("angle__", "angles", vocabulary.angles),
    ):
        for name in names:
            key = f"{prefix}{name}"
            labelled = no_body & _labelled(field, name)
            columns.append((_in_either(key) | labelled).alias(key))
    given_cta = _blank_to_null(_given("cta").str.strip_chars().str.to_lowercase())
    cta = pl.when(no_body).then(given_cta).otherwise(pl.col("body_cta"))
    types = cta.replace_strict(dict(vocabulary.ctas), default=None, return_dtype=pl.String)
    given_type = _blank_to_null(_given("cta_type").str.strip_chars().str.to_lowercase())
    columns.append(cta.alias("cta"))
    columns.append(
        pl.when(no_body).then(pl.coalesce(given_type, types)).otherwise(types).alias("cta_type")
    )
    return columns


def _in_either(key: str) -> pl.Expr:
    in_subject = pl.col(f"subject_{key}").fill_null(False)
    return in_subject | pl.col(f"body_{key}").fill_null(False)


def _mentions(value: pl.Expr) -> pl.Expr:
    """The lead's own value stands in the subject or the body, as whole words."""
    found = [
        pl.col(words).str.contains(value, literal=True).fill_null(False)
        for words in ("subject_words", "body_words")
    ]
    return found[0] | found[1]


def _personal_columns() -> list[pl.Expr]:
    greeted = pl.any_horizontal(
        _mentions(pl.concat_str(pl.lit(f" {greeting}"), pl.col("greeted_name_words")))
        for greeting in _GREETINGS
    )
    matched = {
        "company_mention": _mentions(pl.col("company_words")),
        "first_name": _mentions(pl.col("first_name_words")) | greeted,
        "recent_news": _in_either("personal__recent_news"),
        "mutual_connection": _in_either("personal__mutual_connection"),
        "industry_specific": _mentions(pl.col("industry_words")),
    }
    no_body = pl.col("body").is_null()
    return [
        (matched[name] | (no_body & _given(name).fill_null(False))).alias(f"personal__{name}")
        for name in PERSONAL_TOUCHES
    ]
