"""Selectors: Calico's own verdicts, an independent evaluator, and bounds on what text can do to us."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Invalid
from core.selector import (
    DEEPEST,
    All,
    And,
    Compare,
    Has,
    In,
    Node,
    Not,
    Or,
    Selector,
    SelectorError,
    conjunction,
    everything,
    parse,
    rewrite,
)

CASES = yaml.safe_load((Path(__file__).parents[1] / "conformance" / "selectors.yaml").read_text())

Labels = Mapping[str, str]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES["valid"]])
def test_calico_matches(case: dict) -> None:
    selector = parse(case["selector"])
    assert selector.matches(case["labels"]) is case["match"]
    again = parse(selector.canonical)
    assert again == selector
    assert again.matches(case["labels"]) is case["match"]


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES["invalid"]])
def test_calico_refuses(case: dict) -> None:
    with pytest.raises(SelectorError, match=r"selector, column \d+: "):
        parse(case["selector"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("app = 'web'", 'column 5: expected an operator after label app; did you mean "=="?; found "= \'web\'"'),
        ("app == 'web", 'column 8: this quote is never closed; found "\'web"'),
        ("has(a) && ", "column 11: expected a label, has(...), all() or a parenthesis; found the end"),
        ("has(a) and has(b)", "column 8: expected && or || or the end; found 'and has(b)'"),
        ("hass(a)", "column 1: no function hass(); there are has(label), all() and global(); found 'hass(a)'"),
        ("a in {'b' 'c'}", "column 11: expected a comma or the closing brace; found \"'c'}\""),
    ],
)
def test_an_error_names_the_column_and_the_reason(text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert str(caught.value) == f"selector, {says}"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "all()"),
        ("( ( a=='b' ) )", 'a == "b"'),
        ("a in {'z', \"y\",'z',}", 'a in {"y", "z"}'),
        ("a notin {}", "a not in {}"),
        ("a startswith 'x'&&b endswith'y'", '(a starts with "x" && b ends with "y")'),
        ("!!!has( a )", "!has(a)"),
        ("a == 'say \"hi\"'", "a == 'say \"hi\"'"),
        ("has(a) || has(b) && has(c)", "(has(a) || (has(b) && has(c)))"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical
    assert hash(parse(text)) == hash(parse(canonical))


# An evaluator of its own: texts are generated together with what they mean, so no parser checks itself.

LABEL = st.sampled_from(["a", "b", "in", "not", "all", "has", "x.y/z-1"])
VALUE = st.sampled_from(["", "a", "ab", "b", "ba", "a b", "'", "(", "&&"])
LABELS = st.dictionaries(LABEL, VALUE)
GAP = st.sampled_from([" ", "  ", "\t"])
ANY_GAP = st.sampled_from(["", " ", "\t "])


def quoted(value: str) -> str:
    return f'"{value}"' if "'" in value else f"'{value}'"


def naive(test: tuple, labels: Labels) -> bool:  # noqa: C901 - one line for each operator
    match test:
        case ("all",):
            return True
        case ("has", label):
            return label in labels
        case ("==", label, value):
            return label in labels and labels[label] == value
        case ("!=", label, value):
            return label not in labels or labels[label] != value
        case ("contains", label, value):
            return label in labels and value in labels[label]
        case ("starts", label, value):
            return label in labels and labels[label][: len(value)] == value
        case ("ends", label, value):
            return label in labels and labels[label].endswith(value)
        case ("in", label, values):
            return label in labels and labels[label] in values
        case ("notin", label, values):
            return not (label in labels and labels[label] in values)
        case ("not", inner):
            return not naive(inner, labels)
        case ("and", left, right):
            return naive(left, labels) and naive(right, labels)
        case ("or", left, right):
            return naive(left, labels) or naive(right, labels)
    raise AssertionError(test)


SPELLING = {
    "==": ["=="],
    "!=": ["!="],
    "contains": ["contains"],
    "starts": ["starts with", "startswith"],
    "ends": ["ends with", "ends\twith"],
    "in": ["in"],
    "notin": ["not in", "notin"],
}


@st.composite
def one_test(draw: st.DrawFn) -> tuple[str, tuple]:
    kind = draw(st.sampled_from(["all", "has", *SPELLING]))
    if kind == "all":
        return "all()", ("all",)
    label = draw(LABEL)
    if kind == "has":
        return f"has({label})", ("has", label)
    gap, spelling = draw(GAP), draw(st.sampled_from(SPELLING[kind]))
    if kind in ("in", "notin"):
        values = draw(st.lists(VALUE, max_size=3))
        inside = ",".join(draw(ANY_GAP) + quoted(value) for value in values)
        return f"{label}{gap}{spelling}{draw(ANY_GAP)}{{{inside}}}", (kind, label, values)
    value = draw(VALUE)
    return f"{label}{gap}{spelling}{draw(ANY_GAP)}{quoted(value)}", (kind, label, value)


def combined(inner: st.SearchStrategy[tuple[str, tuple]]) -> st.SearchStrategy[tuple[str, tuple]]:
    pair = st.tuples(inner, ANY_GAP, inner)
    return st.one_of(
        inner.map(lambda one: (f"!({one[0]})", ("not", one[1]))),
        pair.map(lambda p: (f"({p[0][0]}){p[1]}&&{p[1]}({p[2][0]})", ("and", p[0][1], p[2][1]))),
        pair.map(lambda p: (f"({p[0][0]}){p[1]}||{p[1]}({p[2][0]})", ("or", p[0][1], p[2][1]))),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(one_test(), combined, max_leaves=6), LABELS)
def test_means_what_a_naive_evaluator_says(written: tuple[str, tuple], labels: Labels) -> None:
    text, meaning = written
    selector = parse(text)
    assert selector.matches(labels) is naive(meaning, labels)
    assert parse(selector.canonical).matches(labels) is naive(meaning, labels)
    assert parse(selector.canonical).canonical == selector.canonical


@settings(max_examples=300, deadline=None)
@given(st.recursive(one_test(), combined, max_leaves=6), LABELS)
def test_requirements_hold_for_all_that_match(written: tuple[str, tuple], labels: Labels) -> None:
    selector = parse(written[0])
    if selector.matches(labels):
        for label, values in selector.requirements().items():
            assert label in labels
            assert values is None or labels[label] in values


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ab()!&|= '\"{},hasinot\t\n", max_size=40))
def test_any_text_parses_or_is_refused_as_a_selector(text: str) -> None:
    try:
        selector = parse(text)
    except SelectorError:
        return
    assert parse(selector.canonical) == selector


@pytest.mark.parametrize(
    ("text", "sure"),
    [
        ("a == 'x' && has(b) && c in {'1','2'}", {"a": {"x"}, "b": None, "c": {"1", "2"}}),
        ("a == 'x' && a in {'x','y'}", {"a": {"x"}}),
        ("a == 'x' && a == 'y'", {"a": set()}),
        ("a == 'x' || a == 'y'", {"a": {"x", "y"}}),
        ("a == 'x' || has(a)", {"a": None}),
        ("a == 'x' || b == 'y'", {}),
        ("a != 'x' && b not in {'y'} && !has(c)", {}),
        ("a starts with 'x'", {"a": None}),
        ("", {}),
    ],
)
def test_requirements(text: str, sure: dict) -> None:
    assert dict(parse(text).requirements()) == sure


def test_depth_is_bounded_and_length_costs_little() -> None:
    deepest = "(has(a) || " * DEEPEST + "has(b)" + ")" * DEEPEST
    selector = parse(deepest)
    assert selector.matches({"b": ""})
    assert parse(selector.canonical) == selector
    with pytest.raises(SelectorError, match="parentheses inside one another"):
        parse("(" * 512 + "all()" + ")" * 512)
    assert parse("!" * 1023 + "a == 'b'").matches({})
    started = time.perf_counter()
    parse(" && ".join(["a" * 500 + " == '" + "\t" * 400 + "'"] * 200))
    assert time.perf_counter() - started < 2


def test_trees_are_values_that_combine() -> None:
    assert everything() == parse("all()") == parse(" ")
    assert everything().everything
    both = parse("has(a) && has(b)") & parse("c == '1'") & everything()
    assert both == Selector(And((Has("a"), Has("b"), Compare("c", "==", "1"))))
    assert conjunction([]) == everything()
    assert conjunction([parse("has(a) || has(b)"), parse("!has(c)")]).root == And(
        (Or((Has("a"), Has("b"))), Not(Has("c")))
    )
    with pytest.raises(ValueError, match="both kinds of quotes"):
        _ = Selector(Compare("a", "==", "'\"")).canonical


def test_rewriting_reaches_every_test() -> None:
    def upper(node: Node) -> Node:
        match node:
            case Has(label):
                return Has(label.upper())
            case Compare(label, operator, value):
                return Compare(label.upper(), operator, value)
            case In(label, values, negated):
                return In(label.upper(), values, negated)
            case All():
                return Has("any")
        return node

    changed = rewrite(parse("!(has(a) && b == 'x') || c in {'y'} || all()"), upper)
    assert changed == parse("!(has(A) && B == 'x') || C in {'y'} || has(any)")
