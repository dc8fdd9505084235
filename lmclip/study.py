"""Runs the notebooks of the study, in order, through papermill: which ones, with what, and what each leaves."""

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmclip import paths
from lmclip.config import Profile, load_profile
from lmclip.errors import LMCLIPError
from lmclip.execution import execute_notebook
from lmclip.freshness import ANNOTATIONS, digests, read_stamp, remove_stamp, write_stamp
from lmclip.locks import held
from lmclip.mlt import require_labels
from lmclip.parameters import notebook_parameters, resolve_parameters
from lmclip.sources import has_images

LISTS = ("data:*_mlt_*.txt", *(f"data:{folder}{path}" for path in ANNOTATIONS for folder in ("", "voc/", "coco/")))
WEIGHTS = ("checkout:data/pretrained/**/*", "checkout:data/tuning/*.json")
RECORDS = ("results:runs/*/record.json", "results:runs/*/scores.npz")
SEARCH = ("checkout:data/tuning/*.json",)
PUBLISHED = ("checkout:data/published_results.csv", "checkout:data/author_runs.csv")
OPTIONS = ("profile", "smoke", "backbone", "weights")  # parameters that the command line has options for


@dataclass(frozen=True)
class Notebook:
    """One notebook of the study.

    ``outputs`` are files that every run writes, relative to the results folder; ``inputs`` glob patterns as in
    ``freshness.digests``; ``minutes`` what the glyph profile takes on two cores. Appendices run only when asked for.
    """

    name: str
    title: str
    minutes: float
    outputs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    needs_images: bool = False
    appendix: bool = False

    @property
    def number(self) -> str:
        """The two digits that its name opens with."""
        return self.name[:2]

    @property
    def source(self) -> Path:
        """The notebook as committed, without outputs."""
        return paths.NOTEBOOKS / f"{self.name}.ipynb"

    def target(self, folder: str) -> Path:
        """The executed notebook in a results folder."""
        return paths.results_dir(folder) / "notebooks" / f"{self.name}.ipynb"

    def output_files(self, folder: str) -> list[Path]:
        """The declared outputs in a results folder."""
        return [paths.results_dir(folder) / name for name in self.outputs]


STUDY = (
    Notebook(
        "00_start_here", "The question, the map and the claims", 0.3,
        outputs=("tables/start_here.csv",), inputs=("data:*", "results:tables/claims.csv"),
    ),
    Notebook(
        "01_long_tail_construction", "How a long tail is made", 0.5,
        outputs=("tables/long_tail_facts.csv", "tables/long_tail_classes.csv", "figures/01_counts.png"), inputs=LISTS,
    ),
    Notebook("02_sampler_analysis", "Which images an epoch sees", 0.5, inputs=LISTS),
    Notebook(
        "03_loss_gradients", "What each loss pulls at", 0.5,
        outputs=("tables/claim_gradient.csv", "figures/03_plotted_and_trained.png"), inputs=LISTS,
    ),
    Notebook(
        "04_training", "Training LM-CLIP and its rivals", 9,
        outputs=("tables/training_runs.csv", "figures/04_learning_curves.png"),
        inputs=(*LISTS, *WEIGHTS, *SEARCH, *RECORDS), needs_images=True,
    ),
    Notebook(
        "05_results", "What the records say", 1,
        outputs=("tables/main_clean.csv", "tables/main_best-on-test.csv", "tables/claims.csv", "figures/05_main.png"),
        inputs=(*PUBLISHED, "results:tables/claim_gradient.csv", *SEARCH, *RECORDS),
        needs_images=True,
    ),
    Notebook(
        "07_mini_clip", "How the mini CLIP was pre-trained", 1,
        outputs=("tables/pretraining_seeds.csv", "figures/07_history.png"), inputs=WEIGHTS, appendix=True,
    ),
)  # fmt: skip


def run_study(
    profile_name: str,
    *,
    smoke: bool = False,
    backbone: str = "",
    weights: str = "auto",
    only: Iterable[str] = (),
    start: str = "",
    force: bool = False,
    given: Iterable[tuple[str, str]] = (),
) -> None:
    """Runs the selected notebooks and prints what it does; a notebook whose page is up to date is skipped.

    ``only`` and ``start`` name notebooks by number or name, ``given`` holds parameters as pairs of name and text.
    Everything that can be checked is checked before the first kernel starts. Raises LMCLIPError on bad input and
    NotebookFailed at the first notebook that stops.
    """
    given = list(given)
    profile = load_profile(profile_name, smoke, backbone, weights, dict(given).get("overrides", ""))
    selected = select_notebooks(profile.name, only, start, dict(given).get("source", ""))
    parameters = _parameters(profile, selected, given)
    if profile.name != "glyph":
        told = dict(given)
        require_labels(profile.name, *(told.get(name, "") for name in ("train_list", "test_list", "source")))
    _check_writable(paths.results_dir(profile.folder))
    began, ran = time.time(), 0
    for place, notebook in enumerate(selected, start=1):
        print(f"[{place}/{len(selected)}] {notebook.name}: ", end="", flush=True)
        with held(paths.results_dir(profile.folder) / ".stamps" / f".{notebook.name}.lock", notebook.name):
            reason = "forced" if force else stale_because(notebook, profile.folder, parameters[notebook.name])
            if not reason:
                print("up to date, skipped (--force runs it again)", flush=True)
                continue
            known = profile == load_profile("glyph")  # whose minutes were measured
            print(f"{reason}; {'about ' + _told(notebook.minutes * 60) if known else 'running'}", flush=True)
            print(f"      done in {_told(_run(notebook, profile.folder, parameters[notebook.name]))}", flush=True)
            ran += 1
    pages = paths.display(paths.results_dir(profile.folder) / "notebooks")
    print(f"{ran} run, {len(selected) - ran} up to date, {_told(time.time() - began)}; pages in {pages}")


def list_study(profile_name: str, smoke: bool = False, backbone: str = "", weights: str = "auto") -> None:
    """Prints every notebook with its title, its minutes on glyph, and whether its executed page is up to date."""
    profile = load_profile(profile_name, smoke, backbone, weights)
    for notebook in STUDY:
        parameters = _common(profile, notebook_parameters(notebook.source))
        state = stale_because(notebook, profile.folder, parameters) or "up to date"
        note = ", only with --only" if notebook.appendix else ""
        print(f"{notebook.name:<27}{_told(notebook.minutes * 60):>8}  {notebook.title} ({state}{note})")


def select_notebooks(profile_name: str, only: Iterable[str] = (), start: str = "", source: str = "") -> list[Notebook]:
    """The notebooks to run, in order: those named, those from ``start`` on, or all but the appendices.

    Without images (in ``source``, or the data folder), the ones that need images are left out and named, or refused
    where they were asked for.
    Raises LMCLIPError when a number is unknown or a notebook that was asked for has no images.
    """
    asked = [find_notebook(text) for text in only]
    if asked and start:
        raise LMCLIPError("--only and --from exclude each other: give one of them.")
    first = find_notebook(start).number if start else ""
    wanted = [n for n in STUDY if n in asked or (not asked and not n.appendix and n.number >= first)]
    imageless = [n for n in wanted if n.needs_images and not has_images(profile_name, source)]
    if not imageless:
        return wanted
    names = ", ".join(n.name for n in imageless)
    told = f"run `lmclip check {profile_name}`, which says what is missing and how to get it"
    if asked or imageless == wanted:
        raise LMCLIPError(f"{names}: the images of {profile_name} are missing; {told}.")
    print(f"Left out, for want of the images of {profile_name}: {names}; {told}")
    return [n for n in wanted if n not in imageless]


def find_notebook(text: str) -> Notebook:
    """The notebook called by ``text``: its name, or its number with or without the leading zero.

    Raises LMCLIPError, listing the numbers, when there is none.
    """
    for notebook in STUDY:
        if text == notebook.name or text.zfill(2) == notebook.number:
            return notebook
    known = ", ".join(notebook.number for notebook in STUDY)
    raise LMCLIPError(f"there is no notebook {text!r}: the numbers are {known}.")


def stale_because(notebook: Notebook, folder: str, parameters: dict[str, object]) -> str:
    """Why the executed page in a results folder is not what a run would give now; empty when it is."""
    stamp = read_stamp(folder, notebook.name)
    if not stamp:
        return "not run yet"
    missing = [p.name for p in (notebook.target(folder), *notebook.output_files(folder)) if not p.is_file()]
    if missing:
        return f"{', '.join(missing)} missing"
    now = digests(notebook.source, parameters, notebook.inputs, folder)
    changed = [part for part in now if now[part] != stamp.get(part)]
    return f"{', '.join(changed)} changed" if changed else ""


def _run(notebook: Notebook, folder: str, parameters: dict[str, object]) -> float:
    """Runs one notebook and stamps it; returns seconds."""
    remove_stamp(folder, notebook.name)
    before = digests(notebook.source, parameters, notebook.inputs, folder)
    seconds = execute_notebook(notebook.source, notebook.target(folder), parameters, notebook.output_files(folder))
    after = digests(notebook.source, parameters, notebook.inputs, folder)
    # A change made to source or module while it ran must not pass for run; records that it wrote must.
    write_stamp(folder, notebook.name, before | {"records": after["records"]})
    return seconds


def _parameters(
    profile: Profile, selected: list[Notebook], given: Iterable[tuple[str, str]]
) -> dict[str, dict[str, object]]:
    """What each notebook is told: the options and the given parameters that it knows."""
    given = list(given)
    for name, _ in given:
        if name in OPTIONS:
            raise LMCLIPError(f"parameter {name} has an option of its own: write --{name} instead of -p {name}.")
    known = {notebook.name: notebook_parameters(notebook.source) for notebook in selected}
    resolved = resolve_parameters(known, given)
    return {name: _common(profile, known[name]) | resolved[name] for name in known}


def _common(profile: Profile, known: dict[str, object]) -> dict[str, object]:
    """The options' values as parameters, of those that a notebook knows; a backbone only where it was chosen."""
    told = {"profile": profile.name, "smoke": profile.smoke, "backbone": profile.backbone, "weights": profile.weights}
    if profile.backbone == load_profile(profile.name).backbone:
        told["backbone"] = ""
    return {name: told[name] for name in OPTIONS if name in known}


def _check_writable(folder: Path) -> None:
    try:
        for part in (folder, folder / "notebooks", folder / "tables", folder / "figures", folder / ".stamps"):
            part.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=part):
                pass
    except OSError as error:
        raise LMCLIPError(
            f"can't write results to {folder} ({error.strerror}): free it, or name another folder in LMCLIP_RESULTS."
        ) from error


def _told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
