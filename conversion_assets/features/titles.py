"""Job titles to seniority, function and a canonical name.

Distinct titles are normalised once and joined back, so a column of a million leads costs as much as
its vocabulary of titles. English titles and their abbreviations; anything else is "other".
"""

import re
import unicodedata
from functools import lru_cache
from typing import NamedTuple

import polars as pl

MAXIMUM_TITLE_LENGTH = 200
"""Characters of a title that are read; longer ones are slogans, and the rank stands in front."""

SENIORITIES: tuple[str, ...] = ("owner", "c_level", "vp", "director", "manager", "other")
"""Highest first."""

AUTHORITIES: tuple[str, ...] = (
    "principal", "chief", "vp", "director", "senior_manager", "manager", "other",
)  # fmt: skip
"""Steps of authority in the lead score, highest first; a principal owns, founded or heads it."""

REMEMBERED_TITLES = 2**16
"""Titles whose authority is kept in memory, 10 MB: leads come in parts, and titles come again."""

_ABBREVIATIONS = {
    "sr": "senior", "snr": "senior", "jr": "junior", "jnr": "junior", "dir": "director",
    "mgr": "manager", "mngr": "manager", "mgmt": "management", "mktg": "marketing",
    "mkt": "marketing", "mktng": "marketing", "ops": "operations", "eng": "engineering",
    "engr": "engineer", "exec": "executive", "asst": "assistant", "assoc": "associate",
    "dept": "department", "acct": "account", "bus": "business", "dev": "development",
    "svp": "senior vp", "evp": "executive vp", "avp": "assistant vp", "rvp": "regional vp",
    "gvp": "group vp", "vps": "vp", "pres": "president", "cofounder": "founder",
    "directors": "director", "managers": "manager", "md": "managing director",
    "gm": "general manager", "tech": "technology", "admin": "administration",
}  # fmt: skip

# Whoever supports a person of rank does not hold the rank.
_SUPPORT = frozenset(
    {"assistant", "pa", "ea", "secretary", "aide", "intern", "trainee", "apprentice"}
)  # fmt: skip
# "Assistant Director" is a rank of its own, one step below.
_ONE_BELOW = {"vp": "director", "director": "manager", "manager": "other"}

_C_LEVEL = frozenset(
    {
        "ceo", "cfo", "cmo", "coo", "cto", "cio", "ciso", "cpo", "cro", "cdo", "chro", "cco", "cso",
        "cxo", "clo", "cao", "chief", "president",
    }
)  # fmt: skip
# A product owner owns a backlog, not the company.
_NOT_COMPANY_OWNER = frozenset(
    {
        "product", "process", "data", "system", "service", "account", "risk", "home", "content",
        "platform", "application", "project", "task", "code", "domain",
    }
)  # fmt: skip
# Head of the company, the highest officer of it: "CEO" in any spelling, not "Deputy CEO".
_CEO = re.compile(r"(?<!deputy )(?<!vice )(?:\bceo\b|\bchief executive\b)")
_SENIOR_MANAGER = re.compile(r"\bsenior (?:\w+ )*?manager\b")
_OWNING_PARTNER = re.compile(r"\b(?:managing|founding|equity|general) partner\b|^partner$")

_CANONICAL: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("CEO", re.compile(r"\bceo\b|\bchief executive\b")),
    ("CMO", re.compile(r"\bcmo\b|\bchief (?:\w+ )?marketing (?:\w+ )?officer\b")),
    ("CFO", re.compile(r"\bcfo\b|\bchief financ(?:e|ial) officer\b")),
    ("COO", re.compile(r"\bcoo\b|\bchief operat(?:ing|ions?) officer\b")),
    ("CTO", re.compile(r"\bcto\b|\bchief techn(?:ology|ical) officer\b")),
)

_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "marketing": (
        "marketing", "brand", "content", "growth", "demand generation", "demand gen",
        "communications", "comms", "pr", "public relations", "seo", "ppc", "social media",
        "advertising", "cmo", "media", "product marketing",
    ),
    "sales": (
        "sales", "revenue", "business development", "bd", "bdm", "bdr", "sdr", "account executive",
        "account manager", "commercial", "partnerships", "cro", "lead generation",
    ),
    "finance": (
        "finance", "financial", "accounting", "accountant", "accounts", "controller", "treasurer",
        "treasury", "cfo", "bookkeeper", "tax", "audit", "auditor",
    ),
    "operations": (
        "operations", "operating", "operational", "coo", "supply chain", "logistics", "procurement",
        "purchasing", "administration", "office manager", "facilities", "production",
        "manufacturing", "plant",
    ),
    "technology": (
        "technology", "technical", "engineering", "engineer", "developer", "software", "it",
        "information", "data", "security", "devops", "cto", "cio", "ciso", "architect",
        "infrastructure", "systems",
    ),
    "product": ("product", "ux", "cpo"),
    "people": (
        "people", "hr", "human resources", "talent", "recruiting", "recruitment", "recruiter",
        "culture", "chro", "technical recruiter", "technical recruiting", "it recruiter",
    ),
}  # fmt: skip
_FUNCTION_OF = {word: function for function, words in _FUNCTIONS.items() for word in words}
# Alternatives by length, so that "product marketing" is found before "product".
_FUNCTION_WORD = re.compile(
    r"\b(?:" + "|".join(sorted(map(re.escape, _FUNCTION_OF), key=len, reverse=True)) + r")\b"
)


class Title(NamedTuple):
    """A normalised title; all None when there is none."""

    seniority: str | None
    function: str | None
    title: str | None


def normalize_title(raw: str | None) -> Title:
    """Seniority, function and canonical name of one title.

    Where a title names several ranks the highest counts; of several functions the first.

    Example:
        >>> normalize_title("VP Sales & Marketing") == normalize_title("Vice-President, Sales")
        True
        >>> normalize_title("Director's Assistant").seniority
        'other'
        >>> normalize_title("Founder & C.E.O.")
        Title(seniority='owner', function='other', title='CEO')
    """
    words = _clean(raw)
    if not words:
        return Title(None, None, None)
    held = _without_superiors(words)
    seniority = _seniority(held)
    found = _FUNCTION_WORD.search(held) or _FUNCTION_WORD.search(words)
    function = _FUNCTION_OF[found.group()] if found else "other"
    return Title(seniority, function, _canonical(held, seniority, function))


@lru_cache(maxsize=REMEMBERED_TITLES)
def normalize_authority(raw: str | None) -> str | None:
    """Step of `AUTHORITIES` a title holds; None when there is no title.

    Example:
        >>> [normalize_authority(title) for title in ("Founder", "Sr. Sales Mgr", "CFO", " ")]
        ['principal', 'senior_manager', 'chief', None]
        >>> normalize_authority("Director's Assistant")
        'other'
    """
    words = _clean(raw)
    if not words:
        return None
    held = _without_superiors(words)
    seniority = _seniority(held)
    if seniority == "owner" or (seniority == "c_level" and _CEO.search(held)):
        return "principal"
    if seniority == "manager" and _SENIOR_MANAGER.search(held):
        return "senior_manager"
    return "chief" if seniority == "c_level" else seniority


def normalize_authorities(titles: pl.Series) -> pl.Series:
    """Authority of each title of a column, each distinct one looked at once.

    Args:
        titles: String series of any length, nulls allowed.

    Returns:
        String series of the same length and order.

    Example:
        >>> normalize_authorities(pl.Series(["CEO", None, "Team Lead"])).to_list()
        ['principal', None, 'manager']
    """
    distinct = titles.cast(pl.String).drop_nulls().unique()
    steps = [normalize_authority(text[:MAXIMUM_TITLE_LENGTH]) for text in distinct.to_list()]
    return titles.cast(pl.String).replace_strict(
        distinct, pl.Series(steps, dtype=pl.String), default=None, return_dtype=pl.String
    )


def normalize_titles(titles: pl.Series) -> pl.DataFrame:
    """Normalise a column of titles: each distinct one once.

    Args:
        titles: String series of any length, nulls allowed.

    Returns:
        Frame of the same length and order with String columns seniority, function, title.

    Example:
        >>> normalize_titles(pl.Series(["CMO", None, "Head of Growth"]))["seniority"].to_list()
        ['c_level', None, 'director']
    """
    raw = titles.cast(pl.String).alias("raw")
    distinct = raw.drop_nulls().unique(maintain_order=True)
    parts = [normalize_title(text) for text in distinct.to_list()]
    schema = dict.fromkeys(Title._fields, pl.String)
    known = pl.DataFrame(parts, schema=schema, orient="row").with_columns(distinct)
    joined = raw.to_frame().join(known, on="raw", how="left", maintain_order="left")
    return joined.select(Title._fields)


def _clean(raw: str | None) -> str:
    """Lower-case ASCII-folded words, abbreviations spelled out, segments divided by " | "."""
    text = unicodedata.normalize("NFKD", (raw or "")[:MAXIMUM_TITLE_LENGTH]).lower()
    text = "".join(char for char in text if not unicodedata.combining(char)).replace("’", "'")
    text = re.sub(r"\b(?:[a-z]\.){2,}(?:[a-z]\b)?", lambda m: m.group().replace(".", ""), text)
    text = re.sub(r"\bco[- ](?=(?:founder|owner|ceo)\b)", "", text)
    text = re.sub(r"\bvice[- ]?president\b|\bv[. ]p\b", " vp ", text)
    text = re.sub(r"&|\+", " and ", text)
    text = re.sub(r"\s[-–—]+\s|[,;|/:()\[\]]", " | ", text)
    text = re.sub(r"'s\b|s'(?=\s)", " 's ", text)
    words = [_ABBREVIATIONS.get(word, word) for word in re.findall(r"'s|[^\W_]+|\|", text)]
    cleaned = " ".join(words).strip(" |")
    return "" if cleaned in {"n a", "n | a", "na", "none", "null", "unknown"} else cleaned


def _without_superiors(words: str) -> str:
    """Leave out other people's ranks: "X's", "to the X", and what somebody was or hopes to be."""
    words = words.rsplit(" 's ", 1)[-1].removesuffix(" 's")
    words = re.sub(r"\b(?:reporting )?to (?:the |our |a |an )?.*$", "", words)
    words = re.sub(r"\boffice of .*$", "", words)
    segments = [
        segment.strip()
        for segment in words.split("|")
        if not re.match(r"\s*(?:ex|former|formerly|retired|past|aspiring|future)\b", segment)
    ]
    return " | ".join(segment for segment in segments if segment)


def _seniority(held: str) -> str:
    tokens = held.split()
    demoted = None
    for position, word in enumerate(tokens):
        if word in _SUPPORT:
            after = tokens[position + 1] if position + 1 < len(tokens) else ""
            if word != "assistant" or after not in _ONE_BELOW:
                return "other"
            demoted = _ONE_BELOW[after]
    return demoted or _rank(held, tokens)


def _rank(held: str, tokens: list[str]) -> str:
    present = set(tokens)
    owns = _owns(tokens) or _OWNING_PARTNER.search(held) is not None
    leads = re.sub(r"\blead (?:gen\b|generation|qualification|magnet)", "", held)
    ranks = (
        ("owner", owns),
        ("c_level", bool(present & _C_LEVEL) or "managing director" in held),
        ("vp", "vp" in present),
        ("director", bool(present & {"director", "head"})),
        ("manager", re.search(r"\b(?:manager|lead|leader|supervisor)\b", leads) is not None),
    )
    return next((name for name, holds in ranks if holds), "other")


def _owns(tokens: list[str]) -> bool:
    if {"founder", "proprietor"} & set(tokens):
        return True
    before = ["", *tokens]
    return any(
        word == "owner" and before[position] not in _NOT_COMPANY_OWNER
        for position, word in enumerate(tokens)
    )


def _canonical(held: str, seniority: str, function: str) -> str | None:
    if seniority in {"owner", "c_level"}:
        for name, pattern in _CANONICAL:
            if pattern.search(held):
                return name
        return "Owner" if re.search(r"\b(?:owner|proprietor)\b", held) else None
    if seniority == "director" and "director" in held.split():
        return {"marketing": "Marketing Director", "sales": "Sales Director"}.get(function)
    return None
