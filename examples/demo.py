"""The main job on a real model: served, counted, priced, paid, and proved.

Starts the whole product in a folder of its own, asks a real model a few questions as a user would,
and checks that every number agrees: tokens, prices, balances, statements and the books.
Exit status 0 says that they do. Run it with `make demo`.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import openai
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

REPOSITORY = Path(__file__).parents[1]
PRICE_BOOK = REPOSITORY / "price_books" / "demo.yaml"
MODEL = "smollm2-135m-instruct"
READY_WITHIN_S = 600.0
SETTLED_WITHIN_S = 30.0
SEED = 7

console = Console(highlight=False)


@dataclass
class Exchange:
    """One question and what became of it; the transcript is a list of these."""

    department: str
    door: str
    question: str
    answer: str = ""
    usage: dict[str, Any] = field(default_factory=dict[str, Any])
    token_ids: list[int] = field(default_factory=list[int])
    prompt_token_ids: list[int] = field(default_factory=list[int])
    refused: str | None = None


@dataclass
class Demo:
    """A running product, and what was asked of it."""

    data_dir: Path
    environment: dict[str, str]
    exchanges: list[Exchange] = field(default_factory=list[Exchange])
    secrets: dict[str, str] = field(default_factory=dict[str, str])
    complaints: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['STEELYARD_GATEWAY_PORT']}"

    def command(self, *words: str) -> Any:
        """Run the command as a user would, and read its JSON."""
        finished = subprocess.run(
            [sys.executable, "-m", "steelyard", *words, "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode not in {0, 2}:
            raise SystemExit(f"steelyard {' '.join(words)}: {finished.stderr}")
        return json.loads(finished.stdout)

    def client(self, department: str) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.secrets[department], max_retries=0
        )

    def balance(self, department: str) -> Decimal:
        """The balance once every hold of the department has ended."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            stands = self.command("balance", department)
            if stands["held"] == "0":
                return Decimal(stands["total"])
            if time.monotonic() > deadline:
                raise SystemExit(f"{department} still has {stands['held']} held")

    def expect(self, is_true: bool, complaint: str) -> None:
        if not is_true:
            self.complaints.append(complaint)


def main() -> int:
    options = _parse_options()
    console.print(Rule("[bold]Steelyard: you used this much, so you pay this much"))
    data_dir = options.data_dir or Path(tempfile.mkdtemp(prefix="steelyard-demo-"))
    try:
        with running_product(data_dir) as demo:
            before = _create_tenants(demo)
            _ask_everything(demo)
            _show_refusals(demo)
            _check_balances(demo, before)
            _show_statements(demo)
            _show_verdict(demo)
            _save_transcript(demo, options.transcript)
    finally:
        if options.data_dir is None:
            shutil.rmtree(data_dir, ignore_errors=True)
    return _conclude(demo)


@contextmanager
def running_product(data_dir: Path, *, model: str = "smollm2") -> Generator[Demo]:
    """The whole product in a folder of its own, with these models."""
    environment = {
        **os.environ,
        "STEELYARD_DATA_DIR": str(data_dir),
        "STEELYARD_GATEWAY_PORT": str(_free_port()),
        "STEELYARD_ENGINE_PORT": str(_free_port()),
        "STEELYARD_MODEL": model,
    }
    demo = Demo(data_dir, environment)
    demo.command("init")
    with (data_dir / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "steelyard", "serve"], env=environment, stdout=log, stderr=log
        )
        try:
            _wait_until_ready(demo, process)
            yield demo
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=120)


def _wait_until_ready(demo: Demo, process: "subprocess.Popen[bytes]") -> None:
    started = time.monotonic()
    with console.status("starting engine, gateway and worker") as status:
        while True:
            if process.poll() is not None:
                raise SystemExit((demo.data_dir / "serve.log").read_text())
            try:
                if httpx.get(f"{demo.url}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if time.monotonic() - started > READY_WITHIN_S:
                raise SystemExit("the product did not get ready in time")
            status.update(f"starting engine, gateway and worker{_engine_progress(demo)}")
            time.sleep(0.2)
    console.print(f"[green]ready[/] after {time.monotonic() - started:.1f} s, at {demo.url}")


def _engine_progress(demo: Demo) -> str:
    """What the engine says it is doing; the first start converts the model, which takes a while."""
    log = demo.data_dir / "logs" / "engine.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return f": {lines[-1].partition('progress=')[2]}" if lines and "progress=" in lines[-1] else ""


def _create_tenants(demo: Demo) -> dict[str, Decimal]:
    """An organisation with two departments, a key and some money each."""
    version = demo.command("price", "publish", str(PRICE_BOOK))
    console.print(f"[green]price book[/] {version['name']}, {version['sha256'][:16]}…")
    demo.command("org", "create", "acme")
    for department, dollars in (("acme/research", "1.00"), ("acme/marketing", "0.00002")):
        demo.command("department", "create", department, "--pays-from", "department")
        demo.secrets[department] = demo.command("key", "create", department, "demo")["secret"]
        demo.command("credit", "add", department, dollars, "--reason", "demo")
        console.print(f"[green]{department}[/] has a key and {dollars} USD")
    return {department: demo.balance(department) for department in demo.secrets}


def _ask_everything(demo: Demo) -> None:
    research, marketing = "acme/research", "acme/marketing"
    _chat(demo, research, "What is the capital of France?")
    _chat(demo, research, "Write a Python function that adds two numbers.", is_streamed=True)
    _chat(demo, research, "请用一句话介绍北京。")
    console.print(
        "  (SmolLM2-135M was trained on English: its Chinese is poor, and its count is exact. "
        "For real Chinese serve another model: see README.md)",
        style="dim",
    )
    _generate(demo, research, "Name three colours.")
    _chat(demo, marketing, "Say hello.", max_tokens=12)
    _chat(demo, research, "Weigh this word. " * 1500)
    _chat(demo, marketing, "Write a long slogan for a shop that sells scales.", max_tokens=400)


def _chat(
    demo: Demo, department: str, question: str, *, is_streamed: bool = False, max_tokens: int = 60
) -> None:
    exchange = Exchange(department, "chat, streamed" if is_streamed else "chat", question)
    demo.exchanges.append(exchange)
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": SEED,
        "extra_body": {"return_token_ids": True},
    }
    client = demo.client(department)
    try:
        if is_streamed:
            options: Any = {"include_usage": True}
            chunks: Any = client.chat.completions.create(
                **asked, stream=True, stream_options=options
            )
            _read_stream(exchange, chunks)
        else:
            _read_answer(exchange, client.chat.completions.create(**asked))
    except openai.APIStatusError as error:
        body: Any = error.body
        exchange.refused = f"{error.status_code} {body['code']}: {body['message']}"
        return
    _show(demo, exchange)


def _read_answer(exchange: Exchange, answer: Any) -> None:
    exchange.answer = answer.choices[0].message.content
    exchange.token_ids = answer.choices[0].token_ids
    exchange.prompt_token_ids = answer.prompt_token_ids
    exchange.usage = answer.usage.model_dump()


def _read_stream(exchange: Exchange, chunks: Any) -> None:
    for chunk in chunks:
        exchange.prompt_token_ids += getattr(chunk, "prompt_token_ids", None) or []
        for choice in chunk.choices:
            exchange.answer += choice.delta.content or ""
            exchange.token_ids += getattr(choice, "token_ids", None) or []
        if chunk.usage:
            exchange.usage = chunk.usage.model_dump()


def _generate(demo: Demo, department: str, question: str) -> None:
    exchange = Exchange(department, "POST /generate", question)
    demo.exchanges.append(exchange)
    body = {
        "prompt": question,
        "max_new_tokens": 60,
        "temperature": 0,
        "return_token_ids": True,
    }
    headers = {"Authorization": f"Bearer {demo.secrets[department]}"}
    answer = httpx.post(f"{demo.url}/generate", json=body, headers=headers, timeout=120).json()
    exchange.answer, exchange.usage = answer["response"], answer["usage"]
    exchange.token_ids, exchange.prompt_token_ids = answer["token_ids"], answer["prompt_token_ids"]
    _show(demo, exchange)


def _show(demo: Demo, exchange: Exchange) -> None:
    usage = exchange.usage
    title = f"{exchange.department}, {exchange.door}: {exchange.question}"
    counts = (
        f"{usage['prompt_tokens']} tokens in, {usage['completion_tokens']} out, "
        f"{usage['cost']} {usage['currency']}"
    )
    console.print(
        Panel(
            Text(exchange.answer.strip()),
            title=Text(title, style="bold"),
            title_align="left",
            subtitle=Text(counts, style="green"),
            subtitle_align="right",
            box=box.ROUNDED,
        )
    )
    demo.expect(
        usage["completion_tokens"] == len(exchange.token_ids)
        and usage["prompt_tokens"] == len(exchange.prompt_token_ids),
        f"the counts of {exchange.question!r} are not those of its token ids",
    )


def _show_refusals(demo: Demo) -> None:
    refused = [exchange.refused for exchange in demo.exchanges if exchange.refused]
    for complaint in refused:
        console.print(Text.assemble(("refused  ", "bold yellow"), complaint))
    statuses = [complaint[:3] for complaint in refused]
    demo.expect(statuses == ["413", "402"], f"expected one 413 and one 402, got {refused}")


def _check_balances(demo: Demo, before: dict[str, Decimal]) -> None:
    """The balance of each department is down by the sum of the costs on its answers, exactly."""
    table = Table(box=box.SIMPLE_HEAD, title="Balances", title_style="bold", title_justify="left")
    for column in ("department", "before", "costs on the answers", "after", "agrees"):
        table.add_column(column, justify="left" if column == "department" else "right")
    for department, opening in before.items():
        after = demo.balance(department)
        costs = sum(
            (
                Decimal(e.usage["cost"])
                for e in demo.exchanges
                if e.department == department and e.usage
            ),
            Decimal(0),
        )
        agrees = opening - costs == after
        demo.expect(agrees, f"{department}: {opening} - {costs} is not {after}")
        amounts = [f"{amount:f} USD" for amount in (opening, costs, after)]
        table.add_row(department, *amounts, "yes" if agrees else "NO")
    console.print(table)


def _show_statements(demo: Demo) -> None:
    for department in demo.secrets:
        statement = demo.command("statement", department)
        table = Table(
            box=box.SIMPLE_HEAD,
            title=f"Statement of {department}: {statement['requests']} requests",
            title_style="bold",
            title_justify="left",
        )
        for column in ("model", "meter", "count", "price", "amount"):
            table.add_column(column, justify="left" if column in {"model", "meter"} else "right")
        for line in statement["lines"]:
            table.add_row(*(line[c] for c in ("model", "meter", "count", "price", "amount")))
        console.print(table)
        balance = statement["balance"]
        console.print(
            f"  opening {balance['opening']}  + top-ups {balance['top_ups']}  "
            f"- charges {balance['charges']}  = closing {balance['closing']} USD"
        )
        lines = sum((Decimal(line["amount"]) for line in statement["lines"]), Decimal(0))
        costs = sum(
            (
                Decimal(e.usage["cost"])
                for e in demo.exchanges
                if e.department == department and e.usage
            ),
            Decimal(0),
        )
        demo.expect(
            lines == costs == Decimal(balance["charges"]),
            f"the statement of {department} says {lines}, the answers say {costs}",
        )


def _show_verdict(demo: Demo) -> None:
    verdict = demo.command("verify")
    console.print()
    for check in verdict["checks"]:
        is_good = not check["difference_count"]
        mark = ("holds   ", "green") if is_good else ("BROKEN  ", "bold red")
        console.print(Text.assemble(mark, (f"{check['invariant']}  ", "dim"), check["claim"]))
    demo.expect(verdict["holds"], "steelyard verify found differences")


def _save_transcript(demo: Demo, path: Path | None) -> None:
    if path is not None:
        exchanges = [vars(exchange) for exchange in demo.exchanges]
        path.write_text(json.dumps(exchanges, ensure_ascii=False, indent=2))


def _conclude(demo: Demo) -> int:
    console.print()
    for complaint in demo.complaints:
        console.print(Text(complaint, style="bold red"))
    if demo.complaints:
        return 1
    console.print(Text("every number agrees", style="bold green"))
    console.print("\nKeep it running with [bold]make serve[/], then make a key and ask:")
    # In one piece, so that it can be copied.
    print(
        "  curl http://127.0.0.1:8080/v1/chat/completions -H 'Authorization: Bearer sk-steelyard-…' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "What is the capital of France?"}]}\''
    )
    console.print(
        "README.md shows the commands that make the organisation, the key and the credit."
    )
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--data-dir", type=Path, help="a new folder that is kept; default: one that is removed"
    )
    parser.add_argument("--transcript", type=Path, help="write questions, answers and ids as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
