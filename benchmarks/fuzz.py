"""Thousands of damaged files and odd settings: each is read correctly or refused in one sentence that names it.

    python benchmarks/fuzz.py                    # 5,000 cases, about 5 minutes
    python benchmarks/fuzz.py --cases 200 --only "COCO JSON"

Hypothesis takes a valid file and changes bytes, cuts and repeats parts of it, or puts a value of another type, a huge
or tiny number or odd Unicode in the place of one of its values. A case fails when anything but LMCLIPError escapes,
when the message does not name the file or has several lines, when it takes longer than the deadline, or when a reader
accepts what it then contradicts.
"""

import json
import signal
import tempfile
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmclip import annotations, archives, freshness, parameters, published, records, tuning
from lmclip.benchmarks import VOC_CLASSES
from lmclip.config import experiment, load_profile
from lmclip.errors import LMCLIPError
from lmclip.paths import ROOT, atomic_write, results_dir

DEADLINE = 5  # seconds for one case; a valid file takes milliseconds
ODD_TEXT = ["", " ", "\0", "\ufeff", "\u202e", "é" * 50, "\ud7ff", "\U0001f600", "a\nb", "../x", "/etc/passwd", "NaN",
            "x" * 10_000, "\u2028", "%s", "{}", "١٢", "1_0", "０"]  # fmt: skip
ODD_NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308,
               float("nan"), float("inf"), float("-inf")]  # fmt: skip
ODD = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD_TEXT), st.sampled_from(ODD_NUMBERS), st.text(max_size=8),
                st.sampled_from([[], {}, [[]], [{}], {"a": None}, [None] * 3]))  # fmt: skip
SNIPPETS = [b"\0", b"\xff", b"\xef\xbb\xbf", b"<", b">", b"&", b"<a>", b"[" * 2000, b"{", b"}", b'"', b",", b"\n",
            b"\r", b"-1", b"1e999", b"NaN", b"9" * 5000, b"99", b"\xe2\x80\xae", "é".encode(), b" "]  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """Something that reads: what it is handed when all is well, and how it is called."""

    name: str
    read: Callable[[Path], object]
    file: str  # name of the file that it is handed
    valid: tuple[bytes, ...]


def main(cases: int = 5000, only: str = "", start: int = 0, save: bool = True) -> None:
    """Run the cases.

    Args:
        cases: How many in all, shared evenly by the readers.
        only: One reader, by name; all when empty.
        start: Seed.
        save: Write results/benchmarks/fuzz.csv.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [reader for reader in readers() if only in ("", reader.name)]
        for reader in chosen:
            rows.append({"reader": reader.name, **fuzz(reader, Path(folder), -(-cases // len(chosen)), start)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    print(f"{table['cases'].sum()} cases: {table['read'].sum()} read, {table['refused'].sum()} refused")
    if save:
        with atomic_write(results_dir("benchmarks") / "fuzz.csv") as file:
            file.write(table.to_csv(index=False).encode())


def fuzz(reader: Reader, folder: Path, cases: int, start: int = 0) -> dict[str, int]:
    """Hand ``reader`` so many changed files; returns how many were read and refused. A failing case raises."""
    count = {"cases": 0, "read": 0, "refused": 0}
    path = folder / reader.file

    @seed(start)
    @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(changed(reader.valid))
    def case(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        count["cases"] += 1
        try:
            with limited(reader.name), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(path)
            count["read"] += 1
        except LMCLIPError as error:
            told = str(error)
            assert "\n" not in told and len(told) < 2000, f"not one sentence: {told[:500]!r}"
            assert path.name in told, f"the file is not named: {told[:500]!r}"
            count["refused"] += 1

    case()
    return count


@st.composite
def changed(draw, valid: tuple[bytes, ...]) -> bytes:
    """One of the valid contents after up to four changes."""
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(1, 4))):
        content = _value_changed(draw, content) if draw(st.booleans()) else _bytes_changed(draw, content)
    return content


def _bytes_changed(draw, content: bytes) -> bytes:
    place = draw(st.integers(0, len(content)))
    length = draw(st.sampled_from([0, 1, 1, 4, 100, len(content)]))
    new = draw(st.one_of(st.binary(max_size=4), st.sampled_from(SNIPPETS), st.just(content[place : place + 60])))
    return content[:place] + new + content[place + length :]


def _value_changed(draw, content: bytes) -> bytes:
    """A JSON document with one of its values replaced or removed; for other texts, one of the words."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        words = content.split(b" ")
        words[draw(st.integers(0, len(words) - 1))] = str(draw(ODD)).encode("utf-8", "surrogatepass")
        return b" ".join(words)
    return json.dumps(_replaced(draw, document), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


def _replaced(draw, value):
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    value = dict(value) if isinstance(value, dict) else list(value)
    if draw(st.integers(0, 7)) == 0:
        del value[key]
    else:
        value[key] = _replaced(draw, value[key])
    return value


@contextmanager
def limited(name: str):
    """Whatever hangs is stopped."""

    def stop(*_):
        raise TimeoutError(f"{name} hangs")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(DEADLINE)
    try:
        yield
    finally:
        signal.alarm(0)


# ── what is read ────────────────────────────────────────────────────────────────────────────────


def readers() -> list[Reader]:
    """Every reader of annotations, lists, settings, records and figures."""
    coco = {"images": [{"id": 7, "file_name": "000007.jpg", "width": 4, "height": 3}, {"id": 9, "file_name": "b.jpg"}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": 0},
                            {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 1}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}], "info": {}}  # fmt: skip
    voc = ("<annotation><filename>a.jpg</filename><object><name>cat</name><difficult>1</difficult></object>"
           "<object><name> dog </name></object></annotation>")  # fmt: skip
    record = next(iter(sorted((ROOT / "results" / "glyph" / "runs").glob("bce_s0_*/record.json")))).read_bytes()
    search = (ROOT / "data" / "tuning" / "glyph.json").read_bytes()
    short = json.loads(search)
    short["trials"] = short["trials"][:3]
    tables = [(ROOT / "data" / name).read_bytes() for name in ("published_results.csv", "author_runs.csv")]
    prints = json.dumps({"val2017.zip": {"bytes": 3, "sha256": "00"}}).encode()
    overrides = (b"{'epochs': 2, 'bal_weight': 0.2, 'seeds': (0, 1), 'precision': 'bf16'}",
                 b'{"methods": ["bce", "lm-clip"], "learning_rate": 1e-4}')  # fmt: skip
    return [
        Reader("COCO JSON", _read_coco, "instances.json", (json.dumps(coco).encode(),)),
        Reader("VOC XML", lambda p: annotations.read_voc_objects(p, VOC_CLASSES), "a.xml", (voc.encode(),)),
        Reader("VOC ids", annotations.read_voc_ids, "trainval.txt", (b"2008_000001\n2008_000002\n",)),
        Reader("label list", _read_list, "train.txt", (b"VOC2012/JPEGImages/a.jpg 0 14\nb.jpg 3\nc.jpg\n",)),
        Reader("overrides", _read_overrides, "overrides", overrides),
        Reader("parameters", _read_parameter, "parameter", (b"[0, 1]", b"{'a': 1}", b"0.5", b"True", b"7")),
        Reader("record", lambda p: records.load_record(p.parent), "run/record.json", (record,)),
        Reader("tuning", _read_search, "glyph.json", (json.dumps(short).encode(), search)),
        Reader("published figures", published.load_published, "published_results.csv", (tables[0],)),
        Reader("the authors' runs", published.load_author_runs, "author_runs.csv", (tables[1],)),
        Reader("fingerprints", lambda p: archives.read_fingerprints(p.parent), "fingerprints.json", (prints,)),
        Reader("stamp", _read_stamp, "04.json", (b'{"source": "a", "module": "b"}',)),
    ]


def _read_coco(path: Path) -> None:
    images, labels, names = annotations.read_coco_annotations(path)
    assert labels.shape == (len(images), len(names)) and all(isinstance(name, str) for name in names)


def _read_list(path: Path) -> None:
    names, labels = annotations.read_label_list(path, VOC_CLASSES)
    assert (
        labels.shape == (len(names), len(VOC_CLASSES)) and labels.max(initial=0) <= 1 and len(set(names)) == len(names)
    )


def _read_overrides(path: Path) -> None:
    """As the command line hands them on; there is no file to name."""
    text = path.read_bytes().decode("utf-8", "replace")
    try:
        profile = load_profile("glyph", overrides=text)
        assert all(experiment(profile, method).run_id for method in profile.methods)
    except LMCLIPError as error:
        raise LMCLIPError(f"{path.name}: {error}") from error


def _read_parameter(path: Path) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    for default in (1, 0.5, True, "a", [0], {}, None):
        try:
            value = parameters.parse_value(text, default, path.name)
        except LMCLIPError as error:
            assert path.name in str(error) and "\n" not in str(error)
        else:
            assert default is None or isinstance(value, type(default))


def _read_search(path: Path) -> None:
    kept, tuning.TUNING = tuning.TUNING, path.parent
    try:
        tuning.load_trials(load_profile("glyph"))
    finally:
        tuning.TUNING = kept


def _read_stamp(path: Path) -> None:
    """A stamp that is none is as good as no stamp."""
    kept, freshness._stamp = freshness._stamp, lambda folder, name: path
    try:
        assert isinstance(freshness.read_stamp("glyph", "04"), dict)
    finally:
        freshness._stamp = kept


if __name__ == "__main__":
    tyro.cli(main)
