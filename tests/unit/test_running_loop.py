"""The event loop of this thread, as it is known without asking the system."""

import asyncio
import os
import threading

from steelyard.running_loop import running_loop


def test_there_is_none_where_none_runs():
    assert running_loop() is None


def test_each_run_has_its_own():
    async def find() -> asyncio.AbstractEventLoop:
        found = running_loop()
        assert found is not None
        assert found is asyncio.get_running_loop()
        assert running_loop() is found
        return found

    first, second = asyncio.run(find()), asyncio.run(find())
    assert first is not second
    assert running_loop() is None


def test_another_thread_has_none():
    async def look_elsewhere() -> object:
        assert running_loop() is not None
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(running_loop()))
        thread.start()
        thread.join()
        return found[0]

    assert asyncio.run(look_elsewhere()) is None


def test_a_forked_process_has_none():
    async def fork() -> int:
        assert running_loop() is not None
        child = os.fork()
        if not child:
            os._exit(0 if running_loop() is None else 1)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(fork()) == 0
