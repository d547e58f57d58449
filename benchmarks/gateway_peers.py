"""Other gateways before the same upstream, each installed into a folder of its own and pinned.

What each lacks is in its note. One that cannot be installed or started is skipped with its reason.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from tests.postgres_server import free_port

from benchmarks.gateway_targets import (
    GATEWAY_CORE,
    NotReady,
    Target,
    started,
    wait_until_it_answers,
)

BENCH_DIR = Path(".steelyard/bench")
INSTALL_WITHIN_S = 900
KEY = "sk-bench"
LITELLM = """
model_list:
  - model_name: canned
    litellm_params: {{ model: openai/canned, api_base: "{url}/v1", api_key: none }}
general_settings: {{ master_key: {key} }}
litellm_settings: {{ telemetry: false }}
"""
TENSORZERO = """
[gateway]
observability.enabled = false
[models.canned]
routing = ["bench"]
[models.canned.providers.bench]
type = "openai"
api_base = "{url}/v1/"
model_name = "canned"
api_key_location = "none"
"""
TENSORZERO_START = """
import sys, threading, tensorzero
names = ("clickhouse_url", "postgres_url", "valkey_url")
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], async_setup=False, **dict.fromkeys(names)
)
print("at", gateway.base_url, flush=True)
threading.Event().wait()
"""
NGINX = """
daemon off;
worker_processes 1;
error_log {folder}/error.log;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  upstream bench {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://bench;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
# npm resolves a newer one, with which every stream is an error.
PORTKEY_PACKAGE = """
{
  "private": true,
  "dependencies": { "@portkey-ai/gateway": "1.15.2" },
  "overrides": { "@hono/node-server": "1.3.3" }
}
"""


class NotInstalled(Exception):
    """The package cannot be had here."""


@dataclass(frozen=True)
class Peer:
    """How to install and start it, and what it does not do that this gateway does."""

    name: str
    version: str
    lacks: str
    install: Callable[[Path], None]
    command: Callable[[Path, Path, Target, int], list[str]]
    ready_path: str
    path: str = "/v1/chat/completions"
    model: str = "canned"
    headers: Callable[[Target], dict[str, str]] = lambda _: {"authorization": f"Bearer {KEY}"}
    environment: Callable[[Target], dict[str, str]] = lambda _: {}
    says_its_port: bool = False
    carries_per_s: int = 100
    seconds_min: float = 0.0


@contextmanager
def running_peer(peer: Peer, folder: Path, upstream: Target) -> Generator[Target]:
    """Installed where it is not yet, and started on the gateway's core."""
    installed = (BENCH_DIR / peer.name).resolve()
    _install(peer, installed)
    folder.mkdir()
    port, log = free_port(), folder / "peer.log"
    command = peer.command(installed, folder, upstream, port)
    environment = os.environ | peer.environment(upstream)
    with started(
        command, cores=(GATEWAY_CORE,), log=log, environment=environment, folder=folder
    ) as process:
        if peer.says_its_port:
            port = _port_it_says(process, log)
        wait_until_it_answers(f"http://127.0.0.1:{port}{peer.ready_path}", process, log)
        yield Target(
            peer.name,
            port,
            [process],
            peer.headers(upstream),
            peer.model,
            peer.path,
            carries_per_s=peer.carries_per_s,
            seconds_min=peer.seconds_min,
            is_rival=True,
        )


def _install(peer: Peer, folder: Path) -> None:
    """Once: the folder gets its mark when all of it is there."""
    mark = folder / f".{peer.version}"
    if mark.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        peer.install(folder)
    except (OSError, subprocess.SubprocessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        raise NotInstalled(f"cannot be installed: {words.strip()[-300:]}") from error
    mark.touch()


def _run(*command: str | Path, folder: Path) -> None:
    subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        check=True,
        timeout=INSTALL_WITHIN_S,
        capture_output=True,
        text=True,
    )


def _pip(*packages: str) -> Callable[[Path], None]:
    def install(folder: Path) -> None:
        _run(sys.executable, "-m", "venv", folder, folder=folder)
        pip = (folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet")
        _run(*pip, "install", *packages, folder=folder)

    return install


def _npm(folder: Path) -> None:
    (folder / "package.json").write_text(PORTKEY_PACKAGE)
    _run("npm", "install", "--no-audit", "--no-fund", folder=folder)


def _unpack_nginx(folder: Path) -> None:
    """What is installed, or Debian's package without installing it."""
    if shutil.which("nginx") is None:
        _run("apt-get", "download", "nginx", folder=folder)
        (package,) = folder.glob("nginx_*.deb")
        _run("dpkg", "-x", package, folder, folder=folder)


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def _litellm(installed: Path, folder: Path, upstream: Target, port: int) -> list[str]:
    text = LITELLM.format(url=upstream.url, key=KEY)
    command = [str(installed / "bin/litellm"), "--config", _write(folder / "litellm.yaml", text)]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def _portkey(installed: Path, _folder: Path, _upstream: Target, port: int) -> list[str]:
    script = installed / "node_modules/@portkey-ai/gateway/build/start-server.js"
    return ["node", str(script), f"--port={port}", "--headless"]


def _tensorzero(installed: Path, folder: Path, upstream: Target, _port: int) -> list[str]:
    script = _write(folder / "start.py", TENSORZERO_START)
    configuration = _write(folder / "tensorzero.toml", TENSORZERO.format(url=upstream.url))
    return [str(installed / "bin/python"), script, configuration]


def _smg(installed: Path, _folder: Path, upstream: Target, port: int) -> list[str]:
    command = [str(installed / "bin/smg"), "launch", "--backend", "openai", "--api-key", KEY]
    command += ["--worker-urls", upstream.url, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--history-backend", "none", "--disable-health-check", "--log-level", "error"]
    return [*command, "--prometheus-port", str(free_port())]


def _nginx(installed: Path, folder: Path, upstream: Target, port: int) -> list[str]:
    text = NGINX.format(folder=folder, upstream_port=upstream.port, port=port)
    program = shutil.which("nginx") or str(installed / "usr/sbin/nginx")
    return [program, "-p", str(folder), "-c", _write(folder / "nginx.conf", text)]


def _port_it_says(process: psutil.Process, log: Path) -> int:
    """It takes any free port and says which."""
    wait_for_line = 120
    for _ in range(wait_for_line * 10):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("at "):
                return int(line.rstrip("/").rsplit(":", 1)[1].split("/")[0])
        try:
            process.wait(timeout=0.1)
        except psutil.TimeoutExpired:
            continue
        break
    raise NotReady(f"said no port: {log.read_text(errors='replace')[-300:]}")


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "litellm",
            "1.106.2",
            "keys in a database, limits, spend: one master key, no database",
            _pip(
                "litellm[proxy]==1.106.2",
                "httptools",
                # Without these each request tries to import them, and fails.
                "opentelemetry-api",
                "opentelemetry-sdk",
                "prometheus-client",
            ),
            _litellm,
            "/health/liveliness",
            environment=lambda _: {
                "LITELLM_MODE": "PRODUCTION",
                "LITELLM_LOG": "ERROR",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
            # It cannot carry 100.
            carries_per_s=10,
            seconds_min=8.0,
        ),
        Peer(
            "portkey",
            "1.15.2",
            "keys, limits, usage: its open part has none",
            _npm,
            _portkey,
            "/",
            headers=lambda upstream: {
                "authorization": f"Bearer {KEY}",
                "x-portkey-provider": "openai",
                "x-portkey-custom-host": f"{upstream.url}/v1",
            },
            environment=lambda upstream: {
                "TRUSTED_CUSTOM_HOSTS": f"127.0.0.1,localhost,127.0.0.1:{upstream.port}"
            },
        ),
        Peer(
            "tensorzero",
            "2026.6.0",
            "keys, limits, usage: its stores are off",
            _pip("tensorzero==2026.6.0"),
            _tensorzero,
            "/health",
            path="/openai/v1/chat/completions",
            model="tensorzero::model_name::canned",
            says_its_port=True,
        ),
        Peer(
            "smg",
            "1.13.0",
            "keys of its own, limits, usage: one shared key",
            _pip("smg==1.13.0"),
            _smg,
            "/health",
        ),
        Peer(
            "nginx",
            "1",
            "everything: it passes bytes on, and shows what passing costs",
            _unpack_nginx,
            _nginx,
            "/v1/models",
        ),
    )
}
