"""Settings: read once at start, frozen, and handed on as plain values by app.py.

Each can be given as an environment variable (STEELYARD_GATEWAY_PORT), or in a TOML file that
STEELYARD_CONFIG names; the environment goes before the file. The tables of upstreams and models in
that file are not settings: they are read again while a gateway runs (app/configuration.py).
"""

import os
import tomllib
from pathlib import Path
from typing import Literal

from platformdirs import user_data_path
from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from steelyard.errors import Refusal

DEFAULT_MODEL = "smollm2"
ROUTING_TABLES = ("upstreams", "models", "routing")


class SettingsInvalid(Refusal):
    """A setting has a value that it cannot have."""

    code = "settings_invalid"


class Settings(BaseSettings):
    """Everything that an operator can set; `docs/reference/settings.md` lists the same."""

    model_config = SettingsConfigDict(env_prefix="STEELYARD_", frozen=True, extra="forbid")

    data_dir: Path = Field(
        default_factory=lambda: user_data_path("steelyard"),
        description="folder of the books, the outboxes, the models and the logs",
    )
    database_url: str | None = Field(
        default=None,
        description="database of the books; default: SQLite in the data folder",
    )
    books_patience_s: float = Field(
        default=30.0,
        ge=0,
        description="how long gateway and worker, when they start, wait for a database that is "
        "away; in seconds",
    )
    models_dir: Path | None = Field(
        default=None, description="folder of converted models; default: in the data folder"
    )
    secret_file: Path | None = Field(
        default=None,
        description="file with the secret that key hashes depend on; default: in the data folder",
    )
    host: str = Field(default="127.0.0.1", description="address that the gateway listens on")
    engine_host: str = Field(
        default="127.0.0.1",
        description="address that the engine listens on; it asks for no key, so keep it private",
    )
    gateway_port: int = Field(default=8080, ge=1, le=65535, description="port of the gateway")
    engine_port: int = Field(default=8081, ge=1, le=65535, description="port of the engine")
    gateway_name: str = Field(
        default="gateway-1",
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$",
        description="name of this gateway; two gateways never share one",
    )
    engine_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/?#@\s]+(/[^?#\s]*)?$",
        description="address of the engine; default: engine host and port",
    )
    model: str = Field(
        default=DEFAULT_MODEL,
        description="model to serve: smollm2, a folder, a GGUF file or a hub id; "
        "several with commas between",
    )
    model_name: str | None = Field(
        default=None, description="name under which the model is served; default: its own"
    )
    device: str = Field(default="auto", description="auto, cpu or cuda")
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16")
    max_model_len: int | None = Field(
        default=None, ge=1, description="longest context in tokens; default: the model's own"
    )
    engine_batch_max: int = Field(
        default=8, ge=1, description="answers that the engine produces together"
    )
    engine_waiting_max: int = Field(
        default=64, ge=0, description="requests that may wait for the engine; more get 503"
    )
    engine_batch_tokens: int | None = Field(
        default=None,
        ge=32,
        description="tokens that the engine's key-value memory holds; default: by free memory",
    )
    engine_memory_gb: float | None = Field(
        default=None, gt=0, description="memory of all the engine's models together, in 10⁹ bytes"
    )
    engine_prefix_caching: bool = Field(
        default=True, description="whether prompts that begin alike share what was computed"
    )
    engine_threads: int | None = Field(
        default=None, ge=1, description="threads of torch; default: one for each core"
    )
    engine_request_log: Path | None = Field(
        default=None,
        description="file that gets two JSON lines for each request to the engine; "
        "default: in the data folder",
    )
    input_tokens_max: int = Field(
        default=4096, ge=1, description="longest prompt in tokens, for keys without their own limit"
    )
    output_tokens_default: int = Field(
        default=1024, ge=1, description="longest answer in tokens where the client sets none"
    )
    requests_per_minute: int = Field(
        default=600,
        ge=0,
        le=2**31 - 1,
        description="requests a minute, for keys without their own limit",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="tokens a minute, in and out, for keys without their own limit; default: any",
    )
    requests_at_once: int | None = Field(
        default=None,
        ge=0,
        le=2**31 - 1,
        description="requests that run at once, for keys without their own limit; default: any",
    )
    output_tokens_max: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="longest answer in tokens that a client may ask for, where no limit says more; "
        "default: the model's context",
    )
    gateway_count: int = Field(
        default=1,
        ge=1,
        description="gateways that share these books; where they cannot count limits together, "
        "each allows its share",
    )
    valkey_url: str | None = Field(
        default=None,
        description="Valkey or Redis in which gateways count limits together, as "
        "redis://127.0.0.1:6379/0; default: each counts for itself",
    )
    valkey_timeout_s: float = Field(
        default=0.5, gt=0, le=60, description="longest wait for Valkey, in seconds"
    )
    trusted_proxies: str | None = Field(
        default=None,
        description="addresses of proxies whose X-Forwarded-For is believed, as 10.0.0.0/8,::1; "
        "default: none",
    )
    request_bytes_max: int = Field(
        default=4 * 1024 * 1024, ge=1024, description="largest body of a request, in bytes"
    )
    pipelines_dir: Path | None = Field(
        default=None,
        description="folder of pipelines, NAME.yaml each; default: in the data folder",
    )
    file_bytes_max: int = Field(
        default=256 * 1024 * 1024,
        ge=1024,
        description="largest file of a batch, in bytes; it is not held in memory",
    )
    batch_lines_at_once: int = Field(
        default=16, ge=1, le=1000, description="lines of a batch that are asked at once"
    )
    upload_bytes_max: int = Field(
        default=32 * 1024 * 1024,
        ge=1024,
        description="largest body of a request with a file in it, in bytes",
    )
    lease_ttl_s: float = Field(
        default=10.0,
        ge=0,
        le=600,
        description="how long the gateway grants holds from one lease, and then renews it; "
        "0: no leases, every hold is placed in the books; in seconds",
    )
    hold_chunk_tokens: int = Field(
        default=0,
        ge=0,
        description="tokens of a stream's answer that are held for at a time, from an upstream that "
        "reports counts as it goes; 0: the whole answer is held for at once",
    )
    header_bytes_max: int = Field(
        default=32 * 1024, ge=1024, description="largest headers of a request, in bytes"
    )
    header_timeout_s: float = Field(
        default=10.0,
        gt=0,
        description="how long the headers of a request may take, and what nobody reads of a body; "
        "in seconds",
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="how long the body of a request may take, in seconds"
    )
    outbox_bytes_max: int = Field(
        default=8 * 1024**3, ge=64 * 1024, description="largest size of an outbox, in bytes"
    )
    event_log: Literal["outbox", "kafka"] = Field(
        default="outbox",
        description="how events reach the worker: outbox (it reads them itself) or kafka",
    )
    kafka_servers: str = Field(
        default="127.0.0.1:9092", description="brokers of Kafka, HOST:PORT with commas between them"
    )
    kafka_topic: str = Field(
        default="steelyard.usage",
        description="topic of the usage events; quarantined ones are copied to TOPIC.quarantine",
    )
    kafka_group: str = Field(default="steelyard-worker", description="group of the workers")
    kafka_options: str | None = Field(
        default=None,
        description="more options of librdkafka, as security.protocol=ssl,ssl.ca.location=ca.pem",
    )
    idempotency_keep_s: float = Field(
        default=86_400.0,
        gt=0,
        description="how long the answer to a request with an Idempotency-Key is kept, in seconds",
    )
    idempotency_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="how long a duplicate waits for the first request to end; then 409; in seconds",
    )
    idempotency_bytes_max: int = Field(
        default=256 * 1024**2,
        ge=1024 * 1024,
        description="largest size of all kept answers, in bytes; the oldest go first",
    )
    documents_keep_s: float = Field(
        default=30 * 86_400.0,
        gt=0,
        description="how long a document and its answers are kept after it was begun; in seconds",
    )
    answer_cache_url: str | None = Field(
        default=None,
        description="Valkey or Redis in which gateways share the answer cache; default: a file, "
        "which the gateways of one machine share",
    )
    answer_cache_keep_s: float = Field(
        default=86_400.0,
        gt=0,
        description="how long an answer stays in the answer cache, whatever a key allows; in seconds",
    )
    answer_cache_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="how long a request waits for the same one that is being answered; in seconds",
    )
    answer_cache_bytes_max: int = Field(
        default=256 * 1024**2,
        ge=1024 * 1024,
        description="largest size of the answer cache, in bytes; the oldest answers go first",
    )
    outbox_keep_s: float = Field(
        default=86_400.0,
        ge=0,
        description="how long a settled segment of the outbox is kept, should the books be restored "
        "from a backup; a full outbox keeps none; in seconds",
    )
    outbox_prune_s: float = Field(
        default=5.0,
        gt=0,
        le=3600,
        description="how often segments of the outbox that are settled are deleted, in seconds",
    )
    disconnect_policy: Literal["drain", "delivered", "prompt_only", "free"] = Field(
        default="delivered",
        description="what a client that leaves is charged, where key and model say nothing",
    )
    disconnect_policies: str | None = Field(
        default=None, description="the same for single models: MODEL=POLICY,MODEL=POLICY"
    )
    recovery_patience_s: float = Field(
        default=600.0,
        ge=0,
        description="how long an upstream is asked, after a crash, what it did; in seconds",
    )
    upstream_connect_timeout_s: float = Field(
        default=5.0, gt=0, description="longest wait for a connection to an upstream, in seconds"
    )
    upstream_read_timeout_s: float = Field(
        default=300.0, gt=0, description="longest silence of an upstream, in seconds"
    )
    upstream_connections_max: int = Field(
        default=1000, ge=1, description="most connections to an upstream"
    )
    drain_s: int = Field(
        default=30,
        ge=1,
        description="how long a gateway that is told to stop lets open requests go on, in seconds",
    )
    drain_delay_s: float = Field(
        default=0.0,
        ge=0,
        description="how long it still takes new ones while it says that it is not ready, in seconds",
    )
    refresh_s: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="how often keys and prices are looked at again, in seconds",
    )
    audit_sample_percent: float = Field(
        default=10.0,
        ge=0,
        le=100,
        description="share of the attempts that are counted again, where a tokenizer is registered",
    )
    audit_waiting_max: int = Field(
        default=256, ge=1, description="attempts that may wait for their recount; more are dropped"
    )
    audit_timeout_s: float = Field(
        default=60.0, gt=0, description="longest time that one recount may take, in seconds"
    )
    audit_drift_percent_max: float = Field(
        default=2.0,
        ge=0,
        description="how far an upstream's counts may be from the tokenizer's, in per cent",
    )
    worker_poll_s: float = Field(
        default=0.2,
        gt=0,
        le=60,
        description="how often a worker that has caught up looks for new events, in seconds; what "
        "comes meanwhile is settled together",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="address that gateway and worker serve /metrics on; it asks for no key, so "
        "keep it private",
    )
    gateway_metrics_port: int = Field(
        default=9464, ge=0, le=65535, description="port of the gateway's /metrics; 0: none"
    )
    worker_metrics_port: int = Field(
        default=9465, ge=0, le=65535, description="port of the worker's /metrics; 0: none"
    )
    reconcile_s: float = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="how often the worker compares the books with themselves, in seconds",
    )
    sweep_s: float = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="how often the worker looks for expired grants and forgotten holds, in seconds",
    )
    hold_ttl_s: float = Field(
        default=3600.0,
        gt=0,
        description="a hold that is open for longer is marked as unresolved, in seconds",
    )
    worker_batch_max: int = Field(
        default=10_000, ge=1, le=10_000, description="most events that the worker settles at once"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        named = os.environ.get("STEELYARD_CONFIG")
        if named is None:
            return init_settings, env_settings
        with Path(named).open("rb") as file:
            written = tomllib.load(file)
        settings = {name: value for name, value in written.items() if name not in ROUTING_TABLES}
        return init_settings, env_settings, InitSettingsSource(settings_cls, settings)

    @property
    def books_path(self) -> Path:
        return self.data_dir / "books.db"

    @property
    def outbox_dir(self) -> Path:
        return self.data_dir / "outbox"

    @property
    def audit_share(self) -> int:
        """The sampled share, in millionths."""
        return round(self.audit_sample_percent * 10_000)

    @property
    def audit_drift_ppm_max(self) -> int:
        return round(self.audit_drift_percent_max * 10_000)

    @property
    def tokenizers_dir(self) -> Path:
        return self.data_dir / "tokenizers"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.model.split(",") if part.strip())

    @property
    def engine_request_log_path(self) -> Path:
        return self.engine_request_log or self.data_dir / "engine-requests.jsonl"

    @property
    def engine_address(self) -> str:
        return self.engine_url or f"http://{self.engine_host}:{self.engine_port}"

    @property
    def models_path(self) -> Path:
        return self.models_dir or self.data_dir / "models"

    @property
    def secret_path(self) -> Path:
        return self.secret_file or self.data_dir / "secret"


def read_settings(**given: object) -> Settings:
    """Settings from the arguments, the environment and the file; raises SettingsInvalid."""
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**chosen)  # pyright: ignore[reportArgumentType] - pydantic checks them
    except ValidationError as error:
        complaints = [
            f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
            for detail in error.errors()
        ]
        raise SettingsInvalid("; ".join(complaints)) from error
    except (OSError, ValueError) as error:
        raise SettingsInvalid(f"the file in STEELYARD_CONFIG cannot be read: {error}") from error
