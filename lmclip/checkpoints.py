"""What lets a run survive: the state of its training after every epoch, in one hidden file beside the finished runs.

A run that was killed goes on after its last whole epoch and ends with the bits that it would have had: an epoch's draws
follow from the seed and the epoch alone, and everything else that training changes is in the checkpoint.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmclip.errors import LMCLIPError
from lmclip.evaluation import Kept
from lmclip.learner import Learner
from lmclip.paths import atomic_write, display


@dataclass(frozen=True)
class Checkpoint:
    """The state of an unfinished run.

    ``identity`` says which settings, data, weights, packages and commit the run has; a checkpoint of another identity
    is not used, since the run would not be what it says that it is.
    """

    path: Path
    identity: str

    def save(self, learner: Learner, history: list[dict], best: dict[str, Kept], seconds: float) -> None:
        """Write the state after the last epoch in ``history``: whole, or not at all.

        Raises:
            LMCLIPError: it can't be written.
        """
        state = {
            "model": learner.model.state_dict(), "bias": learner.bias.detach(),
            "optimizer": learner.optimizer.state_dict(), "schedule": learner.schedule.state_dict(),
            "random": torch.get_rng_state(),
            "kept": {name: {"logits": torch.from_numpy(kept.logits), "features": torch.from_numpy(kept.features)}
                     for name, kept in best.items()},
        }  # fmt: skip
        told = {"identity": self.identity, "tensors": _digest(state), "history": history, "seconds": seconds,
                "summaries": {name: kept.summary for name, kept in best.items()}}  # fmt: skip
        try:
            with atomic_write(self.path) as file:
                torch.save(state | {"told": json.dumps(told)}, file)
        except RuntimeError as error:  # torch's word for a disk that is full
            raise LMCLIPError(f"{display(self.path)} can't be written ({str(error).splitlines()[0]}); free space "
                              "there, and the same command goes on from the epoch before") from error  # fmt: skip

    def load(self, learner: Learner) -> tuple[list[dict], dict[str, Kept], float]:
        """Put ``learner`` into the saved state; returns history, what was kept, and the seconds spent.

        Without a usable checkpoint ``learner`` stays as it is, and history is empty.

        Raises:
            LMCLIPError: the checkpoint is of this run and yet does not fit it.
        """
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)  # runs nothing that is in the file
            told = json.loads(state["told"])
            if told["identity"] != self.identity:
                return [], {}, 0.0
            if told["tensors"] != _digest({name: part for name, part in state.items() if name != "told"}):
                raise ValueError("its content is not what was written")
        except FileNotFoundError:
            return [], {}, 0.0
        except Exception as error:  # torch raises many types for a damaged file
            print(f"{display(self.path)} can't be read ({type(error).__name__}); the run starts anew", flush=True)
            return [], {}, 0.0
        try:
            learner.model.load_state_dict(state["model"])
            learner.bias.data.copy_(state["bias"])
            learner.optimizer.load_state_dict(state["optimizer"])
            learner.schedule.load_state_dict(state["schedule"])
            torch.set_rng_state(state["random"])
            kept = {name: Kept(summary, *(state["kept"][name][array].numpy() for array in ("logits", "features")))
                    for name, summary in told["summaries"].items()}  # fmt: skip
            return list(told["history"]), kept, float(told["seconds"])
        except Exception as error:
            raise LMCLIPError(f"{display(self.path)} does not fit its own run ({type(error).__name__}); delete it, and "
                              "the run starts anew") from error  # fmt: skip

    def remove(self) -> None:
        """Delete the file, once the run's record is there."""
        self.path.unlink(missing_ok=True)


def _digest(state: Any) -> str:
    """sha256 over a nested state: torch does not look at the checksums of the files that it reads."""
    digest = hashlib.sha256()
    for part in _parts(state):
        digest.update(part)
    return digest.hexdigest()


def _parts(state: Any) -> Iterator[bytes]:
    if isinstance(state, torch.Tensor):
        yield str((state.dtype, tuple(state.shape))).encode()
        yield state.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(state, dict):
        for key, value in state.items():
            yield repr(key).encode()
            yield from _parts(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _parts(value)
    else:
        yield repr(state).encode()
