"""Checks a results folder against itself: records against their scores, tables and figures against the records.

Whoever changes a record by hand is found out: by its digest; by the settings' digest in its name; by the scores and
ranks beside it; by what a record states twice; and by the tables that are made of it. A digest can be computed anew by
a forger, ranks and tables can be forged too; that takes more than a hand, and the runs can be made again.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lmclip.errors import LMCLIPError
from lmclip.evaluation import SCORINGS, Kept, positive_ranks, scored
from lmclip.metrics import GROUPS, centroid_distances, multilabel_report
from lmclip.paths import display
from lmclip.records import GROUP_METRICS, Record, content_digest, load_arrays, load_record, scores_sha256
from lmclip.verify_pages import check_pages, profile_of


def verify(folder: Path) -> bool:
    """Prints one line for everything that does not match, and a summary; True when everything does.

    Raises:
        LMCLIPError: there are no records.
    """
    runs = sorted(path.parent for path in folder.glob("runs/[!.]*/record.json"))
    if not runs:
        raise LMCLIPError(f"{display(folder)} holds no runs/*/record.json; name a results folder such as results/glyph")
    found, records, scores = [], [], {}
    for run in runs:
        try:
            record = load_record(run)
            arrays = load_arrays(run) if (run / "scores.npz").exists() else {}
            found += [f"{run.name}: {fault}" for fault in check_record(run, record, arrays)]
            records.append(record)
            scores |= {record.run_id: arrays} if arrays else {}
        except LMCLIPError as error:
            found.append(str(error))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            found.append(
                f"{run.name}: a part of the record is missing or of another kind ({type(error).__name__}: {error})"
            )
    notes = [f"{len(scores)} of {len(records)} runs have their scores here; the others were checked by their ranks"
             if len(scores) < len(records) else "every run has its scores here"]  # fmt: skip
    undigested = sum(not record.digest for record in records)
    notes += [f"{undigested} records are older than digests: their losses and times can't be checked"] * bool(
        undigested
    )
    if records and not found:  # tables of records that are wrong are wrong
        for fault in check_pages(folder, records, scores, notes):
            found.append(fault)
    print(*found, *notes, sep="\n")
    print(f"{display(folder)}: {len(runs)} records, " + (f"{len(found)} faults" if found else "everything matches"))
    return not found


# ── one record ──────────────────────────────────────────────────────────────────────────────────


def check_record(run: Path, record: Record, arrays: dict[str, np.ndarray]) -> list[str]:
    """What is wrong with one record, given the arrays of its scores (none: they are not here)."""
    content = json.loads((run / "record.json").read_text())
    found = []
    if not run.name == record.run_id == record.experiment.run_id:
        found.append(f"its settings make it {record.experiment.run_id}, but it is called {record.run_id}")
    if record.digest and content_digest(content) != record.digest:
        found.append("its content is not what its digest was taken of")
    found += [*_history_faults(record), *_protocol_faults(record)]
    if arrays:
        found += _score_faults(record, arrays)
    if (run / "ranks.npz").exists():
        found += _rank_faults(record, load_arrays(run, "ranks.npz"), arrays)
    return found


def _history_faults(record: Record) -> Iterator[str]:
    exp, rows = record.experiment, record.history
    if [row["epoch"] for row in rows] != list(range(exp.epochs + 1)):
        yield f"its history does not hold epochs 0 to {exp.epochs}, one row each"
        return
    for row in rows[1:]:
        rate = exp.learning_rate * (1 + np.cos(np.pi * (row["epoch"] - 1) / exp.epochs)) / 2
        yield from _differs(f"learning rate of epoch {row['epoch']}", row["learning_rate"], rate)
        if {"contrastive_loss", "label_loss"} <= row.keys():
            yield from _differs(
                f"loss of epoch {row['epoch']}", row["loss"], row["contrastive_loss"] + row["label_loss"]
            )
    for row in rows:
        for split in ("test", "validation"):
            if f"{split}_mAP" in row:
                name = f"{split}_mAP_{exp.scoring}"
                yield from _differs(f"{split} mAP of epoch {row['epoch']}", row[f"{split}_mAP"], row[name])


def _protocol_faults(record: Record) -> Iterator[str]:
    exp, groups = record.experiment, record.data["groups"]
    rows = record.history[1:] or record.history
    for protocol, result in record.protocols.items():
        per_class = np.array([np.nan if ap is None else ap for ap in result["per_class_ap"]], dtype=float)
        if len(per_class) != len(record.data["class_names"]):
            yield f"{protocol}: {len(per_class)} average precisions for {len(record.data['class_names'])} classes"
            continue
        for name, mean in _means(per_class, groups).items():
            yield from _differs(f"{protocol}: {name} against its classes", result[name], mean)
            yield from _differs(f"{protocol}: {name} by {exp.scoring}", result["by_scoring"][exp.scoring][name], mean)
        yield from _differs(f"{protocol}: classes left out", result["num_left_out"], int(np.isnan(per_class).sum()))
        distances = result["distances"]
        if None not in distances.values() and distances["negative"]:
            ratio = distances["positive"] / distances["negative"]
            yield from _differs(f"{protocol}: ratio of distances", distances["ratio"], ratio)
        row = next((row for row in rows if row["epoch"] == result["epoch"]), None)
        if row is None:
            yield f"{protocol}: there is no epoch {result['epoch']} to choose"
            continue
        for name in GROUP_METRICS:
            yield from _differs(f"{protocol}: {name} in the history", row[f"{result['split']}_{name}"], result[name])
        for scoring in SCORINGS:
            stated = result["by_scoring"][scoring]["mAP"]
            yield from _differs(f"{protocol}: mAP by {scoring}", row[f"{result['split']}_mAP_{scoring}"], stated)
        yield from _differs(f"{protocol}: validation mAP", row.get("validation_mAP"), result["validation_mAP"])
        by = "test_mAP" if protocol == "best-on-test" else "validation_mAP"
        best = max(r[by] for r in rows) if by in row else None
        if (row is not rows[-1]) if best is None else (row[by] < best - 1e-8):
            yield f"{protocol}: epoch {result['epoch']} is not the one that its rule chooses"
    counts = np.array(record.data["train_counts"])
    profile = profile_of(record)
    expected = {"head": counts >= profile.head_min, "tail": counts < profile.tail_max}
    expected["medium"] = ~(expected["head"] | expected["tail"])
    for name in GROUPS:
        if sorted(groups[name]) != np.flatnonzero(expected[name]).tolist():
            yield f"its {name} classes are not those of its training counts"


def _score_faults(record: Record, arrays: dict[str, np.ndarray]) -> Iterator[str]:
    if record.scores_sha256 and scores_sha256(arrays) != record.scores_sha256:
        yield "scores.npz is not the file that the record was made of"
    groups = type("Groups", (), {name: np.array(record.data["groups"][name], dtype=int) for name in GROUPS})
    for protocol, result in record.protocols.items():
        if result["split"] != "test":
            continue  # the scores are of test images
        for scoring in SCORINGS:
            chosen = scoring == record.experiment.scoring
            report = multilabel_report(scored(arrays[f"logits_{protocol}"], scoring), arrays["targets"], groups, chosen)
            for name in GROUP_METRICS:
                stated = result["by_scoring"][scoring][name]
                yield from _differs(f"{protocol}: {name} by {scoring}, from scores", stated, report[name])
            if chosen:
                yield from _differs(f"{protocol}: AUROC from scores", result["auroc"], report["auroc"])
                pairs = zip(record.data["class_names"], result["per_class_ap"], report["per_class_ap"], strict=True)
                for name, stated, value in pairs:
                    yield from _differs(f"{protocol}: AP of {name}, from scores", stated, value)
        if protocol == "clean":  # whose features are kept
            for name, value in centroid_distances(arrays["features"], arrays["targets"]).items():
                yield from _differs(f"clean: {name} distance from features", result["distances"][name], value)


def _rank_faults(record: Record, ranks: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> Iterator[str]:
    ends = np.cumsum(ranks["positives"])[:-1]
    for protocol, result in record.protocols.items():
        for scoring in SCORINGS:
            per_class = [_ap(part) for part in np.split(ranks[f"{protocol}_{scoring}"], ends)]
            for name, mean in _means(np.array(per_class), record.data["groups"]).items():
                yield from _differs(
                    f"{protocol}: {name} by {scoring}, from ranks", result["by_scoring"][scoring][name], mean
                )
            if scoring == record.experiment.scoring:
                for name, stated, value in zip(
                    record.data["class_names"], result["per_class_ap"], per_class, strict=True
                ):
                    yield from _differs(f"{protocol}: AP of {name}, from ranks", stated, value)
    if arrays:
        kept = {protocol: Kept({}, arrays[f"logits_{protocol}"], None) for protocol in record.protocols}
        expected = positive_ranks(kept, arrays["targets"])
        if any(not np.array_equal(expected[name], ranks.get(name)) for name in expected):
            yield "ranks.npz does not hold the ranks of scores.npz"


def _ap(ranks: np.ndarray) -> float:
    """Average precision of a class, from how many images score at least as high as each of its positives."""
    return float(np.mean(np.searchsorted(np.sort(ranks), ranks, side="right") / ranks)) if len(ranks) else np.nan


def _means(per_class: np.ndarray, groups: dict[str, list[int]]) -> dict[str, float]:
    chosen = {"mAP": per_class, **{f"mAP_{name}": per_class[np.array(groups[name], dtype=int)] for name in GROUPS}}
    known = {name: values[~np.isnan(values)] for name, values in chosen.items()}
    return {name: float(values.mean()) if len(values) else np.nan for name, values in known.items()}


def _differs(what: str, stated: float | None, value: float | None) -> Iterator[str]:
    """Records keep eight digits; None stands for what is no number."""
    a, b = (np.nan if v is None else float(v) for v in (stated, value))
    if not (np.isnan(a) and np.isnan(b)) and not abs(a - b) <= 1e-7 * max(abs(a), abs(b), 0.1):
        yield f"{what} is {b:.8g}, the record says {a:.8g}"
