"""`boxwright VERB ...`: finds the verb's file, runs its function, turns errors into one line and an exit status.

The file name is the registry: `cli/<verb>.py` with a function `<verb>` is a verb. Only the file of the verb that was
asked for is imported; the help of the others is read from their source, so that `boxwright --help` stays quick.
Files that begin with an underscore are shared by the verbs.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.main

import boxwright
from boxwright.cli._output import json_alone_on_stdout
from boxwright.core.errors import EXIT_OK, EXIT_USER, BoxwrightError, MissingDependencyError

_FOLDER = Path(__file__).parent
_EXIT_INTERRUPTED = 130
# Typer keeps its base class of usage errors in a private module, whose place differs between versions.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class VerbCommand(typer.core.TyperCommand):
    """A verb; where it is asked for JSON, whatever else is printed goes to stderr."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb's function."""
        try:
            with json_alone_on_stdout() if ctx.params.get("as_json") else contextlib.nullcontext():
                return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing_dependency(error, verb=str(self.name)) from error


class VerbGroup(typer.core.TyperGroup):
    """The command `boxwright`, whose verbs are the files beside this one."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a stand-in that carries the verb's help alone: nothing is imported for it."""
        if cmd_name not in self.commands:
            return None
        return typer.core.TyperCommand(cmd_name, help=_verb_summary(cmd_name), callback=lambda: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the verb that is to run, imported now."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        return name, stand_in if name is None else _load_verb(name), rest


def verb_names() -> list[str]:
    """Return the names of all verbs, sorted."""
    names = (path.stem for path in _FOLDER.glob("*.py"))
    return sorted(name for name in names if not name.startswith("_") and name != "main")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: what follows the word `boxwright`; those of this process where absent.

    Returns:
        0; 2 for what the user can mend; 3 where the work was done and the answer is no; 130 after Ctrl-C. An
        exception that is a defect of ours passes through, so that Python prints its traceback and exits with 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _build_group().main(arguments or ["--help"], prog_name="boxwright", standalone_mode=False)
    except _UsageError as error:
        return _complain(error.format_message() + _where_help_is(error), EXIT_USER)
    except BoxwrightError as error:
        return _complain(str(error), error.exit_status)
    except (KeyboardInterrupt, typer.Abort):
        status = _EXIT_INTERRUPTED
    if status == _EXIT_INTERRUPTED:  # Typer may have turned the interrupt into this status
        return _complain("interrupted", _EXIT_INTERRUPTED)
    return status if isinstance(status, int) else EXIT_OK


def _missing_dependency(error: ModuleNotFoundError, *, verb: str) -> Exception:
    """Name the extra that brings a module; one that no extra brings is missing by a defect of ours."""
    from boxwright.cli._installation import extra_that_brings

    module = error.name or ""
    extra = extra_that_brings(module, verb=verb)
    if extra is None:
        return error
    return MissingDependencyError(module, extra=extra, needed_for=f"boxwright {verb}")


def _build_group() -> VerbGroup:
    """Build the command `boxwright` with its own few options."""
    app = typer.Typer(cls=VerbGroup, add_completion=True, pretty_exceptions_enable=False)

    @app.callback(invoke_without_command=True)
    def callback(
        version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
    ) -> None:
        """From a trained detector to a small box at the edge, with proof that nothing was lost."""
        if version:
            print(boxwright.__version__)
            raise typer.Exit

    group = typer.main.get_command(app)
    assert isinstance(group, VerbGroup)
    group.commands = {name: typer.core.TyperCommand(name) for name in verb_names()}
    return group


def _load_verb(name: str) -> Any:
    """Import the verb's file and make a command of its function."""
    function = getattr(importlib.import_module(f"boxwright.cli.{name}"), name)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name, cls=VerbCommand)(function)
    return typer.main.get_command(app)


def _verb_summary(name: str) -> str:
    """Read the first line of the docstring of the verb's function without importing its file."""
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    docstring = ast.get_docstring(next(functions)) or ""
    return docstring.partition("\n")[0]


def _where_help_is(error: Any) -> str:
    """Name the help that explains the options of the command that was used wrongly."""
    return f" (see: {error.ctx.command_path} --help)" if getattr(error, "ctx", None) else ""


def _complain(message: str, status: int) -> int:
    """Print one line to stderr and return the exit status."""
    print(f"boxwright: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status
