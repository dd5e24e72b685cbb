from __future__ import annotations

from pathlib import Path

import pytest

from genworker.core.stages import Stage
from genworker.errors import ConfigError
from genworker.project.endpoints import HttpSettings
from genworker.project.settings import LoadedSettings, load_settings
from support.project import write

GOOD = """
default_endpoint = "router"
[endpoints.router]
kind = "openai"
base_url = "https://router.example/v1"
api_key_env = "ROUTER_KEY"
max_concurrency = 7
temperature = 0.9
extra_body = { provider = { order = ["a"] }, top_k = 4 }
[models."m-1"]
max_tokens = 100
extra_body = { top_k = 8 }
[models."m-1".stages.evaluation]
temperature = 0.0
[stages.evaluation]
temperature = 0.1
max_tokens = 50
stop = ["END"]
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ROUTER_KEY", "GENWORKER_DATA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def load(text: str = GOOD) -> LoadedSettings:
    write(Path("config/genworker.toml"), text)
    return load_settings()


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def test_without_any_file_there_are_defaults() -> None:
    loaded = load_settings()
    assert loaded.settings.data_root == Path("data")
    assert loaded.settings.max_concurrency == 1024
    assert loaded.config is None


def test_flags_go_over_environment_over_dotenv_over_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'data_root = "from-file"\nmax_concurrency = 1\ndrain_timeout_s = 1.0\n' + GOOD
    write(
        Path(".env"),
        "GENWORKER_DATA_ROOT=from-dotenv\nGENWORKER_MAX_CONCURRENCY=2\nGENWORKER_DRAIN_TIMEOUT_S=2\n",
    )
    monkeypatch.setenv("GENWORKER_DATA_ROOT", "from-environment")
    monkeypatch.setenv("GENWORKER_MAX_CONCURRENCY", "3")
    write(Path("config/genworker.toml"), text)
    loaded = load_settings(flags={"data_root": "from-flag"})
    assert loaded.settings.data_root == Path("from-flag")
    assert loaded.settings.max_concurrency == 3
    assert loaded.settings.drain_timeout_s == 2
    assert loaded.origins["data_root"] == "flag"
    assert loaded.origins["max_concurrency"] == "environment"
    assert loaded.origins["drain_timeout_s"] == ".env"
    assert loaded.origins["endpoints.router.kind"] == "config/genworker.toml"


def test_nested_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENWORKER_ENDPOINTS__ROUTER__MAX_CONCURRENCY", "99")
    assert load().settings.endpoints["router"].max_concurrency == 99
    assert load().settings.endpoints["router"].kind == "openai"


def test_the_more_specific_section_decides() -> None:
    loaded = load()
    draft = loaded.sampling(Stage.DRAFT, "m-1", "router", "g")
    assert (draft.temperature, draft.max_tokens, draft.stop) == (0.9, 100, ())
    assert draft.extra_body == {"provider": {"order": ["a"]}, "top_k": 8}
    evaluation = loaded.sampling(Stage.EVALUATION, "m-1", "router", "g")
    assert (evaluation.temperature, evaluation.max_tokens, evaluation.stop) == (0.0, 100, ("END",))
    other = loaded.sampling(Stage.EVALUATION, "m-2", "router", "g")
    assert (other.temperature, other.max_tokens) == (0.1, 50)


def test_a_seed_is_sent_only_where_it_is_asked_for_or_known_to_be_taken() -> None:
    assert load().sampling(Stage.DRAFT, "x", "router", "g").seed is None
    known = GOOD.replace("router.example", "openrouter.ai")
    assert load(known).sampling(Stage.DRAFT, "x", "router", "g").seed is not None
    fake = 'default_endpoint = "f"\n[endpoints.f]\nkind = "scripted"\n'
    assert load(fake).sampling(Stage.DRAFT, "x", "f", "g").seed is not None


def test_the_seed_is_the_generations_own_unless_configured() -> None:
    loaded = load(GOOD.replace("temperature = 0.9", "temperature = 0.9\nseed = true"))
    assert loaded.sampling(Stage.DRAFT, "x", "router", "g1").seed is not None
    assert loaded.sampling(Stage.DRAFT, "x", "router", "g1") == loaded.sampling(
        Stage.DRAFT, "x", "router", "g1"
    )
    assert load(GOOD + "seed = false\n").sampling(Stage.EVALUATION, "x", "router", "g").seed is None
    assert load(GOOD + "seed = 5\n").sampling(Stage.EVALUATION, "x", "router", "g").seed == 5


def test_anthropic_gets_no_seed_and_always_a_limit() -> None:
    loaded = load('default_endpoint = "a"\n[endpoints.a]\nkind = "anthropic"\n')
    sampling = loaded.sampling(Stage.DRAFT, "m", "a", "g")
    assert sampling.seed is None
    assert sampling.max_tokens == 8192


def test_keys_come_from_the_environment_or_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path(".env"), "ROUTER_KEY=sk-from-dotenv\n")
    key = load().api_key("router")
    assert key is not None
    assert key.get_secret_value() == "sk-from-dotenv"
    monkeypatch.setenv("ROUTER_KEY", "sk-from-environment")
    key = load().api_key("router")
    assert key is not None
    assert key.get_secret_value() == "sk-from-environment"
    assert "sk-from" not in repr(load())


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("openai", "https://h.example/v1/chat/completions", "https://h.example/v1"),
        ("openai", "https://h.example/v1/", "https://h.example/v1"),
        (
            "openai",
            "https://h.example/d/x/chat/completions?api-version=1",
            "https://h.example/d/x?api-version=1",
        ),
        ("anthropic", "https://h.example/v1/messages", "https://h.example"),
        ("anthropic", "https://h.example/v1", "https://h.example"),
        ("anthropic", "https://h.example/gate/v1/?a=b", "https://h.example/gate?a=b"),
    ],
)
def test_an_address_that_was_pasted_whole_is_mended(kind: str, given: str, kept: str) -> None:
    section = load(f'[endpoints.a]\nkind = "{kind}"\nbase_url = "{given}"\n').settings.endpoints["a"]
    assert isinstance(section, HttpSettings)
    assert section.base_url == kept


def test_a_header_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD.replace("temperature = 0.9", 'headers = { "api-key" = { env = "AZURE" }, "X-T" = "plain" }')
    monkeypatch.setenv("ROUTER_KEY", "sk-1")
    with pytest.raises(ConfigError, match="AZURE is not set"):
        load(text).access("router")
    monkeypatch.setenv("AZURE", " from-environment ")
    access = load(text).access("router")
    assert {name: value.get_secret_value() for name, value in access.headers.items()} == {
        "api-key": "from-environment",
        "X-T": "plain",
    }
    assert "from-environment" not in repr(access)


@pytest.mark.parametrize("key", ["sk-\u201cabc\u201d", "sk-abc\nX-Evil: 1", "sk-\x1b[31m"])
def test_a_key_that_http_cannot_carry_is_one_sentence_without_the_key(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROUTER_KEY", key)
    with pytest.raises(ConfigError) as caught:
        load().api_key("router")
    assert "ROUTER_KEY holds a character that HTTP cannot carry" in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_missing_key_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError) as caught:
        load().api_key("router")
    message = str(caught.value)
    assert "ROUTER_KEY is not set" in message
    assert "config/genworker.toml [endpoints.router] api_key_env" in message
    assert "export ROUTER_KEY=" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            GOOD.replace("max_concurrency", "max_concurency"),
            ["[endpoints.router]", "did you mean max_concurrency?"],
        ),
        ("data_rot = 'x'\n", ["unknown key 'data_rot'", "did you mean data_root?"]),
        (
            GOOD.replace("temperature = 0.0", "temprature = 0.0"),
            ["[models.m-1.stages.evaluation]", "temperature"],
        ),
        (GOOD.replace('kind = "openai"', 'kind = "gemini"'), ["kind: 'gemini'", "'openai', 'anthropic'"]),
        (GOOD.replace('kind = "openai"\n', ""), ["the key 'kind' is missing", "[endpoints.router]"]),
        (GOOD.replace("max_concurrency = 7", "max_concurrency = 0"), ["greater than or equal to 1"]),
        (GOOD.replace("https://", "http://"), ["plain http to router.example", "allow_http = true"]),
        (GOOD.replace("https://", "ftp://"), ["must be an http or https address"]),
        (GOOD.replace("https://", "https://user:secret@"), ["holds a user or password"]),
        (GOOD.replace("example/v1", "example/v1/responses"), ["ends in /responses", "base_url"]),
        (GOOD.replace("top_p = 1", "").replace("example/v1", "exa mple/v1"), ["holds a space", "base_url"]),
        (
            GOOD.replace("temperature = 0.9", 'headers = { "X-Title" = "Ähnlichkeit" }'),
            ["the value of X-Title holds what no header can carry", "[endpoints.router] headers"],
        ),
        (
            GOOD.replace("temperature = 0.9", 'headers = { "X Title" = "a" }'),
            ["'X Title' is none that HTTP knows"],
        ),
        (GOOD.replace("temperature = 0.9", 'ca_file = "no.pem"'), ["there is no file 'no.pem'", "ca_file"]),
        (GOOD.replace('base_url = "https://router.example/v1"\n', ""), ["has no base_url"]),
        (GOOD.replace('default_endpoint = "router"', 'default_endpoint = "rooter"'), ["'rooter'", "router"]),
        (GOOD.replace("max_tokens = 100", 'endpoint = "nowhere"'), ["'nowhere'", "[models.m-1] endpoint"]),
        ("a = [\n", ["not valid TOML", "config/genworker.toml"]),
        ('[endpoints.l]\nkind = "local"\nmodel_path = "no.gguf"\n', ["no model file 'no.gguf'"]),
        (
            GOOD.replace("max_concurrency = 7", "latency_s = 7"),
            ["'latency_s' is a key of kind 'scripted', not of 'openai'", "[endpoints.router] latency_s"],
        ),
        (GOOD.replace("max_tokens = 100", "max_tokens = true"), ["max_tokens: must be a number, not true"]),
        (
            GOOD.replace("temperature = 0.1", "temperature = false"),
            ["temperature: must be a number, not fal"],
        ),
        (GOOD.replace("top_k = 8", 'model = "x"'), ["may not hold 'model'", "[models.m-1] extra_body"]),
        (GOOD.replace("top_k = 4", "temperature = 1"), ["'temperature'", "set temperature in this section"]),
        (GOOD.replace("temperature = 0.1", 'temperature = "hot"'), ["[stages.evaluation] temperature"]),
    ],
)
def test_what_is_wrong_is_named_with_file_key_and_mend(text: str, expected: list[str]) -> None:
    message = refused(text)
    for part in [*expected, "config/genworker.toml"]:
        assert part in message
    assert "user:secret" not in message


def test_unset_takes_away_what_a_wider_section_set() -> None:
    loaded = load(
        GOOD.replace("max_tokens = 100", 'max_tokens = "unset"\ntemperature = "unset"\nstop = "unset"')
    )
    draft = loaded.sampling(Stage.DRAFT, "m-1", "router", "g")
    assert (draft.temperature, draft.max_tokens) == (None, None)
    evaluation = loaded.sampling(Stage.EVALUATION, "m-1", "router", "g")
    assert (evaluation.temperature, evaluation.max_tokens, evaluation.stop) == (0.0, None, ())
    other = loaded.sampling(Stage.EVALUATION, "m-2", "router", "g")
    assert (other.temperature, other.max_tokens, other.stop) == (0.1, 50, ("END",))


def test_a_limit_that_an_api_demands_cannot_be_taken_away() -> None:
    loaded = load('[endpoints.a]\nkind = "anthropic"\nmax_tokens = 9\n[models.m]\nmax_tokens = "unset"\n')
    assert loaded.sampling(Stage.DRAFT, "m", "a", "g").max_tokens == 8192


def test_all_faults_come_at_once() -> None:
    message = refused(
        GOOD.replace("max_concurrency", "max_concurency").replace("max_tokens = 50", "max_tokens = 0")
    )
    assert "max_concurency" in message
    assert "max_tokens" in message


def test_another_kind_from_the_environment_leaves_the_keys_of_the_former_kind_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GENWORKER_ENDPOINTS__ROUTER__KIND", "scripted")
    section = load().settings.endpoints["router"]
    assert (section.kind, section.max_concurrency, section.temperature) == ("scripted", 7, 0.9)


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENWORKER_MAX_CONCURENCY", "3")
    with pytest.raises(ConfigError, match="unknown setting GENWORKER_MAX_CONCURENCY"):
        load_settings()


def test_plain_http_may_go_to_this_machine_or_where_it_is_allowed() -> None:
    assert load(GOOD.replace("https://router.example", "http://127.0.0.1:8000"))
    assert load(GOOD.replace("https://router.example", "http://localhost:8000"))
    assert load(GOOD.replace("https://", "http://").replace("kind =", "allow_http = true\nkind ="))


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_settings(Path("nope.toml"))
