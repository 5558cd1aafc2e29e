"""The sentences of the catalog carry what they are meant to carry, as the feature code reads it."""

import json

import polars as pl
import pytest

from conversion_assets.domain.content import DEFAULT_VOCABULARY, normalized_words
from conversion_assets.features.build import Features, build_features
from conversion_assets.features.titles import normalize_title
from conversion_assets.synthetic import catalog
from conversion_assets.synthetic.config import SyntheticConfig
from conversion_assets.synthetic.generator import Agency, generate_agency


@pytest.fixture(scope="module")
def agency() -> Agency:
    return generate_agency(SyntheticConfig(clients=2, leads=1200, seed=3))


@pytest.fixture(scope="module")
def features(agency) -> Features:
    return build_features(agency.clients, agency.leads, agency.activities)


@pytest.fixture(scope="module")
def joined(agency, features) -> pl.DataFrame:
    assert features.touches.height == agency.latent_touches.height
    labels = agency.latent_touches.drop("client_id", "lead_id")
    return features.touches.join(labels, on="activity_id", suffix="_meant")


@pytest.mark.parametrize("title", catalog.TITLES, ids=lambda title: title.text)
def test_titles_are_read_as_meant(title):
    read = normalize_title(title.text)
    assert (read.seniority, read.function, read.title) == (
        title.seniority,
        title.function,
        title.canonical,
    )


def test_title_shares_sum_to_one():
    assert sum(title.share for title in catalog.TITLES) == pytest.approx(1)


def test_categories_are_those_of_the_vocabulary():
    assert set(catalog.SUBJECT_PATTERNS) == set(DEFAULT_VOCABULARY.subject_patterns)
    assert {name for name in catalog.PAIN_POINTS if name} == set(DEFAULT_VOCABULARY.pain_points)
    assert {name for name in catalog.ANGLES if name} == set(DEFAULT_VOCABULARY.angles)
    for phrase, (kind, _) in catalog.CTAS.items():
        assert not phrase or DEFAULT_VOCABULARY.ctas[phrase] == kind


def test_names_are_in_no_sentence():
    sentences = [text for pair in catalog.PAIN_POINTS.values() for text in pair]
    sentences += [text for pair in catalog.ANGLES.values() for text in pair]
    sentences += [text for _, text in catalog.CTAS.values()]
    sentences += [*catalog.TEMPLATES.values(), catalog.NEWS_SENTENCE, catalog.MUTUAL_SENTENCE]
    sentences += [text for variants in catalog.SUBJECTS.values() for text in variants]
    words = set(normalized_words(" ".join(sentences)).split())
    names = (*catalog.FIRST_NAMES, *catalog.COMPANY_HEADS, *catalog.INDUSTRIES)
    assert not words & set(normalized_words(" ".join(names)).split())


@pytest.mark.parametrize("name", ["touch_number", "local_weekday", "local_hour", "has_content"])
def test_times_and_numbers_are_read_as_meant(joined, name):
    assert (joined[name] == joined[f"{name}_meant"]).all()


def test_gaps_and_converting_touches_are_read_as_meant(joined):
    gaps = joined.filter(pl.col("gap_days").is_not_null())
    nearest = (gaps["gap_days"] + 0.5).floor().cast(pl.Int32)
    assert (nearest == gaps["rounded_gap_days"]).all()
    assert (joined["is_converting"] == joined["is_event"]).all()
    assert not joined["booking_mismatch"].any()
    assert not joined["is_after_conversion"].any()


@pytest.mark.parametrize(
    ("prefix", "label", "names"),
    [
        ("subject__", "subject", catalog.SUBJECT_PATTERNS),
        ("pain__", "pain", tuple(name for name in catalog.PAIN_POINTS if name)),
        ("angle__", "angle", tuple(name for name in catalog.ANGLES if name)),
    ],
)
def test_each_touch_carries_exactly_the_category_that_was_meant(joined, prefix, label, names):
    known = joined.filter("has_content")
    for name in names:
        meant = (known[label].cast(pl.String) == name).fill_null(value=False)
        assert meant.sum() > 100
        assert (known[prefix + name] == meant).all(), name


@pytest.mark.parametrize("name", catalog.PERSONAL)
def test_personal_touches_are_read_as_meant(joined, name):
    known = joined.filter("has_content")
    assert (known[f"personal__{name}"] == known[name]).all()


def test_calls_to_action_and_templates_are_read_as_meant(joined):
    known = joined.filter("has_content")
    assert known["cta"].equals(known["cta_meant"].cast(pl.String), check_names=False)
    kinds = {phrase: kind for phrase, (kind, _) in catalog.CTAS.items() if phrase}
    assert known["cta_type"].equals(
        known["cta"].replace_strict(kinds, default=None, return_dtype=pl.String), check_names=False
    )
    assert (known["template_id"] == known["template"].cast(pl.String)).all()


def test_all_lengths_of_subjects_occur(joined):
    shares = joined.drop_nulls("subject_length")["subject_length"].value_counts(normalize=True)
    assert shares.height == 3
    assert shares["proportion"].min() > 0.3


def test_snapshots_are_json_with_subjects_in_e_mails_only(agency):
    sent = agency.activities.drop_nulls("content_snapshot")
    for channel, text in sent.head(200).select("channel", "content_snapshot").iter_rows():
        snapshot = json.loads(text)
        assert (snapshot["subject"] is not None) == (channel == "email")
        assert "{first}" not in text
