"""What others measured: published figures, the authors' own logged runs, and what a faithful rerun should expect.

``data/published_results.csv`` holds figures from papers, ``data/author_runs.csv`` the 120 runs in the logs of the
LM-CLIP authors' release (August 2024). Everything is in percent, as published, unlike the fractions of our records.

The authors logged the best epoch on the test list, which is our protocol "best-on-test", and the last epoch, which is
our protocol "clean" where there is no validation set. Their code changed on the way: what is logged as ASL without
class weights at the commit ea71781 reaches 9 points more on COCO-MLT than at 4ee61ce with the same settings, so that it
stands apart as "ASL of earlier code"; logged with class weights it is BAL by settings and figures, and counted as such.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lmclip.errors import LMCLIPError
from lmclip.paths import ROOT, display

PUBLISHED_FILE = ROOT / "data" / "published_results.csv"
RUNS_FILE = ROOT / "data" / "author_runs.csv"
DATASETS = {"voc": "VOC-MLT", "coco": "COCO-MLT"}
BACKBONES = {"rn50": "RN50", "vit-b-16": "ViT-B/16", "vit-l-14": "ViT-L/14"}
FIGURES = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
HEADLINE = "contrastive + BAL + sampler"  # LM-CLIP, in the words of `configuration`

# Our methods, by the configuration of the authors' that they repeat. Others, like BCE, the authors did not log.
CONFIGURATION = {"asl": "ASL", "bal": "BAL", "contrastive": "contrastive", "lm-clip-release": HEADLINE,
                 "lm-clip": HEADLINE}  # fmt: skip

# A run that was stopped sooner had too little chance of a best epoch to count as a repeat; it is drawn, though.
FEWEST_EPOCHS = 20

_SETTINGS = {
    "dataset": "text", "backbone": "text", "losses": "text", "sampler": "bool", "sampler_power": "number",
    "class_weight": "bool", "class_power": "number", "bal_weight": "number", "gamma_neg": "number",
    "label_smoothing": "number", "machine_captions": "bool", "batch_size": "number", "learning_rate": "number",
}  # fmt: skip
_RUN_COLUMNS = _SETTINGS | {
    "run": "text", "commit": "text", "losses_logged": "text", "copy_of": "text", "epochs_logged": "number",
    "best_epoch": "number", "AUROC": "percent", "last_mAP": "percent", "best_tail": "percent",
    **dict.fromkeys(FIGURES, "percent"),
}  # fmt: skip
_PUBLISHED_COLUMNS = {
    "method": "text", "backbone": "text", "dataset": "text", "protocol": "text", "source": "text",
    **dict.fromkeys(FIGURES, "percent"),
}  # fmt: skip
_MEASURED = {"best-on-test": "mAP", "clean": "last_mAP"}  # our protocol → column of the authors' runs


@dataclass(frozen=True)
class Band:
    """What a faithful rerun of the headline setting should expect, in percent.

    Attributes:
        centre: mean mAP of the headline setting's logged runs.
        half_width: the widest range between logged repeats of one setting with this backbone, rounded up to 0.1.
        runs: how many runs of the headline setting there are.
        source: one sentence that says so.
    """

    centre: float
    half_width: float
    runs: int
    source: str

    def __str__(self) -> str:
        return f"{self.centre:.1f} ± {self.half_width:.1f}"

    def place(self, mean_average_precision: float) -> str:
        """Where a rerun (percent) lies: "inside", "above" or "below" the band."""
        if abs(mean_average_precision - self.centre) <= self.half_width:
            return "inside"
        return "above" if mean_average_precision > self.centre else "below"


def load_published(path: Path = PUBLISHED_FILE) -> pd.DataFrame:
    """Published figures: method, backbone, dataset, mAP and its groups (percent; NaN: not published), protocol, source.

    Raises:
        LMCLIPError: the file is missing or damaged.
    """
    return _read(path, _PUBLISHED_COLUMNS, may_be_empty=FIGURES[1:])


def load_author_runs(path: Path = RUNS_FILE) -> pd.DataFrame:
    """The authors' 120 logged runs, one row each, figures in percent, epochs counted from 1.

    ``losses`` is what was trained, ``losses_logged`` what the log calls it; ``copy_of`` names the run whose log a row
    repeats under another name (4 rows). ``commit`` is the release's commit that the run is logged at: the source.

    Raises:
        LMCLIPError: the file is missing or damaged.
    """
    return _read(path, _RUN_COLUMNS, may_be_empty=("copy_of",))


def logged_runs(dataset: str, backbone: str) -> pd.DataFrame:
    """The distinct runs that the authors logged of one data set and backbone, with a column ``configuration``.

    Args:
        dataset: "voc" or "coco"; any other name, like "glyph", has no runs.
        backbone: "rn50", "vit-b-16" or "vit-l-14" (no run of the last).
    """
    runs = load_author_runs()
    chosen = (runs["dataset"] == DATASETS.get(dataset)) & (runs["backbone"] == BACKBONES.get(backbone))
    runs = runs[chosen & (runs["copy_of"] == "")]
    return runs.assign(configuration=[configuration(run) for run in runs.itertuples()]).reset_index(drop=True)


def configuration(run) -> str:
    """A run's losses and sampling in words, for example "contrastive + BAL + sampler"."""
    return run.losses + (" + sampler" if run.sampler else "") + (", other captions" if run.machine_captions else "")


def repeats(runs: pd.DataFrame, measured: str = "mAP") -> pd.DataFrame:
    """Settings that were run again: how many runs, and the lowest, the highest and the range of one column.

    Runs of fewer than ``FEWEST_EPOCHS`` and copies of one log do not count. One row per setting, indexed by its values.
    """
    long_enough = runs[(runs["copy_of"] == "") & (runs["epochs_logged"] >= FEWEST_EPOCHS)]
    found = long_enough.groupby(list(_SETTINGS))[measured].agg(runs="size", lowest="min", highest="max")
    return found[found["runs"] > 1].assign(range=lambda rows: rows["highest"] - rows["lowest"])


def expected_band(dataset: str, backbone: str, protocol: str = "best-on-test") -> Band | None:
    """What a faithful rerun of LM-CLIP should expect by one protocol; None where the authors logged no such run.

    The headline is the run whose mAP is published; its setting's own repeats are one or two, too few for a spread, so
    the half-width is the widest range of any setting that was repeated with the same backbone, on either data set.

    Args:
        dataset, backbone: as in ``logged_runs``.
        protocol: "best-on-test", or "clean" for the last epoch.

    Raises:
        LMCLIPError: a file is damaged, or the published headline is not among the runs.
    """
    runs = logged_runs(dataset, backbone)
    if runs.empty:
        return None
    published = load_published()
    published = published[(published["dataset"] == DATASETS[dataset]) & (published["method"] == "LM-CLIP")
                          & (published["backbone"] == f"CLIP {BACKBONES[backbone]}")]  # fmt: skip
    headline = runs[(runs["configuration"] == HEADLINE) & runs["mAP"].isin(published["mAP"])]
    if len(headline) != 1:
        raise LMCLIPError(f"{display(RUNS_FILE)} has {len(headline)} runs with the mAP that {display(PUBLISHED_FILE)} "
                          "gives for LM-CLIP, not one; restore both from the repository")  # fmt: skip
    same = (runs[list(_SETTINGS)] == headline[list(_SETTINGS)].iloc[0]).all(axis=1)
    values = runs.loc[same & ((runs["epochs_logged"] >= FEWEST_EPOCHS) | (runs.index == headline.index[0]))]
    everything = load_author_runs()
    spread = repeats(everything[everything["backbone"] == BACKBONES[backbone]], _MEASURED[protocol])
    widest = spread["range"].max()
    told = ", ".join(f"{run[_MEASURED[protocol]]:.2f} after {run['epochs_logged']}" for _, run in values.iterrows())
    source = (f"mean of the headline setting's {len(values)} logged run{'s' * (len(values) > 1)} ({told} epochs), ± "
              f"the widest range between repeats, {widest:.2f}, of the {len(spread)} settings that were run again with "
              f"{BACKBONES[backbone]}, rounded up")  # fmt: skip
    half_width = math.ceil(round(10 * widest, 6)) / 10
    return Band(float(values[_MEASURED[protocol]].mean()), half_width, len(values), source)


def own_runs(frame: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    """Our runs that repeat a configuration of the authors': configuration, method, seed, protocol, mAP (percent).

    Args:
        frame: rows of ``records.to_frame`` (fractions).
        titles: method → its title, as ``frame`` names it.
    """
    repeated = {titles[method]: words for method, words in CONFIGURATION.items()}
    ours = frame[frame["method"].isin(list(repeated))]
    return ours.assign(configuration=ours["method"].map(repeated), mAP=100 * ours["mAP"])[
        ["configuration", "method", "seed", "protocol", "mAP"]
    ]


def peers(dataset: str, backbone: str) -> dict[str, float]:
    """Others' published mAP (percent) with the same CLIP backbone: method → mAP."""
    table = load_published()
    chosen = (table["dataset"] == DATASETS.get(dataset)) & (table["backbone"] == f"CLIP {BACKBONES.get(backbone)}")
    table = table[chosen & (table["protocol"] == "as published")]
    return dict(zip(table["method"], table["mAP"], strict=True))


def finding(runs: pd.DataFrame, bands: dict[str, Band], own: pd.DataFrame, faithful: str, caveat: str) -> str:
    """One sentence for the figure of the authors' runs: what to expect, who leads their logs, and where ours lies.

    Args:
        runs: rows of ``logged_runs``.
        bands: protocol → band.
        own: rows of ``own_runs``.
        faithful: title of the method that repeats the headline as released.
        caveat: what keeps ours from being compared; empty when nothing does.
    """
    best, band = runs.loc[runs["mAP"].idxmax()], bands["best-on-test"]
    title = (f"{best['dataset']}, CLIP {best['backbone']}: expect {band} of LM-CLIP,\nhighest in the authors' logs "
             f"{best['mAP']:.2f} ({best['configuration']})")  # fmt: skip
    if caveat:
        return f"{title}; ours can't be compared"
    rerun = own[(own["method"] == faithful) & (own["protocol"] == "best-on-test")]["mAP"]
    if rerun.empty:
        return f"{title}; no run of ours yet"
    place = {"inside": "inside the band", "above": "above it", "below": "below it"}[band.place(rerun.mean())]
    return f"{title}; ours as released {rerun.mean():.1f}, {place}"


def beside_published(frame: pd.DataFrame, dataset: str, backbone: str, clean_rule: str, caveat: str) -> pd.DataFrame:
    """Ours and theirs in one table, the highest mAP first: backbone, protocol, mAP, head, medium, tail (%), source.

    Args:
        frame: rows of ``records.to_frame`` (fractions); a method's seeds are averaged.
        dataset, backbone: as in ``logged_runs``; published rows of every backbone are shown.
        clean_rule: how the clean protocol chose the epoch, for example "last epoch".
        caveat: what keeps ours from being compared, for example "sample, random weights"; ours then stand last, each
            marked. Empty when nothing does.
    """
    theirs = load_published()
    theirs = theirs[theirs["dataset"] == DATASETS.get(dataset)].drop(columns="dataset")
    ours = frame.groupby(["method", "protocol"], sort=False)[list(FIGURES)].agg(["mean", "size"])
    rows = []
    for (method, protocol), values in ours.iterrows():
        seeds = int(values["mAP", "size"])
        rows.append({
            "method": f"ours: {method}", "backbone": f"CLIP {BACKBONES.get(backbone, backbone)}",
            **{name: 100 * values[name, "mean"] for name in FIGURES},
            "protocol": f"clean ({clean_rule})" if protocol == "clean" else protocol,
            "source": f"{seeds} seed{'s' * (seeds > 1)}" + (f"; NOT COMPARABLE: {caveat}" if caveat else ""),
        })  # fmt: skip
    parts = [pd.DataFrame(rows, columns=theirs.columns), theirs]
    if caveat:  # not ranked among what it can't be compared with
        table = pd.concat([part.sort_values("mAP", ascending=False, kind="stable") for part in reversed(parts)])
    else:
        table = pd.concat(parts).sort_values("mAP", ascending=False, kind="stable")
    table = table.set_index("method")[["backbone", "protocol", *FIGURES, "source"]]
    return table.rename(columns={name: name.removeprefix("mAP_") for name in FIGURES})


def _read(path: Path, columns: dict[str, str], may_be_empty: tuple[str, ...]) -> pd.DataFrame:
    """A CSV file whose columns hold what ``columns`` says: "text", "bool", "number" (≥ 0) or "percent"."""
    try:
        table = pd.read_csv(path, dtype={name: str for name, kind in columns.items() if kind == "text"})
    except (OSError, ValueError) as error:  # pandas' own parser errors are ValueErrors
        raise _damaged(path, str(error).splitlines()[0]) from None
    if missing := [name for name in columns if name not in table]:
        raise _damaged(path, f"no column {missing[0]!r}")
    for name, kind in columns.items():
        values = table[name]
        if name not in may_be_empty and values.isna().any():
            raise _damaged(path, f"{name} is empty in line {values.isna().argmax() + 2}")
        if kind == "bool" and values.dtype != bool:
            raise _damaged(path, f"{name} must be True or False")
        if kind in ("number", "percent") and not _in_range(values, 100 if kind == "percent" else math.inf):
            raise _damaged(path, f"{name} must hold {'percentages' if kind == 'percent' else 'numbers'}")
    return table.fillna({name: "" for name, kind in columns.items() if kind == "text"})


def _in_range(values: pd.Series, highest: float) -> bool:
    known = values.dropna()
    return pd.api.types.is_numeric_dtype(values) and values.dtype != bool and known.between(0, highest).all()


def _damaged(path: Path, reason: str) -> LMCLIPError:
    return LMCLIPError(f"{display(path)} is not the table it should be ({reason}); restore it from the repository")
