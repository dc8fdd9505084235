"""What bf16 does to mAP: GlyphMLT, three seeds, LM-CLIP and BCE, each run in fp32 and in bf16 and nothing else changed.

    python benchmarks/precision.py        # twelve runs; about 6 minutes on two cores

Learning rates and scorings are those of the search in fp32. Writes results/benchmarks/precision-glyph.csv.
(TF32 is a mode of GPUs; add it to --precisions on one.)
"""

import tempfile
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from lmclip.config import METHODS, experiment, load_profile
from lmclip.datasets import load_study_data
from lmclip.matrix import run_matrix
from lmclip.paths import atomic_write, results_dir
from lmclip.tuning import chosen_settings

GROUPS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")


def main(
    methods: tuple[str, ...] = ("lm-clip", "bce"),
    precisions: tuple[Literal["fp32", "tf32", "bf16"], ...] = ("fp32", "bf16"),
    seeds: tuple[int, ...] = (0, 1, 2),
    smoke: bool = False,
    jobs: int = -1,
) -> None:
    """Train every method with every seed in every precision, and compare.

    Args:
        methods: Which methods.
        precisions: Of the two towers; the first is what the others are compared with.
        seeds: Which seeds.
        smoke: Smallest size, to try the script.
        jobs: Runs at a time; -1: one per core.
    """
    profile = load_profile("glyph", smoke=smoke)
    data, chosen = load_study_data(profile), chosen_settings(load_profile("glyph"))
    experiments = [experiment(profile, method, seed, **chosen[method], precision=precision)
                   for method in methods for seed in seeds for precision in precisions]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        records = list(run_matrix(experiments, profile, data, folder=Path(folder), jobs=jobs))
    rows = []
    for record in records:
        scores = {name: 100 * record.protocols["clean"][name] for name in GROUPS}
        rows.append({"method": METHODS[record.experiment.method].title, "seed": record.experiment.seed,
                     "precision": record.precision, **scores, "seconds": record.seconds})  # fmt: skip
    runs = ["method", "seed"]
    table = pd.DataFrame(rows).sort_values([*runs, "precision"], ignore_index=True)
    first = table[table["precision"] == precisions[0]]
    paired = table[runs].merge(first, on=runs)
    for name in GROUPS:
        table[f"{name} minus {precisions[0]}"] = table[name] - paired[name]
    with atomic_write(results_dir("benchmarks") / f"precision-{profile.folder}.csv") as file:
        file.write(table.to_csv(index=False, float_format="%.4g").encode())
    print(table.to_string(index=False, float_format="%.2f"))


if __name__ == "__main__":
    tyro.cli(main)
