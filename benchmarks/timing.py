"""Several ways to compute one thing, run in turns in one process: seconds, spread of their ratio, and peak memory."""

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch


@dataclass
class Measured:
    """One way: seconds of every repeat, the peak of memory beyond what was held before, and what each call gave."""

    seconds: list[float] = field(default_factory=list)
    values: list = field(default_factory=list)
    peak_mib: float = float("nan")

    @property
    def median(self) -> float:
        """Median seconds."""
        return float(np.median(self.seconds))


def in_turns(ways: Mapping[str, Callable], repeats: int, warm_up: int = 2) -> dict[str, Measured]:
    """Call all ways once, then all again, ...; the machine's moods then meet all of them alike.

    Args:
        ways: name → a call without arguments; what it returns is kept.
        repeats: timed calls of each.
        warm_up: calls before these, of which the last is watched for its memory. With 0 the first timed call is, which
            makes it a little slower.
    """
    found = {name: Measured() for name in ways}
    for turn in range(warm_up):
        for name, call in ways.items():
            value, peak = with_peak(call) if turn == warm_up - 1 else (call(), float("nan"))
            found[name].values.append(value)
            found[name].peak_mib = peak
    for turn in range(repeats):
        for name, call in ways.items():
            synchronize()
            start = time.perf_counter()
            if turn == 0 and not warm_up:
                value, found[name].peak_mib = with_peak(call)
            else:
                value = call()
            synchronize()
            found[name].seconds.append(time.perf_counter() - start)
            found[name].values.append(value)
    return found


def ratios(slow: Measured, fast: Measured) -> np.ndarray:
    """(R,) how many times as long the slow way took, turn by turn."""
    return np.array(slow.seconds) / np.array(fast.seconds)


def with_peak(call: Callable) -> tuple[object, float]:
    """What ``call()`` returns, and the most MiB that it held beyond what was held before; NaN where none can tell."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        value = call()
        torch.cuda.synchronize()
        return value, (torch.cuda.max_memory_allocated() - before) / 2**20
    try:  # Linux: the kernel keeps the peak, and forgets it on request
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _kib("VmRSS")
    except (OSError, AttributeError, KeyError):
        return call(), float("nan")
    value = call()
    return value, (_kib("VmHWM") - before) / 2**10


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of matrix products in "fp32" and "bf16", now: a machine's rate changes with what else its host does."""
    return {"fp32": matmul_rate(torch.float32, device), "bf16": matmul_rate(torch.bfloat16, device)}


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int = 2048, repeats: int = 5) -> float:
    """FLOP/s of a product of two ``size`` × ``size`` matrices: the best of ``repeats``, this machine's limit."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    found = in_turns({"product": lambda: (a @ b, None)[1]}, repeats)["product"]
    return 2 * size**3 / min(found.seconds)


def _kib(key: str) -> int:
    lines = (line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int({name: rest for name, rest in lines}[key].split()[0])
