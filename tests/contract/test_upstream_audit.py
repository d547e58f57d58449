"""The upstream audit: what was reported is counted again, off the event loop, and told."""

import json
import subprocess
import sys
import threading
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from typer.testing import CliRunner

from steelyard.counting.counting_process import CountingStopped
from steelyard.counting.model_counter import ModelCounter
from steelyard.counting.pin import Proof, Registered
from steelyard.counting.recounting import recount
from steelyard.counting.registry import OpenedTokenizer
from steelyard.entrypoints.cli.main import application
from steelyard.entrypoints.recount_collector import EVENTS_MIN, RecountCollector
from steelyard.entrypoints.worker_metrics import WorkerMetrics
from steelyard.eventlog.recount_log import RecountLog
from steelyard.gateway.upstream_audit import UpstreamAudit
from steelyard.metering.recount import RecountJob, RecountRecord, drift_ppm, is_sampled
from steelyard.storage.recount_store import SqlRecountStore, UpstreamDrift
from tests.counting.vocabularies import pin_of, reference
from tests.world import World

EVERYTHING = 1_000_000
QUESTION = [{"role": "user", "content": "what do I owe?"}]


class InProcessRecounter:
    """Counts with a real vocabulary in the thread that asks; `gate` holds it up."""

    def __init__(self, world: World, folder: Path) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.threads: set[int] = set()
        self.jobs: list[RecountJob] = []
        self.is_broken = False
        registered = Registered(
            model="scripted",
            pin=pin_of("cl100k", folder),
            proof=Proof(kind="none"),
            registered_at="",
            known_as="cl100k",
        )
        opened = OpenedTokenizer(registered, reference("cl100k", folder), None)
        self.counter = ModelCounter(opened, clock=world.clock)
        self._clock = world.clock

    def models(self) -> frozenset[str]:
        return frozenset({"scripted"})

    def recount(self, job: RecountJob) -> RecountRecord:
        assert self.gate.wait(timeout=20)
        self.threads.add(threading.get_ident())
        self.jobs.append(job)
        if self.is_broken:
            raise CountingStopped
        return recount(job, self.counter, at=self._clock.now())

    def close(self) -> None:
        self.gate.set()


class Audited:
    """A world whose upstream is audited, and the books that get to know of it."""

    def __init__(
        self, world: World, folder: Path, *, share: int = EVERYTHING, waiting_max: int = 64
    ) -> None:
        self.world = world
        self.recounter = InProcessRecounter(world, folder)
        self.path = world.settings.outbox_dir / "world.recounts"
        self.audit = world.audit = UpstreamAudit(
            self.recounter,
            RecountLog(self.path),
            share=share,
            waiting_max=waiting_max,
            clock=world.clock,
        )
        self.store = SqlRecountStore(world.stores.database)
        self.collector = RecountCollector(
            self.store, world.settings.outbox_dir, drift_ppm_max=20_000, clock=world.clock
        )
        world.organisation(dollars="5")

    def counted(self, count: int) -> None:
        """Ask so many questions, and wait until all were counted again."""
        counts = self.audit.counts
        before = counts.recounted + counts.uncountable + counts.dropped
        for number in range(count):
            assert self.world.chat(stream=number % 2 == 0 or None).status == 200
        self.wait_for(before + count)

    def wait_for(self, count: int) -> None:
        done = threading.Event()
        for _ in range(2_000):
            counts = self.audit.counts
            if counts.recounted + counts.uncountable + counts.dropped >= count:
                return
            done.wait(0.01)
        raise AssertionError("the audit does not come to an end")

    def drift(self) -> UpstreamDrift:
        """What the books say once the gateway has stopped and the worker has collected."""
        self.close()
        self.collector.collect()
        now = self.world.clock.now()
        found = self.store.drifts(start=now - timedelta(days=1), end=now + timedelta(days=1))
        assert len(found) == 1
        return found[0]

    def close(self) -> None:
        if self.world.audit is not None:
            self.audit.close()
            self.world.audit = None


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabularies")


@pytest.fixture
def audited(world: World, folder: Path) -> Generator[Audited]:
    built = Audited(world, folder)
    yield built
    built.close()
    built.collector.close()


def test_what_was_reported_stands_beside_what_was_counted(audited: Audited) -> None:
    right = audited.recounter.counter.count_messages(QUESTION).tokens
    audited.world.upstream.script.prompt_tokens = right + 5

    audited.counted(4)

    drift = audited.drift()
    assert (drift.upstream, drift.model, drift.recounted) == ("scripted", "scripted", 4)
    assert (drift.input.reported, drift.input.recounted) == (4 * (right + 5), 4 * right)
    assert drift.input.drift_ppm == 5 * 1_000_000 // right
    assert drift.output.reported == 4 * 2


def test_an_honest_upstream_does_not_drift(audited: Audited) -> None:
    audited.world.upstream.script.prompt_tokens = audited.recounter.counter.count_messages(
        QUESTION
    ).tokens

    audited.counted(3)

    drift = audited.drift()
    assert drift.input.drift_ppm == 0
    assert drift.output.drift_ppm == 0


def test_the_event_loop_never_counts(audited: Audited) -> None:
    audited.counted(3)

    assert audited.recounter.threads
    assert threading.get_ident() not in audited.recounter.threads


def test_the_gateway_loads_no_library_that_tokenizes() -> None:
    code = (
        "import sys, steelyard.entrypoints.gateway_process\n"
        "loaded = {'tokenizers', 'tiktoken', 'sentencepiece', 'gigatoken', 'transformers'}\n"
        "sys.exit(len(loaded & sys.modules.keys()))"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_more_than_can_be_counted_is_dropped_and_seen(sqlite_world: World, folder: Path) -> None:
    audited = Audited(sqlite_world, folder, waiting_max=2)
    audited.recounter.gate.clear()

    answers = [sqlite_world.chat() for _ in range(6)]
    audited.recounter.gate.set()
    audited.wait_for(6)

    drift = audited.drift()
    assert [answer.status for answer in answers] == [200] * 6
    assert drift.dropped >= 3
    assert drift.recounted + drift.dropped == 6
    audited.collector.close()


def test_a_count_that_breaks_is_recorded_and_the_next_goes_on(audited: Audited) -> None:
    audited.recounter.is_broken = True
    audited.counted(1)
    audited.recounter.is_broken = False

    audited.counted(2)

    drift = audited.drift()
    assert (drift.uncountable, drift.recounted) == (1, 2)


def test_no_word_of_a_prompt_or_an_answer_is_kept(audited: Audited) -> None:
    audited.world.chat(messages=[{"role": "user", "content": "zanzibar"}])
    audited.wait_for(1)

    assert any(b"zanzibar" in job.prompt for job in audited.recounter.jobs)
    audited.drift()
    kept = b"".join(p.read_bytes() for p in audited.path.parent.glob("world.recounts*"))
    assert b"recounted_input" in kept
    assert b"zanzibar" not in kept
    assert b"hello" not in kept


def test_what_was_cut_short_is_not_counted_again(audited: Audited) -> None:
    audited.world.chat(stream=True, leaves_after=1)
    audited.world.upstream.script.reports_usage = False
    audited.world.chat()
    audited.world.upstream.script.reports_usage = True
    audited.counted(1)

    assert audited.drift().recounted == 1


def test_a_record_comes_into_the_books_once(audited: Audited) -> None:
    audited.counted(3)
    audited.close()

    first = audited.collector.collect()
    again = audited.collector.collect()
    other = RecountCollector(
        audited.store,
        audited.world.settings.outbox_dir,
        drift_ppm_max=20_000,
        clock=audited.world.clock,
    )

    assert (first, again, other.collect()) == (3, 0, 0)
    other.close()


def test_a_drift_beyond_the_threshold_is_said_aloud_once(audited: Audited) -> None:
    audited.world.upstream.script.prompt_tokens = 1_240
    audited.counted(EVENTS_MIN)
    audited.close()

    with capture_logs() as logs:
        audited.collector.collect()
        audited.collector.collect()

    alerts = [entry for entry in logs if entry["event"] == "audit.drift_exceeded"]
    assert [(entry["side"], entry["events"]) for entry in alerts] == [("input", EVENTS_MIN)]
    assert alerts[0]["reported_tokens"] == 1_240 * EVENTS_MIN


def test_prometheus_sees_the_drift_of_each_side_and_what_passes_the_threshold(
    audited: Audited,
) -> None:
    metrics = WorkerMetrics()
    metrics.audited = audited.collector
    before = _audit_samples(metrics)
    audited.world.upstream.script.prompt_tokens = 1_240
    audited.counted(EVENTS_MIN)
    audited.close()
    right = audited.recounter.counter.count_messages(QUESTION).tokens

    audited.collector.collect()

    found = _audit_samples(metrics)
    assert before == {}
    assert found["drift_ratio", "input"] == pytest.approx(1_240 / right - 1, abs=1e-6)
    assert found["drift_ratio", "output"] == 0
    assert (found["drift_exceeded", "input"], found["drift_exceeded", "output"]) == (1, 0)
    assert (found["events", "recounted"], found["events", "dropped"]) == (EVENTS_MIN, 0)


def test_what_is_older_than_a_day_leaves_the_metric(audited: Audited) -> None:
    metrics = WorkerMetrics()
    metrics.audited = audited.collector
    audited.counted(1)
    audited.close()
    audited.collector.collect()
    assert _audit_samples(metrics)["events", "recounted"] == 1

    audited.world.clock.advance(seconds=25 * 3600)
    audited.collector.collect()

    assert _audit_samples(metrics) == {}


def _audit_samples(metrics: WorkerMetrics) -> dict[tuple[str, str], float]:
    """The audit's samples by name and by side or outcome."""
    families = text_string_to_metric_families(metrics.expose().decode())
    return {
        (
            sample.name.removeprefix("steelyard_audit_"),
            sample.labels.get("side") or sample.labels["outcome"],
        ): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("steelyard_audit_")
    }


def test_the_report_says_what_was_said_and_what_was_counted(
    sqlite_world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audited = Audited(sqlite_world, folder)
    sqlite_world.upstream.script.prompt_tokens = 1_240
    sqlite_world.clock.moment = sqlite_world.stores.clock.now()
    audited.counted(EVENTS_MIN)
    audited.drift()
    audited.collector.close()
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(sqlite_world.settings.data_dir))
    right = audited.recounter.counter.count_messages(QUESTION).tokens

    table = CliRunner().invoke(application, ["audit", "report"])
    document = CliRunner().invoke(application, ["audit", "report", "--json"])

    assert (table.exit_code, document.exit_code) == (2, 2)
    assert f"scripted said 1,240, the tokenizer says {right}" in " ".join(table.stdout.split())
    rows: dict[str, Any] = {row["side"]: row for row in json.loads(document.stdout)["upstreams"]}
    assert (rows["input"]["exceeds"], rows["output"]["exceeds"]) == (True, False)
    assert rows["input"]["recounted"] == right * EVENTS_MIN


def test_an_empty_report_says_how_to_begin(
    sqlite_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEELYARD_DATA_DIR", str(sqlite_world.settings.data_dir))

    result = CliRunner().invoke(application, ["audit", "report"])

    assert result.exit_code == 0
    assert "steelyard tokenizer add" in result.stdout


def test_a_sample_is_the_same_on_every_machine_and_as_large_as_was_asked() -> None:
    ids = [f"01a20be2-{number:04x}" for number in range(20_000)]

    sampled = [event_id for event_id in ids if is_sampled(event_id, share=100_000)]

    assert sampled == [event_id for event_id in ids if is_sampled(event_id, share=100_000)]
    assert 1_800 < len(sampled) < 2_200
    assert all(is_sampled(event_id, share=EVERYTHING) for event_id in ids)
    assert not any(is_sampled(event_id, share=0) for event_id in ids)


@pytest.mark.parametrize(
    ("reported", "recounted", "ppm"),
    [(1_240, 1_187, 44_650), (1_187, 1_240, -42_741), (5, 5, 0), (0, 0, 0), (3, 0, 1_000_000)],
)
def test_drift_is_what_was_reported_too_much(reported: int, recounted: int, ppm: int) -> None:
    assert drift_ppm(reported=reported, recounted=recounted) == ppm
