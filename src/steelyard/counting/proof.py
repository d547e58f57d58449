"""The proof that a tokenizer is the model's own: probe texts, counted here and by the server."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steelyard.counting.known_tokenizers import Difference, widest_difference
from steelyard.counting.probe_texts import PROBES, Probe
from steelyard.errors import Refusal
from steelyard.metering.tokenizer import Tokenizer

SHOWN_CHARACTERS = 60


class TokenizerMismatch(Refusal):
    """The tokenizer is not the model's own, so nothing is registered."""

    code = "tokenizer_mismatch"


@dataclass(frozen=True, slots=True)
class RemoteCount:
    """What the model's server says of one text; the ids where it tells them."""

    count: int
    token_ids: Sequence[int] | None = None


CountRemotely = Callable[[str], RemoteCount]


def prove(tokenizer: Tokenizer, count_remotely: CountRemotely, *, added: int | None) -> int:
    """Compare every probe with the server; returns how many tokens the server adds to a prompt.

    `added` is that number where it is known. Otherwise it is whatever the server adds to a text of
    one letter, and has to be the same for every probe. Raises TokenizerMismatch.
    """
    if added is None:
        added = count_remotely("x").count - tokenizer.count("x")
    remotes = [count_remotely(probe.text) for probe in PROBES]
    ours = [tokenizer.count(probe.text) + added for probe in PROBES]
    difference = widest_difference(ours, [remote.count for remote in remotes])
    if difference is not None or added < 0:
        raise TokenizerMismatch(_say(difference or Difference(PROBES[0], ours[0], ours[0] - added)))
    for probe, remote in zip(PROBES, remotes, strict=True):
        _check_ids(tokenizer, probe, remote)
    return added


def refuse_difference(difference: Difference, *, whose: str) -> TokenizerMismatch:
    """The refusal of a tokenizer that counts a probe otherwise than its model does."""
    return TokenizerMismatch(_say(difference, whose=whose))


def _check_ids(tokenizer: Tokenizer, probe: Probe, remote: RemoteCount) -> None:
    """The same number of other ids is another vocabulary."""
    if remote.token_ids is None:
        return
    ours, theirs = tokenizer.encode(probe.text), list(remote.token_ids)
    # The server may have put its own tokens before and after.
    starts = range(len(theirs) - len(ours) + 1)
    if not any(theirs[start : start + len(ours)] == ours for start in starts):
        raise TokenizerMismatch(
            f"the tokenizer gives other ids than the model for the {probe.name} text "
            f"{_shorten(probe.text)}: {ours[:6]} here, {theirs[:6]} there; it is not the model's own"
        )


def _say(difference: Difference, *, whose: str = "the model's server") -> str:
    probe = difference.probe
    return (
        f"the tokenizer counts {difference.ours} tokens in the {probe.name} text "
        f"{_shorten(probe.text)}, {whose} {difference.theirs}; it is not the model's own"
    )


def _shorten(text: str) -> str:
    shown = text[:SHOWN_CHARACTERS]
    return repr(shown + ("…" if len(text) > SHOWN_CHARACTERS else ""))
