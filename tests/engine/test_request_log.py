"""What billing may ask after a crash, and what it is told."""

import json
from contextlib import closing
from pathlib import Path

from engine_runs import running_engine, submit

from steelyard.clock import SystemClock
from steelyard.engine.loaded_model import LoadedModel
from steelyard.engine.request_log import RequestLog, digest_token_ids


def test_a_request_is_running_and_then_ended(tiny: LoadedModel, tmp_path: Path) -> None:
    log = RequestLog(tmp_path / "log.jsonl", clock=SystemClock())

    with running_engine(tiny, request_log=log) as engine:
        run = submit(engine, [5, 6, 7], max_tokens=1500, ignore_eos=True)
        run.wait_for(2)
        during = log.find("test")
        assert run.sequence is not None
        engine.cancel(run.sequence)
        run.finish()
        after = log.find("test")
    log.close()

    assert during is not None
    assert during["state"] == "running"
    assert after is not None
    assert (after["state"], after["prompt_tokens"]) == ("ended", 3)
    assert after["completion_tokens"] == len(run.token_ids)
    assert after["answers"][0]["end"] == "cancelled"
    assert after["answers"][0]["token_ids_sha256"] == digest_token_ids(run.token_ids)


def test_what_a_killed_engine_left_open_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    opened = {"at": "2026-11-01T00:00:00", "request_id": "r1", "index": 0, "event": "opened"}
    opened |= {"run_id": "killed", "model": "tiny", "prompt_tokens": 12}
    path.write_text(json.dumps(opened) + '\n{"at": "2026-11-01T0')

    with closing(RequestLog(path, clock=SystemClock())) as log:
        found, unknown = log.find("r1"), log.find("r2")

    assert found is not None
    assert (found["state"], found["completion_tokens"]) == ("lost", 0)
    assert found["answers"][0]["prompt_tokens"] == 12
    assert unknown is None


def test_a_torn_last_line_does_not_swallow_the_next(tiny: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"at": "2026-11-01T0')
    log = RequestLog(path, clock=SystemClock())

    with running_engine(tiny, request_log=log) as engine:
        submit(engine, [5, 6, 7], max_tokens=2, ignore_eos=True).finish()
    log.close()
    with closing(RequestLog(path, clock=SystemClock())) as later:
        again = later.find("test")

    assert again is not None
    assert (again["state"], again["completion_tokens"]) == ("ended", 2)
