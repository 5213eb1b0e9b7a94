"""What the documents say is true: commands exist, links lead somewhere, and examples do what they show."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from cli.__main__ import app, main

HOUSE = Path(__file__).parents[2]
DOCUMENTS = sorted([*HOUSE.glob("*.md"), *(HOUSE / "docs").glob("**/*.md")])
FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"(?:^|[|;&(] *)(?:sudo )?(?:\.venv/bin/)?muslin ([^|;&()]*)")
INLINE = re.compile(r"`(?:\.venv/bin/)?muslin ([a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#]+)(?:#[^)]*)?\)")
MAKE = re.compile(r"`make ([a-z]+(?: [a-z]+)*)`")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the words after the fence, and the text."""

    info: tuple[str, ...]
    text: str

    def commands(self) -> Iterator[tuple[str, str]]:
        """(command, expected output) for each `$ ` line."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


def blocks(document: Path) -> list[Block]:
    return [Block(tuple(match["info"].split()), match["text"]) for match in FENCE.finditer(document.read_text())]


def called(document: Path) -> Iterator[list[str]]:
    """Every command line of `muslin` that the document's consoles show, as words."""
    for block in blocks(document):
        if block.info[:1] == ("console",):
            for command, _ in block.commands():
                for match in CALL.finditer(command):
                    yield shlex.split(match[1])


def named(document: Path) -> Iterator[list[str]]:
    """Every `muslin ...` that the document names, as words."""
    yield from called(document)
    for match in INLINE.finditer(document.read_text().replace("\n", " ")):
        yield match[1].split()


IDS = [str(document.relative_to(HOUSE)) for document in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_command_that_is_named_exists(document: Path) -> None:
    root = typer.main.get_command(app)
    for words in named(document):
        command, path = root, []
        for word in words:
            known = getattr(command, "commands", {})
            if word not in known:
                assert path, f"muslin {' '.join(words)}"
                if not re.fullmatch(r"[a-z]+", word) or getattr(command, "invoke_without_command", False):
                    break
                assert not known, f"muslin {' '.join(words)}: {' '.join(path)} knows {sorted(known)}"
                break
            command, path = known[word], [*path, word]
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        given = {word.split("=")[0].rstrip(",;:") for word in words if re.match(r"--?[a-z]", word)}
        if path[:2] != ["lab", "exec"]:
            assert given <= options | {"--help"}, f"muslin {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_command_line_is_one_that_its_command_takes(document: Path) -> None:
    for words in called(document):
        assert refused(words) == "", f"muslin {' '.join(words)}"


def test_a_wrong_command_line_would_be_found() -> None:
    ends = ["explain", "--from", "a/b", "--to", "c/d"]
    assert "8" in refused([*ends, "--icmp", "8"])
    assert refused([*ends, "--icmp"]) == ""
    assert "name" in refused(["node", "release"])


def refused(words: list[str]) -> str:
    """What the command line's own parser has against these words; nothing is run."""
    command = typer.main.get_command(app)
    try:
        context = command.make_context("muslin", list(words))
        while isinstance(command, typer.core.TyperGroup) and (left := [*context._protected_args, *context.args]):
            name, found, rest = command.resolve_command(context, left)
            assert found is not None
            command, context = found, found.make_context(name, rest, parent=context)
    except typer.TyperException as error:
        return str(error)
    return ""


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (HOUSE / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        for words in MAKE.findall(document.read_text()):
            assert set(words.split()) <= targets, f"{document.name}: make {words}"


def test_every_command_is_documented() -> None:
    text = (HOUSE / "docs" / "cli.md").read_text()
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        for child in getattr(command, "commands", {}) or [""]:
            assert f"muslin {name} {child}".strip() in text or (name in {"create", "replace"} and f"`{name}`" in text)


RUNNABLE = [document for document in DOCUMENTS if any("test" in block.info for block in blocks(document))]


@pytest.mark.parametrize("document", RUNNABLE, ids=[str(document.relative_to(HOUSE)) for document in RUNNABLE])
def test_examples_do_what_they_show(
    document: Path,
    new_datastore: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUSLIN_DATASTORE", new_datastore)
    for block in blocks(document):
        files = [word.removeprefix("file=") for word in block.info if word.startswith("file=")]
        for name in files:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(block.text)
        if block.info == ("console", "test"):
            for command, expected in block.commands():
                assert_output(command, output_of(command, monkeypatch, capfd), expected)


def output_of(command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command prints, as a reader of a terminal sees it; a plain `muslin` runs in this process, for speed."""
    if not re.fullmatch(r"muslin [^|<>;&]*", command):
        done = subprocess.run(["bash", "-c", command], check=False, text=True, capture_output=True, timeout=30)
        return done.stdout + done.stderr + (f"[exit {done.returncode}]\n" if done.returncode else "")
    capfd.readouterr()
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    return out + err + (f"[exit {end.value.code}]\n" if end.value.code else "")


def assert_output(command: str, output: str, expected: str) -> None:
    pattern = ".*?".join(re.escape(part) for part in expected.strip().split("..."))
    assert re.fullmatch(pattern, output.strip(), re.DOTALL), f"$ {command}\n{output}"
