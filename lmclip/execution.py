"""Runs one notebook through papermill and leaves a page fit to publish: whole, without this machine's paths."""

import contextlib
import os
import re
import site
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import nbformat
import papermill

from lmclip import paths

# Keeps figures inline whatever the caller's backend, and a warning about frozen modules out of the page.
KERNEL_ENVIRONMENT = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
TRACEBACK_LINES = 25
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookFailed(RuntimeError):
    """A notebook stopped before its end; the message says where and why, and names the file that was kept."""


def execute_notebook(
    source: Path, target: Path, parameters: Mapping[str, object], outputs: Iterable[Path] = ()
) -> float:
    """Runs the notebook at ``source`` with ``parameters`` and writes it, executed, to ``target``; returns seconds.

    ``target`` appears only when the last cell, tagged ``done``, has run and every file in ``outputs`` has been
    written by this run. Otherwise the page as far as it got is kept beside it as NAME.failed.ipynb, and NotebookFailed
    is raised; after a KeyboardInterrupt nothing is kept. The kernel inherits the working directory.
    """
    running = target.with_name(f".{target.stem}.running.ipynb")
    failed = target.with_name(f"{target.stem}.failed.ipynb")
    started = time.time()
    live = sys.stderr.isatty()
    bar = {"desc": f"  {source.stem}", "file": sys.stderr, "leave": False}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _environment(KERNEL_ENVIRONMENT):
            papermill.execute_notebook(
                str(source),
                str(running),
                parameters=dict(parameters),
                kernel_name="python3",
                # Cells are counted, and a long one shows its own progress, on a terminal; in a log that is noise.
                progress_bar=bar if live else False,
                stderr_file=sys.stderr if live else None,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
        reason = _unfinished(running, started, outputs)
    except KeyboardInterrupt:
        running.unlink(missing_ok=True)
        raise
    except papermill.PapermillExecutionError as error:
        reason = _told(error)
    except Exception as error:  # a dead kernel, a kernel that never started, a full disk
        reason = f"{_where(running)}: {type(error).__name__}: {error}"
    if not reason:
        reason = _publish(running, target)
    if reason:
        kept = f"Kept as far as it got: {paths.display(failed)}" if not _publish(running, failed) else ""
        running.unlink(missing_ok=True)
        raise NotebookFailed(f"{source.stem} stopped {hide_paths(reason)}\n{kept}".rstrip())
    failed.unlink(missing_ok=True)
    return time.time() - started


def hide_paths(text: str, given: Mapping[str, str] | None = None) -> str:
    """``text`` with this machine's folders, and ``given`` ones, replaced by what they are to a reader.

    Object addresses are removed too.
    """
    text = re.sub(r"/[^\s\"']*ipykernel_\d+/\d+\.py", "this notebook", text)
    for folder, label in _folders(given or {}):
        text = re.sub(rf"(?<![\w.~-]){re.escape(folder)}(?![\w.-])", label, text)
    return re.sub(r"\bat 0x[0-9a-f]{6,}", "at 0x…", text)


def clean_notebook(notebook: nbformat.NotebookNode) -> None:
    """Removes, in place, what tells of this machine or changes from run to run without meaning anything."""
    metadata = notebook.metadata.pop("papermill", {})
    parameters = metadata.get("parameters", {})
    given = {}
    for name, value in parameters.items():
        if isinstance(value, str) and "/" in value:
            given |= {value: f"<{name}>", str(Path(value).expanduser().resolve()): f"<{name}>"}
    notebook.metadata["papermill"] = {
        "duration": round(metadata.get("duration") or 0),  # seconds
        "parameters": _hidden(parameters, given),
    }
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
            cell.source = hide_paths(cell.source, given)
        if cell.cell_type == "code":
            cell.outputs = _joined_streams(cell.outputs)
            cell.outputs = [nbformat.from_dict(_hidden(output, given)) for output in cell.outputs]


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for this process and the kernels that it starts, put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _unfinished(page: Path, started: float, outputs: Iterable[Path]) -> str:
    """What a run that raised nothing left undone, or an empty string."""
    last = [cell for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == "code"][-1:]
    if not last or "done" not in last[0].metadata.get("tags", []):
        return 'without a last code cell tagged "done", so nobody can tell whether it got there.'
    if last[0].execution_count is None:
        return f"{_where(page)}: the kernel ended without a word."
    # File systems round the time of a change, some to a second.
    missing = [path for path in outputs if not path.is_file() or path.stat().st_mtime < started - 2]
    if missing:
        names = ", ".join(paths.display(path) for path in missing)
        return f"at its end without having written what it declares: {names}"
    return ""


def _told(error: papermill.PapermillExecutionError) -> str:
    """Cell and reason of a failure: one sentence for bad input, the end of the traceback for anything else."""
    cell = f"in cell [{error.exec_count}]"
    if error.ename == "LMCLIPError":
        return f"{cell}: {hide_paths(error.evalue)}"
    lines = hide_paths(ANSI.sub("", "\n".join(error.traceback))).splitlines()
    shown = lines if len(lines) <= TRACEBACK_LINES else ["…", *lines[-TRACEBACK_LINES:]]
    return "\n".join([f"{cell}: {error.ename}: {hide_paths(ANSI.sub('', error.evalue))}", *shown])


def _where(page: Path) -> str:
    """The cell that was running when a page broke off, told by its first line."""
    try:
        cells = nbformat.read(page, as_version=4).cells
    except Exception:  # none yet, or one that broke off in the middle
        cells = []
    # The count of a cell is set when it starts, so it can't tell; the time when it started can.
    started = [cell for cell in cells if cell.metadata.get("papermill", {}).get("start_time") and cell.source.strip()]
    if not started:
        return "before its first cell"
    return f"in the cell that begins {started[-1].source.strip().splitlines()[0]!r}"


def _publish(running: Path, target: Path) -> str:
    """Cleans the page at ``running`` and moves it to ``target`` in one step, so that no reader meets half a page.

    Returns why that can't be done, or an empty string.
    """
    try:
        notebook = nbformat.read(running, as_version=4)
        clean_notebook(notebook)
        nbformat.write(notebook, running)
        os.replace(running, target)
    except OSError as error:
        return f"as its page {paths.display(target)} can't be written ({error.strerror or error}): free space there."
    except Exception as error:  # a page that broke off in the middle
        return f"with a page that can't be read ({type(error).__name__}): run it again."
    return ""


def _folders(given: Mapping[str, str]) -> list[tuple[str, str]]:
    """This machine's folders, each as given and as resolved, longest first so that the closest name wins."""
    named = {
        paths.ROOT: ".",
        Path(sys.prefix): "<environment>",
        Path(tempfile.gettempdir()): "<temporary>",
        Path.home(): "~",
        **{Path(folder): "<packages>" for folder in site.getsitepackages()},
        **{Path(value): f"${name}" for name, value in os.environ.items() if name.startswith("LMCLIP_") and value},
    }
    found = {str(form): label for folder, label in named.items() for form in (folder, folder.resolve())}
    found |= given  # a relative path as it was given, too
    useful = [(folder, label) for folder, label in found.items() if "/" in folder and len(folder) > 1]
    return sorted(useful, key=lambda pair: -len(pair[0]))


def _hidden(value: object, given: Mapping[str, str]) -> object:
    """``value`` with the paths hidden in every string; pictures in base64 are left alone."""
    if isinstance(value, str):
        return hide_paths(value, given)
    if isinstance(value, Mapping):
        return {
            key: inner if key.startswith("image/") and key != "image/svg+xml" else _hidden(inner, given)
            for key, inner in value.items()
        }
    return [_hidden(inner, given) for inner in value] if isinstance(value, list) else value


def _joined_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Neighbouring pieces of one stream as one, with only the last state of each line that was rewritten."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream" and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            # A progress bar ends each state with a carriage return; what a terminal shows is the last one.
            output.text = re.sub(r"[^\n]*\r(?=[^\n])", "", output.text.replace("\r\n", "\n")).replace("\r", "")
    return joined
