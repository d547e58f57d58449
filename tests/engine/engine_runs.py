"""Running an engine inside a test: submit, collect, compare with a slow reference."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from typing import Any

import torch

from steelyard.engine.engine import Engine
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.sampler import Sampling
from steelyard.engine.sequence import Delta, End, Sequence, SequenceRequest

GREEDY = Sampling(temperature=0.0)


@dataclass
class Run:
    """One submitted sequence and the deltas it gave."""

    deltas: Queue[Delta] = field(default_factory=Queue)
    sequence: Sequence | None = None
    seen: list[Delta] = field(default_factory=list)

    def wait_for(self, tokens: int) -> None:
        while sum(len(delta.token_ids) for delta in self.seen) < tokens:
            self.seen.append(self.deltas.get(timeout=60))

    def finish(self) -> "Run":
        while not self.seen or self.seen[-1].end is None:
            self.seen.append(self.deltas.get(timeout=60))
        return self

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.seen)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for delta in self.seen for token_id in delta.token_ids]

    @property
    def end(self) -> End | None:
        return self.seen[-1].end


@contextmanager
def running_engine(model: LoadedModel, **choices: Any) -> Generator[Engine]:
    engine = Engine(model, **choices)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def submit(
    engine: Engine,
    prompt: list[int],
    *,
    max_tokens: int = 20,
    sampling: Sampling = GREEDY,
    **more: Any,
) -> Run:
    run = Run()
    request = SequenceRequest(
        request_id="test",
        prompt_token_ids=prompt,
        max_tokens=max_tokens,
        sampling=sampling,
        **more,
    )
    run.sequence = engine.submit(request, deliver=run.deltas.put)
    return run


def generate_alone(weights: Any, prompt: list[int], *, max_tokens: int) -> list[int]:
    """What transformers' own generate answers to this prompt alone."""
    output = weights.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=max_tokens,
    )
    return output[0, len(prompt) :].tolist()
