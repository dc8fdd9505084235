"""Fetches the photographs and annotations of VOC and COCO, and leaves alone what is there already.

Archives are unpacked in a hidden folder and moved into place when they are whole. VOC's checksums are published, and
torchvision knows them; COCO's are not, so that the first download records a fingerprint and later ones must match it.
"""

import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pooch
from tqdm import tqdm

from lmclip.annotations import read_voc_ids
from lmclip.archives import check_disk, fingerprint, move_in, only_safe_tars, read_fingerprints, record, unpack_zip
from lmclip.config import load_profile
from lmclip.errors import LMCLIPError
from lmclip.mlt import load_mlt, validation_split
from lmclip.paths import data_dir, display
from lmclip.sources import IMAGE_FOLDERS, LABEL_FILES, has_labels, look_in, missing_files, read_source
from lmclip.splits import StudyData

COCO_URL = "http://images.cocodataset.org/"
# Archive → its bytes, and the bytes of what is taken out of it.
COCO_ZIPS = {"annotations/annotations_trainval2017.zip": (252_907_541, 468_900_000),
             "zips/val2017.zip": (815_585_330, 820_000_000),
             "zips/train2017.zip": (19_336_861_798, 19_400_000_000)}  # fmt: skip
COCO_IMAGE, COCO_USED = 170_000, 2_909  # bytes of an image, about; images of train2017 that the study uses
VOC_TARS = {"2012": (1_999_639_040, 2_000_000_000), "2007": (451_020_800, 451_000_000)}
THREADS, RETRIES, TIMEOUT = 16, 2, 60  # images at a time; further attempts; seconds
STAGING = ".unfinished"


def download(profile_name: str, folder: str = "", everything: bool = False, train_list: str = "") -> StudyData:
    """Fetch what the study of a benchmark needs and is not there yet; prints what it does and returns the data.

    Args:
        profile_name: "voc" or "coco".
        folder: where to; empty: the data folder. Data that are found there are completed, not fetched again.
        everything: all of COCO's training images (19 GB), not only those that the study uses.
        train_list: the label list whose training images are wanted, where the study is to use it.

    Raises:
        LMCLIPError: no network (it names the file to bring, and where to put it), too little disk, an archive that is
            damaged or hostile, or a file that differs from the one first fetched.
    """
    if profile_name not in IMAGE_FOLDERS:
        raise LMCLIPError(f"there is nothing to download for {profile_name!r}: choose voc or coco (glyph is rendered)")
    base = Path(folder).expanduser().resolve() if folder else data_dir() / profile_name
    found = look_in(profile_name, base) or (None if folder else look_in(profile_name, data_dir()))
    if profile_name == "voc":
        root = _fetch_voc(base, found or base / "VOCdevkit")
    else:
        root = _fetch_coco(found or base, everything, train_list)
    data = load_mlt(load_profile(profile_name), train_list, source=str(root))
    lacking = missing_files([*data.train.files, *data.test.files])
    if lacking:
        raise LMCLIPError(f"{len(lacking)} images are still missing, such as {display(lacking[0])}; delete "
                          f"{display(lacking[0].parent)} and run the same command again")  # fmt: skip
    sizes = [f"{len(split or ()):,}" for split in (data.train, data.validation, data.test)]
    print("{} training, {} validation and {} test images are in place in {}".format(*sizes, root))
    print(f"next: lmclip check {profile_name}" + f" --source {shlex.quote(folder)}" * bool(folder))
    return data


# ── VOC: torchvision ────────────────────────────────────────────────────────────────────────────


def _fetch_voc(base: Path, root: Path) -> Path:
    splits = [(split, year) for split, year in enumerate(VOC_TARS) if not _voc_is_whole(root, split)]
    for year in VOC_TARS.keys() - {year for _, year in splits}:
        print(f"VOC{year}: in place")
    check_disk(base, sum(sum(VOC_TARS[year]) for _, year in splits), "VOC")
    for split, year in splits:
        _fetch_voc_split(base, root, year, ("trainval", "test")[split])
    return root


def _voc_is_whole(root: Path, split: int) -> bool:
    if not has_labels("voc", root, split):
        return False
    images = root / IMAGE_FOLDERS["voc"][split]
    ids = read_voc_ids(root / LABEL_FILES["voc"][split])
    annotations = [images.parent / "Annotations" / f"{name}.xml" for name in ids]
    return not missing_files([*annotations, *(images / f"{name}.jpg" for name in ids)])


def _fetch_voc_split(base: Path, root: Path, year: str, image_set: str) -> None:
    from torchvision.datasets import VOCDetection, voc
    from torchvision.datasets.utils import check_md5

    known = voc.DATASET_YEAR_DICT["2007-test" if image_set == "test" else year]
    staging, brought = (root if root.is_dir() else base) / STAGING, base / known["filename"]
    try:
        staging.mkdir(parents=True, exist_ok=True)
        if brought.is_file():
            if not check_md5(brought, known["md5"]):
                raise LMCLIPError(f"{display(brought)} has not the published checksum: it is not whole, or another "
                                  "file; delete it or bring it anew")  # fmt: skip
            (staging / brought.name).unlink(missing_ok=True)
            (staging / brought.name).symlink_to(brought)
        with only_safe_tars():  # torchvision checks the checksum, and then trusts
            VOCDetection(staging, year=year, image_set=image_set, download=True)
        move_in(staging / known["base_dir"], root / f"VOC{year}")
    except (OSError, RuntimeError, tarfile.TarError, EOFError) as error:
        raise _unfetched(known["url"], brought, error) from error
    shutil.rmtree(staging)


# ── COCO: pooch ─────────────────────────────────────────────────────────────────────────────────


def _fetch_coco(root: Path, everything: bool, train_list: str) -> Path:
    pooch.get_logger().setLevel("ERROR")
    annotations, val, train = COCO_ZIPS
    labelled = all(has_labels("coco", root, split) for split in (0, 1))
    tested = labelled and not missing_files(read_source("coco", root, 1).files)
    needed = [*([] if labelled else [annotations]), *([] if tested else [val]), *([train] if everything else [])]
    needed = sum(sum(COCO_ZIPS[name]) for name in needed) + COCO_IMAGE * COCO_USED * (not everything and not labelled)
    check_disk(root, needed, "COCO")
    if not labelled:
        _fetch_zip(root, annotations, set(LABEL_FILES["coco"]).__contains__)
    if not tested and missing_files(read_source("coco", root, 1).files):
        _fetch_zip(root, val, re.compile(r"val2017/\d{12}\.jpg").fullmatch)
    data = load_mlt(load_profile("coco"), train_list, source=str(root))
    if data.differences:
        print(f"Not as published: {'; '.join(data.differences)}")
    held_out = validation_split(load_profile("coco"), data.pool, data.train)
    wanted = data.pool.files if everything else [*data.train.files, *(held_out.files if held_out else ())]
    lacking = {f"train2017/{path.name}" for path in missing_files(wanted)}
    if lacking and (everything or (root / "train2017.zip").is_file()):
        _fetch_zip(root, train, lacking.__contains__)
    elif lacking:
        _fetch_images(root, sorted(lacking))
    return root


def _fetch_zip(root: Path, name: str, wanted: Callable[[str], object]) -> None:
    """Fetch an archive (unless it was brought), take out what is wanted, move it in, and forget the archive."""
    brought, staging = root / Path(name).name, root / STAGING
    known = read_fingerprints(root)
    try:
        archive = brought if brought.is_file() else Path(_pooch(staging, [name], known).fetch(name, progressbar=True))
        unpacked = staging / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        unpack_zip(archive, wanted, unpacked)
        record(root, {name: fingerprint(archive)}, known)
        for folder in unpacked.iterdir():
            move_in(folder, root / folder.name)
        shutil.rmtree(staging)
    except (OSError, ValueError) as error:
        if isinstance(error, LMCLIPError):
            raise
        raise _unfetched(COCO_URL + name, brought, error) from error
    documents = filter(wanted, LABEL_FILES["coco"])
    record(root, {path: fingerprint(root / path) for path in documents}, read_fingerprints(root))


def _fetch_images(root: Path, names: list[str]) -> None:
    check_disk(root, COCO_IMAGE * len(names), f"fetching {len(names):,} images")
    for folder in {(root / name).parent for name in names}:
        folder.mkdir(parents=True, exist_ok=True)  # pooch's threads would race to make it
    known = read_fingerprints(root)
    fetcher, fetched, title = _pooch(root, names, known), {}, "train2017 images that the study uses"
    bar = tqdm(total=len(names), desc=title, unit="image", mininterval=1, ascii=True)
    with bar, ThreadPoolExecutor(THREADS) as threads:
        running = {threads.submit(fetcher.fetch, name, downloader=_jpeg): name for name in names}
        try:
            for done in as_completed(running):
                done.result()
                path = root / running[done]
                path.chmod(0o644)
                fetched[running[done]] = fingerprint(path)
                bar.update()
        except (OSError, ValueError) as error:
            threads.shutdown(cancel_futures=True)
            raise LMCLIPError(f"{COCO_URL}{running[done]} can't be fetched ({_reason(error)}): run the same command "
                              "again, which goes on from here, or put train2017.zip (from zips/ there) into "
                              f"{root}") from error  # fmt: skip
        except BaseException:  # interrupted: what is running ends, the rest is not begun
            threads.shutdown(cancel_futures=True)
            raise
        finally:
            record(root, fetched, known)


def _pooch(folder: Path, names: Iterable[str], known: dict[str, dict]) -> pooch.Pooch:
    """Fetches ``names`` from COCO's server into ``folder``; those fetched before must be what they were."""
    registry = {name: known[name]["sha256"] if name in known else None for name in names}
    return pooch.create(folder, COCO_URL, registry=registry, retry_if_failed=RETRIES)


def _jpeg(url: str, output: str, fetcher: pooch.Pooch, check_only: bool = False) -> None:
    """Pooch's downloader, which refuses what is no JPEG, such as the page of a portal that answers for everyone."""
    pooch.HTTPDownloader(timeout=TIMEOUT)(url, output, fetcher)
    with open(output, "rb") as file:
        if file.read(2) != b"\xff\xd8":
            raise ValueError("what the server sent is no JPEG")


# ── both ────────────────────────────────────────────────────────────────────────────────────────


def _unfetched(url: str, place: Path, error: Exception) -> LMCLIPError:
    return LMCLIPError(f"{url} can't be fetched ({_reason(error)}): fetch {place.name} on a machine with internet, put "
                       f"it into {place.parent}, and run the same command again")  # fmt: skip


def _reason(error: Exception) -> str:
    told = f"{type(error).__name__}: {error}".splitlines()[0]
    return told if len(told) < 80 else type(error).__name__
