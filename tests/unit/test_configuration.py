"""The configuration file: what it may say, and how its mistakes are told."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from steelyard.app.configuration import (
    ConfigurationInvalid,
    ConfigurationMalformed,
    ConfigurationUnreadable,
    CredentialMissing,
    read_configuration,
    read_credential,
)
from steelyard.entrypoints.cli.main import application
from steelyard.errors import SteelyardError
from steelyard.gateway.routing.rules import UpstreamRules
from steelyard.gateway.upstreams.kinds import KINDS
from steelyard.settings import SettingsInvalid, read_settings

GOOD = """
gateway_port = 9090

[upstreams.local]
kind = "vllm"
url = "http://10.0.0.7:8000"

[upstreams.openai]
kind = "openai"
key_env = "OPENAI_KEY_OF_THE_TEST"
timeouts = { first_token_s = 20 }

[models.small]
aliases = ["gpt-3.5-turbo"]
fallbacks = ["large"]
deployments = [{ upstream = "local", model = "qwen", weight = 3 }, { upstream = "local" }]

[models."gpt-4.1"]
context_tokens = 1_000_000
deployments = [{ upstream = "openai" }]

[models.large]
choice = "least_busy"
context_tokens = 128000
deployments = [{ upstream = "openai", model = "gpt-4o" }]

[routing.retries]
attempts_max = 3
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "steelyard.toml"
    path.write_text(text)
    return path


def test_a_file_says_upstreams_models_and_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, GOOD)
    monkeypatch.setenv("STEELYARD_CONFIG", str(path))

    rules = read_configuration(path).rules

    assert rules is not None
    assert list(rules.models) == ["small", "gpt-4.1", "large"]
    assert rules.models["small"].deployments[0].weight == 3
    assert rules.upstreams["openai"].timeouts.first_token_s == 20
    assert rules.routing.retries.attempts_max == 3
    assert read_settings().gateway_port == 9090


def test_a_file_of_settings_alone_has_no_rules(tmp_path: Path) -> None:
    assert read_configuration(_file(tmp_path, "gateway_port = 9090")).rules is None


MISTAKES = [
    ("kind = \"vllm\"", "kind = \"vlm\"", "line 5, upstreams.local.kind: Invalid enum value 'vlm'"),
    ("weight = 3", "weight = 0", "line 16, models.small.deployments[0].weight: Expected `int` >= 1"),
    ("weight = 3", "wait = 3", "models.small.deployments[0].wait: Object contains unknown field"),
    ("attempts_max", "attempt", "line 28, routing.retries.attempt: Object contains unknown field"),
    ('{ upstream = "local" }', '{ upstream = "lokal" }', "line 16, models.small.deployments: there"),
    ('fallbacks = ["large"]', 'fallbacks = ["lage"]', "line 15, models.small.fallbacks: there is no"),
    ('fallbacks = ["large"]', 'fallbacks = ["small"]', "a model cannot fall back on itself"),
    ('["gpt-3.5-turbo"]', '["large"]', "line 14, models.small.aliases: 'large' is already the name"),
    ("context_tokens = 128000\n", "", "line 22, models.large.context_tokens: is needed"),
    ('url = "http://10.0.0.7:8000"', "", "line 4, upstreams.local.url: an upstream of kind vllm"),
    ("http://10.0.0.7:8000", "10.0.0.7:8000", "must begin with http:// or https://"),
    ("http://10.0.0.7:8000", "http://me:secret@10.0.0.7", "must have no user, query or fragment"),
    ('key_env = "O', 'key_file = "x"\nkey_env = "O', "line 10, upstreams.openai.key_file: give key"),
    ("timeouts = {", "paths = ['/v2']\ntimeouts = {", "line 11, upstreams.openai.paths: '/v2' is"),
    (":8000", ":80000", "line 6, upstreams.local.url: has a host or a port that cannot be"),
    ("10.0.0.7", "rack..lan", "line 6, upstreams.local.url: has a host or a port that cannot be"),
    ('url = "http', 'api_version = "1"\nurl = "http', "line 6, upstreams.local.api_version: only an"),
    ("timeouts = { first_token_s = 20 }", "timeouts = { first_token_s = 0 }", "line 11, upstreams.open"),
]  # fmt: skip


@pytest.mark.parametrize(("good", "bad", "told"), MISTAKES)
def test_a_mistake_is_told_with_its_line_and_path(
    good: str, bad: str, told: str, tmp_path: Path
) -> None:
    path = _file(tmp_path, GOOD.replace(good, bad, 1))
    assert good in GOOD

    with pytest.raises(ConfigurationInvalid) as raised:
        read_configuration(path)

    assert told in str(raised.value)
    assert "secret" not in str(raised.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path, GOOD.replace('"vllm"', '"vlm"').replace("weight = 3", "weight = -3"))

    with pytest.raises(ConfigurationInvalid) as raised:
        read_configuration(path)

    assert "upstreams.local.kind" in str(raised.value)
    assert "models.small.deployments[0].weight" in str(raised.value)


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationMalformed, match="at line 2, column"):
        read_configuration(_file(tmp_path, "[upstreams.a]\nkind = vllm\n"))
    with pytest.raises(ConfigurationUnreadable):
        read_configuration(tmp_path / "nowhere.toml")


def test_tables_of_routing_are_no_settings_and_other_tables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _file(tmp_path, GOOD + "\n[upstream.other]\nkind = 'vllm'\n")
    monkeypatch.setenv("STEELYARD_CONFIG", str(path))

    with pytest.raises(SettingsInvalid, match="upstream: "):
        read_settings()


def test_a_key_comes_from_the_environment_or_a_file_and_is_never_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-the-file\n")
    (tmp_path / "broken").write_text("hidden\nsecond line\n")
    from_file = UpstreamRules(kind="openai", key_file=str(tmp_path / "key"))
    from_environment = UpstreamRules(kind="openai", key_env="KEY")
    broken = UpstreamRules(kind="openai", key_file=str(tmp_path / "broken"))

    found = [
        read_credential("one", rules, {"KEY": "from-the-environment"})
        for rules in (from_file, from_environment, UpstreamRules(kind="vllm"))
    ]

    assert found == ["from-the-file", "from-the-environment", None]
    with pytest.raises(CredentialMissing, match=r"upstreams\.one\.key_env: KEY is not set"):
        read_credential("one", from_environment, {})
    with pytest.raises(CredentialMissing) as raised:
        read_credential("one", broken, {})
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "url", "api_url"),
    [
        ("vllm", "http://host:8000", "http://host:8000/v1"),
        ("vllm", "http://host:8000/v1/", "http://host:8000/v1"),
        ("engine", "http://host/engine", "http://host/engine/v1"),
        ("openai-compatible", "https://host/api/v1", "https://host/api/v1"),
        ("openai-compatible", "https://host/api/paas/v4", "https://host/api/paas/v4"),
        ("openai-compatible", "https://host", "https://host/v1"),
        ("azure-openai", "https://it.openai.azure.com", "https://it.openai.azure.com/openai/v1"),
    ],
)
def test_a_url_is_what_openai_clients_call_base_url(kind: str, url: str, api_url: str) -> None:
    assert KINDS[kind].api_url(url) == api_url  # type: ignore[index]


def test_the_command_checks_a_file_and_its_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(_file(tmp_path, GOOD))
    monkeypatch.setenv("STEELYARD_CONFIG", "")
    command = ["config", "check", path, "--json"]

    missing = CliRunner().invoke(application, command)
    without = CliRunner().invoke(application, [*command, "--without-keys"])
    monkeypatch.setenv("OPENAI_KEY_OF_THE_TEST", "sk-never-told")
    checked = CliRunner().invoke(application, command)

    assert isinstance(missing.exception, SteelyardError)
    assert missing.exception.code == "credential_missing"
    assert without.exit_code == checked.exit_code == 0
    assert '"upstream_model": "qwen"' in checked.output
    assert "sk-never-told" not in checked.output


@pytest.mark.parametrize("url", ["engine:8000", "ftp://engine", "http://", "http://me@engine"])
def test_an_address_of_the_engine_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsInvalid, match="engine_url: "):
        read_settings(engine_url=url)

    assert read_settings(engine_url="http://engine:8000/").engine_address == "http://engine:8000/"
