"""Checks the data, tables and figures of a results folder against its records, for `lmclip verify`."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lmclip import recompute, tables
from lmclip.config import Profile, caveat, load_profile
from lmclip.datasets import load_study_data
from lmclip.errors import LMCLIPError
from lmclip.paths import data_dir, display
from lmclip.records import Record
from lmclip.training import describe
from lmclip.tuning import study_experiments

RESAMPLES = {False: 1000, True: 50}  # of notebook 05, whole and smoke size
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def check_pages(
    folder: Path, records: list[Record], scores: dict[str, dict[str, np.ndarray]], notes: list[str]
) -> Iterator[str]:
    """What does not match among the data, the tables and the figures of a folder; what can't be checked is noted."""
    told = _parameters(folder / "notebooks" / "05_results.ipynb")
    profile = profile_of(records[0], told.get("overrides", {}))
    yield from _data_faults(profile, records, notes)
    order = {exp.run_id: place for place, exp in enumerate(study_experiments(profile))}
    chosen = sorted((r for r in records if r.run_id in order), key=lambda r: order[r.run_id])
    if len(chosen) < len(order):
        notes.append(
            f"{len(order) - len(chosen)} runs of the study are missing, so tables and figures were not checked"
        )
        return
    resamples = min(int(told.get("resamples", RESAMPLES[False])), RESAMPLES[profile.smoke])
    full = recompute.FromScores(chosen, scores, resamples) if all(r.run_id in scores for r in chosen) else None
    expected = recompute.from_records(chosen)
    if full:
        expected["bootstrap"] = full.intervals.set_index("rival"), 4
    else:
        notes.append("without all scores, no interval was drawn again, nor were the two claims judged that need them")
    for name, (table, digits) in expected.items():
        yield from _table_faults(folder / "tables", name, table, digits, profile)
    yield from _claim_faults(folder / "tables", chosen, full, profile)
    drawn = recompute.figures(profile, chosen, full)
    for name, figure in drawn.items():
        path = folder / "figures" / f"{name}.png"
        if not path.is_file():
            yield f"{display(path)} is missing"
        elif recompute.pixels_differ(figure, path):
            yield f"{display(path)} is not the figure that the records give"
        plt.close(figure)
    notes.append(f"{len(expected)} tables and {len(drawn)} figures were made again")


def _data_faults(profile: Profile, records: list[Record], notes: list[str]) -> Iterator[str]:
    first = records[0].data
    for record in records[1:]:
        if record.data != first:
            yield f"{record.run_id} was made of other data or weights than {records[0].run_id}"
    rendered = any(data_dir().glob(f"glyph/pool{profile.pool_size}-test{profile.test_size}-*/annotations/*_test.json"))
    if profile.name == "glyph" and not rendered:
        notes.append("the data are not here, so their fingerprints were not checked")
        return
    try:
        now = describe(profile, load_study_data(profile, draw=False))
    except LMCLIPError as error:
        notes.append(f"fingerprints of the data were not checked: {error}")
        return
    for part in now:
        if now[part] == first[part]:
            continue
        fault = f"{part} of the records and of the data here differ"
        if profile.name == "glyph":
            yield fault
        else:  # lists and folders may have been named
            notes.append(fault)


def _table_faults(folder: Path, name: str, table: pd.DataFrame, digits: int, profile: Profile) -> Iterator[str]:
    try:
        there = {ending: (folder / f"{name}.{ending}").read_text() for ending in ("csv", "md", "tex")}
    except (OSError, UnicodeDecodeError) as error:
        yield f"{display(folder / name)} can't be read ({error.__class__.__name__})"
        return
    caption = there["md"].partition("\n")[0]
    if not caption.startswith(caveat(profile)):
        yield f"{display(folder / name)}.md does not open with {caveat(profile)!r}"
    for ending, text in tables.table_texts(table, caption, digits).items():
        for number, (stated, value) in enumerate(_lines(there[ending], text), start=1):
            if stated != value and not (name == "bootstrap" and _same(stated, value)):  # only its numbers are redrawn
                yield f"{display(folder / name)}.{ending}, line {number}: {stated!r}, but the records give {value!r}"


def _claim_faults(
    folder: Path, records: list[Record], full: recompute.FromScores | None, profile: Profile
) -> Iterator[str]:
    stated = _csv(folder / "claims.csv", ("claim", "verdict", "evidence"))
    drawn = _csv(folder / "bootstrap.csv", ("rival", "seed", "metric", "difference", "low", "high"))
    if stated is None or drawn is None:
        yield f"{display(folder)}: claims.csv or bootstrap.csv is missing or no table of its kind"
        return
    means = drawn.merge(recompute.mean_differences(records), on=["rival", "seed", "metric"], suffixes=("", "_records"))
    wrong = ~np.isclose(means["difference"], means["difference_records"], atol=2e-6, rtol=0, equal_nan=True)
    for row in means[wrong].itertuples():
        yield (f"bootstrap.csv: {row.metric} minus {row.rival}, seed {row.seed}, is {row.difference}, but the records "
               f"give {row.difference_records:.6f}")  # fmt: skip
    gradient = _csv(folder / "claim_gradient.csv", ("emphasis", "verdict"))
    intervals = full.intervals if full else drawn
    judged = recompute.claims(records, intervals, gradient, full)
    written = {row.claim: (row.verdict, row.evidence) for row in stated.itertuples()}
    for claim, (word, evidence) in judged.items():
        if claim not in written:
            yield f"claims.csv does not judge the claim {claim!r}"
        elif written[claim][0] != word or not _same(written[claim][1], evidence):
            yield f"claims.csv, {claim}: {' – '.join(written[claim])!r}, but it is {word + ' – ' + evidence!r}"
    if written.keys() >= judged.keys() and (folder / "claims.md").is_file():
        caption, _, rest = (folder / "claims.md").read_text().partition("\n")
        text = tables.table_texts(stated.set_index("claim"), caption, 3)["md"].partition("\n")[2]
        if rest != text or not caption.startswith(caveat(profile)):
            yield "claims.md does not say what claims.csv says"


def profile_of(record: Record, overrides: dict | str = ()) -> Profile:
    exp = record.experiment
    weights = exp.weights if exp.weights in ("auto", "random") else "auto"
    return load_profile(exp.profile, exp.smoke, "" if exp.profile == "glyph" else exp.backbone, weights, overrides)


def _parameters(page: Path) -> dict:
    """What the notebook whose executed page this is was told; nothing of it is executed."""
    try:
        found = json.loads(page.read_text())["metadata"]["papermill"]["parameters"]
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame | None:
    try:
        table = pd.read_csv(path, dtype={"notebook": str})  # which 03 stays
    except (OSError, ValueError):
        return None
    return table if set(columns) <= set(table.columns) else None


def _lines(stated: str, value: str) -> Iterator[tuple[str, str]]:
    ours, theirs = stated.splitlines(), value.splitlines()
    longest = max(len(ours), len(theirs))
    yield from zip(ours + [""] * (longest - len(ours)), theirs + [""] * (longest - len(theirs)), strict=True)


def _same(stated: str, value: str) -> bool:
    """Equal words, and numbers that differ by no more than one in the last place, as rounding may elsewhere."""
    if stated == value:
        return True
    if [part.strip() for part in _NUMBER.split(stated)] != [part.strip() for part in _NUMBER.split(value)]:
        return False
    pairs = [(a, b, len(a.partition(".")[2]), len(b.partition(".")[2]))
             for a, b in zip(_NUMBER.findall(stated), _NUMBER.findall(value), strict=True)]  # fmt: skip
    return all(m == n and abs(float(a) - float(b)) <= 1.001 * 10.0**-n for a, b, m, n in pairs)
