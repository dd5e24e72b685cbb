"""Settings: flags over ``GENWORKER_*`` over ``.env`` over ``config/genworker.toml`` over defaults.

Everything is checked here, once, and every fault names the file and the key. Secrets are read from the
environment or ``.env`` by the name that an endpoint's section gives, and are held as `SecretStr`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource

from genworker.core.completion import Sampling
from genworker.core.ids import seed_for
from genworker.core.stages import Stage
from genworker.errors import ConfigError, Fault

DEFAULT_CONFIG = Path("config/genworker.toml")
ENV_FILE = Path(".env")
PREFIX = "GENWORKER_"
ANTHROPIC_MAX_TOKENS = 8192
"""Anthropic's API demands a limit; this one is sent when none is configured."""

LOCAL_SLOTS = 4
"""Answers that a model on this machine writes at the same time, unless configured."""

Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSettings(_Section):
    """How answers are drawn; may stand in an endpoint, a stage, a model, or a model's stage.

    The more specific wins: a model's stage over the model over the stage over the endpoint.
    ``extra_body`` is merged key by key.
    """

    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Positive | None = None
    stop: list[str] | None = None
    seed: bool | int | None = None
    system: str | None = None
    extra_body: dict[str, Any] = Field(default_factory=dict)


class PriceSettings(_Section):
    """US dollars per million tokens; over what genai-prices knows. Nothing is priced by default."""

    input: Annotated[Decimal, Field(ge=0)]
    output: Annotated[Decimal, Field(ge=0)]
    cache_read: Annotated[Decimal, Field(ge=0)] | None = None
    cache_write: Annotated[Decimal, Field(ge=0)] | None = None
    per_call: Annotated[Decimal, Field(ge=0)] = Decimal(0)


class _Limited(SamplingSettings):
    """What may stand in an endpoint's and in a model's section.

    ``rpm`` and ``tpm`` are requests and tokens per minute; without them they are learned. The fallback
    gets the rows that are refused for good: another endpoint, or another model of the same one.
    """

    rpm: Annotated[float, Field(gt=0)] | None = None
    tpm: Annotated[float, Field(gt=0)] | None = None
    price: PriceSettings | None = None
    fallback_endpoint: str | None = None
    fallback_model: str | None = None


class EndpointSettings(_Limited):
    """A server that answers calls."""

    kind: Literal["openai", "anthropic", "local", "scripted"]
    base_url: str | None = None
    api_key_env: str | None = None
    max_concurrency: Positive = 256
    timeout_s: Seconds = 600.0
    headers: dict[str, str] = Field(default_factory=dict)
    allow_http: bool = False
    use_env_proxy: bool = False
    prompt_cache: bool = True
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    model_path: Path | None = None
    context_tokens: Positive = 2048
    latency_s: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _few_slots(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "local":
            return {"max_concurrency": LOCAL_SLOTS, **values}
        return values

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return value
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an http or https address such as https://openrouter.ai/api/v1")
        if parts.username or parts.password:
            raise ValueError(
                "holds a user or password; put the key into a variable and name it in api_key_env"
            )
        return value


class ModelSettings(_Limited):
    """One model of the catalogue, or one that only the configuration knows."""

    endpoint: str | None = None
    model: str | None = None
    stages: dict[Stage, SamplingSettings] = Field(default_factory=dict)


class RetrySettings(_Section):
    """How often a call is tried again, by what went wrong, and how long the pauses are."""

    transport: Annotated[int, Field(ge=0, le=100)] = 5
    rate_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    content: Annotated[int, Field(ge=0, le=20)] = 2
    base_s: Seconds = 1.0
    cap_s: Seconds = 60.0
    max_wait_s: Annotated[float, Field(ge=0, le=31_536_000)] = 600.0
    breaker_calls: Annotated[int, Field(ge=2, le=10_000)] = 20
    outage_s: Annotated[float, Field(ge=0, le=31_536_000)] = 90.0


class CapSettings(_Section):
    """Hard caps over a cohort and all its restarts."""

    cost_usd: Annotated[Decimal, Field(ge=0)] | None = None
    calls: Annotated[int, Field(ge=0)] | None = None
    tokens: Annotated[int, Field(ge=0)] | None = None


class Settings(BaseSettings):
    """The whole configuration of one command."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    data_root: Path = Path("data")
    default_endpoint: str | None = None
    max_concurrency: Positive = 1024
    drain_timeout_s: Seconds = 25.0
    group_permissions: bool = False
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    stages: dict[Stage, SamplingSettings] = Field(default_factory=dict)
    retries: RetrySettings = Field(default_factory=RetrySettings)
    caps: CapSettings = Field(default_factory=CapSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: Any,
        env_settings: Any,
        dotenv_settings: Any,
        file_secret_settings: Any,
    ) -> tuple[Any, ...]:
        """Only what is passed in: `load_settings` draws the sources itself, to know each value's origin."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Checked settings and where each came from.

    Attributes:
        origins: dotted key to ``flag``, ``environment``, ``.env`` or the file's name; a key that is not
            there has its default.
        config: the file that was read; ``None`` when there is none.
        secrets: variables of ``.env``, for keys; the process environment goes before them.
    """

    settings: Settings
    origins: Mapping[str, str]
    config: Path | None
    secrets: Mapping[str, SecretStr]
    _samplings: dict[tuple[Stage, str, str], tuple[Sampling, bool]] = field(default_factory=dict, repr=False)

    def place(self, key: str) -> str:
        """Where a value came from, for messages."""
        while key:
            if key in self.origins:
                return self.origins[key]
            inside = [origin for name, origin in self.origins.items() if name.startswith(f"{key}.")]
            if inside:
                return inside[0]
            key = key.rpartition(".")[0]
        return str(self.config or DEFAULT_CONFIG)

    def api_key(self, endpoint: str) -> SecretStr | None:
        """The endpoint's key; ``None`` for an endpoint that needs none.

        Raises:
            ConfigError: the variable that the endpoint names is not set.
        """
        name = self.settings.endpoints[endpoint].api_key_env
        if name is None:
            return None
        value = os.environ.get(name) or (
            self.secrets[name].get_secret_value() if name in self.secrets else None
        )
        if not value:
            raise ConfigError(
                [
                    Fault(
                        f"{name} is not set",
                        where=_at(
                            self.place(f"endpoints.{endpoint}.api_key_env"),
                            "endpoints",
                            endpoint,
                            "api_key_env",
                        ),
                        fix=f"export {name}=…, put it into ./.env, or try `make demo` (needs no key)",
                    )
                ]
            )
        return SecretStr(value.strip())

    def endpoint_of(self, model_id: str) -> str | None:
        """The endpoint that serves a model; ``None`` when neither it nor a default is configured."""
        model = self.settings.models.get(model_id)
        name = (model.endpoint if model else None) or self.settings.default_endpoint
        return name if name in self.settings.endpoints else None

    def sampling(self, stage: Stage, model_id: str, endpoint: str, gen_id: str) -> Sampling:
        """The parameters of one call, the more specific section over the less specific one."""
        key = (stage, model_id, endpoint)
        found = self._samplings.get(key)
        if found is None:
            found = self._samplings[key] = self._sampling(*key)
        sampling, has_own_seed = found
        return replace(sampling, seed=seed_for(gen_id)) if has_own_seed else sampling

    def _sampling(self, stage: Stage, model_id: str, endpoint: str) -> tuple[Sampling, bool]:
        """What the sections say, and whether each generation is to have a seed of its own."""
        settings = self.settings
        layers: list[SamplingSettings] = [settings.endpoints[endpoint]]
        if stage in settings.stages:
            layers.append(settings.stages[stage])
        model = settings.models.get(model_id)
        if model is not None:
            layers.append(model)
            if stage in model.stages:
                layers.append(model.stages[stage])
        kind = settings.endpoints[endpoint].kind
        chosen: dict[str, Any] = {
            "seed": kind != "anthropic",
            "max_tokens": ANTHROPIC_MAX_TOKENS if kind == "anthropic" else None,
        }
        extra: dict[str, Any] = {}
        for layer in layers:
            for name in ("temperature", "top_p", "max_tokens", "stop", "seed", "system"):
                value = getattr(layer, name)
                if value is not None:
                    chosen[name] = value
            extra = _merge(extra, layer.extra_body)
        seed = chosen["seed"]
        sampling = Sampling(
            temperature=chosen.get("temperature"),
            top_p=chosen.get("top_p"),
            max_tokens=chosen["max_tokens"],
            stop=tuple(chosen.get("stop") or ()),
            seed=None if isinstance(seed, bool) else seed,
            system=chosen.get("system"),
            extra_body=extra,
        )
        return sampling, seed is True


def load_settings(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> LoadedSettings:
    """Read and check all sources.

    Args:
        config: the file that the user named; ``config/genworker.toml`` is read when there is one.
        flags: values from the command line, by dotted-free top-level key.

    Raises:
        ConfigError: every fault at once, with file and key.
    """
    faults: list[Fault] = []
    if config is not None and not config.is_file():
        raise ConfigError(
            [Fault("there is no such configuration file", where=str(config), fix="correct --config")]
        )
    path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None)
    from_file = _read_toml(path) if path is not None else {}
    dotenv = {} if not ENV_FILE.is_file() else dotenv_values(ENV_FILE, interpolate=False)
    sources: list[tuple[str, dict[str, Any]]] = [(str(path), from_file)]
    variables: list[tuple[str, Mapping[str, Any], Callable[[], dict[str, Any]]]] = [
        (str(ENV_FILE), dotenv, lambda: DotEnvSettingsSource(Settings, env_file=ENV_FILE)()),
        ("environment", os.environ, lambda: EnvSettingsSource(Settings)()),
    ]
    for origin, names, source in variables:
        faults.extend(_unknown_variables(origin, names))
        try:
            values = source()
        except Exception as error:  # noqa: BLE001 (pydantic-settings wraps a bad value in its own types)
            faults.append(Fault(f"a {PREFIX} variable cannot be read: {error}", where=origin))
            continue
        sources.append((origin, {key: values[key] for key in values if key in Settings.model_fields}))
    sources.append(("flag", dict(flags or {})))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in sources:
        merged = _merge(merged, values)
        for key in _leaves(values):
            origins[key] = origin
    secrets = {
        name: SecretStr(value) for name, value in dotenv.items() if value and not name.startswith(PREFIX)
    }
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        faults.extend(_fault(item, origins, path) for item in error.errors(include_url=False))
        raise ConfigError(faults, title="the configuration is refused") from None
    loaded = LoadedSettings(settings, origins, path, secrets)
    faults.extend(_cross_check(loaded))
    if faults:
        raise ConfigError(faults, title="the configuration is refused")
    return loaded


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([Fault(f"not valid TOML: {error}", where=str(path))]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            [Fault(f"not UTF-8: {error.reason}", where=str(path), fix="save it as UTF-8")]
        ) from None
    except OSError as error:
        raise ConfigError([Fault(f"cannot be read: {error.strerror}", where=str(path))]) from None


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(under)
    for key, value in over.items():
        held = result.get(key)
        both = isinstance(held, Mapping) and isinstance(value, Mapping)
        result[key] = _merge(held, value) if both else value  # type: ignore[arg-type]
    return result


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _unknown_variables(origin: str, names: Mapping[str, Any]) -> Iterator[Fault]:
    for name in names:
        key = name.upper()
        if not key.startswith(PREFIX):
            continue
        head = key.removeprefix(PREFIX).partition("__")[0].lower()
        if head not in Settings.model_fields:
            yield Fault(f"unknown setting {name}", where=origin, fix=_suggestion(head, Settings.model_fields))


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known here: {', '.join(known)}"


def _fault(item: Any, origins: Mapping[str, str], path: Path | None) -> Fault:
    location = [str(part) for part in item["loc"] if part not in ("bool", "int", "[key]")]
    dotted = ".".join(location)
    origin = origins.get(dotted) or next(
        (origin for key, origin in origins.items() if key.startswith(f"{dotted}.")),
        str(path or DEFAULT_CONFIG),
    )
    what, fix = str(item["msg"]).removeprefix("Value error, "), None
    if item["type"] == "extra_forbidden":
        what = f"unknown key {location[-1]!r}"
        fix = _suggestion(location[-1], _fields_at(location[:-1]))
    elif item["type"] == "missing":
        what = f"the key {location[-1]!r} is missing"
    else:
        what = f"{location[-1] if location else 'the configuration'}: {what}"
    return Fault(what, where=_at(origin, *location), fix=fix)


def _at(origin: str, *location: str) -> str:
    """A place in the configuration, as people find it: ``FILE [section] key``."""
    *section, key = location
    return f"{origin} [{'.'.join(section)}] {key}" if section else f"{origin} {key}"


def _fields_at(location: list[str]) -> Mapping[str, FieldInfo]:
    """The fields of the section at a place of the configuration."""
    model: type[BaseModel] = Settings
    inside_mapping = False
    for part in location:
        if inside_mapping:
            inside_mapping = False
            continue
        info = model.model_fields.get(part)
        if info is None:
            break
        arguments = typing.get_args(info.annotation)
        if typing.get_origin(info.annotation) is dict:
            inside_mapping = True
            candidate = arguments[1]
        else:
            candidate = info.annotation
        if isinstance(candidate, types.UnionType) or not (
            isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ):
            break
        model = candidate
    return model.model_fields


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str | None) -> bool:
    """Whether an address stays on this machine."""
    return host is not None and (host in _LOOPBACK or host.startswith("127."))


def _cross_check(loaded: LoadedSettings) -> Iterator[Fault]:
    settings = loaded.settings
    names = settings.endpoints
    there = ", ".join(names) or "none yet"
    if settings.default_endpoint is not None and settings.default_endpoint not in names:
        yield Fault(
            f"default_endpoint names {settings.default_endpoint!r}, which has no section",
            where=_at(loaded.place("default_endpoint"), "default_endpoint"),
            fix=f"add [endpoints.{settings.default_endpoint}], or name one of: {there}",
        )
    for name, endpoint in names.items():
        where = _at(loaded.place(f"endpoints.{name}.base_url"), "endpoints", name, "base_url")
        if endpoint.base_url is not None:
            parts = urlsplit(endpoint.base_url)
            if parts.scheme == "http" and not is_loopback(parts.hostname) and not endpoint.allow_http:
                yield Fault(
                    f"plain http to {parts.hostname}: the key and the prompts would travel unencrypted",
                    where=where,
                    fix="use https, or set allow_http = true in this section if the network is yours",
                )
        elif endpoint.kind == "openai":
            yield Fault(
                f"the endpoint {name!r} has no base_url",
                where=where,
                fix='such as base_url = "https://api.openai.com/v1"',
            )
        if endpoint.kind == "local" and endpoint.model_path is not None and not endpoint.model_path.is_file():
            yield Fault(
                f"there is no model file {str(endpoint.model_path)!r}",
                where=_at(loaded.place(f"endpoints.{name}.model_path"), "endpoints", name, "model_path"),
                fix="name a GGUF file, or leave model_path out to use the embedded model",
            )
    for section, limited in (("endpoints", names), ("models", settings.models)):
        for name, facts in limited.items():
            if facts.fallback_endpoint is not None and facts.fallback_endpoint not in names:
                yield Fault(
                    f"fallback_endpoint names {facts.fallback_endpoint!r}, which has no section",
                    where=_at(
                        loaded.place(f"{section}.{name}.fallback_endpoint"),
                        section,
                        name,
                        "fallback_endpoint",
                    ),
                    fix=f"add [endpoints.{facts.fallback_endpoint}], or name one of: {there}",
                )
    for model_id, model in settings.models.items():
        if model.endpoint is not None and model.endpoint not in names:
            yield Fault(
                f"the model {model_id!r} names the endpoint {model.endpoint!r}, which has no section",
                where=_at(loaded.place(f"models.{model_id}.endpoint"), "models", model_id, "endpoint"),
                fix=f"add [endpoints.{model.endpoint}], or name one of: {there}",
            )
