"""Upstreams and models as the configuration file says, now and after it has changed.

A file that cannot be used is refused as a whole, and what was before stays. What runs is never
touched: an upstream that is not wanted any more is closed when nothing is open on it.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import anyio
import anyio.to_thread
import structlog
from anyio.abc import TaskGroup

from steelyard.app.configuration import Configuration, read_configuration, read_credential
from steelyard.errors import SteelyardError
from steelyard.gateway.model_catalog import ModelCatalog, Routes, routes_to_all
from steelyard.gateway.routing.rules import RoutingRules, TimeoutRules, UpstreamRules
from steelyard.gateway.upstreams.base import Timeouts
from steelyard.gateway.upstreams.habits import ENGINE
from steelyard.gateway.upstreams.kinds import KINDS, habits_of
from steelyard.gateway.upstreams.openai_http import OpenAIHttpUpstream
from steelyard.settings import Settings

log = structlog.get_logger()

# A request that was routed before a change may take so long to be admitted.
RETIRED_KEEP_S: Final = 30.0
IDLE_LOOK_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Everything that makes an upstream what it is: one that is wanted alike is kept."""

    name: str
    rules: UpstreamRules
    timeouts: Timeouts
    connections_max: int
    secret: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read: the rules, and the upstreams that they want with their keys."""

    configuration: Configuration
    wanted: tuple[_Wanted, ...]


class Routing:
    """Keeps a catalog as the file wants it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        named = os.environ.get("STEELYARD_CONFIG")
        self._path = Path(named) if named else None
        self._current: _Read | None = None
        self._upstreams: dict[_Wanted, OpenAIHttpUpstream] = {}
        self._retired: set[OpenAIHttpUpstream] = set()
        self._rejected: str | None = None
        self._wake = anyio.Event()

    @property
    def is_current(self) -> bool:
        """Whether the gateway follows the file as it is now."""
        return self._rejected is None

    async def load(self) -> Routes:
        """What the file says at the start; raises what makes it unusable."""
        if self._path is None:
            return self._engine_alone()
        self._current = await anyio.to_thread.run_sync(self._read, self._path)
        return self._routes(self._current)

    @asynccontextmanager
    async def opened(self, catalog: ModelCatalog) -> AsyncGenerator[None]:
        """Hold the upstreams open, and follow the file."""
        for upstream in self._upstreams.values():
            await upstream.__aenter__()
        async with anyio.create_task_group() as tasks:
            if self._path is not None:
                tasks.start_soon(self._watch, catalog, tasks)
            yield
            tasks.cancel_scope.cancel()
        for upstream in [*self._upstreams.values(), *self._retired]:
            await upstream.__aexit__(None, None, None)

    def look_now(self) -> None:
        """Look at the file at once, and not only when it is time."""
        if self._path is None:
            log.info("configuration.none")
        self._wake.set()

    async def _watch(self, catalog: ModelCatalog, tasks: TaskGroup) -> None:
        """Follow the file and the keys; a file that is refused changes nothing."""
        assert self._path is not None, "there is nothing to follow"
        while True:
            with anyio.move_on_after(self._settings.refresh_s):
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                read = await anyio.to_thread.run_sync(self._read, self._path)
            except SteelyardError as error:
                if self._rejected != str(error):
                    log.error("configuration.refused", code=error.code, reason=str(error))
                self._rejected = str(error)
                continue
            self._rejected = None
            if read != self._current:
                await self._follow(read, catalog, tasks)

    async def _follow(self, read: _Read, catalog: ModelCatalog, tasks: TaskGroup) -> None:
        before = dict(self._upstreams)
        routes = self._routes(read)
        for wanted, upstream in self._upstreams.items():
            if wanted not in before:
                await upstream.__aenter__()
        catalog.replace(routes)
        self._current = read
        for wanted, upstream in before.items():
            if wanted not in self._upstreams:
                self._retired.add(upstream)
                tasks.start_soon(self._close_when_idle, upstream)
        log.info("configuration.loaded", sha256=read.configuration.sha256)
        await catalog.refresh()

    async def _close_when_idle(self, upstream: OpenAIHttpUpstream) -> None:
        await anyio.sleep(RETIRED_KEEP_S)
        while upstream.open_count:
            await anyio.sleep(IDLE_LOOK_S)
        self._retired.discard(upstream)
        await upstream.__aexit__(None, None, None)
        log.info("upstream.closed", upstream=upstream.name)

    def _read(self, path: Path) -> _Read:
        configuration = read_configuration(path)
        rules = configuration.rules
        if rules is None:
            return _Read(configuration, ())
        wanted = (self._wanted(name, each, rules) for name, each in rules.upstreams.items())
        return _Read(configuration, tuple(wanted))

    def _wanted(self, name: str, rules: UpstreamRules, all_rules: RoutingRules) -> _Wanted:
        return _Wanted(
            name=name,
            rules=rules,
            timeouts=self._timeouts(rules.timeouts, all_rules.routing.timeouts),
            connections_max=rules.connections_max or self._settings.upstream_connections_max,
            secret=read_credential(name, rules, os.environ),
        )

    def _timeouts(self, own: TimeoutRules, shared: TimeoutRules) -> Timeouts:
        settings = self._settings
        read_s = settings.upstream_read_timeout_s
        return Timeouts(
            connect_s=own.connect_s or shared.connect_s or settings.upstream_connect_timeout_s,
            first_token_s=own.first_token_s or shared.first_token_s or read_s,
            between_tokens_s=own.between_tokens_s or shared.between_tokens_s or read_s,
            total_s=own.total_s or shared.total_s,
        )

    def _routes(self, read: _Read) -> Routes:
        """The routes, with an upstream for each that is wanted: the one of before, or a new one."""
        rules = read.configuration.rules
        if rules is None:
            return self._engine_alone()
        self._upstreams = {
            wanted: self._upstreams.get(wanted) or self._upstream(wanted) for wanted in read.wanted
        }
        return Routes(
            upstreams=list(self._upstreams.values()),
            discovered=frozenset(n for n, each in rules.upstreams.items() if each.kind == "engine"),
            models=rules.models,
            table=rules.routing,
        )

    def _upstream(self, wanted: _Wanted) -> OpenAIHttpUpstream:
        rules = wanted.rules
        kind = KINDS[rules.kind]
        url = rules.url or kind.url or self._settings.engine_address
        api_url = kind.api_url(url)
        version = rules.api_version
        return OpenAIHttpUpstream(
            wanted.name,
            _root_of(api_url),
            count_source=kind.count_source,
            habits=habits_of(rules.kind, paths=rules.paths, api_version=version),
            timeouts=wanted.timeouts,
            connections_max=wanted.connections_max,
            api_url=api_url,
            query=f"?api-version={version}" if version else "",
            headers=kind.headers(wanted.secret),
        )

    def _engine_alone(self) -> Routes:
        """What there is without a file: the engine, as it always was."""
        settings = self._settings
        timeouts = self._timeouts(TimeoutRules(), TimeoutRules())
        connections_max = settings.upstream_connections_max
        wanted = _Wanted("engine", UpstreamRules(kind="engine"), timeouts, connections_max, None)
        engine = self._upstreams.get(wanted) or OpenAIHttpUpstream(
            "engine",
            settings.engine_address,
            count_source="engine",
            habits=ENGINE,
            timeouts=timeouts,
            connections_max=connections_max,
        )
        self._upstreams = {wanted: engine}
        return routes_to_all([engine])


def _root_of(api_url: str) -> str:
    """Where what is no part of the API is found: of Azure and others in front of any path."""
    if api_url.endswith("/openai/v1"):
        return api_url.removesuffix("/openai/v1")
    if api_url.endswith("/v1"):
        return api_url.removesuffix("/v1")
    parts = urlsplit(api_url)
    return urlunsplit((parts.scheme, parts.netloc, "", "", ""))
