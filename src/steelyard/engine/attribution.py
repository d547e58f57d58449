"""Whose time a step was: measured once for all rows, split by tokens, and summing to the whole."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(slots=True)
class EngineTime:
    """Whole microseconds: of the clock on the wall, and of the device that computed."""

    engine_us: int = 0
    device_us: int = 0

    def add(self, other: "EngineTime") -> None:
        """Add another time to this one."""
        self.engine_us += other.engine_us
        self.device_us += other.device_us


class StepMeter:
    """Measures one step: device time is the GPU's on CUDA, else the process's time on its CPUs."""

    def __init__(self, device: torch.device) -> None:
        self.device_kind = "gpu" if device.type == "cuda" else "cpu"
        self._began_ns = 0
        self._device_began_ns = 0
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def begin(self) -> None:
        """A step begins."""
        self._began_ns = time.perf_counter_ns()
        if self.device_kind == "gpu":
            self._events = (torch.cuda.Event(True), torch.cuda.Event(True))
            self._events[0].record()
        else:
            self._device_began_ns = time.process_time_ns()

    def end(self) -> EngineTime:
        """What the step has taken."""
        if self._events is not None:
            self._events[1].record()
            self._events[1].synchronize()
            device_us = int(self._events[0].elapsed_time(self._events[1]) * 1000)
        else:
            device_us = (time.process_time_ns() - self._device_began_ns) // 1000
        return EngineTime((time.perf_counter_ns() - self._began_ns) // 1000, device_us)


def split_by_tokens(whole: int, tokens: Sequence[int]) -> list[int]:
    """Shares of a whole number in proportion to tokens; what is left goes to largest remainders."""
    total = sum(tokens)
    assert whole >= 0, whole
    assert total > 0, "a step without tokens is nobody's"
    shares = [whole * count // total for count in tokens]
    left = whole - sum(shares)
    by_remainder = sorted(range(len(tokens)), key=lambda i: (-(whole * tokens[i] % total), i))
    for i in by_remainder[:left]:
        shares[i] += 1
    assert sum(shares) == whole, "the shares of a step are the whole of it"
    return shares
