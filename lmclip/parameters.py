"""What a notebook may be told: reads its parameters cell, and checks what a caller gives against it."""

import ast
from collections.abc import Iterable
from pathlib import Path

import papermill

from lmclip.errors import LMCLIPError


def notebook_parameters(path: Path) -> dict[str, object]:
    """Names and defaults in the cell of the notebook at ``path`` that is tagged ``parameters``, without running it.

    Raises LMCLIPError when the notebook is missing or unreadable, has no such cell, or a default is not a literal.
    """
    if not path.is_file():
        raise LMCLIPError(f"{path.name} is not in {path.parent.name}/: restore it from the repository.")
    try:
        found = papermill.inspect_notebook(str(path))
    except Exception as error:  # papermill hands on whatever its reader met
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}" if str(error) else type(error).__name__
        raise LMCLIPError(f"{path.name} can't be read as a notebook ({reason}): restore it.") from error
    if not found:
        raise LMCLIPError(f'{path.name} has no cell tagged "parameters": add one, so that it can be run with settings.')
    return {name: _literal(path.stem, name, entry["default"]) for name, entry in found.items()}


def resolve_parameters(
    known: dict[str, dict[str, object]], given: Iterable[tuple[str, str]]
) -> dict[str, dict[str, object]]:
    """The values that each notebook gets: the ``given`` ones that it knows, each in the type of its default.

    ``known`` maps notebook names to their defaults, ``given`` holds pairs of name and text. Raises LMCLIPError when
    no notebook knows a name, listing the known ones, and when a text does not fit the type of the default.
    """
    resolved: dict[str, dict[str, object]] = {notebook: {} for notebook in known}
    for name, text in given:
        takers = [notebook for notebook, defaults in known.items() if name in defaults]
        if not takers:
            lists = "; ".join(f"{notebook} knows {', '.join(defaults)}" for notebook, defaults in known.items())
            raise LMCLIPError(f"there is no parameter {name!r}: {lists}.")
        for notebook in takers:
            resolved[notebook][name] = parse_value(text, known[notebook][name], f"parameter {name} of {notebook}")
    return resolved


def parse_value(text: str, default: object, what: str) -> object:
    """``text`` in the type of ``default``, where a default of None takes anything and a list checks its members too.

    Raises LMCLIPError, opening with ``what``, when the text is of another type.
    """
    if isinstance(default, str):
        return text
    value = {"true": True, "false": False}.get(text.lower(), _parsed(text))
    # The kind of the default decides; a whole number also serves as a float, and a tuple as a list.
    if default is None:
        return value
    if isinstance(default, float) and type(value) is int and abs(value) < 1e300:
        return float(value)
    if isinstance(default, (list, tuple)) and isinstance(value, (list, tuple)):
        if not default or all(_fits(member, default[0]) for member in value):
            return type(default)(value)
    elif type(value) is type(default):
        return _listed(value) if isinstance(value, dict) else value
    raise LMCLIPError(f"{what} takes a value of type {type(default).__name__}, such as {default!r}, not {text[:80]!r}.")


def _literal(notebook: str, name: str, text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise LMCLIPError(
            f"the default of parameter {name} of {notebook} is {text!r}: write a plain literal, with no other '='."
        ) from error


def _parsed(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text


def _listed(value: object) -> object:
    """``value`` with lists in place of tuples, which papermill would hand on as text."""
    if isinstance(value, dict):
        return {key: _listed(member) for key, member in value.items()}
    return [_listed(member) for member in value] if isinstance(value, (list, tuple)) else value


def _fits(member: object, example: object) -> bool:
    return type(member) is type(example) or (isinstance(example, float) and type(member) is int)
