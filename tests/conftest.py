"""Where tests find their reference numbers."""

import json
import os
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

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


@pytest.fixture
def golden_clip(golden):
    """The tiny CLIP that the golden trajectory starts from, and the trajectory's numbers."""
    numbers = np.load(golden / "trajectory.npz")
    model = open_clip.CLIP(**json.loads(str(numbers["model_kwargs"])))
    state = {key[len("init.") :]: torch.tensor(numbers[key]) for key in numbers.files if key.startswith("init.")}
    rows = torch.zeros_like(model.state_dict()["token_embedding.weight"])
    rows[torch.tensor(numbers["used_tokens"])] = state["token_embedding.weight"]
    missing, unexpected = model.load_state_dict(state | {"token_embedding.weight": rows}, strict=False)
    assert not unexpected and set(missing) <= {"attn_mask"}
    return model, numbers
