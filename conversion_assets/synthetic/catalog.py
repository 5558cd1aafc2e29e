"""What a generated agency is made of: values, their shares, and sentences.

Every sentence carries exactly the vocabulary of :mod:`conversion_assets.domain.content` that its
place in the tables says, and nothing else: a unit test matches each of them. Shares are chosen so
that each value is common enough to be counted in a client of 1,000 leads.
"""

from dataclasses import dataclass

SENIORITIES = ("owner", "c_level", "vp", "director", "manager", "other")
FUNCTIONS = (
    "marketing",
    "sales",
    "finance",
    "operations",
    "technology",
    "product",
    "people",
    "other",
)
CANONICAL_TITLES = (
    "CEO",
    "CMO",
    "CFO",
    "COO",
    "CTO",
    "Owner",
    "Marketing Director",
    "Sales Director",
)


@dataclass(frozen=True)
class Title:
    """One way to write a job title, and what it should be read as.

    Attributes:
        text: as a lead source would deliver it.
        seniority: one of SENIORITIES.
        function: one of FUNCTIONS.
        canonical: one of CANONICAL_TITLES, or None for a less common title.
        authority: points of the lead score, 0 to 25.
        share: share of all leads with a title.
    """

    text: str
    seniority: str
    function: str
    canonical: str | None
    authority: int
    share: float


_FUNCTION_SHARES = {
    "marketing": 0.25,
    "sales": 0.20,
    "finance": 0.10,
    "operations": 0.12,
    "technology": 0.11,
    "product": 0.06,
    "people": 0.06,
    "other": 0.10,
}
# Directors hold the same share of every function, so that an effect of directors is none of a
# function; owners have no function.
_SENIORITY_SHARES = {"c_level": 0.12, "vp": 0.16, "director": 0.20, "manager": 0.30, "other": 0.22}
_OTHER_SHARES = {"owner": 0.40, "c_level": 0.25, "director": 0.20, "manager": 0.10, "other": 0.05}
_CHIEFS: dict[str, tuple[tuple[str, str | None, int], ...]] = {
    "marketing": (("CMO", "CMO", 22), ("Chief Marketing Officer", "CMO", 22)),
    "sales": (("Chief Sales Officer", None, 22),),
    "finance": (("CFO", "CFO", 22), ("Chief Financial Officer", "CFO", 22)),
    "operations": (("COO", "COO", 22), ("Chief Operating Officer", "COO", 22)),
    "technology": (("CTO", "CTO", 22), ("Chief Technology Officer", "CTO", 22)),
    "product": (("Chief Product Officer", None, 22),),
    "people": (("Chief People Officer", None, 22),),
}
_FUNCTION_WORDS = {
    "marketing": "Marketing",
    "sales": "Sales",
    "finance": "Finance",
    "operations": "Operations",
    "technology": "Technology",
    "product": "Product",
    "people": "People",
}
_OTHER_TITLES: dict[str, tuple[tuple[str, str | None, int], ...]] = {
    "owner": (("Owner", "Owner", 25), ("Business Owner", "Owner", 25)),
    "c_level": (("CEO", "CEO", 25), ("Chief Executive Officer", "CEO", 25)),
    "director": (("Director", None, 15),),
    "manager": (("Manager", None, 7),),
    "other": (("Consultant", None, 5), ("Assistant", None, 5)),
}


def _ranked_titles(function: str, word: str) -> dict[str, tuple[tuple[str, str | None, int], ...]]:
    director = f"{word} Director" if function in ("marketing", "sales") else None
    return {
        "c_level": _CHIEFS[function],
        "vp": ((f"VP {word}", None, 18), (f"Vice-President, {word}", None, 18)),
        "director": (
            (f"{word} Director", director, 15),
            (f"Director of {word}", director, 15),
            (f"{word.upper()} DIRECTOR", director, 15),
        ),
        "manager": ((f"{word} Manager", None, 7), (f"Senior {word} Manager", None, 10)),
        "other": ((f"{word} Analyst", None, 5), (f"{word} Director's Assistant", None, 5)),
    }


def _titles() -> tuple[Title, ...]:
    titles = []
    for function, function_share in _FUNCTION_SHARES.items():
        if function == "other":
            shares, texts = _OTHER_SHARES, _OTHER_TITLES
        else:
            shares = _SENIORITY_SHARES
            texts = _ranked_titles(function, _FUNCTION_WORDS[function])
        for seniority, share in shares.items():
            variants = texts[seniority]
            each = function_share * share / len(variants)
            titles += [Title(v[0], seniority, function, v[1], v[2], each) for v in variants]
    return tuple(titles)


TITLES = _titles()

ZONES: dict[str, str] = {
    "Australia/Sydney": "Australia",
    "Australia/Adelaide": "Australia",
    "Pacific/Auckland": "New Zealand",
    "Asia/Kolkata": "India",
    "Asia/Kathmandu": "Nepal",
    "Asia/Tokyo": "Japan",
    "Africa/Johannesburg": "South Africa",
    "Europe/Berlin": "Germany",
    "Europe/London": "United Kingdom",
    "America/Sao_Paulo": "Brazil",
    "America/Santiago": "Chile",
    "America/St_Johns": "Canada",
    "America/Toronto": "Canada",
    "America/New_York": "United States",
    "America/Chicago": "United States",
    "America/Los_Angeles": "United States",
}
"""Zones of leads and their country: half hours, clock changes of both hemispheres, and none."""
COUNTRIES = tuple(dict.fromkeys(ZONES.values()))
ENGLISH_SPEAKING = frozenset(
    {
        "Australia",
        "New Zealand",
        "United Kingdom",
        "Canada",
        "United States",
        "South Africa",
        "India",
    }
)

INDUSTRIES = (
    "Manufacturing",
    "Healthcare",
    "Construction",
    "Logistics",
    "Education",
    "Insurance",
    "Hospitality",
    "Real Estate",
    "Legal",
    "Telecommunications",
)
SOURCES = ("referral", "website", "event", "partner", "linkedin", "cold_list", "paid_ads", "apollo")
SOURCE_SHARES = (0.10, 0.15, 0.10, 0.10, 0.20, 0.20, 0.10, 0.05)
BUCKET_SHARES = (0.08, 0.14, 0.18, 0.18, 0.16, 0.14, 0.08, 0.04)
"""Shares of the company size buckets, smallest first."""
HIGHEST_EMPLOYEE_COUNT = 2000

# No first name is a word of any sentence below.
FIRST_NAMES = (
    "Anna", "Brigid", "Carlos", "Deepika", "Elena", "Farid", "Giulia", "Hamish", "Ingrid", "José",
    "Keiko", "Liam", "Mariana", "Nikhil", "Oluwaseun", "Priya", "Quentin", "Rosalind", "Sunita",
    "Tomás", "Ursula", "Viktor", "Wanjiru", "Ximena", "Yusuf", "Zoë",
)  # fmt: skip
LAST_NAMES = (
    "Abara", "Bhattarai", "Castellanos", "Dvorak", "Eriksen", "Fonseca", "Gurung", "Hollis",
    "Iyer", "Jankowski", "Kaplan", "Lindqvist", "Moreau", "Nakata", "O'Leary", "Petrov",
    "Quiroga", "Rasmussen", "Sharma", "Tanaka", "Ueda", "Vasquez", "Whitlam", "Yamada",
)  # fmt: skip
COMPANY_HEADS = (
    "Alderbrook", "Bramwell", "Corvane", "Dunmere", "Elstow", "Farrowdale",
    "Glenhaven", "Harrowgate", "Inverlea", "Juniperus", "Kestrelby", "Larkhill",
    "Merrowby", "Northam", "Oakvale", "Penhallow", "Quillby", "Rothmere",
    "Stellworth", "Thornbury", "Umberton", "Varleigh", "Wexcombe", "Yarrowby",
)  # fmt: skip
COMPANY_TAILS = (
    "Holdings",
    "Works",
    "Collective",
    "Trust",
    "& Sons",
    "Union",
    "Foundry",
)
CLIENT_NAMES = (
    "Bluegum", "Cascade", "Driftwood", "Ember", "Fairwater", "Granite", "Harbour", "Ironbark",
    "Juniper", "Kookaburra", "Lantern", "Meridian", "Northwind", "Orchard", "Pinnacle", "Quartz",
)  # fmt: skip

SUBJECT_PATTERNS = (
    "question_about",
    "quick_question",
    "reply_style",
    "name_dash",
    "idea_for",
    "thought_about",
    "ends_question",
    "casual_greeting",
    "introduction",
    "partnership",
    "opportunity",
    "congratulatory",
)
# Three lengths of each subject: up to 3 words, 4 to 6, more. {first} stands for the first name.
SUBJECTS: dict[str, tuple[str, str, str]] = {
    "question_about": (
        "Question about plans",
        "Question about your plans ahead",
        "Question about how your group plans the next few months",
    ),
    "quick_question": (
        "Quick question",
        "Quick question from our side",
        "Quick question before your group settles the next plan",
    ),
    "reply_style": (
        "Re: our note",
        "Re: our note from Monday",
        "Re: our note on how your group plans ahead",
    ),
    "name_dash": (
        "{first} - notes",
        "{first} - notes for your group",
        "{first} - notes on how your group plans the year",
    ),
    "idea_for": (
        "Idea for you",
        "An idea for your group",
        "An idea for how your group plans the year ahead",
    ),
    "thought_about": (
        "Thought about you",
        "We thought about your plans",
        "We thought about how your group plans the year ahead",
    ),
    "ends_question": (
        "Sounds familiar?",
        "Does this sound familiar here?",
        "Does this sound like how your group plans ahead?",
    ),
    "casual_greeting": (
        "Hey there",
        "Hey there from our side",
        "Hey there from all of us on the other side",
    ),
    "introduction": (
        "Short introduction",
        "A short introduction from us",
        "A short introduction to how our group plans the year",
    ),
    "partnership": (
        "Partnership notes",
        "Notes towards a partnership here",
        "Notes towards a partnership between your group and our group",
    ),
    "opportunity": (
        "Small opportunity",
        "A small opportunity for you",
        "A small opportunity for your group in the year ahead",
    ),
    "congratulatory": (
        "Well done",
        "Well done to your group",
        "Well done to you and everyone in your wider group",
    ),
    "": (
        "Our notes",
        "Our notes from last Monday",
        "Our notes from the meeting with your neighbours last Monday",
    ),
}

PAIN_POINTS: dict[str, tuple[str, str]] = {
    "leads": (
        "Many owners say their pipeline runs dry.",
        "Finding new prospects keeps getting harder.",
    ),
    "revenue": ("Hitting quota has been hard lately.", "Turnover has been flat for a while."),
    "time": ("So much of it is still manual.", "Everyone seems busy all day."),
    "scaling": ("Adding capacity is never simple.", "Headcount alone will not do it."),
    "competition": ("Every rival says the same.", "It is a crowded market out there."),
    "cost": ("The overhead keeps creeping up.", "It has become expensive to run."),
    "quality": ("Rework keeps coming back.", "Small errors add up."),
    "clients": ("Churn is a quiet problem.", "Retention is hard to keep up."),
    "": ("The season has been a mixed one.", "Plans rarely hold for long."),
}
ANGLES: dict[str, tuple[str, str]] = {
    "roi_focused": ("The payback is short.", "In short, it pays for itself."),
    "social_proof": ("It is trusted by your neighbours.", "The case study is short."),
    "curiosity": ("Did you know it can be simpler?", "I was wondering how you do it."),
    "fear_based": ("Others worry about falling behind.", "Nobody likes missing out."),
    "value_add": ("There is a short checklist.", "We wrote a playbook on it."),
    "authority": ("Our work is certified.", "It comes from an award winning group."),
    "urgency": ("It closes at the end of month.", "There are few spots left."),
    "": ("It is simple to begin with.", "We keep it simple."),
}
CTA_TYPES = (
    "soft_ask",
    "time_specific",
    "value_offer",
    "direct_ask",
    "passive",
    "question",
    "casual",
)
CTAS: dict[str, tuple[str, str]] = {
    "open to a conversation": ("soft_ask", "Are you open to a conversation?"),
    "worth exploring": ("soft_ask", "Is it worth exploring?"),
    "worth 15 minutes": ("time_specific", "Would it be worth 15 minutes?"),
    "tuesday or thursday": ("time_specific", "How about Tuesday or Thursday?"),
    "want me to send": ("value_offer", "Do you want me to send the details?"),
    "send over": ("value_offer", "I can send over the details."),
    "book a call": ("direct_ask", "Please book a call with me."),
    "schedule a call": ("direct_ask", "Please schedule a call with me."),
    "let me know": ("passive", "Please let me know."),
    "happy to chat": ("passive", "I am happy to chat."),
    "any thoughts?": ("question", "Any thoughts?"),
    "sound good?": ("question", "Does it sound good?"),
    "coffee chat": ("casual", "Shall we have a coffee chat?"),
    "quick catch up": ("casual", "Shall we have a quick catch up?"),
    "": ("", "Kind regards."),
}
PERSONAL = (
    "company_mention",
    "first_name",
    "recent_news",
    "mutual_connection",
    "industry_specific",
)
NEWS_SENTENCE = " I read about your recent launch."
MUTUAL_SENTENCE = " We share a mutual connection."
TEMPLATES: dict[str, str] = {
    "tpl-01": "We do this every week and it works well.",
    "tpl-02": "Our group does this with care each month.",
    "tpl-03": "It began as a small trial two years ago.",
    "tpl-04": "We begin small and then we see how it goes.",
    "tpl-05": "The first step takes one afternoon for most groups.",
    "tpl-06": "You would see the first outcome within a month.",
    "tpl-07": "Nothing changes in the tools that you use.",
    "tpl-08": "We handle the setup and you keep the keys.",
}
"""Template id to the sentence it repeats; the other parts of a message vary independently of it."""
