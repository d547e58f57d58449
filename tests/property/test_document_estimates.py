"""What a document is said to cost at most is never less than what it costs, whatever the text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.gateway.documents.planning import Plan, plan_document
from steelyard.gateway.documents.runner import put_together
from steelyard.gateway.documents.tasks import TASKS, ask_for, own_task
from steelyard.gateway.upstreams.scripted import ScriptedUpstream
from steelyard.gateway.workloads.document import AskedDocument
from steelyard.metering.tokenizer import Tokenizer
from tests.counting.vocabularies import fast
from tests.world import INPUT_PRICE, OUTPUT_PRICE, World

AROUND_A_CHAT = 15
CONTEXT = 700
SENTENCES = (
    "The supplier delivers within ten days. ",
    "Dr. Ng's e-mail: ng@example.org\n\n",
    "甲方应当在收到货物后三十日内支付全部价款。",
    "逾期付款的，每日按未付金额的千分之一支付违约金，直至付清为止",
    "def f(x):\n\treturn x ** 2\n",
    "🙂🙃 ",
    "ÀÉÎÕÜ ",
    "1234567890",
    "\u200b\ufeff",
)


@dataclass(slots=True)
class CountingUpstream(ScriptedUpstream):
    """Counts as a real vocabulary does."""

    tokenizer: Tokenizer | None = None

    async def count_prompt_tokens(self, path: str, body: bytes) -> int:
        del path
        asked: dict[str, Any] = msgspec.json.decode(body)
        assert self.tokenizer is not None, "the test names one"
        if "prompt" in asked:
            return 1 + self.tokenizer.count(asked["prompt"])
        return _chat_tokens(asked, self.tokenizer)


@dataclass(slots=True)
class Simulated:
    """A run of the plan with a model that says as much as it may."""

    plan: Plan
    tokenizer: Tokenizer
    picos: int = 0
    tokens: int = 0
    prompts: list[int] = field(default_factory=list[int])

    def run(self) -> None:
        wanted, stage = self.plan.wanted, 0
        sources = [part.text for part in self.plan.parts]
        while True:
            assert len(sources) == self.plan.sizes[stage]
            answers = [self._ask(source, stage) for source in sources]
            if len(answers) == 1:
                return
            sources, stage = put_together(answers, group_size=wanted.group_size), stage + 1

    def _ask(self, source: str, stage: int) -> str:
        wanted = self.plan.wanted
        instruction = wanted.for_answers if stage else wanted.for_part
        asked = ask_for(instruction, source, model=wanted.model, tokens_max=wanted.tokens_max)
        prompt = _chat_tokens(asked, self.tokenizer)
        # It repeats what it reads, up to its limit.
        ids = self.tokenizer.encode(source)[: wanted.tokens_max]
        self.prompts.append(prompt)
        self.picos += prompt * INPUT_PRICE + wanted.tokens_max * OUTPUT_PRICE
        self.tokens += prompt + wanted.tokens_max
        return b"".join(self.tokenizer.pieces(ids)).decode(errors="ignore")


def _chat_tokens(asked: dict[str, Any], tokenizer: Tokenizer) -> int:
    return AROUND_A_CHAT + sum(tokenizer.count(one["content"]) for one in asked["messages"])


@pytest.fixture
def plan(sqlite_world: World) -> Callable[[AskedDocument, Tokenizer], Plan]:
    world = sqlite_world
    world.organisation(dollars="1")
    upstream = world.upstream = CountingUpstream(context_tokens_max=CONTEXT)
    world.stop_gateway()
    world.start_gateway()

    async def make(asked: AskedDocument, tokenizer: Tokenizer) -> Plan:
        upstream.tokenizer = tokenizer
        await world.prices.snapshot.refresh()
        await world.limits.snapshot.refresh()
        await world.admission.catalog.refresh()
        return await plan_document(asked, world.keys["acme"], world.admission)

    return lambda asked, tokenizer: anyio.run(make, asked, tokenizer)


@st.composite
def documents(draw: st.DrawFn) -> AskedDocument:
    odd = draw(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=200))
    repeated = st.tuples(st.sampled_from(SENTENCES), st.integers(1, 120))
    pieces = draw(st.lists(repeated, min_size=1, max_size=8))
    name = draw(st.sampled_from([*TASKS, "prompt"]))
    return AskedDocument(
        text=odd + "".join(sentence * count for sentence, count in pieces),
        model="scripted",
        task_name=name,
        task=TASKS[name] if name in TASKS else own_task("Wer schuldet wem was? 谁欠谁?"),
        tokens_max=draw(st.integers(1, 150)),
        is_streamed=False,
        is_estimate=True,
    )


@pytest.mark.parametrize("vocabulary", ["qwen", "cl100k"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(asked=documents())
def test_an_estimate_covers_the_bill(
    plan: Callable[[AskedDocument, Tokenizer], Plan],
    tmp_path_factory: pytest.TempPathFactory,
    vocabulary: str,
    asked: AskedDocument,
) -> None:
    tokenizer = fast(vocabulary, _folder(tmp_path_factory))
    planned = plan(asked, tokenizer)

    simulated = Simulated(planned, tokenizer)
    simulated.run()

    assert "".join(part.text for part in planned.parts) == asked.text
    assert simulated.picos <= planned.highest.picos
    assert simulated.tokens <= planned.tokens_max
    assert max(simulated.prompts) + asked.tokens_max <= CONTEXT


def _folder(factory: pytest.TempPathFactory) -> Path:
    folder = factory.getbasetemp() / "vocabularies"
    folder.mkdir(exist_ok=True)
    return folder
