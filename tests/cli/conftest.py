"""Running `muslin` in this process, for speed: the same `main`, the same streams and exit codes."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cli.__main__ import main


@dataclass(frozen=True, slots=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


Muslin = Callable[[str], Said]


@pytest.fixture
def muslin(datastore: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Muslin:
    """Runs `muslin WORDS` against a datastore of the test's own."""
    monkeypatch.setenv("MUSLIN_DATASTORE", datastore)

    def run(words: str) -> Said:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["muslin", *shlex.split(words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run
