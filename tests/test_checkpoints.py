"""Runs that are killed, and runs that are wanted twice: the same bits, nothing left, nobody held up by the dead."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from lmclip import checkpoints, images, records, training
from lmclip.checkpoints import Checkpoint
from lmclip.config import experiment, load_profile
from lmclip.datasets import load_study_data
from lmclip.errors import LMCLIPError
from lmclip.learner import Learner
from lmclip.locks import held
from lmclip.matrix import run_matrix
from lmclip.paths import ROOT, atomic_write
from lmclip.records import is_finished, load_record
from lmclip.training import train

EPOCHS = 3
# A process that trains the run of `wanted`, as `run_matrix` would; `{inject}` makes it die or stand still somewhere.
CHILD = """
import os, sys, time, signal
from pathlib import Path
from lmclip import checkpoints, evaluation, images, records, training
from lmclip.config import experiment, load_profile
from lmclip.datasets import load_study_data
{inject}
profile = load_profile("glyph", smoke=True)
exp = experiment(profile, "lm-clip", 0, 3e-4, epochs=3)
print("ready", flush=True)
training.train(exp, profile, load_study_data(profile), Path(sys.argv[1]), reuse=True, progress=False)
print("made", os.getpid(), flush=True)
"""
DIE = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """The smoke profile, its data, and the run that all this is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMCLIP_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("PYTHONPATH", str(ROOT))
        profile = load_profile("glyph", smoke=True)
        yield profile, load_study_data(profile), experiment(profile, "lm-clip", 0, 3e-4, epochs=EPOCHS)


@pytest.fixture(scope="module")
def whole(setting, tmp_path_factory):
    """The run without a kill: its folder, its record, and its last checkpoint."""
    profile, data, exp = setting
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "remove", lambda self: None)
        train(exp, profile, data, folder, progress=False)
    return folder / exp.run_id, torch.load(folder / f".{exp.run_id}.pt", weights_only=True)


def child(folder, inject="pass"):
    return subprocess.Popen([sys.executable, "-c", CHILD.format(inject=inject), str(folder)],
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


def timeless(run):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in load_record(run).history]


def assert_same(run, other):
    with np.load(run / "scores.npz") as a, np.load(other / "scores.npz") as b:
        assert a.files == b.files and all(np.array_equal(a[name], b[name]) for name in a.files)
    assert timeless(run) == timeless(other)
    assert load_record(run).protocols == load_record(other).protocols


KILLS = {
    "after a checkpoint": "save = checkpoints.Checkpoint.save\n"
    "def saved(self, learner, history, *rest):\n"
    "    save(self, learner, history, *rest)\n    len(history) == 2 and DIE\n"
    "checkpoints.Checkpoint.save = saved",
    "within a checkpoint": "import torch; whole = torch.save\n"
    "def broken(state, file):\n    whole(state, file)\n    file.flush(); '\"epoch\": 2' in state['told'] and DIE\n"
    "torch.save = broken",
    "within an epoch": "whole = training.train_epoch\n"
    "def broken(learner, images, epoch, *rest):\n"
    "    row = whole(learner, images, epoch, *rest)\n    epoch == 2 and DIE\n    return row\n"
    "training.train_epoch = broken",
    "within evaluation": "whole = evaluation.predict; calls = []\n"
    "def broken(*a):\n    calls.append(1)\n    len(calls) == 6 and DIE\n    return whole(*a)\n"
    "evaluation.predict = broken",
    "while the record is written": "records.np.savez_compressed = lambda *a, **k: DIE",
    "with the record in place": "checkpoints.Checkpoint.remove = lambda self: DIE",
    "while images are decoded": "whole = images.decode; calls = []\n"
    "def broken(*a):\n    calls.append(1)\n    len(calls) == 100 and DIE\n    return whole(*a)\n"
    "images.decode = broken",
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_run_ends_with_the_bits_that_it_would_have_had(moment, setting, whole, tmp_path, monkeypatch):
    profile, data, exp = setting
    if moment == "while images are decoded":
        for path in (Path(os.environ["LMCLIP_DATA"]) / "cache" / "images").iterdir():
            path.unlink()
    dying = child(tmp_path, KILLS[moment].replace("DIE", DIE))
    assert dying.wait(120) == -signal.SIGKILL, "it must die there, or this tests nothing"
    removed = []
    monkeypatch.setattr(Checkpoint, "remove", lambda self: removed.append(torch.load(self.path, weights_only=True))
                        or self.path.unlink())  # fmt: skip
    trained = []
    epoch = training.train_epoch
    monkeypatch.setattr(training, "train_epoch", lambda *a: trained.append(a[2]) or epoch(*a))
    monkeypatch.setattr("lmclip.paths._SWEPT", set())  # as in a new process
    record = next(run_matrix([exp], profile, data, folder=tmp_path, jobs=1))
    assert_same(tmp_path / record.run_id, whole[0])
    first = {"after a checkpoint": 2, "within a checkpoint": 2, "within an epoch": 2, "within evaluation": 2,
             "while images are decoded": 1}.get(moment, 4)  # fmt: skip
    assert trained == list(range(first, EPOCHS + 1)), "whole epochs are not trained again"
    if removed:  # unless the record was there already
        for part in ("model", "bias"):
            assert torch.equal(flat(removed[0][part]), flat(whole[1][part]))
        assert flat(removed[0]["optimizer"]["state"]).equal(flat(whole[1]["optimizer"]["state"]))
    assert [p.name for p in tmp_path.iterdir()] == [exp.run_id]
    assert not list(Path(os.environ["LMCLIP_DATA"]).rglob(".*"))


def flat(state):
    if isinstance(state, torch.Tensor):
        return state.detach().double().reshape(-1)
    return torch.cat([flat(value) for value in state.values()])


def test_a_replaced_record_comes_back_when_its_replacement_was_killed(setting, whole, tmp_path):
    """Between the two renames there is no run of that name."""
    run = tmp_path / whole[0].name
    shutil.copytree(whole[0], run.with_name(f".replaced-{run.name}"))
    (tmp_path / f".unfinished-{run.name}").mkdir()
    records.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [run.name] and load_record(run).run_id == run.name


def test_a_checkpoint_of_another_run_is_not_used(setting, tmp_path):
    profile, data, exp = setting
    told = Checkpoint(tmp_path / "a.pt", "this run")
    first = Learner(exp, profile, data.train, torch.device("cpu"))
    with torch.no_grad():
        first.bias.fill_(3)
    told.save(first, [{"epoch": 0}], {}, 1.0)
    fresh = Learner(exp, profile, data.train, torch.device("cpu"))
    assert Checkpoint(told.path, "another").load(fresh) == ([], {}, 0.0) and fresh.bias.item() == 0
    assert told.load(fresh) == ([{"epoch": 0}], {}, 1.0) and fresh.bias.item() == 3


def test_a_damaged_checkpoint_is_told_and_not_used(setting, tmp_path, capsys):
    profile, data, exp = setting
    kept = Checkpoint(tmp_path / "a.pt", "this run")
    model = Learner(exp, profile, data.train, torch.device("cpu"))
    kept.save(model, [{"epoch": 0}], {}, 1.0)
    good = kept.path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1  # in some weight, of which torch takes no notice
    for bad in (b"", good[: len(good) // 2], bytes(flipped), b"x" * 100):
        kept.path.write_bytes(bad)
        assert kept.load(model)[0] == []
        assert "a.pt can't be read" in capsys.readouterr().out


def test_of_two_processes_one_makes_the_run_and_the_other_reads_it(setting, whole, tmp_path):
    both = [child(tmp_path), child(tmp_path)]
    told = [process.communicate(timeout=180)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("is at it; waiting" in text for text in told) == 1, told
    assert_same(tmp_path / whole[0].name, whole[0])
    assert [p.name for p in tmp_path.iterdir()] == [whole[0].name]


def test_a_lock_of_a_killed_process_holds_nobody_up(setting, tmp_path):
    code = "import sys, time; from pathlib import Path; from lmclip.locks import held\n"
    code += "with held(Path(sys.argv[1]), 'it'):\n    print('held', flush=True); time.sleep(60)"
    lock = tmp_path / ".run.lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert not records.is_free(lock)
    records.clean(tmp_path)
    assert lock.exists(), "a living process keeps its lock"
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with held(lock, "it"):
        assert str(os.getpid()) in lock.read_text()
    assert time.monotonic() - began < 5 and not lock.exists()


@pytest.mark.parametrize("early", [True, False])
def test_workers_end_with_a_process_that_was_killed(early, setting, tmp_path):
    code = """
import sys; from pathlib import Path
from lmclip.config import experiment, load_profile
from lmclip.datasets import load_study_data
from lmclip.matrix import run_matrix
profile = load_profile("glyph", smoke=True)
runs = [experiment(profile, "bce", seed, 3e-4, epochs=30) for seed in (0, 1)]
list(run_matrix(runs, profile, load_study_data(profile), folder=Path(sys.argv[1]), jobs=2))
"""
    running = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    begun = (
        (lambda: len(psutil.Process(running.pid).children()) >= 4)
        if early
        else (lambda: len(list(tmp_path.glob(".*.pt"))) >= 2)
    )  # two workers and their trackers; two checkpoints
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(running.pid).children(recursive=True)
    assert len(workers) >= 2
    running.kill()
    running.wait()
    _, living = psutil.wait_procs(workers, timeout=90)  # they may be importing PyTorch still
    for process in living:
        process.kill()
    assert not living


def test_two_processes_share_the_image_cache(setting, tmp_path):
    code = ("import sys; from lmclip import images; from lmclip.config import load_profile\n"
            "from lmclip.datasets import load_study_data\n"
            "data = load_study_data(load_profile('glyph', smoke=True)); whole, calls = images.decode, []\n"
            "images.decode = lambda *a: calls.append(1) or whole(*a)\n"
            "found = images.cached_images(data.test.files, 48, 'squash', 'shared')\n"
            "print(len(calls), found.sum())")  # fmt: skip
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=120)[0].splitlines()[-1].split() for process in both]
    assert sorted(int(words[0]) for words in told) == [0, 160], "one decodes, the other reads"
    assert told[0][1] == told[1][1]
    assert not [p for p in (Path(os.environ["LMCLIP_DATA"]) / "cache" / "images").glob(".*")]


def test_unfinished_files_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path, monkeypatch):
    code = "import sys, os, time; from pathlib import Path; from lmclip.paths import atomic_write\n"
    code += "with atomic_write(Path(sys.argv[1])) as file:\n    file.write(b'half'); file.flush()\n"
    code += "    print('writing', flush=True); time.sleep(60)"
    living, dead = (subprocess.Popen([sys.executable, "-c", code, str(tmp_path / name)], stdout=subprocess.PIPE)
                    for name in ("a", "b"))  # fmt: skip
    for process in (living, dead):
        process.stdout.readline()
    dead.kill()
    dead.wait()
    assert len(list(tmp_path.glob(".*.part"))) == 2
    with atomic_write(tmp_path / "c") as file:
        file.write(b"whole")
    assert [p.name[:3] for p in tmp_path.glob(".*.part")] == [".a."]
    living.kill()
    living.wait()


@pytest.mark.parametrize("workers", [1, 2])
def test_bits_do_not_depend_on_the_number_of_data_workers(workers, setting, whole, tmp_path):
    profile, data, exp = setting
    train(exp, profile, data, tmp_path, progress=False, workers=workers)
    assert_same(tmp_path / exp.run_id, whole[0])


# ── disks and interrupts ────────────────────────────────────────────────────────────────────────


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


class Full:
    """A file on a full disk, to whatever writes to it."""

    def __init__(self, file):
        self.file, self.name = file, file.name

    def write(self, data):
        full()

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("place", ["checkpoint", "record", "cache"])
def test_a_full_disk_is_told_and_the_next_start_goes_on(place, setting, whole, tmp_path, monkeypatch):
    profile, data, exp = setting
    with monkeypatch.context() as patch:
        if place == "checkpoint":
            save = torch.save
            patch.setattr(checkpoints.torch, "save", lambda state, file: save(
                state, Full(file) if '"epoch": 2' in state["told"] else file))  # fmt: skip
        elif place == "record":
            patch.setattr(records.np, "savez_compressed", full)
        else:
            for path in (Path(os.environ["LMCLIP_DATA"]) / "cache" / "images").glob("*.npy"):
                path.unlink()
            patch.setattr(images.np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(LMCLIPError, match=r"can't be written.*[Nn]o space left.*free space") as told:
            train(exp, profile, data, tmp_path, progress=False)
    assert "\n" not in str(told.value)
    assert not is_finished(tmp_path / exp.run_id) and not list(tmp_path.glob(".unfinished*"))
    train(exp, profile, data, tmp_path, progress=False)
    assert_same(tmp_path / exp.run_id, whole[0])


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here; the full disk is tested by injected errors above")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_is_told(setting, small_disk):
    profile, data, exp = setting
    with pytest.raises(LMCLIPError, match="can't be written"):
        train(exp, profile, data, small_disk, progress=False)
    assert list(small_disk.iterdir()) == []


def limited_command(tmp_path, *arguments, **environment):
    """The command where no file may grow beyond 300 kB, which is a disk that is full to whatever writes more."""
    code = ("import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2)\n"
            "from lmclip.cli import main; sys.exit(main(sys.argv[1:]))")  # fmt: skip
    folders = {"LMCLIP_DATA": str(tmp_path / "data"), "LMCLIP_RESULTS": str(tmp_path / "results")}
    return subprocess.run([sys.executable, "-c", code, *arguments], env=os.environ | folders | environment,
                          capture_output=True, text=True, timeout=300)  # fmt: skip


def test_the_command_tells_a_full_disk_in_one_sentence(tmp_path):
    run = limited_command(tmp_path, "study", "--smoke", "--only", "01")
    assert run.returncode in (1, 2), run.stderr
    assert "can't be written (File too large)" in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".*.lock"))


def test_a_folder_that_cannot_be_written_is_told(setting, tmp_path):
    profile, data, exp = setting
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(LMCLIPError, match=r"runs can't be written.*LMCLIP_RESULTS"):
        train(exp, profile, data, tmp_path / "runs", progress=False)


def test_figures_tables_and_stamps_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    import pandas as pd

    from lmclip import freshness
    from lmclip.plots.style import save_figure
    from lmclip.tables import save_table

    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    writes = {"figures": lambda: save_figure(plt.figure(), "glyph", "a"),
              "tables": lambda: save_table(pd.DataFrame({"a": [1]}), "glyph", "a", "caption"),
              ".stamps": lambda: freshness.write_stamp("glyph", "a", {})}  # fmt: skip
    for folder, write in writes.items():
        write()
        before = {p: p.read_bytes() for p in (tmp_path / "glyph" / folder).iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.NamedTemporaryFile", full)
            with pytest.raises(LMCLIPError, match="can't be written"):
                write()
        assert {p: p.read_bytes() for p in (tmp_path / "glyph" / folder).iterdir()} == before, "the old one stays whole"


def test_ctrl_c_leaves_what_the_next_start_goes_on_from(setting, whole, tmp_path):
    profile, data, exp = setting
    running = child(tmp_path)
    checkpoint = tmp_path / f".{exp.run_id}.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    assert [p.name for p in tmp_path.iterdir()] == [checkpoint.name]
    train(exp, profile, data, tmp_path, progress=False)
    assert_same(tmp_path / exp.run_id, whole[0])


# ── the soak, small ─────────────────────────────────────────────────────────────────────────────


def test_three_kills_of_the_study_change_nothing(tmp_path):
    soak = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--kills", "3", "--only", "04", "--longest", "30",
            "--no-save"]  # fmt: skip
    run = subprocess.run(soak, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 of 3 kills survived" in run.stdout and "; 0 stray files or processes" in run.stdout
