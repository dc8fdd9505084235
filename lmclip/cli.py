"""The command line: ``lmclip COMMAND``, or ``python -m lmclip COMMAND``. One function is one subcommand."""

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from lmclip.errors import LMCLIPError
from lmclip.paths import display

PLAIN_FLAGS = (FlagCreatePairsOff,)  # --force, without a --no-force beside it

# What a disk may say wherever something is written; told in one sentence.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}

app = SubcommandApp()


@app.command
def study(
    profile: str = "glyph",
    smoke: bool = False,
    backbone: str = "",
    weights: str = "auto",
    only: tuple[str, ...] = (),
    start: Annotated[str, arg(name="from")] = "",
    force: bool = False,
    list_only: Annotated[bool, arg(name="list")] = False,
    parameter: Annotated[UseAppendAction[tuple[tuple[str, str], ...]], arg(aliases=["-p"], metavar="NAME VALUE")] = (),
) -> None:
    """Run the notebooks of the study and write their pages, tables and figures to results/PROFILE.

    Args:
        profile: Which data and model: glyph, voc or coco.
        smoke: The smallest size that still runs every line; results go to results/PROFILE-smoke and mean nothing.
        backbone: Of voc and coco: rn50, vit-b-16 (the default) or vit-l-14.
        weights: auto (OpenAI's, fetched when needed; glyph has its own), random, or the path of a weights file.
        only: Run these notebooks alone, by number.
        start: Run from this notebook on, by number.
        force: Run notebooks that are up to date too.
        list_only: Show the notebooks and whether each is up to date; run nothing.
        parameter: A notebook parameter and its value; may be repeated.
    """
    from lmclip.execution import NotebookFailed
    from lmclip.study import list_study, run_study

    if list_only:
        return list_study(profile, smoke, backbone, weights)
    try:
        run_study(profile, smoke=smoke, backbone=backbone, weights=weights, only=only, start=start, force=force,
                  given=parameter)  # fmt: skip
    except NotebookFailed as error:
        sys.exit(_end(f"lmclip: {error}", 1))


@app.command
def tune(
    profile: str = "glyph", backbone: str = "", weights: str = "auto", methods: tuple[str, ...] = (), jobs: int = -1,
    source: str = "",
) -> None:  # fmt: skip
    """Search every method's learning rate on the validation images and record it in data/tuning/.

    Args:
        profile: Which data; it needs a validation set.
        backbone: Of voc and coco, as for `study`.
        weights: As for `study`.
        methods: Methods to search; all of the profile's when empty. Other methods' recorded trials are kept.
        jobs: Runs at a time; -1 is one per core, at most four.
        source: The folder of an existing VOCdevkit or COCO download; empty: the data folder.
    """
    from lmclip.config import load_profile
    from lmclip.tuning import tune

    print(tune(load_profile(profile, backbone=backbone, weights=weights), methods, jobs, source).to_string(index=False))


@app.command
def difficulty(profile: str = "glyph", jobs: int = -1) -> None:
    """Measure zero-shot and BCE, by which the benchmark's difficulty is judged, and record them in data/tuning/."""
    import pandas as pd

    from lmclip.config import load_profile
    from lmclip.tuning import record_difficulty

    print(pd.DataFrame(record_difficulty(load_profile(profile), jobs)["runs"]).to_string(index=False))


@app.command
def readme() -> None:
    """Copy the verdicts and the main table of results/glyph into README.md."""
    from lmclip.paths import ROOT, atomic_write
    from lmclip.tables import fill_readme

    path = ROOT / "README.md"
    filled = fill_readme(path.read_text(), "glyph").encode()
    with atomic_write(path) as file:
        file.write(filled)


@app.command
def verify(folder: Annotated[str, Positional] = "") -> None:
    """Recompute what a results folder states, from its records and scores; name what does not match, with status 1.

    Args:
        folder: The results folder of a profile, such as results/glyph, which it is when empty.
    """
    from lmclip.paths import results_dir
    from lmclip.verify import verify

    if not verify(Path(folder).expanduser() if folder else results_dir("glyph")):
        sys.exit(1)


@app.command
def pretrain(
    folder: Path,
    seed: int = 0,
    samples: int = 2_000_000,
    precision: Literal["bf16", "fp32"] = "bf16",
) -> None:
    """Train the mini CLIP on rendered image-caption pairs; about 50 minutes on one core with bf16.

    Args:
        folder: Where the weights, the recipe and the history go.
        seed: Seed of initialisation, order and captions.
        samples: Scenes to see, with repetition.
        precision: bf16 needs a CPU with AVX-512 BF16 to be fast.
    """
    from lmclip.paths import data_dir
    from lmclip.pretrain import Recipe, judge, pretrain

    pretrain(Recipe(seed=seed, samples=samples, precision=precision), folder, data_dir() / "glyph")
    print("zero-shot on GlyphMLT's test images:", judge(folder))


@app.command
def download(
    data: Annotated[Literal["voc", "coco"], Positional],
    folder: str = "",
    everything: Annotated[bool, arg(name="all")] = False,
    train_list: str = "",
) -> None:
    """Fetch the photographs and annotations of a real benchmark; what is there already is left alone.

    Args:
        data: Which benchmark.
        folder: Where to; the data folder when empty. An existing VOCdevkit or COCO folder is completed.
        everything: All training images of COCO (19 GB), not only those that the study uses.
        train_list: The label list whose training images are wanted, where the study is to use it.
    """
    from lmclip.download import download

    download(data, folder, everything, train_list)


@app.command
def check(data: Annotated[Literal["voc", "coco"], Positional], source: str = "") -> None:
    """Say what of a real benchmark is there, what is missing or differs, and what to do; status 1 if images lack.

    Args:
        data: Which benchmark.
        source: The folder of an existing VOCdevkit or COCO download; the data folder when empty.
    """
    from lmclip.check import check

    if not check(data, source):
        sys.exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns 0, 2 on bad input, 130 when interrupted. A stopped notebook exits with 1."""
    try:
        app.cli(prog="lmclip", description="The LM-CLIP reproduction study.", args=arguments, config=PLAIN_FLAGS)
    except LMCLIPError as error:
        return _end(f"lmclip: {error}", 2)
    except KeyboardInterrupt:
        return _end("lmclip: interrupted; what had finished is kept, and the same command goes on from there.", 130)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{display(error.filename)} can't be written" if error.filename else "something can't be written"
        return _end(
            f"lmclip: {where} ({error.strerror}); free space or make it writable, and run the same command again", 2
        )
    return 0


def _end(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
