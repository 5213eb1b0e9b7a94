"""The tree itself: sizes a person can read in one sitting, names that mean something, no trace of a machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
MOST_LINES = 500
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")


def tracked() -> list[Path]:
    """Every text file that git tracks."""
    names = subprocess.run(["git", "ls-files"], cwd=HOUSE, check=True, capture_output=True, text=True).stdout
    return [HOUSE / name for name in names.splitlines() if (HOUSE / name).is_file()]


PYTHON = [path for path in tracked() if path.suffix == ".py" and not GENERATED.search(path.name)]


def test_files_can_be_read_in_one_sitting() -> None:
    long = {
        str(path.relative_to(HOUSE)): lines
        for path in PYTHON
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    }
    assert not long


@pytest.mark.parametrize("word", ["utils", "manager", "helpers", "misc", "common"])
def test_no_file_is_named_for_nothing(word: str) -> None:
    assert not [path for path in PYTHON if path.stem == word]


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(HOUSE))
        for path in PYTHON
        if path.read_text().strip() and not path.read_text().lstrip().startswith(('"""', "#!", "# "))
    ]
    assert not silent


def test_nothing_is_left_for_later() -> None:
    marks = re.compile("TO" + "DO|FIX" + "ME|XX" + "X|NotImplemented" + "Error")
    assert not [str(path.relative_to(HOUSE)) for path in PYTHON if marks.search(path.read_text())]


def test_no_trace_of_a_machine() -> None:
    trace = re.compile("/wo" + "rk/|deb\\.deb" + "ian\\.org|py" + "pi\\.org/simple|proxy\\.gol" + "ang\\.org")
    found = []
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if trace.search(text):
            found.append(str(path.relative_to(HOUSE)))
    assert not found
