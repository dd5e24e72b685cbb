"""Kinds of endpoint: one table says what each is, and no other module asks for a kind by its name.

To add one: a settings class with its ``kind``, an entry in `KINDS`, and its class in `AnyEndpoint`.
A test holds the three together. Adapters, and the SDKs behind them, are imported when one is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, Self
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_validator

from genworker.core.completion import Sampling
from genworker.errors import ConfigError, Fault
from genworker.ports import BatchProvider, ModelLister, Provider
from genworker.project.sections import LimitedSettings, NotBoolean, Positive, Seconds, Section

if TYPE_CHECKING:
    from genworker.providers.anthropic import AnthropicProvider
    from genworker.providers.openai import OpenAIProvider

ANTHROPIC_MAX_TOKENS = 8192
"""Anthropic's API demands a limit; this one is sent when none is configured."""
ANTHROPIC_URL = "https://api.anthropic.com"
LOCAL_SLOTS = 4
"""Answers that a model on this machine writes at the same time, unless configured."""


class EndpointSettings(LimitedSettings):
    """What every kind of endpoint has."""

    kind: str
    """What the endpoint speaks: a key of the table of kinds."""
    max_concurrency: Positive = 256
    """Calls in flight, at most; genworker finds what is right below it."""
    timeout_s: Seconds = 600.0
    """Seconds from sending a call to the last byte of its answer."""


class FromEnvironment(Section):
    """A value that stands in a variable of the environment or of ``.env``."""

    env: str
    """The variable's name."""


def is_loopback(host: str | None) -> bool:
    """Whether an address stays on this machine."""
    try:
        return host == "localhost" or (host is not None and ip_address(host).is_loopback)
    except ValueError:
        return False


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def carries(value: str) -> bool:
    """Whether HTTP can carry a text as a header's value: visible ASCII and single spaces or tabs between."""
    return value.isascii() and all(char.isprintable() or char == "\t" for char in value)


class HttpSettings(EndpointSettings):
    """A server that is asked over HTTP."""

    base_url: str | None = None
    """The address of the API, with its version path where it has one; a query is kept."""
    base_urls: list[str] | Path | None = None
    """Several servers of the same models, in place of `base_url`: their addresses, or a file that holds one
    a line and is read again every 10 s."""
    serve: Annotated[list[str], Field(max_length=1000)] = Field(default_factory=list)
    """A command with its arguments that starts such a server here, ``{port}`` where its port is to stand."""
    serve_count: Annotated[int, NotBoolean, Field(ge=1, le=1000)] = 1
    """How many of them the run starts, each on a port of its own."""
    serve_ready_s: Seconds = 600.0
    """Seconds that one may take from its start until it answers."""
    serve_resources: dict[str, Annotated[float, NotBoolean, Field(gt=0, le=1_000_000)]] = Field(
        default_factory=dict
    )
    """With ``--engine ray``: what a worker needs of its host for these servers, such as ``{ gpu = 1 }``."""
    query: dict[str, str] = Field(default_factory=dict)
    """Parameters that are added to the address of every request, such as ``api-version``."""
    api_key_env: str | None = None
    """The variable that holds the key; left out for a server without one."""
    headers: dict[str, str | FromEnvironment] = Field(default_factory=dict)
    """Headers of every request; a value may come from a variable: ``{ env = "NAME" }``."""
    allow_http: bool = False
    """Allow plain http to another machine than this one."""
    use_env_proxy: bool = False
    """Go through the proxy that the environment names."""
    ca_file: Path | None = None
    """A file of certificates (PEM) that are trusted besides the system's: for an authority of your own."""

    endings: ClassVar[tuple[str, ...]] = ()
    """Ends of a path that the adapter adds itself; people paste addresses whole."""

    @field_validator("base_url")
    @classmethod
    def _one_url(cls, value: str | None) -> str | None:
        return value if value is None else cls.plain_url(value)

    @field_validator("base_urls")
    @classmethod
    def _plain_urls(cls, value: list[str] | Path | None) -> list[str] | Path | None:
        if not isinstance(value, list):
            return value
        urls = [cls.plain_url(url) for url in value]
        if not urls or len(set(urls)) < len(urls):
            raise ValueError("names no server" if not urls else "names a server twice")
        return urls

    @field_validator("serve")
    @classmethod
    def _has_port(cls, value: list[str]) -> list[str]:
        if value and not any("{port}" in part for part in value[1:]):
            raise ValueError('no argument holds {port}; such as ["llama-server", "--port", "{port}"]')
        return value

    @property
    def is_several(self) -> bool:
        """Whether the endpoint is a list of servers rather than one address."""
        return self.base_urls is not None or bool(self.serve)

    def at(self, url: str) -> Self:
        """The same section for one of its servers."""
        return self.model_copy(update={"base_url": url, "base_urls": None, "serve": []})

    @classmethod
    def plain_url(cls, value: str) -> str:
        """An address as it is used.

        Raises:
            ValueError: it is none.
        """
        parts = urlsplit(value.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address such as https://openrouter.ai/api/v1")
        if parts.username or parts.password:
            raise ValueError(
                "holds a user or password; put the key into a variable and name it in api_key_env"
            )
        if not value.strip().isascii() or any(char.isspace() for char in value.strip()):
            raise ValueError("holds a space or a letter that no address may hold")
        path = parts.path.rstrip("/")
        for ending in cls.endings:
            path = path.removesuffix(ending).rstrip("/")
        for other in ("/responses", "/completions", "/embeddings", "/complete"):
            if path.endswith(other):
                raise ValueError(f"ends in {other}, another API; give the address that stands before it")
        return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))

    @field_validator("headers")
    @classmethod
    def _plain_headers(cls, value: dict[str, str | FromEnvironment]) -> dict[str, str | FromEnvironment]:
        for name, text in value.items():
            if not _HEADER_NAME.fullmatch(name):
                raise ValueError(f"the header name {name!r} is none that HTTP knows")
            if isinstance(text, str) and not carries(text):
                raise ValueError(f"the value of {name} holds what no header can carry: write plain ASCII")
        return value

    @field_validator("ca_file")
    @classmethod
    def _is_there(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {str(value)!r}")
        return value


class OpenAISettings(HttpSettings):
    """A server that speaks Chat Completions."""

    kind: Literal["openai"]
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    """The name of the answer's limit; api.openai.com gets the newer one by itself."""
    endings: ClassVar[tuple[str, ...]] = ("/chat/completions",)


class AnthropicSettings(HttpSettings):
    """A server that speaks Anthropic's Messages."""

    kind: Literal["anthropic"]
    prompt_cache: bool = True
    """Ask for a prompt cache where prompts share a long beginning."""
    endings: ClassVar[tuple[str, ...]] = ("/messages", "/v1")


class LocalSettings(EndpointSettings):
    """A model inside this process."""

    kind: Literal["local"]
    max_concurrency: Positive = LOCAL_SLOTS
    """Answers that it writes at the same time."""
    model_path: Path | None = None
    """Another model than the embedded one, as a GGUF file."""
    context_tokens: Positive = 2048
    """The longest prompt and answer together."""


class ScriptedSettings(EndpointSettings):
    """A fake that answers with words."""

    kind: Literal["scripted"]
    latency_s: Annotated[float, NotBoolean, Field(ge=0)] = 0.0
    """Seconds that an answer takes."""


AnyEndpoint = Annotated[
    OpenAISettings | AnthropicSettings | LocalSettings | ScriptedSettings, Field(discriminator="kind")
]


@dataclass(frozen=True, slots=True)
class Access:
    """What opens an endpoint's door; secret.

    Attributes:
        key: ``None`` for a server without one.
        headers: with the values that came from the environment.
    """

    key: SecretStr | None = None
    headers: Mapping[str, SecretStr] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EndpointKind:
    """What one kind of endpoint is.

    Attributes:
        settings: the class of its section.
        make: its adapter, from the section and what opens it; `ConfigError` when it cannot be made.
        default_url: where it is when the section has no ``base_url``; ``None``: one must be given, or the
            kind has no address.
        is_free: whether its answers cost nothing unless a price is configured.
        takes_seed: whether a seed is sent where the configuration says nothing of it.
        has_prompt_cache: whether its prompt cache has to be asked for.
        default_max_tokens: the limit that is sent when none is configured; ``None``: none is sent.
        own_fields: the fields of the request that the adapter writes: ``extra_body`` must not hold them.
        bounds: further fields of ``extra_body`` that bound the answer's tokens, dotted where they are nested.
        copies: fields of ``extra_body`` that ask for several answers at once.
        fault: what is wrong with a section, beyond its single keys: (key, fault without a place).
        models: its list of models, from the section and what opens it; ``None`` for a kind that is no server.
        has_version: whether its address ends with a version, such as ``/v1``, that is easily left out.
        batches: its adapter for batches, from the section and the key; ``None`` for a kind without.
        batch_marks: whether a listing of batches shows whose they are.
        halves: hosts that are known to take half for a batch, and nothing for what expires or is cancelled.
        tiers: what part of the price its service tiers cost, where nothing more exact is known.
        served_path: what stands behind the address of a server that a run starts (see `HttpSettings.serve`).
        halves_cache: whether that holds for prompt tokens that are read from a cache as well.
    """

    settings: type[EndpointSettings]
    make: Callable[[Any, Access], Provider]
    default_url: str | None = None
    is_free: bool = False
    takes_seed: Callable[[Any], bool] = lambda section: False
    has_prompt_cache: Callable[[Any], bool] = lambda section: False
    default_max_tokens: int | None = None
    own_fields: frozenset[str] = frozenset()
    bounds: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    fault: Callable[[Any], tuple[str, Fault] | None] = lambda section: None
    models: Callable[[Any, Access], ModelLister] | None = None
    has_version: bool = False
    batches: Callable[[Any, Access], BatchProvider] | None = None
    batch_marks: bool = False
    tiers: Mapping[str, Decimal] = field(default_factory=dict)
    halves: frozenset[str] = frozenset()
    halves_cache: bool = False
    served_path: str = ""

    def is_known_to_halve(self, section: EndpointSettings) -> bool:
        """Whether the endpoint's host is one whose terms for batches are known."""
        return urlsplit(self.address(section) or "").hostname in self.halves

    def address(self, section: EndpointSettings) -> str | None:
        """The endpoint's base address; ``None`` for a kind that is not asked over a network."""
        if not isinstance(section, HttpSettings):
            return None
        return section.base_url if section.is_several else section.base_url or self.default_url

    def takes_batches(self, section: EndpointSettings) -> bool:
        """Whether the endpoint can be asked in batches: several servers do not share one."""
        is_several = isinstance(section, HttpSettings) and section.is_several
        return self.batches is not None and not is_several

    def longest_answer(self, sampling: Sampling) -> int | None:
        """The most tokens that a call's answers may have together; ``None``: nothing limits them."""
        extra = sampling.extra_body
        if not extra:
            return sampling.max_tokens
        limits = [sampling.max_tokens, *(_number_at(extra, name) for name in self.bounds)]
        # The largest: which of several an endpoint heeds is its own affair.
        known = [limit for limit in limits if limit is not None]
        if not known:
            return None
        copies = [_number_at(extra, name) or 1 for name in self.copies]
        return max(known) * max([1, *copies])


def _number_at(record: Mapping[str, Any], dotted: str) -> int | None:
    value: Any = record
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return (
        int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
    )


def _way(section: HttpSettings, base_url: str, access: Access) -> dict[str, Any]:
    """What the adapters of servers have in common; the query of the address stands apart from it."""
    parts = urlsplit(base_url)
    return {
        "base_url": urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")),
        "query": {**dict(parse_qsl(parts.query, keep_blank_values=True)), **section.query},
        "api_key": access.key,
        "headers": access.headers,
        "use_env_proxy": section.use_env_proxy,
        "ca_file": section.ca_file,
    }


def _make_openai(section: OpenAISettings, access: Access) -> OpenAIProvider:
    from genworker.providers.openai import OpenAIProvider

    assert section.base_url is not None, "checked with the settings"
    way = _way(section, section.base_url, access)
    return OpenAIProvider(**way, max_tokens_field=section.max_tokens_field)


def _make_anthropic(section: AnthropicSettings, access: Access) -> AnthropicProvider:
    from genworker.providers.anthropic import AnthropicProvider

    return AnthropicProvider(**_way(section, section.base_url or ANTHROPIC_URL, access))


def _openai_batches(section: OpenAISettings, access: Access) -> BatchProvider:
    from genworker.providers.openai_batches import OpenAIBatches

    live = _make_openai(section, access)
    free = KINDS["openai"].is_known_to_halve(section)
    return OpenAIBatches(live, timeout_s=section.timeout_s, is_free_when_lapsed=free)


def _anthropic_batches(section: AnthropicSettings, access: Access) -> BatchProvider:
    from genworker.providers.anthropic_batches import AnthropicBatches

    live = _make_anthropic(section, access)
    free = KINDS["anthropic"].is_known_to_halve(section)
    return AnthropicBatches(live, timeout_s=section.timeout_s, is_free_when_lapsed=free)


def _scripted_batches(section: ScriptedSettings, _access: Access) -> BatchProvider:
    from genworker.providers.scripted import ScriptedBatches

    return ScriptedBatches(section.latency_s)


def _make_local(section: LocalSettings, _access: Access) -> Provider:
    from genworker.providers.local import LocalProvider

    return LocalProvider(
        section.model_path, slots=section.max_concurrency, context_tokens=section.context_tokens
    )


def _make_scripted(section: ScriptedSettings, _access: Access) -> Provider:
    from genworker.providers.scripted import ScriptedProvider

    return ScriptedProvider(latency_s=section.latency_s)


def _openai_fault(section: OpenAISettings) -> tuple[str, Fault] | None:
    if section.base_url is not None or section.is_several:
        return None
    fault = Fault("the endpoint has no base_url", fix='such as base_url = "https://api.openai.com/v1"')
    return "base_url", fault


def _local_fault(section: LocalSettings) -> tuple[str, Fault] | None:
    if section.model_path is None or section.model_path.is_file():
        return None
    fault = Fault(
        f"there is no model file {str(section.model_path)!r}",
        fix="name a GGUF file, or leave model_path out to use the embedded model",
    )
    return "model_path", fault


SEED_HOSTS: Final = frozenset({"api.openai.com", "openrouter.ai"})
"""Public servers of Chat Completions whose documentation has ``seed``. Some others refuse it."""

_CHAT_FIELDS = frozenset(
    {
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "stop",
        "seed",
        "service_tier",
        "stream",
        "stream_options",
    }
)
_CHAT_BOUNDS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_new_tokens",
    "n_predict",  # llama.cpp
    "num_predict",
    "options.num_predict",  # Ollama
    "reasoning.max_tokens",
    "thinking.budget_tokens",
    "thinking_budget",
)

KINDS: Final[Mapping[str, EndpointKind]] = {
    "openai": EndpointKind(
        OpenAISettings,
        _make_openai,
        takes_seed=lambda section: urlsplit(section.base_url or "").hostname in SEED_HOSTS,
        own_fields=_CHAT_FIELDS,
        bounds=_CHAT_BOUNDS,
        copies=("n", "best_of"),
        fault=_openai_fault,
        models=_make_openai,
        has_version=True,
        batches=_openai_batches,
        batch_marks=True,
        tiers={"flex": Decimal("0.5"), "priority": Decimal(2), "fast": Decimal(2), "ultrafast": Decimal(6)},
        halves=frozenset({"api.openai.com"}),
        served_path="/v1",
    ),
    "anthropic": EndpointKind(
        AnthropicSettings,
        _make_anthropic,
        default_url=ANTHROPIC_URL,
        has_prompt_cache=lambda section: bool(section.prompt_cache),
        default_max_tokens=ANTHROPIC_MAX_TOKENS,
        own_fields=frozenset(
            {
                "model",
                "messages",
                "system",
                "temperature",
                "top_p",
                "max_tokens",
                "stop_sequences",
                "service_tier",
                "stream",
            }
        ),
        # A gateway may hand the body on to another API.
        bounds=("max_completion_tokens", "thinking.budget_tokens"),
        models=_make_anthropic,
        batches=_anthropic_batches,
        halves=frozenset({"api.anthropic.com"}),
        halves_cache=True,
    ),
    "local": EndpointKind(
        LocalSettings,
        _make_local,
        is_free=True,
        takes_seed=lambda section: True,
        own_fields=_CHAT_FIELDS,
        bounds=_CHAT_BOUNDS,
        copies=("n",),
        fault=_local_fault,
    ),
    "scripted": EndpointKind(
        ScriptedSettings,
        _make_scripted,
        is_free=True,
        takes_seed=lambda section: True,
        bounds=_CHAT_BOUNDS,
        batches=_scripted_batches,
    ),
}
"""Every kind, by the word that stands in ``kind``."""


def check_way(section: HttpSettings, url: str) -> None:
    """Refuse an address that a key must not travel to.

    Raises:
        ValueError: plain http to another machine.
    """
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname) and not section.allow_http:
        raise ValueError(
            f"plain http to {parts.hostname}: the key and the prompts would travel unencrypted; "
            "use https, or set allow_http = true in this section if the network is yours"
        )


def read_urls(section: HttpSettings) -> list[str]:
    """The servers of a section with ``base_urls``.

    Raises:
        ConfigError: the file cannot be read, or a line of it is no address.
    """
    if not isinstance(section.base_urls, Path):
        return section.base_urls or []
    path = section.base_urls
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        fault = Fault(f"cannot be read: {error}", where=str(path), fix="write an address a line into it")
        raise ConfigError([fault]) from None
    urls: dict[str, None] = {}
    faults = []
    for number, line in enumerate(lines, start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        try:
            url = section.plain_url(text)
            check_way(section, url)
        except ValueError as error:
            faults.append(Fault(f"{text[:200]!r} {error}", where=str(path), line=number, fix="correct it"))
        else:
            urls[url] = None
    if not urls and not faults:
        faults.append(Fault("names no server", where=str(path), fix="write an address a line into it"))
    if faults:
        raise ConfigError(faults)
    return list(urls)


def kind_of(section: EndpointSettings) -> EndpointKind:
    """What an endpoint is, from its section."""
    return KINDS[section.kind]
