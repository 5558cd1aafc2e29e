"""Which companies a client looks for: the settings behind the company fit of the lead score."""

import re
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
"""One industry or country. Longer than any real one is a misplaced description."""

MOST_NAMES = 1000
"""Names of one list: there are about 250 countries and as many industries in common lists."""

ENGLISH_SPEAKING: dict[str, str] = {
    "australia": "australia", "au": "australia", "aus": "australia",
    "new zealand": "new zealand", "nz": "new zealand", "nzl": "new zealand",
    "aotearoa": "new zealand",
    "united kingdom": "united kingdom", "uk": "united kingdom", "gb": "united kingdom",
    "gbr": "united kingdom", "great britain": "united kingdom", "england": "united kingdom",
    "scotland": "united kingdom", "wales": "united kingdom", "northern ireland": "united kingdom",
    "united states": "united states", "united states of america": "united states",
    "us": "united states", "usa": "united states", "america": "united states",
    "canada": "canada", "ca": "canada", "can": "canada",
    "ireland": "ireland", "ie": "ireland", "irl": "ireland", "republic of ireland": "ireland",
    "south africa": "south africa", "za": "south africa", "zaf": "south africa",
    "india": "india", "in": "india", "ind": "india",
    "singapore": "singapore", "sg": "singapore", "sgp": "singapore",
}  # fmt: skip
"""Countries in which business is done in English, by each usual way to write them."""


class EmployeeRange(BaseModel):
    """Head count of a fitting company, both ends included.

    Example:
        >>> EmployeeRange(lowest=6, highest=100).highest
        100
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    lowest: int = Field(1, ge=0, le=2**31 - 1, description="Smallest head count that fits")
    highest: int = Field(ge=1, le=2**31 - 1, description="Largest head count that fits")

    def model_post_init(self, _context: object) -> None:
        """Refuse an empty range."""
        if self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest} is above highest {self.highest}")


class IdealProfile(BaseModel):
    """The ideal customer of one client. What is left out fits nobody.

    A client without a profile has this model's default: no industry and no country is its own and
    no head count is in range, so company fit is 3 points, and 7 in English-speaking countries.

    Example:
        >>> IdealProfile(industries=("SaaS",), employees=EmployeeRange(highest=50)).countries
        ()
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    industries: tuple[Name, ...] = Field((), max_length=MOST_NAMES, description="Industries sought")
    employees: EmployeeRange | None = Field(None, description="Head count sought")
    countries: tuple[Name, ...] = Field((), max_length=MOST_NAMES, description="Countries sought")


DEFAULT_PROFILE = IdealProfile()
"""Of a client that has told none: nothing fits in particular."""


WANTED = '{"industries": [text], "employees": {"lowest": n, "highest": n}, "countries": [text]}'


def read_profile(text: str | None) -> tuple[IdealProfile, str | None]:
    """Read a stored profile, and say what is wrong with it.

    Args:
        text: JSON object as stored; None where the client has none.

    Returns:
        The profile and None; or the default and one line that says what is wrong.

    Example:
        >>> fault = read_profile('{"employees": {"lowest": 9, "highest": 5}}')[1]
        >>> fault.partition(";")[0]
        'ideal profile: employees: lowest 9 is above highest 5'
        >>> read_profile(None) == (DEFAULT_PROFILE, None)
        True
    """
    if text is None or text.strip() == "null":
        return DEFAULT_PROFILE, None
    try:
        return IdealProfile.model_validate_json(text), None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(_show(part) for part in first["loc"])
        message = re.sub("^Value error, ", "", first["msg"])
        line = ": ".join(part for part in ("ideal profile", place, message) if part)
        return DEFAULT_PROFILE, f"{line}; want {WANTED}"


def _show(part: str | int) -> str:
    """A key as it stands, quoted where that would break the line."""
    text = str(part)
    return text if text.isprintable() else repr(text)
