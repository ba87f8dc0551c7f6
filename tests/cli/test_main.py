"""The frame of the command line: finding commands, errors, exit codes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmbert
import mmbert.cli
from mmbert.cli import main as frame
from mmbert.training.allocator import TUNABLES

COMMANDS = {
    "broken": '"""Cannot be imported."""\nimport no_such_module_anywhere\ndef broken(): ...\n',
    "fails": '''"""`mmbert fails`: raise what is asked for."""
import typer
from mmbert.errors import DataError, MMBertError
def fails(kind: str = typer.Argument()) -> None:
    """Raise something.

    Example:

      mmbert fails user
    """
    if kind == "user":
        raise DataError("caption is\\nempty", where="metadata.jsonl:17", hint="write one")
    if kind == "bare":
        raise MMBertError("no good")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "exit":
        raise typer.Exit(7)
    if kind == "pipe":
        raise BrokenPipeError(32, "Broken pipe")
    {}["missing"]
''',
    "group": '''"""A group with one command."""
import typer
app = typer.Typer()
@app.command("one")
def first(count: int = 1) -> int:
    """The only one.

    Example:

      mmbert group one
    """
    print("one", count)
    return count
''',
    "two_words": '''"""Two words."""
import typer
app = typer.Typer()
@app.command()
def go() -> None:
    print("went")
''',
    "helper": '"""No command: defines neither app nor helper()."""\nVALUE = 1\n',
    "_private": '"""Private."""\ndef _private(): ...\n',
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A few made-up command files beside the real ones."""
    for name, text in COMMANDS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(mmbert.cli, "__path__", [*mmbert.cli.__path__, str(tmp_path)])
    frame._summary.cache_clear()
    frame.load_command.cache_clear()
    yield
    frame._summary.cache_clear()
    frame.load_command.cache_clear()
    for name in COMMANDS:
        sys.modules.pop(f"mmbert.cli.{name}", None)


def lines(text: str) -> list[str]:
    return text.rstrip("\n").split("\n")


@pytest.mark.usefixtures("commands")
class TestFindingCommands:
    def test_files_with_an_app_or_a_function_of_their_name_are_commands(self) -> None:
        names = frame.command_names()
        assert {"broken", "fails", "group", "two-words"} <= set(names)
        assert not {"helper", "_private", "main", "common", "two_words"} & set(names)
        assert names == sorted(names)

    def test_help_lists_summaries_without_importing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["--help"]) == 0
        out = capsys.readouterr().out
        assert "Raise what is asked for." in out
        assert "Cannot be imported." in out
        assert "mmbert.cli.broken" not in sys.modules
        assert "mmbert.cli.fails" not in sys.modules

    def test_a_broken_command_does_not_break_the_others(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["two-words"]) == 0
        assert frame.run(["broken"]) == 1
        assert "ModuleNotFoundError" in capsys.readouterr().err

    def test_a_single_command_with_a_name_of_its_own_is_a_group(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["group", "one", "--count", "3"]) == 0
        assert capsys.readouterr().out == "one 3\n"

    def test_what_a_command_returns_is_not_the_exit_code(self) -> None:
        assert frame.run(["group", "one", "--count", "3"]) == 0

    def test_indented_paragraphs_of_help_stay_as_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["fails", "--help"]) == 0
        assert "\n    mmbert fails user\n" in capsys.readouterr().out

    def test_commands_offer_no_completion_options(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["group", "--help"]) == 0
        assert "completion" not in capsys.readouterr().out

    def test_unknown_command_names_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["grup"]) == 2
        assert lines(capsys.readouterr().err) == [
            "mmbert: error: unknown command 'grup'",
            "hint: did you mean 'mmbert group'?",
        ]


@pytest.mark.usefixtures("commands")
class TestErrors:
    def test_user_errors_are_one_line_and_a_hint(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["fails", "user"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert lines(captured.err) == ["mmbert: error: caption is empty [metadata.jsonl:17]", "hint: write one"]

    def test_no_hint_no_hint_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["fails", "bare"]) == 2
        assert lines(capsys.readouterr().err) == ["mmbert: error: no good"]

    def test_unexpected_errors_point_to_debug(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["fails", "unexpected"]) == 1
        first, hint = lines(capsys.readouterr().err)
        assert first == "mmbert: error: KeyError: 'missing'"
        assert "--debug" in hint

    @pytest.mark.parametrize("args", [["--debug", "fails", "user"], ["fails", "user", "--debug"]])
    def test_debug_shows_the_traceback_wherever_it_stands(
        self, args: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert frame.run(args) == 2
        err = capsys.readouterr().err
        assert "Traceback (most recent call last)" in err
        assert "mmbert: error: caption is empty [metadata.jsonl:17]" in err

    def test_debug_after_a_double_dash_is_an_argument(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run(["fails", "--", "--debug"]) == 1
        assert "Traceback" not in capsys.readouterr().err

    def test_interrupt(self) -> None:
        assert frame.run(["fails", "interrupt"]) == 130

    def test_exit_codes_of_commands_pass(self) -> None:
        assert frame.run(["fails", "exit"]) == 7

    @pytest.mark.parametrize(
        ("args", "reason"),
        [
            (["fails"], "Missing argument"),
            (["fails", "user", "--no-such"], "--no-such"),
            (["group", "one", "--count", "many"], "--count"),
            (["--no-such"], "--no-such"),
        ],
    )
    def test_wrong_usage_is_one_line_and_points_to_help(
        self, args: list[str], reason: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert frame.run(args) == 2
        first, hint = lines(capsys.readouterr().err)
        assert first.startswith("mmbert: error: ")
        assert reason in first
        assert hint.endswith("--help'")

    def test_no_command_shows_help_as_an_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert frame.run([]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("Usage: mmbert")


def mmbert_process(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mmbert", *args], capture_output=True, text=True, check=False, **kwargs
    )


def test_version_in_a_process() -> None:
    done = mmbert_process("--version")
    assert (done.returncode, done.stdout) == (0, f"mmbert {mmbert.__version__}\n")


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.Popen(
        [sys.executable, "-m", "mmbert", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 1


def test_a_warning_of_ours_is_one_line(tmp_path: Path) -> None:
    """Others' are as Python writes them."""
    (tmp_path / "run" / "state" / "checkpoint-3").mkdir(parents=True)
    program = (
        "import sys, warnings; sys.argv[1:] = ['--version']\n"
        "from pathlib import Path; from mmbert.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "from mmbert.training.run_folder import checkpoint_of\n"
        "from mmbert.training.recipe import load_recipe\n"
        f"checkpoint_of(Path({str(tmp_path / 'run')!r}), load_recipe('starter')); warnings.warn('other')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    ours, *others = done.stderr.splitlines()
    assert ours.startswith("mmbert: warning: left aside, damaged: ")
    assert others[0].endswith("UserWarning: other")


@pytest.mark.parametrize("name", frame.command_names())
def test_every_command_has_a_short_summary_and_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = frame._summary(name)
    assert summary
    assert len(summary) <= 90, "the first line of the file's docstring is what `mmbert --help` lists"
    command = frame.load_command(name)
    paths = [[name, child] for child in getattr(command, "commands", {})] or [[name]]
    for path in paths:
        assert frame.run([*path, "--help"]) == 0
        assert f"  mmbert {' '.join(path)}" in capsys.readouterr().out, f"no example in mmbert {' '.join(path)} --help"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to do with memory")
@pytest.mark.parametrize(
    ("arguments", "anew"),
    [(["train", "--help"], True), (["--debug", "profile", "--help"], True), (["info", "--help"], False), ([], False)],
)
def test_commands_that_take_training_steps_start_in_an_environment_for_that(
    arguments: list[str], anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[dict[str, str]]()
    monkeypatch.delenv(TUNABLES, raising=False)
    monkeypatch.setattr(os, "execve", lambda program, given, environment: started.append(environment))
    monkeypatch.setattr(sys, "argv", ["mmbert", *arguments])
    with pytest.raises(SystemExit):
        frame.main()
    assert [environment[TUNABLES] for environment in started] == ["glibc.malloc.tcache_count=0"] * anew
