"""One prompt and its growing answer; the counts that are charged are the lengths of its ids."""

import time
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace
from enum import Enum

import torch

from steelyard.engine.attribution import EngineTime
from steelyard.engine.detokenizer import Detokenizer
from steelyard.engine.grammar import Grammar
from steelyard.engine.sampler import Context, Draw, Sampler, Sampling, TokenLogprob
from steelyard.engine.stop_strings import StopStrings
from steelyard.errors import SteelyardError


class End(Enum):
    """Why a sequence is over."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """What the engine is asked to continue, already checked against the model's limits."""

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    # Which of a request's answers this is.
    index: int = 0
    # Whose turn it is, and who may find whose prompts in the cache: opaque words of the caller.
    fairness_key: str = ""
    cache_salt: str = ""
    # What the answer must be; a sequence changes it as it goes, so each has its own.
    grammar: Grammar | None = None
    # The warm-up is nobody's request, so it is neither counted nor logged.
    is_recorded: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What one step added to a sequence; the last one of a sequence says its end."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: End | None = None
    failure: SteelyardError | None = None


@dataclass(slots=True)
class SequenceTimes:
    """When things happened to a sequence, on a clock that only runs forward."""

    arrived_s: float
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float = 0.0


class Sequence:
    """The state of one answer. Only the engine thread changes it, but for `is_cancelled`."""

    def __init__(
        self,
        request: SequenceRequest,
        *,
        eos_token_ids: tuple[int, ...],
        decode: Callable[[SequenceOf[int]], str],
        device: torch.device,
        deliver: Callable[[Delta], None],
    ) -> None:
        assert request.prompt_token_ids, "an empty prompt has no next token"
        assert request.max_tokens >= 1, request.max_tokens
        self.request = request
        self.context_ids = list(request.prompt_token_ids)
        self.computed = 0
        self.blocks: list[int] = []
        self.digests: list[bytes] = []
        # How much of the prompt was found in the cache when it was admitted; None before.
        self.cached_tokens: int | None = None
        self.prompt_tokens_prefilled = 0
        self.time = EngineTime()
        self.times = SequenceTimes(arrived_s=time.perf_counter())
        self.is_cancelled = False
        self.end: End | None = None
        self.sampler = Sampler(request.sampling, device=device, grammar=request.grammar)
        self.deliver = deliver
        self._eos_token_ids = () if request.ignore_eos else eos_token_ids
        self._detokenizer = Detokenizer(decode)
        self._stop_strings = StopStrings(request.stop)

    @property
    def prompt_tokens(self) -> int:
        """How many prompt ids the model is fed."""
        return len(self.request.prompt_token_ids)

    @property
    def token_ids(self) -> list[int]:
        """The ids that the model produced."""
        return self.context_ids[self.prompt_tokens :]

    @property
    def completion_tokens(self) -> int:
        """How many ids the model produced, the end-of-sequence id among them."""
        return len(self.context_ids) - self.prompt_tokens

    @property
    def fairness_key(self) -> str:
        """Whose turn it takes."""
        return self.request.fairness_key

    @property
    def cache_root(self) -> bytes:
        """What the digests of its blocks begin with."""
        return self.request.cache_salt.encode()

    def note_progress(self) -> None:
        """Remember how much of the prompt was fed, even if its blocks are lost later."""
        if self.times.started_s is None:
            self.times.started_s = time.perf_counter()
        fed = min(self.computed, self.prompt_tokens)
        self.prompt_tokens_prefilled = max(self.prompt_tokens_prefilled, fed)

    def draw(self, logits: torch.Tensor) -> Draw:
        """Choose the next token from the logits after the last one."""
        return self.sampler.draw(logits, Context(self.request.prompt_token_ids, self.token_ids))

    def accept(self, draw: Draw) -> Delta:
        """Take the next token and say what it adds; sets `end` when it is the last."""
        delta = self._add(draw.token_id)
        if draw.logprob is None:
            return delta
        return replace(delta, logprobs=[draw.logprob])

    def _add(self, token_id: int) -> Delta:
        self.context_ids.append(token_id)
        if self.times.first_token_s is None:
            self.times.first_token_s = time.perf_counter()
        if token_id in self._eos_token_ids:
            return self._finish("", token_id, end=End.STOP)
        text, stopped = self._stop_strings.add(self._detokenizer.add(token_id))
        if stopped:
            self.end = End.STOP
            return Delta(text=text, token_ids=[token_id], end=End.STOP)
        if self.completion_tokens == self.request.max_tokens:
            return self._finish(text, token_id, end=End.LENGTH)
        return Delta(text=text, token_ids=[token_id])

    def _finish(self, text: str, token_id: int, *, end: End) -> Delta:
        tail, stopped = self._stop_strings.add(self._detokenizer.flush())
        if not stopped:
            tail += self._stop_strings.flush()
        self.end = End.STOP if stopped else end
        return Delta(text=text + tail, token_ids=[token_id], end=self.end)
