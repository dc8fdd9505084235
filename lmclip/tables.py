"""Tables of the study: how records become rows, verdicts and files (CSV, Markdown, LaTeX)."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from lmclip.errors import LMCLIPError
from lmclip.metrics import paired_bootstrap
from lmclip.paths import atomic_write, display, results_dir
from lmclip.records import GROUP_METRICS, Record

HEADINGS = {"mAP": "mAP", "mAP_head": "head", "mAP_medium": "medium", "mAP_tail": "tail"}
NOTHING = "–"  # stands where there is no number: a mean over no class, a figure that was not published


def bootstrap_mean(values_a: np.ndarray, values_b: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Mean difference a − b of a per-image quantity (N,), with its 95 % paired bootstrap interval over images."""
    difference = np.asarray(values_a, dtype=float) - np.asarray(values_b, dtype=float)
    rows = np.random.default_rng(seed).integers(len(difference), size=(resamples, len(difference)))
    low, high = np.percentile(difference[rows].mean(1), [2.5, 97.5])
    return {"difference": difference.mean(), "low": low, "high": high}


def main_table(frame: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """One row per method, in percent: every seed's mAP, and "mean (lowest to highest)" of all four mAP values.

    Args:
        frame: rows of ``records.to_frame``.
        protocol: one of ``records.PROTOCOLS``; protocols are never mixed in a table.
    """
    chosen = frame[frame["protocol"] == protocol]
    rows = {}
    for method, runs in chosen.groupby("method", sort=False):
        runs = runs.sort_values("seed")
        rows[method] = {"mAP of each seed": " · ".join(_number(100 * v) for v in runs["mAP"])}
        rows[method] |= {HEADINGS[m]: _mean_and_range(100 * runs[m]) for m in GROUP_METRICS}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")


def per_class_table(records: list[Record], protocol: str) -> pd.DataFrame:
    """One row per class: its group, training images, and each method's AP (fraction, mean over seeds).

    A class without a positive test image has no AP: NaN, in every method.
    """
    data = records[0].data
    group = {c: name for name, classes in data["groups"].items() for c in classes}
    columns = {"class": data["class_names"], "images": data["train_counts"]}
    columns["group"] = [group[c] for c in range(len(data["class_names"]))]
    for method in dict.fromkeys(r.experiment.method for r in records):
        runs = [r.protocols[protocol]["per_class_ap"] for r in records if r.experiment.method == method]
        columns[method] = np.mean(np.array(runs, dtype=float), axis=0)
    return pd.DataFrame(columns)


def compare(
    ours: dict[int, np.ndarray], rivals: dict[str, dict[int, np.ndarray]], targets: np.ndarray, groups, resamples: int
) -> pd.DataFrame:
    """Paired bootstrap over test images of one method against each rival, seed by seed.

    Args:
        ours: seed → scores (N, C).
        rivals: name → seed → scores; a rival with one seed (zero-shot) meets every seed of ours.
        targets: (N, C) 0/1.
        groups: head, medium and tail classes.
        resamples: bootstrap resamples.

    Raises:
        LMCLIPError: a rival with several runs lacks a seed.

    Returns:
        Columns rival, seed, metric, difference, low, high (fractions).
    """
    parts = []
    for rival, runs in rivals.items():
        for seed, scores in ours.items():
            if seed not in runs and len(runs) > 1:
                raise LMCLIPError(f"{rival} has no run with seed {seed}; notebook 04 trains it")
            other = runs.get(seed, next(iter(runs.values())))
            found = paired_bootstrap(scores, other, targets, groups, resamples, seed)
            parts.append(found.reset_index().assign(rival=rival, seed=seed))
    return pd.concat(parts, ignore_index=True)[["rival", "seed", "metric", "difference", "low", "high"]]


def verdict(intervals: pd.DataFrame) -> str:
    """What intervals of a claimed difference say: the claim holds when every seed's interval lies above zero.

    Returns:
        "supported", "contradicted" (every interval below zero), or "not shown"; the last also where an interval is
        NaN, because no class that the difference is a mean of has a positive test image.

    Raises:
        LMCLIPError: there are no intervals.
    """
    if intervals.empty:
        raise LMCLIPError("no intervals to judge a claim by; check that both methods have records")
    if (intervals["low"] > 0).all():
        return "supported"
    return "contradicted" if (intervals["high"] < 0).all() else "not shown"


def verdict_on_all(parts: list[pd.DataFrame]) -> str:
    """The verdict on a claim that names several rivals: it falls with any of them, and stands with all."""
    words = {verdict(part) for part in parts}
    return "contradicted" if "contradicted" in words else words.pop() if len(words) == 1 else "not shown"


def told(intervals: pd.DataFrame, unit: str = "") -> str:
    """The differences of all seeds, in points, followed by ``unit``; or why there are none."""
    if intervals["difference"].isna().any():
        return "not measurable, as no class of the group has a positive test image"
    return ", ".join(f"{100 * d:+.1f}" for d in intervals["difference"]) + unit


def correlation(table: pd.DataFrame, first: str, second: str) -> str:
    """Spearman's rank correlation of two columns, as printed; rows without a number are left out."""
    known = table[[first, second]].dropna()
    if min(known[first].nunique(), known[second].nunique()) < 2:
        return "none"
    return f"{known[first].corr(known[second], method='spearman'):+.2f}"


def filled(table: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """The table with a dash in place of what is no number, where there is any; numbers beside it become text."""
    gaps = [name for name in table if table[name].isna().any()]
    texts = {name: [NOTHING if pd.isna(v) else f"{v:.{digits}f}" if isinstance(v, float) else v for v in table[name]]
             for name in gaps}  # fmt: skip
    return table.assign(**texts)


def save_table(table: pd.DataFrame, folder: str, name: str, caption: str, digits: int = 3) -> list[Path]:
    """Write ``results/<folder>/tables/<name>`` as .csv, .md and .tex; all three say the same.

    What is no number is an empty field in the .csv and a dash in the others.

    Args:
        table: the table; its index is the first column.
        folder: results folder of the profile (``Profile.folder``).
        name: file name without ending.
        caption: one sentence; a protocol, where there is one, is named in it.
        digits: decimals of floating-point columns.
    """
    files = []
    for ending, text in table_texts(table, caption, digits).items():
        files.append(results_dir(folder) / "tables" / f"{name}.{ending}")
        with atomic_write(files[-1]) as file:
            file.write(text.encode())
    return files


def table_texts(table: pd.DataFrame, caption: str, digits: int) -> dict[str, str]:
    """File ending → what `save_table` writes. A column that would be zeros throughout, as learning rates, is in %g."""
    tiny = [name for name in table if pd.api.types.is_float_dtype(table[name])
            and 0 < table[name].abs().max() < 0.5 * 10**-digits]  # fmt: skip
    table = table.assign(**{name: table[name].map("{:g}".format) for name in tiny})
    kept = [table.columns.get_loc(name) + table.index.nlevels for name in tiny]  # text, not to be read as numbers again
    text = filled(table, digits).to_markdown(floatfmt=f".{digits}f", disable_numparse=kept or False)
    return {"csv": table.to_csv(float_format=f"%.{digits + 2}f"), "md": f"{caption}\n\n{text}\n",
            "tex": _latex(table, caption, digits)}  # fmt: skip


def fill_readme(readme: str, folder: str) -> str:
    """``readme`` with the blocks between its markers replaced: verdicts, and the clean main table, of ``folder``."""
    for block, name in (("claims", "claims"), ("main", "main_clean")):
        path = results_dir(folder) / "tables" / f"{name}.md"
        if not path.exists():
            raise LMCLIPError(f"no table at {display(path)}; run the study first")
        table = path.read_text()
        begin, end = f"<!-- {block}: begin (lmclip readme) -->\n", f"<!-- {block}: end -->"
        before, rest = readme.split(begin)
        readme = before + begin + table + rest[rest.index(end) :]
    return readme


def _latex(table, caption, digits):
    buffer = io.StringIO()
    style = table.reset_index().style.hide(axis="index").format(precision=digits, escape="latex", na_rep="--")
    style = style.format_index(escape="latex", axis=1)
    style.to_latex(buffer, hrules=True, caption=caption.replace("%", r"\%"), position_float="centering")
    return buffer.getvalue()


def _mean_and_range(values: pd.Series) -> str:
    if len(values) == 1 or values.isna().all():
        return _number(values.iloc[0])
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def _number(value: float) -> str:
    return NOTHING if np.isnan(value) else f"{value:.1f}"
