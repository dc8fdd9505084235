"""300 damaged files and odd settings, 25 for each reader; benchmarks/fuzz.py runs as many as it is told."""

import importlib.util

import pytest

from lmclip.paths import ROOT

_spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
READERS = _module.readers()


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_damaged_file_is_read_or_refused_by_name(reader, tmp_path):
    count = _module.fuzz(reader, tmp_path, 25)
    assert count["cases"] >= 25 and count["read"] + count["refused"] == count["cases"]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_what_the_damage_starts_from_is_read(reader, tmp_path):
    path = tmp_path / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    for content in reader.valid:
        path.write_bytes(content)
        reader.read(path)


def test_the_fuzzer_notices_what_it_looks_for(tmp_path):
    def escapes(path):
        int(path.read_bytes())

    def unnamed(path):
        raise _module.LMCLIPError("something is wrong somewhere")

    def hangs(path):
        while True:
            pass

    for read, message in ((escapes, "invalid literal|ValueError"), (unnamed, "not named"), (hangs, "hangs")):
        _module.DEADLINE = 1
        with pytest.raises((AssertionError, ValueError, TimeoutError), match=message):
            _module.fuzz(_module.Reader("it", read, "file", (b"1",)), tmp_path, 3)
