"""Nothing executes from data, and no file takes the machine down: every loader, handed a hostile file, refuses it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmclip import paths
from lmclip.study import STUDY

SECONDS, BYTES = 20, 2 * 2**30  # what one refusal may take

# Each case writes one hostile file and hands it to its loader, in a process whose memory is limited.
CHILD = r"""
import io, json, os, pickle, resource, signal, struct, sys, tarfile, time, zipfile, zlib
from pathlib import Path
import numpy as np, torch
from lmclip import (annotations, archives, checkpoints, config, freshness, images, models, parameters, published,
                    records, sources, tuning, verify_pages)
from lmclip.errors import LMCLIPError

folder = Path(sys.argv[1]); os.chdir(folder)
DEEP = '{"images": ' + "[" * 100_000
BOMB = b"\0" * 400_000_000


class Command:
    def __reduce__(self):
        return os.system, (f"touch {folder}/ran",)


def pickled(name):
    (folder / name).write_bytes(pickle.dumps(Command()))
    return folder / name


def saved(name):
    torch.save({"weight": torch.zeros(2), "told": Command()}, folder / name)
    return folder / name


def text(name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content)
    return folder / name


def zipped(name, member, content=b"", declared=None):
    with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
    return folder / name


def png(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    (folder / "wide.png").write_bytes(content + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    return folder / "wide.png"


def huge_safetensors():
    (folder / "huge.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{")
    return folder / "huge.safetensors"


def tar(name, target):
    with tarfile.open(folder / name, "w") as archive:
        info = tarfile.TarInfo(target)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
        archive.close()
    inner = folder / "inner"; inner.mkdir(exist_ok=True)
    with archives.only_safe_tars(), tarfile.open(folder / name) as archive:
        archive.extractall(inner)


def tar_link():
    with tarfile.open(folder / "link.tar", "w") as archive:
        info = tarfile.TarInfo("link"); info.type = tarfile.SYMTYPE; info.linkname = "/etc"
        archive.addfile(info)
    with archives.only_safe_tars(), tarfile.open(folder / "link.tar") as archive:
        archive.extractall(folder / "inner")


def run(name, content):
    text(f"{name}/record.json", content)
    return folder / name


def huge_array():
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    (folder / "hugerun").mkdir()
    zipped("hugerun/scores.npz", "targets.npy", header.getvalue())
    return folder / "hugerun"


def object_array():
    (folder / "objects").mkdir()
    np.savez(folder / "objects" / "scores.npz", targets=np.array([Command()], dtype=object))
    return folder / "objects"


def bombed_scores():
    (folder / "bombed").mkdir()
    zipped("bombed/scores.npz", "targets.npy", BOMB)
    return folder / "bombed"


def cached_pickle():
    pickled("cache.npy")
    found = images._opened(folder / "cache.npy", 1, 1)
    np.save(folder / "objects.npy", np.array([Command()], dtype=object), allow_pickle=True)
    if found is None and images._opened(folder / "objects.npy", 1, 1) is None:
        raise LMCLIPError("cache.npy is not used")


def kept_labels():
    np.savez(folder / "labels.npz", names=np.array([Command()], dtype=object), labels=np.zeros((1, 2), np.uint8))
    if sources._read_cache(folder / "labels.npz", 2) is None:
        raise LMCLIPError("labels.npz is not used")


def checkpoint(name, write):
    write(name)
    if checkpoints.Checkpoint(folder / name, "this run").load(type("L", (), {"device": "cpu"}))[0] == []:
        raise LMCLIPError(f"{name} is not used")


def stamp():
    os.environ["LMCLIP_RESULTS"] = str(folder)
    text("glyph/.stamps/04.json", DEEP)
    text("glyph/.stamps/05.json", "[1, 2]")
    if freshness.read_stamp("glyph", "04") == freshness.read_stamp("glyph", "05") == {}:
        raise LMCLIPError("04.json is not used")


def fingerprints():
    text("prints/fingerprints.json", DEEP)
    archives.read_fingerprints(folder / "prints")


def search():
    tuning.TUNING = folder
    text("glyph.json", DEEP)
    tuning.load_trials(config.load_profile("glyph"))


def page():
    if verify_pages._parameters(text("page.ipynb", DEEP)) == {}:
        raise LMCLIPError("page.ipynb tells nothing")


CASES = {
    "pickle as weights.pt": lambda: models.read_weights(pickled("weights.pt")),
    "torch file with a command": lambda: models.read_weights(saved("state.pt")),
    "pickle as weights.safetensors": lambda: models.read_weights(pickled("weights.safetensors")),
    "pickle as the mini CLIP": lambda: models.load_model("mini-clip", pickled("mini.safetensors")),
    "safetensors of 2**62 bytes": lambda: models.read_weights(huge_safetensors()),
    "pickle as checkpoint": lambda: checkpoint("run.pt", pickled),
    "checkpoint with a command": lambda: checkpoint("run2.pt", saved),
    "pickle as label list": lambda: annotations.read_label_list(pickled("split.pkl"), ["a"]),
    "pickle as COCO annotations": lambda: annotations.read_coco_annotations(pickled("coco.json")),
    "pickle as VOC annotation": lambda: annotations.read_voc_objects(pickled("voc.xml"), ["a"]),
    "pickle as image": lambda: images.decode(pickled("image.jpg"), 8),
    "pickle as published figures": lambda: published.load_published(pickled("published.csv")),
    "pickle as record": lambda: records.load_record(run("pickled", "(lp0\nS'x'\np1\na.")),
    "pickle in scores.npz": lambda: records.load_arrays(object_array()),
    "pickle in the image cache": cached_pickle,
    "pickle in the label cache": kept_labels,
    "scores.npz that is a bomb": lambda: records.load_arrays(bombed_scores()),
    "scores.npz of 8 TB": lambda: records.load_arrays(huge_array()),
    "zip with ../": lambda: archives.unpack_zip(zipped("up.zip", "../evil", b"evil"), bool, folder / "inner"),
    "zip with /": lambda: archives.unpack_zip(zipped("root.zip", "/tmp/evil", b"evil"), bool, folder / "inner"),
    "zip bomb": lambda: archives.unpack_zip(zipped("bomb.zip", "annotations.json", BOMB), bool, folder / "inner"),
    "tar with ../": lambda: tar("up.tar", "../evil"),
    "tar with a link outside": tar_link,
    "image of 60,000 x 60,000 pixels": lambda: images.decode(png(60_000, 60_000), 64),
    "image of 60,000 x 60,000 pixels, whole": lambda: images.decode(png(60_000, 60_000), None),
    "deep COCO annotations": lambda: annotations.read_coco_annotations(text("deep.json", DEEP)),
    "deep VOC annotation": lambda: annotations.read_voc_objects(text("deep.xml", "<a>" * 100_000), ["a"]),
    "deep record": lambda: records.load_record(run("deep", DEEP)),
    "deep tuning record": search,
    "deep fingerprints": fingerprints,
    "deep stamp": stamp,
    "deep page": page,
    "deep notebook": lambda: parameters.notebook_parameters(text("deep.ipynb", DEEP)),
    "deep published figures": lambda: published.load_published(text("deep.csv", DEEP)),
    "deep overrides": lambda: config.load_profile("glyph", overrides="[" * 100_000),
    "deep parameter": lambda: parameters.parse_value("(" * 100_000, 1, "parameter"),
    "XML that expands": lambda: annotations.read_voc_objects(text("laughs.xml", '<!DOCTYPE a [<!ENTITY b "' + "x" * 1000
        + '"><!ENTITY c "' + "&b;" * 1000 + '">]><annotation>&c;</annotation>'), ["a"]),
}


def allowed():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmSize")) + int(sys.argv[3])


def give_up(*_):
    raise TimeoutError("it hangs")


signal.signal(signal.SIGALRM, give_up)
for name, case in CASES.items():
    resource.setrlimit(resource.RLIMIT_AS, (allowed(), resource.RLIM_INFINITY))
    signal.alarm(int(sys.argv[2]))
    began = time.monotonic()
    try:
        case()
        told = ["accepted", ""]
    except LMCLIPError as error:
        told = ["refused", str(error)]
    except BaseException as error:
        told = [type(error).__name__, str(error)[:300]]
    signal.alarm(0)
    print(json.dumps([name, *told, time.monotonic() - began]), flush=True)
"""

NAMES = [line.split('"')[1] for line in CHILD[CHILD.index("CASES = {") :].splitlines() if line.startswith('    "')]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Case → what came of it, the message and the seconds; all in one process of its own."""
    folder = tmp_path_factory.mktemp("hostile") / "inside"
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT)}
    run = subprocess.run([sys.executable, "-c", CHILD, str(folder), str(SECONDS), str(BYTES)], env=environment,
                         capture_output=True, text=True, timeout=600)  # fmt: skip
    found = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    assert run.returncode == 0, run.stderr[-3000:]
    return {name: rest for name, *rest in found}, folder


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused_in_one_sentence(name, outcomes):
    outcome, message, seconds = outcomes[0][name]
    assert outcome == "refused", message
    assert "\n" not in message and len(message) < 1000
    assert seconds < SECONDS


def test_no_command_ran_and_nothing_was_written_outside(outcomes):
    _, folder = outcomes
    assert (folder / "weights.pt").exists(), "the files were there"
    assert not (folder / "ran").exists()
    assert not list(folder.parent.rglob("evil")) and not list((folder / "inner").rglob("*"))


def calls(tree):
    """Every call in a module: its dotted name and its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def unsafe(source):
    """The calls in ``source`` by which data could be executed, and the modules that have no other use."""
    tree, found = ast.parse(source), []
    banned = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [name for name in names if name.split(".")[0] in banned]
    for _, name, given in calls(tree):
        last = name.split(".")[-1]
        found += [name] * any((
            name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False",
            name == "torch.load" and given.get("weights_only") != "True",
            name in ("eval", "exec", "os.system", "os.popen", "joblib.load", "torch.hub.load", "torch.jit.load"),
            name in ("yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pd.read_hdf"), last == "extractall",
            given.get("shell") == "True", given.get("trust_remote_code") == "True",
        ))  # fmt: skip
    return found


@pytest.mark.parametrize("source", [
    "import pickle", "from dill import loads", "np.load(p)", "np.load(p, allow_pickle=True)", "torch.load(p)",
    "torch.load(p, weights_only=False)", "tar.extractall(p)", "yaml.load(f)", "eval(x)",
    "subprocess.run(x, shell=True)", "joblib.load(p)",
])  # fmt: skip
def test_the_search_for_unsafe_calls_finds_them(source):
    assert unsafe(source)


@pytest.mark.parametrize("path", sorted((paths.ROOT / "lmclip").rglob("*.py")), ids=lambda p: p.stem)
def test_the_module_makes_no_unsafe_call(path):
    assert unsafe(path.read_text()) == []


def test_only_the_checkouts_own_notebooks_are_executed():
    assert {notebook.source.parent for notebook in STUDY} == {paths.ROOT / "notebooks"}
    callers = [path.name for path in (paths.ROOT / "lmclip").rglob("*.py") if "execute_notebook(" in path.read_text()]
    assert sorted(callers) == ["execution.py", "study.py"]
    assert Path(paths.NOTEBOOKS) == paths.ROOT / "notebooks"
