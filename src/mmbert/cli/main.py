"""The frame of the ``mmbert`` command: finds commands, reports errors, sets exit codes.

A command is one file in this package. ``mmbert train`` is ``train.py``, and its entry is either a Typer object named
``app`` or a function named like the file. The first line of the file's docstring is the summary that
``mmbert --help`` lists; it is read from the source, so listing commands imports none of them. Inside a command, import
anything heavy in the function that needs it.

Paragraphs of a command's help whose lines are indented (examples) are printed as they are written.

Exit codes: 0 done; 2 the user can mend it (``MMBertError``, wrong usage); 1 unexpected; 75 training was asked to stop
and can go on; 130 interrupted.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

import mmbert.cli
from mmbert import __version__
from mmbert.errors import DataError, MMBertError
from mmbert.plugins import nearest

DEBUG = "--debug"
PREFORMATTED = "\b\n"
STEPS = ("train", "profile")
"""Commands that take training steps, for which the C library is told at the start how to keep memory."""


# -- finding commands ---------------------------------------------------------------------------------------------


@functools.cache
def _summary(name: str) -> str | None:
    """Summary of the command ``name`` from its file's docstring; None where no command has that name.

    The file is parsed, not imported: it is a command when it defines ``app`` or a function of its own name.
    """
    stem = name.replace("-", "_")
    for folder in mmbert.cli.__path__:
        path = Path(folder, f"{stem}.py")
        if stem.startswith("_") or stem == "main" or not stem.isidentifier() or not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        if {"app", stem} & _top_level_names(tree):
            return _without_prefix((ast.get_docstring(tree) or "").partition("\n")[0], name)
    return None


def _top_level_names(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def _without_prefix(line: str, name: str) -> str:
    """``"`mmbert train`: train a model."`` and ``"Train a model."`` both give ``"Train a model."``."""
    head, colon, rest = line.partition(":")
    if colon and head.replace("`", "").strip() in (name, f"mmbert {name}"):
        line = rest.strip()
    line = line.replace("``", "")
    return line[:1].upper() + line[1:]


def command_names() -> list[str]:
    """Names of all commands, in alphabetical order."""
    stems = [module.name.replace("_", "-") for module in pkgutil.iter_modules(mmbert.cli.__path__)]
    return sorted(name for name in stems if _summary(name) is not None)


@functools.cache
def load_command(name: str) -> Any:
    """Import the file of command ``name`` and build its command object."""
    stem = name.replace("-", "_")
    module = importlib.import_module(f"mmbert.cli.{stem}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command(name)(getattr(module, stem))
    # Typer folds an app with a single command into that command, unless the command is named otherwise than the file.
    named = [info.name for info in app.registered_commands if info.name not in (None, name)]
    command = get_group(app) if named else get_command(app)
    command.name = name
    _lay_out(command)
    return command


def _lay_out(command: Any) -> None:
    """Plain help in every command below ``command``, with indented paragraphs kept as written."""
    command.rich_markup_mode = None
    command.help = _keep_indented(command.help)
    command.epilog = _keep_indented(command.epilog)
    if any(param.name == "skip_bad" for param in command.params):
        command.callback = _naming_skip_bad(command.callback)
    command.params = [param for param in command.params if param.name not in ("install_completion", "show_completion")]
    for child in getattr(command, "commands", {}).values():
        _lay_out(child)
    if hasattr(command, "commands") and command.callback is None:
        command.no_args_is_help = True


def _naming_skip_bad(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The command, whose errors about single records and images say that ``--skip-bad`` leaves them out."""

    @functools.wraps(callback)
    def command(*args: Any, **named: Any) -> Any:
        try:
            return callback(*args, **named)
        except DataError as error:
            if error.skippable and "--skip-bad" not in (error.hint or ""):
                error.hint = f"{error.hint or 'mend it'}; --skip-bad goes on without it"
            raise

    return command


def _keep_indented(text: str | None) -> str | None:
    if not text:
        return text
    paragraphs = inspect.cleandoc(text).split("\n\n")
    kept = [
        PREFORMATTED + p if any(line.startswith((" ", "$")) for line in p.splitlines()) and "\b" not in p else p
        for p in paragraphs
    ]
    return "\n\n".join(kept)


class CommandFiles(TyperGroup):
    """A command group whose commands are the files of ``mmbert.cli``, each imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        return command_names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return None if _summary(cmd_name) is None else load_command(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and _summary(name) is None:
            known = command_names()
            close = nearest(name, known)
            hint = f"did you mean 'mmbert {close}'?" if close else f"commands: {', '.join(known)}"
            raise MMBertError(f"unknown command {name!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name) or "") for name in self.list_commands(ctx)])


# -- the root command ---------------------------------------------------------------------------------------------

root = typer.Typer(
    name="mmbert",
    cls=CommandFiles,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    result_callback=lambda *_, **__: None,  # what a command function returns is not an exit code
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmbert {__version__}")
        raise typer.Exit


@root.callback(
    epilog=_keep_indented("""
    Examples:

      mmbert quickstart
      mmbert data check my-photos
      mmbert index my-photos
      mmbert search "ein Hund am Strand"
      mmbert train starter --data my-photos --out runs/first

    Every command explains itself: mmbert COMMAND --help
    """)
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show the traceback of an error (works anywhere).")] = False,
) -> None:
    """Train, evaluate and use one multilingual vision-language encoder."""


# -- running ------------------------------------------------------------------------------------------------------


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say on standard error what went wrong and return the exit code.

    One line with what and where, then one ``hint:`` line where there is something to do.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, MMBertError):
        where = f" [{error.where}]" if error.where else ""
        return _say(f"{error.message}{where}", error.hint, error.exit_code)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "mmbert"
        return _say(error.format_message(), f"see '{path} --help'", error.exit_code)
    hint = None if debug else "this is a fault in mmbert or its surroundings; run again with --debug for the traceback"
    return _say(f"{type(error).__name__}: {error}", hint, 1)


def _say(what: str, hint: str | None, code: int) -> int:
    print(f"mmbert: error: {' '.join(what.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {' '.join(hint.split())}", file=sys.stderr)
    return code


def run(args: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    args = list(args)
    end = args.index("--") if "--" in args else len(args)
    debug = DEBUG in args[:end]
    args = [arg for i, arg in enumerate(args) if arg != DEBUG or i > end]
    try:
        code = get_command(root).main(args, prog_name="mmbert", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has gone: nobody is left to tell. Python flushes again at exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return _say("aborted", None, 1)
    except typer.TyperException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        return report(error, debug=debug)
    except Exception as error:
        return report(error, debug=debug)
    return code if isinstance(code, int) else 0


def _as_a_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours, for people; others' as Python writes them."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(mmbert.cli.__path__[0]).parent):
        return f"mmbert: warning: {message}\n"
    return _as_python_does(message, category, filename, lineno, line)


_as_python_does = warnings.formatwarning


def main() -> None:
    """Entry point of the ``mmbert`` command."""
    warnings.formatwarning = _as_a_line
    if next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None) in STEPS:
        from mmbert.training.allocator import restart_tuned

        restart_tuned()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
