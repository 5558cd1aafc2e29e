"""The quick text of a document is, to the byte, what the standard library writes."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conversion_assets.domain.errors import InputError
from conversion_assets.domain.patterns import DOCUMENTS, Claim, DataNote, ForwardRecord, Reversal
from conversion_assets.domain.terms import PatternType
from conversion_assets.storage.document_text import _plan, canonical_json
from conversion_assets_tests.documents import document, estimate

HOW = PatternType.HOW


def expected(written):
    """The obvious way; minus zero is zero."""

    def settle(value):
        if isinstance(value, dict):
            return {key: settle(one) for key, one in value.items()}
        if isinstance(value, list):
            return [settle(one) for one in value]
        return 0.0 if isinstance(value, float) and value == 0 else value

    plain = settle(written.model_dump(mode="json"))
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def changed(**changes):
    return document(HOW, "a").model_copy(update=changes)


def with_numbers(first, second, **changes):
    row = estimate("x").model_copy(update={"interval": [first, second], "lift": first, **changes})
    return changed(first_touch=[row])


# Where the two writers change from digits to exponents, and the ends of what a float can be.
edges = st.sampled_from([1e-4, 9.999e-5, 1e-5, 1e-6, 1e-7, 1e15, 1e16, 1e22, 5e-324, 1.8e308, 0.0])
numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e-3, 1e-3),
    st.builds(lambda edge, sign: edge * sign, edges, st.sampled_from([1, -1])),
    st.builds(lambda digits, power: float(f"{digits}e{power}"),
              st.integers(-(10**17), 10**17), st.integers(-40, 40)),
).filter(math.isfinite)  # fmt: skip
# Texts full of what numbers and JSON are made of, and any other.
words = st.one_of(
    st.text('0.1e-+:,[]{}"\\', max_size=30),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)


@given(numbers, numbers)
@example(-0.0, 1e-5)
def test_numbers_are_spelled_as_python_spells_them(first, second):
    made = with_numbers(first, second, reversals=[
        Reversal(variable="v", stratum="s", share=0.5, probability=min(abs(second), 1.0))
    ])  # fmt: skip
    assert canonical_json(made) == expected(made)


@given(words, words, words, numbers)
@example("a,0.00001,b", ":-0.0,", '",1e-7,"', 1e-5)
@example("e-mail", "0.0000", "[1e-7]", -1e-300)
def test_texts_stay_as_they_are_whatever_they_look_like(key, value, note, number):
    row = with_numbers(number, number, value=[value, note]).first_touch[0]
    made = changed(
        channel_by_tier={key: [row], note: [], "ü": [row.model_copy(update={"value": value})]},
        claims=[Claim(dimension=key, value=value)],
        data_notes=[DataNote(reason=note, rows=1)],
    )
    assert canonical_json(made) == expected(made)


@pytest.mark.parametrize("kind", list(PatternType))
def test_every_kind_of_document(kind):
    made = document(kind, "a")
    assert canonical_json(made) == expected(made)


def test_a_document_after_a_record_and_with_large_numbers():
    record = ForwardRecord.model_construct(**{
        **dict.fromkeys(ForwardRecord.model_fields, None), "n": 10**30, "status": "lost",
        "evidence_against": 1e-9, "lift_interval": [0.0, 1e300],
    })  # fmt: skip
    made = changed(first_touch=[estimate("x").model_copy(update={"forward": record})])
    assert canonical_json(made) == expected(made)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(with_numbers(number, 0.5))


def test_a_text_with_a_nul_is_refused_with_its_client():
    with pytest.raises(InputError, match="how pattern of client 'a': text 'b\\\\x00c' holds a NUL"):
        canonical_json(changed(claims=[Claim(dimension="x", value="b\0c")]))


def test_no_model_writes_itself_in_a_way_of_its_own():
    """The quick way reads fields; what a model would add or rename is not among them."""
    seen, found = set(), list(DOCUMENTS.values())
    while found:
        model = found.pop()
        seen.add(model)
        decorators = model.__pydantic_decorators__
        assert not decorators.field_serializers
        assert not decorators.model_serializers
        assert not model.model_computed_fields
        for field in model.model_fields.values():
            assert field.serialization_alias is None
            assert not field.exclude
            found += [one for one in models_in(field.annotation) if one not in seen]
        assert _plan(model) is not None
    assert len(seen) > 20


def models_in(annotation):
    arguments = getattr(annotation, "__args__", ())
    inner = [model for one in arguments for model in models_in(one)]
    return inner + ([annotation] if hasattr(annotation, "model_fields") else [])
