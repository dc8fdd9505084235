"""The same versions by every way of installing, no host in the lock, and nothing imported that is not declared."""

import ast
import re
import sys
import tomllib

import pytest

from lmclip.paths import ROOT

# Where the name of the import is not the name of the package.
PACKAGE_OF = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open-clip-torch", "xdist": "pytest-xdist"}


def plain(name: str) -> str:
    return re.split(r"[=<>!~ \[;]", name)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock():
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def conda():
    """Name to version and comment, of every package under ``pip:`` in environment.yml."""
    rows = re.findall(r"^      - (\S+?)==(\S+) +# (.+)$", (ROOT / "environment.yml").read_text(), re.MULTILINE)
    return {plain(name): (version, comment) for name, version, comment in rows}


def test_environment_yml_names_every_direct_dependency_at_the_locked_version(project, lock, conda):
    direct = {plain(name) for name in project["dependencies"] + project["optional-dependencies"]["dev"]}
    assert set(conda) == direct
    assert {name: version for name, (version, _) in conda.items()} == {name: lock[name] for name in direct}


def test_environment_yml_admits_the_same_pythons(project):
    assert f"python {project['requires-python']}" in (ROOT / "environment.yml").read_text()


def test_lock_holds_hashes_and_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--(extra-)?index|--find-links|\bfile:", text)
    for entry in re.split(r"\n(?=\w)", text.partition("\n")[2])[1:]:
        assert "--hash=sha256:" in entry, entry


def test_every_import_is_a_declared_dependency(project):
    declared = {plain(name) for name in project["dependencies"]}
    for path in (ROOT / "lmclip").rglob("*.py"):
        for name in imported(path.read_text()) - set(sys.stdlib_module_names) - {"lmclip"}:
            assert plain(PACKAGE_OF.get(name, name)) in declared, f"{path.name} imports {name}"


def imported(source: str) -> set[str]:
    """Top-level names of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_module_files_are_short_enough_to_read():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "lmclip").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
