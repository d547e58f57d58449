"""`steelyard init | serve | gateway | engine | worker | relay`: the processes of the product."""

from pathlib import Path
from typing import Annotated

import typer

from steelyard.app.stores import open_stores
from steelyard.entrypoints.cli.output import JsonFlag, show
from steelyard.settings import Settings, read_settings

ModelOption = Annotated[
    str | None,
    typer.Option(help="smollm2, a folder, a GGUF file or a hub id [STEELYARD_MODEL]."),
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        help="smollm2, a folder, a GGUF file or a hub id; again for one more [STEELYARD_MODEL]."
    ),
]
NameOption = Annotated[
    str | None, typer.Option("--model-name", help="Name to serve it under [STEELYARD_MODEL_NAME].")
]
HostOption = Annotated[str | None, typer.Option(help="Address to listen on [STEELYARD_HOST].")]
DeviceOption = Annotated[str | None, typer.Option(help="auto, cpu or cuda [STEELYARD_DEVICE].")]
DtypeOption = Annotated[
    str | None, typer.Option(help="auto, float32, bfloat16 or float16 [STEELYARD_DTYPE].")
]
DataOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder of the books [STEELYARD_DATA_DIR].")
]
EnginePortOption = Annotated[
    int | None, typer.Option("--engine-port", help="Port of the engine [STEELYARD_ENGINE_PORT].")
]
GatewayPortOption = Annotated[
    int | None, typer.Option("--port", help="Port of the gateway [STEELYARD_GATEWAY_PORT].")
]


def register(application: typer.Typer) -> None:
    application.command("init", epilog="Example: `steelyard init`")(init)
    application.command("serve", epilog="Example: `steelyard serve --model ./my-model`")(serve)
    application.command("gateway", epilog="Example: `steelyard gateway --port 8080`")(gateway)
    application.command("engine", epilog="Example: `steelyard engine --model smollm2`")(engine)
    application.command("worker", epilog="Example: `steelyard worker`")(worker)
    application.command("relay", epilog="Example: `steelyard relay`")(relay)


def init(data_dir: DataOption = None, json: JsonFlag = False) -> None:
    """Create the books, or bring them to this version. Does no harm when run again."""
    settings = read_settings(data_dir=data_dir)
    stores = open_stores(settings, should_migrate=True)
    address = stores.database.engine.url.render_as_string(hide_password=True)
    stores.database.close()
    show(
        {"data_dir": str(settings.data_dir), "books": address},
        as_json=json,
        title="the books are ready",
    )


def serve(
    model: ModelOption = None,
    model_name: NameOption = None,
    host: HostOption = None,
    port: GatewayPortOption = None,
    engine_port: EnginePortOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    data_dir: DataOption = None,
) -> None:
    """Start and supervise the whole product on this machine: engine, gateway and worker."""
    from steelyard.entrypoints.supervisor import run_everything

    settings = read_settings(
        model=model,
        model_name=model_name,
        host=host,
        gateway_port=port,
        engine_port=engine_port,
        device=device,
        dtype=dtype,
        data_dir=data_dir,
    )
    open_stores(settings, should_migrate=True).database.close()
    raise typer.Exit(run_everything(settings))


def gateway(
    host: HostOption = None,
    port: GatewayPortOption = None,
    name: Annotated[
        str | None, typer.Option(help="Name of this gateway [STEELYARD_GATEWAY_NAME].")
    ] = None,
    engine_url: Annotated[
        str | None, typer.Option(help="Address of the engine [STEELYARD_ENGINE_URL].")
    ] = None,
    data_dir: DataOption = None,
) -> None:
    """Start a gateway: the API that callers use."""
    from steelyard.entrypoints.gateway_process import run_gateway

    run_gateway(
        read_settings(
            host=host,
            gateway_port=port,
            gateway_name=name,
            engine_url=engine_url,
            data_dir=data_dir,
        )
    )


def engine(
    model: ModelsOption = None,
    model_name: NameOption = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on [STEELYARD_ENGINE_HOST].")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="Port of the engine [STEELYARD_ENGINE_PORT].")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest context, in tokens [STEELYARD_MAX_MODEL_LEN].")
    ] = None,
    max_batch_size: Annotated[
        int | None, typer.Option(help="Answers produced together [STEELYARD_ENGINE_BATCH_MAX].")
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens kept in key-value memory [STEELYARD_ENGINE_BATCH_TOKENS]."),
    ] = None,
    memory_gb: Annotated[
        float | None,
        typer.Option(help="Memory of all models together [STEELYARD_ENGINE_MEMORY_GB]."),
    ] = None,
    data_dir: DataOption = None,
) -> None:
    """Start the engine: PyTorch inference behind an OpenAI-compatible API, useful alone."""
    settings = read_settings(
        model=",".join(model) if model else None,
        model_name=model_name,
        engine_host=host,
        engine_port=port,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        engine_batch_max=max_batch_size,
        engine_batch_tokens=max_batch_tokens,
        engine_memory_gb=memory_gb,
        data_dir=data_dir,
    )
    raise typer.Exit(_run_engine(settings))


def worker(data_dir: DataOption = None) -> None:
    """Start the worker: it brings usage events into the books."""
    from steelyard.entrypoints.worker_process import run_worker

    run_worker(read_settings(data_dir=data_dir))


def relay(data_dir: DataOption = None) -> None:
    """Start the relay: it carries this machine's usage events to Kafka."""
    from steelyard.entrypoints.relay_process import run_relay

    run_relay(read_settings(data_dir=data_dir))


def _run_engine(settings: Settings) -> int:
    from steelyard.engine.engine_process import EngineOptions, run_engine

    return run_engine(
        EngineOptions(
            models=settings.models,
            models_dir=settings.models_path,
            model_name=settings.model_name,
            host=settings.engine_host,
            port=settings.engine_port,
            device=settings.device,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_batch_size=settings.engine_batch_max,
            max_waiting=settings.engine_waiting_max,
            max_batch_tokens=settings.engine_batch_tokens,
            memory_gb=settings.engine_memory_gb,
            prefix_caching=settings.engine_prefix_caching,
            threads=settings.engine_threads,
            request_log=settings.engine_request_log_path,
            body_bytes_max=settings.request_bytes_max,
            upload_bytes_max=settings.upload_bytes_max,
        )
    )
