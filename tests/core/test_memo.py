"""What is remembered is what would be made anew, and the same object for as long as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from core.memo import Memo

TABLES = st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 6), max_size=4), min_size=1, max_size=6)


def halved(value: list[int], least: int) -> int | None:
    """So that different values are made into one, and some into none."""
    return value[0] // 2 if value[0] >= least else None


def total(table: dict[str, int]) -> int:
    return sum(table.values()) + 1000


@given(TABLES)
def test_each_makes_what_the_table_alone_says(tables: list[dict[str, int]]) -> None:
    memo = Memo()
    before, made = None, None
    things: dict[tuple[str, int], list[int]] = {}
    for table in tables:
        found = memo.each(halved, {key: things.setdefault((key, value), [value]) for key, value in table.items()}, 2)
        assert found == {key: value // 2 for key, value in table.items() if value >= 2}
        assert found is made or found != before
        before, made = dict(found), found
        memo.forget()


def test_each_asks_once_of_what_stays() -> None:
    memo, asked = Memo(), list[int]()

    def make(value: int) -> int:
        asked.append(value)
        return value

    big = {key: int(key) + 1000 for key in map(str, range(100))}
    first = memo.each(make, big)
    second = memo.each(make, {**big, "7": 5})
    assert (first["7"], second["7"], len(asked)) == (1007, 5, 101)


@given(TABLES)
def test_steady_is_one_object_while_it_is_equal(tables: list[dict[str, int]]) -> None:
    memo = Memo()
    last: int | None = None
    for table in tables:
        found = memo.steady(total, table)
        assert found == total(table)
        assert found is last or found != last
        last = found
        memo.forget()


def test_what_something_was_made_of_stays_with_it() -> None:
    memo, made = Memo(), list[str]()

    def letter(value: str) -> str:
        made.append(value)
        return value.upper()

    def word(*letters: str) -> str:
        return "".join(memo(letter, each) for each in letters)

    assert memo(word, "a", "b") == "AB"
    for _ in range(3):
        memo.forget()
        assert memo(word, "a", "b") == "AB"
    memo.forget()
    assert memo(word, "a", "b", "c") == "ABC"
    assert made == ["a", "b", "c"]
    for _ in range(2):
        memo.forget()
    memo(letter, "a")
    assert made == ["a", "b", "c", "a"]
