"""`/v1/files` and `/v1/batches`, in OpenAI's shapes."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import anyio.to_thread
import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from steelyard.access.virtual_key import VirtualKey
from steelyard.app.gateway import GatewayParts
from steelyard.entrypoints.openai_api.error_answer import EndpointNotFound, MethodNotAllowed
from steelyard.entrypoints.openai_api.http_client import HttpClient
from steelyard.gateway.batches.batch_lines import ENDPOINTS
from steelyard.gateway.batches.records import BatchInvalid, BatchOver, StoredBatch, StoredFile
from steelyard.gateway.refusals import FileEmpty, FileMissing, InvalidForm, UnsupportedMediaType
from steelyard.gateway.workloads.asked import read_typed
from steelyard.ids import new_id

WINDOW: Final = "24h"
WINDOW_S: Final = 24 * 3_600
PAGE_MAX: Final = 100
FIELD_BYTES_MAX: Final = 1_024
BODY_BYTES_MAX: Final = 64 * 1_024
_FILE = re.compile(r"/v1/files/([^/]+)(/content)?")
_BATCH = re.compile(r"/v1/batches/([^/]+)(/cancel)?")


class BatchBody(msgspec.Struct):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str = WINDOW
    metadata: dict[str, str] | None = None


_decoder = msgspec.json.Decoder(BatchBody)


@dataclass(frozen=True, slots=True)
class BatchDoor:
    """One request about files or batches."""

    parts: GatewayParts
    key: VirtualKey
    client: HttpClient
    request_id: str
    timeout_s: float

    async def answer(self, method: str, path: str, query: str, *, bytes_max: int) -> None:
        """Find what is asked; raises EndpointNotFound, MethodNotAllowed, or why not."""
        file, batch = _FILE.fullmatch(path), _BATCH.fullmatch(path)
        match (method, path):
            case ("POST", "/v1/files"):
                await self._give((await self._upload(bytes_max)).as_document())
            case ("POST", "/v1/batches"):
                await self._give(await self._create())
            case ("GET", "/v1/files" | "/v1/batches"):
                await self._list(path, query)
            case ("GET", _) if file and file[2]:
                await self._content(file[1])
            case ("GET", _) if file:
                await self._give((await self._file(file[1])).as_document())
            case ("DELETE", _) if file and not file[2]:
                await self._delete(file[1])
            case ("POST", _) if batch and batch[2]:
                await self._cancel(batch[1])
            case ("GET", _) if batch and not batch[2]:
                await self._give(self._shown(await self._batch(batch[1])))
            case _ if file or batch or path in {"/v1/files", "/v1/batches"}:
                raise MethodNotAllowed(f"{method} is not taken here")
            case _:
                raise EndpointNotFound(f"there is nothing at {path}")

    async def _give(self, document: dict[str, Any]) -> None:
        await self.client.answer(msgspec.json.encode(document), {"x-request-id": self.request_id})

    async def _upload(self, bytes_max: int) -> StoredFile:
        store = self.parts.batches.store
        file_id = f"file-{new_id()}"
        reader = _UploadReader.of(self.client.headers.get("content-type"), store.path_of(file_id))
        is_kept = False
        try:
            async for piece in self.client.pieces(bytes_max=bytes_max, timeout_s=self.timeout_s):
                await anyio.to_thread.run_sync(reader.feed, piece)
            size = await anyio.to_thread.run_sync(reader.finish)
            file = StoredFile(
                id=file_id,
                key_id=self.key.id,
                filename=reader.filename[:255],
                purpose="batch",
                size=size,
                created_at=self._now(),
            )
            await anyio.to_thread.run_sync(store.put_file, file)
            is_kept = True
            return file
        finally:
            reader.close(keep=is_kept)

    async def _create(self) -> dict[str, Any]:
        body = await self.client.read_body(bytes_max=BODY_BYTES_MAX, timeout_s=self.timeout_s)
        asked = read_typed(body, _decoder)
        if asked.endpoint not in ENDPOINTS:
            raise BatchInvalid(
                f"a batch is for one of {', '.join(ENDPOINTS)}", parameter="endpoint"
            )
        if asked.completion_window != WINDOW:
            raise BatchInvalid(f"the window is {WINDOW}", parameter="completion_window")
        await self._file(asked.input_file_id)
        runner, now, made = self.parts.batches, self._now(), new_id()
        batch = StoredBatch(
            id=f"batch_{made}",
            key_id=self.key.id,
            owner=runner.owner,
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            output_file_id=f"file-{made}-output",
            error_file_id=f"file-{made}-error",
            completion_window=WINDOW,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=asked.metadata,
        )
        await anyio.to_thread.run_sync(runner.store.put_batch, batch)
        runner.wake()
        return batch.as_document()

    async def _list(self, path: str, query: str) -> None:
        after = re.search(r"(?:^|&)after=([\w-]+)", query)
        limit = re.search(r"(?:^|&)limit=(\d{1,4})", query)
        count = min(int(limit[1]) if limit else 20, PAGE_MAX)
        store, start, key_id = self.parts.batches.store, after and after[1], self.key.id
        documents: list[dict[str, Any]]
        if path == "/v1/files":
            files = await anyio.to_thread.run_sync(
                lambda: store.files(key_id=key_id, after=start, limit=count + 1)
            )
            documents = [file.as_document() for file in files]
        else:
            batches = await anyio.to_thread.run_sync(
                lambda: store.batches(key_id=key_id, after=start, limit=count + 1)
            )
            documents = [self._shown(batch) for batch in batches]
        page = documents[:count]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        listed = {"object": "list", "data": page, "has_more": len(documents) > count, **ends}
        await self._give(listed)

    async def _content(self, file_id: str) -> None:
        file = await self._file(file_id)
        path = self.parts.batches.store.path_of(file.id)
        await self.client.send_file(path, {"x-request-id": self.request_id})

    async def _delete(self, file_id: str) -> None:
        store, key_id = self.parts.batches.store, self.key.id
        await anyio.to_thread.run_sync(lambda: store.delete_file(file_id, key_id=key_id))
        await self._give({"id": file_id, "object": "file", "deleted": True})

    async def _cancel(self, batch_id: str) -> None:
        batch = await self._batch(batch_id)
        if batch.is_over:
            raise BatchOver(f"the batch has ended already: it is {batch.status}")
        await self._give((await self.parts.batches.cancel(batch)).as_document())

    async def _file(self, file_id: str) -> StoredFile:
        store, key_id = self.parts.batches.store, self.key.id
        return await anyio.to_thread.run_sync(lambda: store.file(file_id, key_id=key_id))

    async def _batch(self, batch_id: str) -> StoredBatch:
        store, key_id = self.parts.batches.store, self.key.id
        return await anyio.to_thread.run_sync(lambda: store.batch(batch_id, key_id=key_id))

    def _shown(self, batch: StoredBatch) -> dict[str, Any]:
        return self.parts.batches.progress(batch).as_document()

    def _now(self) -> int:
        return int(self.parts.stores.clock.now().timestamp())


@dataclass(slots=True)
class _UploadReader:
    """Reads a form as it comes; its file goes to the disk."""

    path: Path
    filename: str = ""
    fields: dict[str, bytes] = field(default_factory=dict[str, bytes])
    _parser: MultipartParser | None = None
    _file: BinaryIO | None = None
    _size: int = 0
    _header: bytes = b""
    _value: bytes = b""
    _disposition: bytes = b""
    _name: str = ""
    _is_file: bool = False
    _is_over: bool = False

    @classmethod
    def of(cls, content_type: str | None, path: Path) -> "_UploadReader":
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UnsupportedMediaType("send the file as a form (multipart/form-data)")
        reader = cls(path)
        reader._parser = MultipartParser(
            boundary,
            {
                "on_header_field": reader._add_header,
                "on_header_value": reader._add_value,
                "on_header_end": reader._end_header,
                "on_headers_finished": reader._begin_content,
                "on_part_data": reader._add_content,
                "on_end": reader._end,
            },
        )
        return reader

    def feed(self, piece: bytes) -> None:
        assert self._parser is not None, "made by `of`"
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise InvalidForm(f"the form cannot be read: {error}") from error

    def finish(self) -> int:
        """The size of the file, which is on the disk now; raises what is wrong with the form."""
        if not self._is_over:
            raise InvalidForm("the form ends before its last part does")
        purpose = self.fields.get("purpose", b"").decode(errors="replace")
        if purpose != "batch":
            raise InvalidForm(f"the purpose is batch, not {purpose[:50]!r}", parameter="purpose")
        if self._file is None:
            raise FileMissing("send the file as the part 'file' of the form", parameter="file")
        if not self._size:
            raise FileEmpty(f"the file {self.filename[:100]!r} is empty", parameter="file")
        return self._size

    def close(self, *, keep: bool) -> None:
        if self._file is not None:
            self._file.close()
        if not keep:
            self.path.unlink(missing_ok=True)

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == "file"
        if self._is_file and self._file is None:
            self.filename = options.get(b"filename", b"file").decode(errors="replace")
            self._file = self.path.open("wb")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._is_file and self._file is not None:
            self._size += self._file.write(data[start:end])
            return
        known = self.fields.get(self._name, b"") + data[start:end]
        if len(known) > FIELD_BYTES_MAX or len(self.fields) > FIELD_BYTES_MAX:
            raise InvalidForm(f"the field {self._name[:50]!r} is too long")
        self.fields[self._name] = known

    def _end(self) -> None:
        self._is_over = True
