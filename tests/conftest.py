"""Where tests find their reference numbers."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the golden numbers, computed by the authors' release; part of the checkout."""
    return HERE / "golden"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the benchmarks' own lists, which belong to their owners and are not part of the checkout."""
    folder = Path(os.environ.get("LMCLIP_REFERENCE") or HERE.parents[1] / "shared" / "reference")
    if not folder.is_dir():
        pytest.skip("the benchmarks' label lists are not here: set LMCLIP_REFERENCE to the folder that holds them")
    return folder
