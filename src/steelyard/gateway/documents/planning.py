"""Plans a document: how it is cut, how many calls that takes, and what they cost at most."""

from dataclasses import dataclass
from typing import Final

import msgspec

from steelyard.access.virtual_key import VirtualKey
from steelyard.gateway.admission import Admission
from steelyard.gateway.documents.cutting import Part, cut_text
from steelyard.gateway.documents.runner import stage_sizes
from steelyard.gateway.documents.store import Wanted
from steelyard.gateway.documents.tasks import ask_for
from steelyard.gateway.refusals import InvalidRequest
from steelyard.gateway.workloads.asked import Asked
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.gateway.workloads.completion import parse_completion
from steelyard.gateway.workloads.document import AskedDocument
from steelyard.money import Money

# What the end of an instruction and the beginning of a text may add to each other.
SEAM_TOKENS: Final = 16
ROOM_LEAST: Final = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts, the calls of each stage, and the most that all of them cost and have in tokens."""

    wanted: Wanted
    parts: list[Part]
    sizes: list[int]
    highest: Money
    tokens_max: int


async def plan_document(asked: AskedDocument, key: VirtualKey, admission: Admission) -> Plan:
    """Cut the text by the model's own count; raises one of the refusals, with nothing held."""
    task = asked.task
    longest = max(task.for_part, task.for_answers, key=len)
    shell = _asked_for(asked, longest)
    quote = await admission.quote(shell, key)
    model, overhead = quote.model, quote.input_tokens + SEAM_TOKENS
    most = min(model.context_tokens_max - asked.tokens_max, quote.input_tokens_max)
    room = most - overhead
    # Two answers at least have to fit into a call that puts answers together.
    if room < max(ROOM_LEAST, 2 * (asked.tokens_max + SEAM_TOKENS)):
        message = f"an answer of {asked.tokens_max} tokens leaves no room for the text in {most}"
        raise InvalidRequest(message, parameter="max_tokens")

    async def count(block: str) -> int:
        body = msgspec.json.encode({"model": model.id, "prompt": block})
        return await admission.count(parse_completion(body), key)

    parts = await cut_text(asked.text, tokens_max=room, count=count)
    group_size = room // (asked.tokens_max + SEAM_TOKENS)
    sizes = stage_sizes(len(parts), group_size)
    inputs = [part.tokens_max + overhead for part in parts] + [most] * sum(sizes[1:])
    picos = sum(
        admission.highest_cost(
            shell, key, input_tokens=tokens, output_tokens=asked.tokens_max
        ).picos
        for tokens in inputs
    )
    wanted = Wanted(
        model.id, asked.task_name, task.for_part, task.for_answers, asked.tokens_max, group_size
    )
    tokens_max = sum(inputs) + len(inputs) * asked.tokens_max
    return Plan(wanted, parts, sizes, Money(picos, quote.pinned.currency), tokens_max)


def _asked_for(asked: AskedDocument, instruction: str) -> Asked:
    """The call with next to no text: what is around every part."""
    body = ask_for(instruction, "x", model=asked.model or "", tokens_max=asked.tokens_max)
    if asked.model is None:
        del body["model"]
    return parse_chat(msgspec.json.encode(body))
