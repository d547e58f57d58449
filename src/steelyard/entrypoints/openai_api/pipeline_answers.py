"""`/v1/pipelines`: what there is, and runs of it, whole or told as they go."""

import re
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import msgspec

from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.entrypoints.openai_api.error_answer import EndpointNotFound, MethodNotAllowed
from steelyard.entrypoints.openai_api.http_client import HttpClient
from steelyard.gateway.event_stream import write_named_event
from steelyard.gateway.pipelines.pipeline import read_pipeline
from steelyard.gateway.pipelines.pipeline_runner import quiet
from steelyard.gateway.pipelines.run_store import StoredRun
from steelyard.gateway.relay import ClientLeft
from steelyard.gateway.workloads.asked import read_typed
from steelyard.gateway.workloads.form import FORM_TYPE, FormFile, read_form

_PATH = re.compile(r"/v1/pipelines(?:/([^/]+)(?:/runs(?:/([^/]+)(/retry)?)?)?)?")


class RunBody(msgspec.Struct):
    """The body of a run."""

    input: dict[str, Any] = {}
    stream: bool | None = None


class RetryBody(msgspec.Struct):
    """The body of another try."""

    stream: bool | None = None


_run_decoder = msgspec.json.Decoder(RunBody)
_retry_decoder = msgspec.json.Decoder(RetryBody)


@dataclass(frozen=True, slots=True)
class PipelineDoor:
    """One request about pipelines."""

    parts: GatewayParts
    key: VirtualKey
    client: HttpClient
    request_id: str
    timeout_s: float

    async def answer(self, method: str, path: str, *, bytes_max: int, form_bytes_max: int) -> None:
        """Find what is asked; raises EndpointNotFound, MethodNotAllowed, or why not."""
        match = _PATH.fullmatch(path)
        if match is None:
            raise EndpointNotFound(f"there is nothing at {path}")
        name, run_id, is_retry = match[1], match[2], bool(match[3])
        is_run = path.endswith("/runs")
        if method == "GET" and not is_run and not is_retry:
            await self._tell(name, run_id)
        elif method == "POST" and is_run:
            body, files = await self._read_run(bytes_max, form_bytes_max)
            stored = await self.parts.pipelines.begin(name, body.input, self.key, files=files)
            await self._run(stored, is_streamed=bool(body.stream))
        elif method == "POST" and is_retry:
            raw = await self._body(bytes_max)
            body = read_typed(raw or b"{}", _retry_decoder)
            again = await self.parts.pipelines.begin_again(await self._find(run_id))
            await self._run(again, is_streamed=bool(body.stream))
        else:
            raise MethodNotAllowed(f"{method} is not taken here")

    async def _read_run(
        self, bytes_max: int, form_bytes_max: int
    ) -> tuple[RunBody, dict[str, FormFile]]:
        """What a run is given: as JSON, or as a form with files."""
        kind = self.client.headers.get("content-type", "")
        if not kind.startswith(FORM_TYPE):
            return read_typed(await self._body(bytes_max), _run_decoder), {}
        form = await anyio.to_thread.run_sync(read_form, await self._body(form_bytes_max), kind)
        values: dict[str, Any] = {
            name: given[-1] for name, given in form.fields.items() if name != "stream"
        }
        return RunBody(values, form.is_true("stream")), form.files

    async def _tell(self, name: str | None, run_id: str | None) -> None:
        pipelines = self.parts.pipelines
        if run_id is not None:
            stored = await self._find(run_id)
            document = await anyio.to_thread.run_sync(pipelines.told, stored, self.key)
        elif name is not None:
            definition = await anyio.to_thread.run_sync(pipelines.definition, name)
            document = {"object": "pipeline", **msgspec.to_builtins(read_pipeline(definition))}
        else:
            names = await anyio.to_thread.run_sync(pipelines.names)
            document = {"object": "list", "data": [{"name": one} for one in names]}
        await self._give(document)

    async def _run(self, stored: StoredRun, *, is_streamed: bool) -> None:
        headers = {"x-request-id": self.request_id}

        async def tell(kind: str, document: dict[str, Any]) -> None:
            if is_streamed:
                event = {"type": kind, "run": stored.id, **document}
                await self.client.send(write_named_event(kind, msgspec.json.encode(event)))

        told = quiet(tell, gone=ClientLeft)
        if is_streamed:
            await self.client.start_stream(headers)
        document = await self.parts.pipelines.run(stored, self.key, told)
        if is_streamed:
            await told("run.ended", document)
            await self.client.finish()
        else:
            await self._give(document)

    async def _body(self, bytes_max: int) -> bytes:
        return await self.client.read_body(bytes_max=bytes_max, timeout_s=self.timeout_s)

    async def _find(self, run_id: str) -> StoredRun:
        store, key_id = self.parts.pipelines.store, self.key.id
        return await anyio.to_thread.run_sync(lambda: store.run(run_id, key_id=key_id))

    async def _give(self, document: dict[str, Any]) -> None:
        await self.client.answer(msgspec.json.encode(document), {"x-request-id": self.request_id})
