"""One token through the whole engine: what answers this is ready."""

from queue import Empty, Queue
from typing import Final

from steelyard.engine.engine import Engine
from steelyard.engine.refusals import EngineStepFailed
from steelyard.engine.sampler import Sampling
from steelyard.engine.sequence import Delta, SequenceRequest

_TIMEOUT_S: Final = 300


def warm_up(engine: Engine) -> None:
    """Make the model answer one token, which also makes torch allocate what it needs."""
    deltas: Queue[Delta] = Queue(maxsize=2)
    request = SequenceRequest(
        request_id="warm-up",
        prompt_token_ids=[0],
        max_tokens=1,
        is_recorded=False,
        sampling=Sampling(temperature=0.0),
    )
    engine.submit(request, deliver=deltas.put_nowait)
    try:
        delta = deltas.get(timeout=_TIMEOUT_S)
    except Empty as error:
        raise EngineStepFailed(f"the model gave no token in {_TIMEOUT_S} s") from error
    if delta.failure is not None:
        raise delta.failure
