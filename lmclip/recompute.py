"""The tables and figures of notebooks 04 and 05 once more, from records and scores alone, for `lmclip verify`.

Written apart from the notebooks on purpose: what both agree on is not a slip of one of them.
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

from lmclip import tables
from lmclip.config import METHODS, Profile, caveat
from lmclip.evaluation import SCORINGS, scored
from lmclip.metrics import GROUPS
from lmclip.plots import results as results_figures
from lmclip.plots import training as training_figures
from lmclip.plots.style import use_style
from lmclip.records import GROUP_METRICS, PROTOCOLS, Record, history_frame, to_frame
from lmclip.tuning import is_searched, load_trials

Scores = dict[str, dict[str, np.ndarray]]  # run id → the arrays of scores.npz
TITLE = {name: method.title for name, method in METHODS.items()}


def from_records(records: list[Record]) -> dict[str, tuple[pd.DataFrame, int]]:
    """Table → its content and decimals, of those that records alone give."""
    frame = to_frame(records)
    clean = frame[frame["protocol"] == "clean"]
    found = {f"main_{protocol}": (tables.main_table(frame, protocol), 1) for protocol in PROTOCOLS}
    columns = ["method", "seed", "learning_rate", "epoch", "seconds", "peak_memory_mb"]
    runs = clean[columns].rename(columns={"epoch": "chosen epoch"}).set_index("method")
    found["training_runs"] = runs.round({"seconds": 0, "peak_memory_mb": 0}), 0
    found["gradient_shares"] = gradient_shares(records), 4
    found["per_class_ap"] = tables.per_class_table(records, "clean").rename(columns=TITLE).set_index("class"), 3
    scorings = [{"method": TITLE[r.experiment.method], "chosen": r.experiment.scoring,
                 **{s: 100 * r.protocols["clean"]["by_scoring"][s]["mAP"] for s in SCORINGS}}
                for r in records]  # fmt: skip
    found["scoring"] = pd.DataFrame(scorings).groupby(["method", "chosen"], sort=False).mean().reset_index("chosen"), 1
    distances = [{"method": TITLE[r.experiment.method], **r.protocols["clean"]["distances"]} for r in records]
    found["distances"] = pd.DataFrame(distances).groupby("method", sort=False).mean(), 3
    return found


def gradient_shares(records: list[Record]) -> pd.DataFrame:
    """Per seed of LM-CLIP: both terms' gradient norms, their cosine, and BAL's share; means over epochs."""
    rows = {}
    for record in (r for r in records if r.experiment.method == "lm-clip"):
        history = pd.DataFrame([row for row in record.history if row["epoch"]], dtype=float)
        rows[record.experiment.seed] = history[
            ["contrastive_gradient_norm", "label_gradient_norm", "gradient_cosine"]
        ].mean()
    shares = pd.DataFrame.from_dict(rows, orient="index").rename_axis("seed")
    norms = shares["contrastive_gradient_norm"] + shares["label_gradient_norm"]
    return shares.assign(**{"share of BAL": shares["label_gradient_norm"] / norms})


def mean_differences(records: list[Record]) -> pd.DataFrame:
    """LM-CLIP minus every rival by the records: rival, seed, metric, difference, as in the bootstrap table."""
    runs = {(r.experiment.method, r.experiment.seed): r.protocols["clean"] for r in records}
    rows = []
    for rival in dict.fromkeys(method for method, _ in runs if method != "lm-clip"):
        for seed in (seed for method, seed in runs if method == "lm-clip"):
            own = [s for method, s in runs if method == rival]
            theirs = runs[rival, seed if seed in own else own[0]]
            rows += [{"rival": TITLE[rival], "seed": seed, "metric": name,
                      "difference": _number(runs["lm-clip", seed][name]) - _number(theirs[name])}
                     for name in GROUP_METRICS]  # fmt: skip
    return pd.DataFrame(rows)


class FromScores:
    """What only the scores give: the intervals of all differences, and the margins; each computed once."""

    def __init__(self, records: list[Record], scores: Scores, resamples: int):
        self.records, self.scores = records, scores
        self.targets = scores[records[0].run_id]["targets"]
        self.groups = type("Groups", (), {n: np.array(records[0].data["groups"][n], dtype=int) for n in GROUPS})
        self.resamples = resamples
        rivals = dict.fromkeys(r.experiment.method for r in records if r.experiment.method != "lm-clip")
        self.intervals = self._compare("lm-clip", rivals)
        self.combined = self._compare("lm-clip-no-sampler", ("bal", "contrastive"))
        self.margins = {(r.experiment.method, r.experiment.seed): self._margins(r) for r in records}

    def _compare(self, method: str, rivals) -> pd.DataFrame:
        by_seed = {m: {r.experiment.seed: scored(self.scores[r.run_id]["logits_clean"], r.experiment.scoring)
                       for r in self.records if r.experiment.method == m} for m in (method, *rivals)}  # fmt: skip
        return tables.compare(by_seed[method], {TITLE[m]: by_seed[m] for m in rivals}, self.targets, self.groups,
                              self.resamples)  # fmt: skip

    def _margins(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """Gap between an image's weakest label and hardest negative, and minus the latter, in standard deviations."""
        logits = self.scores[record.run_id]["logits_clean"]
        z = (logits - logits.mean(1, keepdims=True)) / logits.std(1, keepdims=True)
        hardest = np.where(self.targets == 0, z, -np.inf).max(1)
        weakest = np.where(self.targets == 1, z, np.inf).min(1)
        labelled = self.targets.any(1)
        return (weakest - hardest)[labelled], -hardest[labelled]

    def contrast(self, seeds: tuple[int, ...], part: int) -> pd.DataFrame:
        """Intervals of margins: contrastive minus zero-shot for each seed, then LM-CLIP without sampler minus BAL."""
        pairs = [("contrastive", seed, "zero-shot", seeds[0]) for seed in seeds]
        pairs += [("lm-clip-no-sampler", seed, "bal", seed) for seed in seeds]
        return pd.DataFrame([
            tables.bootstrap_mean(self.margins[a, s][part], self.margins[b, t][part], self.resamples, s)
            for a, s, b, t in pairs
        ])  # fmt: skip


def claims(
    records: list[Record], intervals: pd.DataFrame, gradient: pd.DataFrame | None, full: FromScores | None
) -> dict[str, tuple[str, str]]:
    """Claim → verdict and evidence, of those that can be judged: two need the scores, one notebook 03's table."""
    clean = to_frame(records).query("protocol == 'clean'").groupby("method")["mAP"].mean()
    ours = [TITLE[m] for m in METHODS if METHODS[m].contrastive and METHODS[m].loss == "bal"]
    best, seeds = clean.drop(ours, errors="ignore").idxmax(), tuple(
        r.experiment.seed for r in records if r.experiment.method == "lm-clip")  # fmt: skip

    def against(rival, metric="mAP"):
        return intervals[(intervals["rival"] == rival) & (intervals["metric"] == metric)]

    sampler = against(TITLE["lm-clip-no-sampler"], "mAP_tail")
    found = {
        "Sampling that favours rare classes helps the tail": (
            tables.verdict(sampler),
            f"tail mAP with the sampler minus without, per seed: {tables.told(sampler, ' points')}"),
        "LM-CLIP improves on zero-shot CLIP": (
            tables.verdict(against(TITLE["zero-shot"])),
            f"mAP, per seed: {tables.told(against(TITLE['zero-shot']))} points"),
        f"LM-CLIP beats the best rival (here {best})": (
            tables.verdict(against(best)), f"mAP, per seed: {tables.told(against(best))} points"),
    }  # fmt: skip
    if gradient is not None:
        holds = gradient.dropna()["verdict"].eq("holds")
        word = "supported" if holds.all() else "supported in part" if holds.any() else "not supported"
        evidence = "; ".join(f"{row.emphasis}: {row.verdict}" for row in gradient.dropna().itertuples())
        found["BAL emphasises the gradients of rare positives where the model is uncertain"] = word, evidence
    if full:
        alone = [full.combined[(full.combined["rival"] == TITLE[m]) & (full.combined["metric"] == "mAP")]
                 for m in ("bal", "contrastive")]  # fmt: skip
        found["Contrastive loss and BAL together beat either alone"] = (
            tables.verdict_on_all(alone),
            f"mAP, no sampler, minus BAL: {tables.told(alone[0])}; minus contrastive: {tables.told(alone[1])} points",
        )
        gap, negative = full.contrast(seeds, 0), full.contrast(seeds, 1)
        words = [", ".join(f"{d:+.2f}" for d in half)
                 for part in (gap, negative) for half in np.split(part["difference"], [len(part) // 2])]  # fmt: skip
        found["The contrastive loss pushes negatives away from the decision boundary"] = (
            tables.verdict_on_all([gap, negative]),
            f"in standard deviations of an image's logits, per seed: minus zero-shot, gap {words[0]}, negatives alone "
            f"{words[2]}; added to BAL minus BAL, gap {words[1]}, negatives alone {words[3]}")  # fmt: skip
    return found


def figures(profile: Profile, records: list[Record], full: FromScores | None) -> dict[str, plt.Figure]:
    """Figure → drawn again, titles included, of those that records (and scores) give."""
    use_style()
    note, history = caveat(profile), history_frame(records)
    heading = note.replace(" · ", "\n")
    final = history[history["epoch"] == profile.epochs].groupby("method", sort=False)["test_mAP"].mean()
    below = [m for m, v in final.items() if v < history[history["epoch"] == 0]["test_mAP"].mean()]
    outcome = f"below zero-shot after training: {', '.join(below)}" if below else "every method ends above zero-shot"
    ends = f"Over all classes, {outcome}"
    lm_clip = history[(history["epoch"] > 0) & (history["method"] == TITLE["lm-clip"])]
    times = (lm_clip["contrastive_gradient_norm"] / lm_clip["label_gradient_norm"]).median()
    pulls = f"λ = {profile.loss.bal_weight:g}: the contrastive loss pulls {times:,.0f} times as hard as BAL"
    clean = to_frame(records).query("protocol == 'clean'")
    order = clean.groupby("method")["mAP"].mean().sort_values(ascending=False)
    place = list(order.index).index(TITLE["lm-clip"]) + 1
    first = f"{heading}Clean protocol: {order.index[0]} ranks first, LM-CLIP {place} of {len(order)}"
    per_class, shown = tables.per_class_table(records, "clean").rename(columns=TITLE), ["zero-shot", "BCE", "LM-CLIP"]
    ranks = ", ".join(f"{tables.correlation(per_class, 'images', m)} ({m})" for m in shown)
    drawn = {
        "04_learning_curves": training_figures.draw_learning_curves(history, note + ends),
        "04_gradient_shares": training_figures.draw_gradient_shares(lm_clip, note + pulls),
        "04_temperature": training_figures.draw_temperature(history, f"{note}Who moves the temperature, and how far"),
        "05_main": results_figures.draw_main(clean, first),
        "05_ap_against_count": results_figures.draw_ap_against_count(
            per_class, shown, f"{heading}AP against training images; rank correlation {ranks}"),
    }  # fmt: skip
    if is_searched(profile):
        trials = load_trials(profile)
        rates = [trials.loc[trials[trials["method"] == TITLE[m]]["validation_mAP"].idxmax(), "learning_rate"]
                 for m in profile.methods if METHODS[m].trained]  # fmt: skip
        title = f"The methods' best rates span a factor of {max(rates) / min(rates):.0f}"
        drawn["04_search"] = training_figures.draw_search(trials, title)
    if full:
        words = full.intervals.query("metric == 'mAP'").groupby("rival", sort=False).apply(tables.verdict)
        sides = [
            ", ".join(m for m, w in words.items() if w == word) or "nobody" for word in ("supported", "contradicted")
        ]
        drawn["05_bootstrap"] = results_figures.draw_bootstrap(
            full.intervals, f"{heading}LM-CLIP is surely ahead of {sides[0]}; surely behind {sides[1]}"
        )
        gaps = {TITLE[m]: np.concatenate([g for (name, _), (g, _) in full.margins.items() if name == m])
                for m in profile.methods}  # fmt: skip
        right = {m: (gap > 0).mean() for m, gap in gaps.items()}
        best = max(right, key=right.get)
        drawn["05_margins"] = results_figures.draw_margins(
            gaps, f"{heading}Most images on the right side: {best}, {right[best]:.0%} of them"
        )
    return {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}


def pixels_differ(figure: plt.Figure, path: Path) -> bool:
    """Whether the picture at ``path`` is another one; a few pixels may differ, as fonts are drawn elsewhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as ours, Image.open(path) as theirs:
        if ours.size != theirs.size:
            return True
        difference = np.abs(np.asarray(ours.convert("RGB"), dtype=int) - np.asarray(theirs.convert("RGB"), dtype=int))
    return bool((difference.max(2) > 32).mean() > 1e-4)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
