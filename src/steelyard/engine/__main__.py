"""`python -m steelyard.engine`: the engine by itself."""

import argparse
import sys
from pathlib import Path
from typing import Any

from steelyard.engine.engine_process import EngineOptions, run_engine


def _parse_options(arguments: list[str]) -> EngineOptions:
    defaults = EngineOptions()
    parser = argparse.ArgumentParser(
        prog="steelyard.engine", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=defaults.prefix_caching,
        help="reuse the keys and values of prompts that begin alike",
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        help="smollm2, a model folder, a .gguf file, or a hub id; again for one more model",
    )
    for name, kind, meaning in _FLAGS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=getattr(defaults, name), help=meaning
        )
    chosen: dict[str, Any] = vars(parser.parse_args(arguments))
    chosen["models"] = tuple(chosen["models"] or defaults.models)
    return EngineOptions(**chosen)


_FLAGS = (
    ("models_dir", Path, "where converted models are kept"),
    ("model_name", str, "the name to serve the model under"),
    ("host", str, "the address to listen on"),
    ("port", int, "the port to listen on; 0 takes a free one"),
    ("device", str, "cpu, cuda or auto"),
    ("dtype", str, "float32, bfloat16, float16 or auto"),
    ("memory_gb", float, "memory of all models together; who was used longest ago leaves"),
    ("max_model_len", int, "a smaller context than the model's own"),
    ("max_batch_size", int, "sequences that run together"),
    ("max_waiting", int, "sequences that may wait for a place"),
    ("max_batch_tokens", int, "tokens of keys and values kept in all; else by free memory"),
    ("prefill_tokens_per_step", int, "prompt tokens fed before others get their next token"),
    ("threads", int, "torch threads"),
    ("request_log", Path, "append a JSON line here for each sequence that ends"),
    ("body_bytes_max", int, "largest request body"),
    ("upload_bytes_max", int, "largest request body with a file in it"),
    ("shutdown_grace_s", int, "how long SIGTERM lets running answers go on"),
)

if __name__ == "__main__":
    sys.exit(run_engine(_parse_options(sys.argv[1:])))
