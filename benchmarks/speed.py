"""What this study saves over the release, with the same numbers: both sides in one process, in turns.

    python benchmarks/speed.py                           # every row; about 20 minutes on two cores
    python benchmarks/speed.py --rows voc coco --repeats 9
    python benchmarks/speed.py --figure                  # how cost grows with classes, batch and images; 10 minutes

The slow side is as_released.py, which computes what the release computes in the way it does. Both sides get the same
random weights and batches, and the largest difference of their losses is printed beside the times. Nothing has to be
downloaded; the row ``glyph`` renders GlyphMLT where it is not there yet. A ratio is the median over the turns, with its
lowest and highest; memory is the peak beyond what a side held before (weights and optimiser state, which are alike).
Writes results/benchmarks/speed-<device>.csv, and with ``--figure`` growth-<device>.csv, cost.png and cost.svg.
"""

import os
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
import tyro
from growth import measure_growth
from machine import device_name, save
from rows import bootstrap, evaluation, glyph_run, input_pipeline, long_tail, start_up, training_step
from timing import matmul_rates

Row = Literal["voc", "coco", "pipeline", "evaluation", "long-tail", "start-up", "glyph", "bootstrap"]

# Row → what was hoped for on two CPU cores and on a GPU: at least so many times as fast, or at most so many seconds.
TARGETS = {
    "step, VOC, fp32": (("ratio", 1.45), None), "step, VOC, bf16": (("ratio", 2.2), ("ratio", 5.0)),
    "step, COCO, fp32": (("ratio", 2.6), None), "step, COCO, bf16": (("ratio", 4.0), ("ratio", 8.0)),
    "input pipeline, one process": (("ratio", 20.0), None), "evaluation, VOC, fp32": (("ratio", 1.0), None),
    "evaluation, VOC, bf16": (None, ("ratio", 8.0)), "long tail, 118,287 × 80": (("seconds", 3.0), ("seconds", 3.0)),
    "start-up, COCO-MLT's lists": (("ratio", 50.0), ("ratio", 50.0)), "glyph run": (("seconds", 60.0), None),
    "bootstrap, 2,000 × 80 × 5,000": (("seconds", 60.0), ("seconds", 60.0)),
}  # fmt: skip


def main(
    rows: tuple[Row, ...] = get_args(Row),
    repeats: int = 5,
    images: int = 1_142,
    test: int = 64,
    threads: int = 0,
    figure: bool = False,
) -> None:
    """Measure both sides and print a table.

    Args:
        rows: What to measure.
        repeats: Turns of each pair.
        images: JPEGs of the input pipeline.
        test: Images of the evaluation, of VOC's 4,952 (its cost is proportional to them).
        threads: Threads of torch; 0: one per core.
        figure: Measure how cost grows, and draw it, instead of the rows.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}; matrix products: "
          + ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in matmul_rates(device).items()))  # fmt: skip
    if figure:
        measure_growth(device, repeats)
        return
    measures = {
        "voc": lambda: training_step("voc", device, repeats),
        "coco": lambda: training_step("coco", device, repeats),
        "pipeline": lambda: input_pipeline(images, repeats),
        "evaluation": lambda: evaluation(test, device, repeats),
        "long-tail": lambda: long_tail(118_287, repeats),
        "start-up": lambda: start_up(repeats),
        "glyph": glyph_run,
        "bootstrap": lambda: bootstrap(2_000, 5_000, repeats),
    }
    found = []
    for row in rows:
        for entry in measures[row]():
            found.append(judged(entry, device))
            print("  " + ", ".join(f"{key}: {value}" for key, value in shown(found[-1]).items()), flush=True)
    table = save("speed", found, device, replaces="what").fillna(
        {"target": "", "reached": "", "largest difference": ""}
    )
    print(pd.DataFrame([shown(row) for row in table.to_dict("records")]).to_string(index=False))


def judged(entry: dict, device: torch.device) -> dict:
    """The row with its target and whether that was reached; "" where none was set."""
    target = TARGETS.get(entry["what"], (None, None))[device.type == "cuda"]
    if target is None:
        return entry | {"target": "", "reached": ""}
    kind, bound = target
    reached = entry["ratio"] >= bound if kind == "ratio" else entry["seconds"] <= bound
    return entry | {"target": f"≥ {bound:g}×" if kind == "ratio" else f"≤ {bound:g} s",
                    "reached": "yes" if reached else "no"}  # fmt: skip


def shown(row: dict) -> dict[str, str]:
    """The row as it is printed."""
    keys = ("seconds", "seconds, slow", "ratio", "lowest", "highest", "peak MiB", "peak MiB, slow", "utilisation")
    number = {key: "" if pd.isna(row.get(key, np.nan)) else f"{row[key]:,.4g}" for key in keys}
    spread = f"{number['ratio']} ({number['lowest']} to {number['highest']})" if number["lowest"] else number["ratio"]
    return {
        "what": row["what"], "s": number["seconds"], "s, slow side": number["seconds, slow"], "ratio": spread,
        "target": row["target"], "reached": row["reached"], "peak MiB": number["peak MiB"],
        "peak MiB, slow side": number["peak MiB, slow"], "of the limit": number["utilisation"],
        "largest difference": "" if pd.isna(row.get("largest difference", np.nan)) else row["largest difference"],
    }  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
