"""The runner, on throw-away notebooks: what it runs, skips, refuses, and leaves behind when something breaks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lmclip import paths, study
from lmclip.cli import main
from lmclip.errors import LMCLIPError
from lmclip.execution import clean_notebook, hide_paths
from lmclip.parameters import notebook_parameters, parse_value, resolve_parameters
from lmclip.study import Notebook, find_notebook, select_notebooks, stale_because

PARAMETERS = """\
profile: str = "glyph"  # which data and model
smoke: bool = False  # smallest size
seeds: list = [0, 1, 2]  # random seeds
rate: float = 0.5  # learning rate
note: str = ""  # free text"""
WRITES = """\
from lmclip import paths
folder = paths.results_dir(profile)
(folder / "{name}").write_text(repr((seeds, rate, note)))"""


def write_notebook(path: Path, *cells: str, done: str | None = "print('done')") -> None:
    """A notebook with a parameters cell, ``cells``, and a last cell tagged done."""
    tagged = [("parameters", PARAMETERS), *(("", cell) for cell in cells), *([("done", done)] if done else [])]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    for place, (tag, source) in enumerate(tagged):
        metadata = {"tags": [tag]} if tag else {}
        notebook.cells.append(nbformat.v4.new_code_cell(source, id=f"cell-{place}", metadata=metadata))
    nbformat.write(notebook, path)


def make_study(patch: pytest.MonkeyPatch, folder: Path, *notebooks: Notebook) -> Path:
    """Puts the study in ``folder`` and gives it these notebooks only; returns its results folder."""
    (folder / "notebooks").mkdir()
    patch.setattr(paths, "NOTEBOOKS", folder / "notebooks")
    patch.setattr(study, "STUDY", notebooks)
    patch.setenv("LMCLIP_RESULTS", str(folder / "results"))
    patch.setenv("LMCLIP_DATA", str(folder / "data"))
    patch.setenv("PYTHONPATH", str(paths.ROOT))
    return folder / "results" / "glyph"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study of two notebooks that ran to its end, from another working directory, with parameters."""
    folder = tmp_path_factory.mktemp("a study with spaces")
    with pytest.MonkeyPatch.context() as patch:
        results = make_study(
            patch,
            folder,
            Notebook("00_first", "First", 1, ("a.txt",), ("data:list.txt",)),
            Notebook("01_second", "S", 1),
        )
        talkative = """\
import os, sys, tempfile, lmclip
from pathlib import Path
print(lmclip.__file__, sys.prefix, Path.home() / "x", tempfile.gettempdir(), os.environ["LMCLIP_RESULTS"])
for step in range(3): print(f"\\rstep {step}", end="")
print(object())"""
        write_notebook(paths.NOTEBOOKS / "00_first.ipynb", WRITES.format(name="a.txt"), talkative)
        write_notebook(paths.NOTEBOOKS / "01_second.ipynb", "import matplotlib; print(matplotlib.get_backend())")
        patch.chdir(folder)
        patch.setenv("MPLBACKEND", "agg")
        status = main(["study", "-p", "seeds", "[3, 4]", "-p", "rate", "2", "-p", "note", str(paths.ROOT / "x")])
        yield status, results, folder, patch


def page(results: Path, name: str) -> str:
    return (results / "notebooks" / name).read_text()


def test_a_study_runs_to_its_end(ran):
    status, results, _, _ = ran
    assert status == 0
    assert sorted(path.name for path in (results / "notebooks").iterdir()) == ["00_first.ipynb", "01_second.ipynb"]


def test_parameters_arrive_in_the_type_of_their_default(ran):
    _, results, _, _ = ran
    assert (results / "a.txt").read_text() == repr(([3, 4], 2.0, str(paths.ROOT / "x")))


def test_an_executed_page_tells_nothing_of_the_machine(ran):
    _, results, folder, _ = ran
    text = page(results, "00_first.ipynb") + page(results, "01_second.ipynb")
    for secret in (str(folder), str(paths.ROOT), sys.prefix, str(Path.home()), "start_time", "end_time", "at 0x7"):
        assert secret not in text
    assert "step 2" in text and "step 1" not in text
    assert '"done"' in text and '"parameters"' in text  # tags are kept


def test_figures_stay_inline_whatever_the_backend_of_the_caller(ran):
    assert "inline" in page(ran[1], "01_second.ipynb")


def test_a_second_run_skips_what_is_up_to_date_and_a_change_wakes_it(ran, capsys):
    _, results, folder, _ = ran
    stamped = os.stat(results / "notebooks" / "01_second.ipynb").st_mtime_ns
    assert (
        main(["study", "--only", "01", "-p", "seeds", "[3, 4]", "-p", "rate", "2", "-p", "note", str(paths.ROOT / "x")])
        == 0
    )
    assert "up to date, skipped" in capsys.readouterr().out
    assert os.stat(results / "notebooks" / "01_second.ipynb").st_mtime_ns == stamped

    first = study.STUDY[0]
    told = {"profile": "glyph", "smoke": False, "seeds": [3, 4], "rate": 2.0, "note": str(paths.ROOT / "x")}
    assert stale_because(first, "glyph", told) == ""
    assert stale_because(first, "glyph", told | {"rate": 3.0}) == "parameters changed"
    (folder / "data").mkdir()
    (folder / "data" / "list.txt").write_text("new")
    assert stale_because(first, "glyph", told) == "inputs changed"
    first.source.write_text(first.source.read_text() + "\n")
    assert stale_because(first, "glyph", told) == "source, inputs changed"
    (results / "a.txt").unlink()
    assert stale_because(first, "glyph", told) == "a.txt missing"


BROKEN = [
    ("raises", ("x = 1", "1 / 0"), "print('done')", ["in cell [4]", "ZeroDivisionError", "1 / 0"]),
    ("bad_input", ("from lmclip.errors import LMCLIPError; raise LMCLIPError('no weights: get them.')",), "print()",
     ["in cell [3]: no weights: get them."]),
    ("killed", ("import os; os.kill(os.getpid(), 9)",), "print()", ["cell that begins 'import os; os.kill", "died"]),
    ("undone", ("x = 1",), None, ['tagged "done"']),
    ("unwritten", ("x = 1",), "print()", ["without having written", "table.csv"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cells", "done", "words"), BROKEN, ids=[case[0] for case in BROKEN])
def test_a_broken_notebook_stops_the_study_and_is_kept(name, cells, done, words, tmp_path, monkeypatch, capsys):
    broken = Notebook(f"00_{name}", "Broken", 1, outputs=("table.csv",) if name == "unwritten" else ())
    results = make_study(monkeypatch, tmp_path, broken, Notebook("01_after", "After", 1))
    write_notebook(broken.source, *cells, done=done)
    write_notebook(paths.NOTEBOOKS / "01_after.ipynb")
    with pytest.raises(SystemExit) as stop:
        main(["study"])
    assert stop.value.code == 1
    told = capsys.readouterr().err
    for word in [*words, f"00_{name}.failed.ipynb"]:
        assert word in told
    assert str(tmp_path) not in told
    assert [path.name for path in (results / "notebooks").iterdir()] == [f"00_{name}.failed.ipynb"]
    assert stale_because(broken, "glyph", {}) == "not run yet"


def test_an_interrupted_study_ends_with_one_sentence_and_no_half_page(tmp_path, monkeypatch):
    results = make_study(monkeypatch, tmp_path, Notebook("00_slow", "Slow", 1))
    begun = tmp_path / "begun"
    write_notebook(paths.NOTEBOOKS / "00_slow.ipynb", f"open({str(begun)!r}, 'w'); import time; time.sleep(60)")
    script = f"""
import sys; from pathlib import Path
from lmclip import paths, study; from lmclip.cli import main
paths.NOTEBOOKS = Path({str(paths.NOTEBOOKS)!r}); study.STUDY = (study.Notebook("00_slow", "Slow", 1),)
sys.exit(main(["study"]))"""
    running = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    told = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert "lmclip: interrupted" in told and "Traceback" not in told
    assert list((results / "notebooks").iterdir()) == []


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """A study whose notebooks would fail at once if one were started."""
    results = make_study(
        monkeypatch, tmp_path, Notebook("00_first", "First", 1), Notebook("04_train", "Train", 1, needs_images=True),
        Notebook("07_extra", "Extra", 1, appendix=True),
    )  # fmt: skip
    for notebook in study.STUDY:
        write_notebook(notebook.source, "raise SystemExit")
    return results


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--profile", "imagenet"], ["'imagenet'", "glyph, voc, coco"]),
        (["--only", "9"], ["no notebook '9'", "00, 04, 07"]),
        (["--from", "xyz"], ["no notebook 'xyz'"]),
        (["--only", "0", "--from", "0"], ["--only and --from"]),
        (["-p", "gamma", "2"], ["no parameter 'gamma'", "00_first knows profile, smoke, seeds, rate, note"]),
        (["-p", "rate", "fast"], ["parameter rate of 00_first", "type float", "'fast'"]),
        (["-p", "profile", "voc"], ["--profile"]),
        (["--profile", "voc", "--only", "04"], ["04_train", "lmclip check voc"]),
    ],
)
def test_bad_input_is_told_in_one_sentence_before_anything_runs(arguments, words, quick, capsys):
    assert main(["study", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("lmclip: ") and told.count("\n") == 1
    for word in words:
        assert word in told
    assert not quick.exists()


def test_a_results_folder_that_cannot_be_written_is_refused(quick, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path / "file"))
    assert main(["study"]) == 2
    assert "can't write results" in capsys.readouterr().err


def test_a_missing_or_corrupt_notebook_is_refused(quick, capsys):
    find_notebook("0").source.write_text("{ not json")
    assert main(["study", "--only", "0"]) == 2
    find_notebook("0").source.unlink()
    assert main(["study", "--only", "0"]) == 2
    told = capsys.readouterr().err
    assert "can't be read as a notebook" in told and "is not in notebooks/" in told


def test_selection(quick, capsys, tmp_path):
    def numbers(*arguments):
        return [notebook.number for notebook in select_notebooks(*arguments)]

    assert numbers("glyph") == ["00", "04"]
    assert numbers("glyph", ["7", "00"]) == ["00", "07"]
    assert numbers("glyph", [], "04_train") == ["04"]
    assert numbers("voc") == ["00"]
    assert "Left out, for want of the images of voc" in capsys.readouterr().out
    for folder in ("mine", paths.data_dir() / "voc" / "VOCdevkit"):
        for split in ("VOC2012", "VOC2007"):
            (images := tmp_path / folder / split / "JPEGImages").mkdir(parents=True)
            (images / "1.jpg").touch()
        source = str(tmp_path / "mine") if folder == "mine" else ""
        assert numbers("voc", [], "", source) == ["00", "04"]


def test_list_shows_every_notebook_and_runs_none(quick, capsys):
    assert main(["study", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("not run yet" in line for line in lines)
    assert not quick.exists()


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 1, 3), ("3", 1.0, 3.0), ("1e-3", 1.0, 1e-3), ("True", False, True), ("false", True, False),
        ("7", "", "7"), ("[3,4]", [0], [3, 4]), ("[1, 2]", (0.5,), (1.0, 2.0)), ("(1, 2)", [], [1, 2]),
        ("{'a': 1}", {}, {"a": 1}), ("['a']", ["b"], ["a"]), ("x", None, "x"), ("5", None, 5),
    ],
)  # fmt: skip
def test_values_are_read_in_the_type_of_the_default(text, default, value):
    found = parse_value(text, default, "it")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "default"), [("3.5", 1), ("True", 1), ("1", False), ("x", 1.0), ("3", [0]), ("['a']", [0]), ("[1]", {})]
)
def test_values_of_another_type_are_refused(text, default):
    with pytest.raises(LMCLIPError, match=f"it takes a value of type {type(default).__name__}"):
        parse_value(text, default, "it")


def test_a_parameter_goes_to_the_notebooks_that_know_it():
    known = {"01": {"seeds": [0]}, "02": {"power": 1.0}}
    assert resolve_parameters(known, [("power", "2")]) == {"01": {}, "02": {"power": 2.0}}


def test_a_parameters_cell_must_hold_literals(tmp_path):
    write_notebook(tmp_path / "a.ipynb")
    notebook = nbformat.read(tmp_path / "a.ipynb", as_version=4)
    notebook.cells[0].source = "size = 3 * 4"
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(LMCLIPError, match="parameter size of a"):
        notebook_parameters(tmp_path / "a.ipynb")
    notebook.cells[0].metadata = {}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    with pytest.raises(LMCLIPError, match='no cell tagged "parameters"'):
        notebook_parameters(tmp_path / "a.ipynb")


def test_pictures_survive_the_cleaning_and_text_loses_its_paths():
    home = str(Path.home())
    data = {"image/png": f"{home}/base64", "image/svg+xml": f"<svg>{home}/x</svg>", "text/plain": f"{home}/x"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    clean_notebook(notebook)
    cleaned = notebook.cells[0].outputs[0].data
    assert cleaned["image/png"] == data["image/png"]
    assert home not in cleaned["image/svg+xml"] and cleaned["text/plain"] == "~/x"


def test_only_whole_folder_names_are_hidden():
    assert hide_paths(f"{paths.ROOT}/lmclip/study.py:3") == "./lmclip/study.py:3"
    assert hide_paths(f"{paths.ROOT}er/x").endswith(f"{paths.ROOT.name}er/x")
    assert hide_paths('File "/tmp/ipykernel_12/345.py", line 1') == 'File "this notebook", line 1'
