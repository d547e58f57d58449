"""Kept answers in Valkey (or Redis), for gateways on several machines.

An answer is there until it is too old, or until Valkey needs the room. Who makes one holds a lock
that ends by itself, so a gateway that dies keeps nobody waiting. While Valkey is away there is no
cache: for a moment after each failure it is not even asked.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from steelyard.gateway.kept_answers import AnswersUnavailable, KeptAnswer, Place, StillRunning
from steelyard.ids import new_id

PREFIX: Final = "steelyard:answers:"
# A larger answer is made anew each time; Valkey is no place for files.
ANSWER_BYTES_MAX: Final = 8 * 1024 * 1024
REST_S: Final = 1.0
# The answer; else 1 for who has the lock now, and 0 while another has it.
_BEGIN: Final = """
local kept = redis.call('GET', KEYS[1])
if kept then return kept end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
# Only one's own lock: after it has ended by itself another may have it.
_UNLOCK: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(KeptAnswer)


@dataclass(slots=True)
class ValkeyAnswerStore:
    """Implements AnswerStore; any thread may call it."""

    url: str
    timeout_s: float
    keep_s: float
    # As long as others wait for an answer: then one of them makes it.
    lock_s: float
    monotonic: Callable[[], float]
    _life: str = field(default_factory=new_id)
    _rests_until: float = 0.0
    _resting: threading.Lock = field(default_factory=threading.Lock)
    _client: Any = field(init=False)

    def __post_init__(self) -> None:
        self._client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            self.url,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=self.timeout_s,
            socket_connect_timeout=self.timeout_s,
        )

    def begin(self, place: Place, *, digest: str) -> KeptAnswer | StillRunning | None:
        lock_ms = max(1, int(self.lock_s * 1000))
        found = self._run(
            lambda: self._client.eval(_BEGIN, 2, _key(place), _lock(place), self._life, lock_ms)
        )
        if not isinstance(found, bytes):
            return None if found == 1 else StillRunning(digest)
        try:
            return _decoder.decode(found)
        except msgspec.DecodeError as error:
            raise AnswersUnavailable("Valkey holds something that is no answer") from error

    def keep(self, place: Place, answer: KeptAnswer) -> None:
        body = _encoder.encode(answer)
        if len(body) <= ANSWER_BYTES_MAX:
            keep_ms = max(1, int(self.keep_s * 1000))
            self._run(lambda: self._client.set(_key(place), body, px=keep_ms))
        self.give_up(place)

    def give_up(self, place: Place) -> None:
        self._run(lambda: self._client.eval(_UNLOCK, 1, _lock(place), self._life))

    def forget(self, place: Place) -> None:
        self._run(lambda: self._client.delete(_key(place)))

    def close(self) -> None:
        self._client.close()

    def _run(self, ask: Callable[[], Any]) -> Any:
        """Raises AnswersUnavailable, and at once for a moment after a failure."""
        with self._resting:
            if self.monotonic() < self._rests_until:
                raise AnswersUnavailable("Valkey did not answer a moment ago")
        try:
            return ask()
        except (RedisError, OSError) as error:
            with self._resting:
                self._rests_until = self.monotonic() + REST_S
            raise AnswersUnavailable(f"Valkey does not answer: {error}") from error


def _key(place: Place) -> str:
    return f"{PREFIX}{place.owner_id}:{place.name}"


def _lock(place: Place) -> str:
    return f"{_key(place)}:making"
