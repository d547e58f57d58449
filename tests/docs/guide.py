"""Walks through a guide: its commands run in order, and print what the guide says they print.

A guide's `console` blocks are its commands with their output. HTML comments, which no reader sees,
say what happens in between: the time of day, files, and use of the product.

    <!-- clock: 2026-10-01T08:00:00Z -->
    <!-- file: october.yaml -->            the next fenced block is that file
    <!-- usage: acme/support/desk requests=3 prompt=1200 answer=300 -->
    <!-- refused: acme/support/desk prompt=1200 answer=300 -->   the next fenced block is the error
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import unified_diff
from pathlib import Path
from typing import Final

import time_machine
from typer.testing import CliRunner

from steelyard.entrypoints.cli.main import application
from steelyard.entrypoints.openai_api.error_answer import error_body
from steelyard.errors import SteelyardError
from steelyard.gateway.upstreams.scripted import Script
from tests.world import Answered, World

UPDATE: Final = "UPDATE_GUIDES"
_COMMENT = re.compile(r"^<!-- (clock|file|usage|refused): (.+) -->$")
# Ids, hashes and secrets differ from run to run; everything else is the same.
_IDS = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "HASH"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\bsk-steelyard-[\w-]{20,}"), "SECRET"),
    (re.compile(r"\bsk-steelyard-[\w-]{4}…[\w-]{2}"), "HINT"),
)
_SPACE_AT_THE_END = re.compile(r" +$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happens: `kind` is a comment's, `command` or `text`; `output` is a command's."""

    kind: str
    text: str
    output: str = ""


def read_steps(guide: str) -> Iterator[Step]:
    """Everything in a guide, in order; joined again it is the guide."""
    lines = iter(guide.splitlines(keepends=True))
    for line in lines:
        if line.startswith("```console"):
            yield Step("text", line)
            yield from _read_console(lines)
        elif found := _COMMENT.match(line.strip()):
            yield Step("text", line)
            yield Step(found[1], found[2])
        else:
            yield Step("text", line)


def _read_console(lines: Iterator[str]) -> Iterator[Step]:
    command, output = "", ""
    for line in lines:
        if line.startswith(("```", "$ ")):
            if command:
                yield Step("command", command, output)
            command, output = line[2:], ""
        elif command.endswith("\\\n"):
            command += line
        else:
            output += line
        if line.startswith("```"):
            yield Step("text", line)
            return
    raise AssertionError("a console block does not end")


class Walk:
    """One walk through a guide, in a folder of its own, against books of its own."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = folder
        self._runner = CliRunner()
        self._file: Path | None = None
        self._is_in_file = False
        self._error: str | None = None
        self._is_in_error = False
        self._told = ""
        self._ids: dict[str, str] = {}

    def follow(self, guide: str) -> str:
        """Run everything; returns the guide with what the commands really print."""
        self._told = ""
        with time_machine.travel(datetime(2026, 1, 1, tzinfo=UTC), tick=False) as clock:
            for step in read_steps(guide):
                match step.kind:
                    case "clock":
                        self._world.clock.moment = datetime.fromisoformat(step.text)
                        clock.move_to(self._world.clock.moment)
                    case "file":
                        self._file = self._folder / step.text
                    case "usage":
                        self._use(step.text)
                    case "refused":
                        self._error = self._refuse(step.text)
                    case "command":
                        self._told += f"$ {step.text}{self._run(step)}"
                    case _:
                        self._keep(step.text)
        return self._told

    def _keep(self, line: str) -> None:
        """Plain text; a fenced block after a file's comment is the file, one after a refusal's is
        the error."""
        if self._error is not None and self._keep_error(line, self._error):
            return
        self._told += line
        if self._file is None:
            return
        if line.startswith("```"):
            self._is_in_file = not self._is_in_file
            if not self._is_in_file:
                self._file = None
        elif self._is_in_file:
            with self._file.open("a") as file:
                file.write(line)

    def _keep_error(self, line: str, error: str) -> bool:
        """Whether the line stands in the block of an error; it is told as the error is."""
        if not line.startswith("```"):
            return self._is_in_error
        self._is_in_error = not self._is_in_error
        if not self._is_in_error:
            self._told += error
            self._error = None
        return False

    def _run(self, step: Step) -> str:
        """What a command prints; where only ids differ, what the guide said it prints."""
        line, _, lines_shown = step.text.replace("\\\n", " ").partition(" | tail -n ")
        program, *words = shlex.split(line)
        if program == "cat":
            printed = (self._folder / words[0]).read_text()
        else:
            assert program == "steelyard", f"a guide runs steelyard and cat, not {program}"
            result = self._runner.invoke(application, [self._known(word) for word in words])
            printed = result.output
            if isinstance(result.exception, SteelyardError):
                printed += f"steelyard: {result.exception} [{result.exception.code}]\n"
            elif result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception
        if lines_shown:
            printed = "\n".join(printed.splitlines()[-int(lines_shown) :])
        said = step.output.rstrip("\n")
        if _normal(printed) == _normal(said):
            self._learn(said, printed)
            return step.output
        ending = step.output[len(said) :] or "\n"
        return _SPACE_AT_THE_END.sub("", printed).rstrip("\n") + ending

    def _learn(self, said: str, printed: str) -> None:
        """Ids in the guide stand for ids of this run, for the commands that come."""
        for pattern, _ in _IDS:
            self._ids |= zip(pattern.findall(said), pattern.findall(printed), strict=True)

    def _known(self, word: str) -> str:
        return self._ids.get(word, word)

    def _refuse(self, text: str) -> str:
        """What a caller is told whose request is refused."""
        answered = self._ask(text)
        assert answered.error is not None, "the request was not refused"
        return json.dumps(json.loads(error_body(answered.error)), indent=2) + "\n"

    def _use(self, text: str) -> None:
        """Answers of the scripted model, brought into the books at once."""
        numbers = _numbers(text)
        for _ in range(numbers["requests"]):
            self._world.clock.advance(seconds=1)
            answered = self._ask(text)
            assert answered.error is None, answered.error
        self._world.settle()

    def _ask(self, text: str) -> Answered:
        key, numbers = text.split(maxsplit=1)[0], _numbers(text)
        self._world.upstream.script = Script(
            words=("word",) * numbers["answer"], prompt_tokens=numbers["prompt"]
        )
        self._world.keys |= {k.path: k for k, _ in self._world.stores.access.all_keys()}
        # A letter is at most a token, so this prompt may have as many tokens as it has letters.
        messages = [{"role": "user", "content": "x" * numbers["prompt"]}]
        return self._world.chat(key, messages=messages, max_tokens=numbers["answer"])


def _numbers(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (pair.split("=") for pair in text.split()[1:])}


def _normal(text: str) -> str:
    for pattern, name in _IDS:
        text = pattern.sub(name, text)
    return _SPACE_AT_THE_END.sub("", text).rstrip("\n")


def check_guide(path: Path, world: World, folder: Path) -> None:
    """Walk through a guide; with UPDATE_GUIDES set, write down what its commands print."""
    guide = path.read_text()
    walked = Walk(world, folder).follow(guide)
    if os.environ.get(UPDATE):
        path.write_text(walked)
    difference = "\n".join(unified_diff(guide.splitlines(), walked.splitlines(), lineterm=""))
    assert not difference, difference
