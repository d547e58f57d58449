"""A private Valkey or Redis server for the tests: its own port, nothing on the disk."""

import os
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psutil
import pytest
import redis

from tests.postgres_server import free_port


def find_server() -> str:
    """The server's program; skips the test where there is none."""
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        message = "neither Valkey nor Redis is installed (Debian: apt-get install redis-server)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


@dataclass
class ValkeyServer:
    """A server that can be stopped and started again, empty, on the same port."""

    program: str
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(port=self.port)
        deadline = time.monotonic() + 30
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert time.monotonic() < deadline, "Valkey does not start"
                time.sleep(0.02)
        client.close()

    def running(self) -> psutil.Process:
        assert self.process is not None, "it was started"
        return psutil.Process(self.process.pid)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def running_valkey() -> Generator[ValkeyServer]:
    server = ValkeyServer(find_server())
    server.start()
    try:
        yield server
    finally:
        server.stop()
