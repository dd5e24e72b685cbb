"""Settings: flags over ``GENWORKER_*`` over ``.env`` over ``config/genworker.toml`` over defaults.

Everything is checked here, once, and every fault names the file and the key. Secrets are read from the
environment or ``.env`` by the name that an endpoint's section gives, and are held as `SecretStr`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource

from genworker.core.completion import Sampling
from genworker.core.ids import seed_for
from genworker.core.stages import Stage
from genworker.errors import ConfigError, Fault
from genworker.project.endpoints import (
    KINDS,
    Access,
    AnyEndpoint,
    EndpointSettings,
    HttpSettings,
    carries,
    check_way,
    kind_of,
)
from genworker.project.sections import (
    SAMPLED,
    Dollars,
    LimitedSettings,
    NotBoolean,
    Positive,
    SamplingSettings,
    Seconds,
    Section,
    StageSettings,
)

DEFAULT_CONFIG = Path("config/genworker.toml")
ENV_FILE = Path(".env")
PREFIX = "GENWORKER_"


class ModelSettings(LimitedSettings):
    """One model of the catalogue, or one that only the configuration knows."""

    endpoint: str | None = None
    """The endpoint that serves this model; `default_endpoint` when left out."""
    model: str | None = None
    """The name that the endpoint knows, where the catalogue has another one."""
    stages: dict[Stage, SamplingSettings] = Field(default_factory=dict)
    """What is set for one stage only."""


class RetrySettings(Section):
    """How often a call is tried again, by what went wrong, and how long the pauses are."""

    transport: Annotated[int, NotBoolean, Field(ge=0, le=100)] = 5
    """Times that a call is tried again after an outage or a timeout."""
    rate_limit: Annotated[int, NotBoolean, Field(ge=0, le=1000)] | None = None
    """Times after "too many requests"; when left out, `max_wait_s` alone decides."""
    content: Annotated[int, NotBoolean, Field(ge=0, le=20)] = 2
    """Times after an answer that cannot be read; each may be billed."""
    base_s: Seconds = 1.0
    """The first pause; it doubles from try to try, with jitter."""
    cap_s: Seconds = 60.0
    """The longest pause that genworker chooses; an endpoint's hint is obeyed as it is."""
    max_wait_s: Annotated[float, NotBoolean, Field(ge=0, le=31_536_000)] = 600.0
    """A lane that is told to wait longer, or is refused for longer, is stopped."""
    breaker_calls: Annotated[int, NotBoolean, Field(ge=2, le=10_000)] = 20
    """When so many calls in a row fail, a lane is only probed."""
    outage_s: Annotated[float, NotBoolean, Field(ge=0, le=31_536_000)] = 90.0
    """A lane that is only probed is stopped after so long."""


class BatchSettings(Section):
    """Provider batches: how large they are, and how patient a run is with them."""

    max_rows: Annotated[int, NotBoolean, Field(ge=1, le=50_000)] = 2000
    """Rows of one batch, at most."""
    linger_s: Annotated[float, NotBoolean, Field(ge=0, le=86_400)] = 60.0
    """Seconds that written rows wait for more, while calls are out that may bring some."""
    poll_s: Seconds = 15.0
    """Seconds between looks at a young batch; they grow to twenty times as many."""
    settle_s: Annotated[float, NotBoolean, Field(ge=0, le=86_400)] = 120.0
    """Seconds for which a provider may still act on a call that broke off; sooner, none is sent again."""
    max_wait_s: Annotated[float, NotBoolean, Field(gt=0, le=2_592_000)] = 93_600.0
    """Seconds after which a batch that has not ended is cancelled, and what it has done is collected."""


class CapSettings(Section):
    """Hard caps over a cohort and all its restarts."""

    cost_usd: Dollars | None = None
    """US dollars, at most."""
    calls: Annotated[int, NotBoolean, Field(ge=0)] | None = None
    """Calls, at most."""
    tokens: Annotated[int, NotBoolean, Field(ge=0)] | None = None
    """Tokens of prompts and answers, at most."""


AnySection = typing.TypeVar("AnySection", bound=BaseModel)


class Settings(BaseSettings):
    """The whole configuration of one command."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
    )

    data_root: Path = Path("data")
    """The directory that holds catalogue, cohorts and generations."""
    default_endpoint: str | None = None
    """The endpoint of every model that names none."""
    max_concurrency: Positive = 1024
    """Calls in flight over all endpoints, at most."""
    drain_timeout_s: Seconds = 25.0
    """After the first Ctrl-C: how long answers in flight are waited for."""
    group_permissions: bool = False
    """Let the group read and write the store (0770, 0660) instead of you alone."""
    on_end: Annotated[list[str], Field(max_length=100)] = Field(default_factory=list)
    """A command with its arguments, run when a run has ended; it gets the summary as JSON on its input."""
    raw_copies: bool | list[Stage] = False
    """Also write each raw output to ``3_generation/<stage>_raw/<gen_id>.txt``: true, or a list of stages."""
    endpoints: dict[str, AnyEndpoint] = Field(default_factory=dict)
    """Servers that answer, by name."""
    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """What is set for models, by their ids of the catalogue."""
    stages: dict[Stage, StageSettings] = Field(default_factory=dict)
    """What is set for stages."""
    retries: RetrySettings = Field(default_factory=RetrySettings)
    """How often a call is tried again."""
    caps: CapSettings = Field(default_factory=CapSettings)
    """Hard caps over a cohort and all its runs."""
    batches: BatchSettings = Field(default_factory=BatchSettings)
    """Provider batches."""

    @property
    def stages_copied(self) -> frozenset[Stage]:
        """The stages whose raw outputs are copied beside the store."""
        return frozenset(
            (Stage if self.raw_copies else ()) if isinstance(self.raw_copies, bool) else self.raw_copies
        )

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
        secrets: variables of ``.env``, for keys; a variable of the process environment wins over them.
    """

    settings: Settings
    origins: Mapping[str, str]
    config: Path | None
    secrets: Mapping[str, SecretStr]
    _samplings: dict[tuple[Stage, str, str], tuple[Sampling, bool]] = field(default_factory=dict, repr=False)

    def scaled(self, share: Fraction) -> LoadedSettings:
        """The same with a part of every rate and of every number of calls at once; caps stay."""

        def part(section: AnySection) -> AnySection:
            changes: dict[str, float | int] = {}
            for name in ("rpm", "tpm"):
                if (rate := getattr(section, name)) is not None:
                    changes[name] = rate * share.numerator / share.denominator
            if (places := getattr(section, "max_concurrency", None)) is not None:
                changes["max_concurrency"] = max(1, int(places * share))
            return section.model_copy(update=changes)

        settings = self.settings.model_copy(
            update={
                "max_concurrency": max(1, int(self.settings.max_concurrency * share)),
                "endpoints": {name: part(section) for name, section in self.settings.endpoints.items()},
                "models": {name: part(section) for name, section in self.settings.models.items()},
            }
        )
        return replace(self, settings=settings)

    def origin(self, key: str) -> str:
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
        section = self.settings.endpoints[endpoint]
        name = section.api_key_env if isinstance(section, HttpSettings) else None
        if name is None:
            return None
        return SecretStr(self._variable(name, "endpoints", endpoint, "api_key_env"))

    def access(self, endpoint: str) -> Access:
        """The endpoint's key and headers.

        Raises:
            ConfigError: a variable that the endpoint names is not set, or holds what HTTP cannot carry.
        """
        section = self.settings.endpoints[endpoint]
        headers: dict[str, SecretStr] = {}
        for name, value in section.headers.items() if isinstance(section, HttpSettings) else ():
            if not isinstance(value, str):
                value = self._variable(value.env, "endpoints", endpoint, "headers", name)
            headers[name] = SecretStr(value)
        return Access(self.api_key(endpoint), headers)

    def _variable(self, name: str, *location: str) -> str:
        """The value of a variable of the environment or of ``.env``, fit to be a header's value."""
        value = os.environ.get(name) or (
            self.secrets[name].get_secret_value() if name in self.secrets else None
        )
        where = _at(self.origin(".".join(location)), *location)
        if not value or not value.strip():
            fix = f"export {name}=…, put it into ./.env, or try `make demo` (needs no key)"
            raise ConfigError([Fault(f"{name} is not set", where=where, fix=fix)])
        value = value.strip()
        if not carries(value):
            what = f"{name} holds a character that HTTP cannot carry (a quotation mark, a line end, …)"
            raise ConfigError([Fault(what, where=where, fix=f"set {name} anew, without it")])
        return value

    def endpoint_of(self, model_id: str) -> str | None:
        """The endpoint that serves a model; ``None`` when neither it nor a default is configured."""
        model = self.settings.models.get(model_id)
        name = (model.endpoint if model else None) or self.settings.default_endpoint
        return name if name in self.settings.endpoints else None

    def has_endpoint(self, name: str, kind: str, url: str | None) -> bool:
        """Whether there is a section of this name, and it is the same endpoint."""
        section = self.settings.endpoints.get(name)
        return section is not None and section.kind == kind and kind_of(section).address(section) == url

    def asks_in_batches(self, stage: Stage, model_id: str, endpoint: str) -> bool:
        """Whether a stage's rows of a model go into batches: the most specific section that says so."""
        said = [layer.batch for layer in self._layers(stage, model_id, endpoint) if layer.batch is not None]
        return bool(said) and said[-1]

    def _layers(self, stage: Stage, model_id: str, endpoint: str) -> list[SamplingSettings]:
        """The sections that speak of a call, the more specific one last."""
        settings = self.settings
        layers: list[SamplingSettings] = [settings.endpoints[endpoint]]
        if stage in settings.stages:
            layers.append(settings.stages[stage])
        model = settings.models.get(model_id)
        if model is not None:
            layers.append(model)
            if stage in model.stages:
                layers.append(model.stages[stage])
        return layers

    def sampling(
        self, stage: Stage, model_id: str, endpoint: str, gen_id: str, *, after: int | None = None
    ) -> Sampling:
        """The parameters of one call, the more specific section over the less specific one.

        Args:
            after: the seed of the answer that the call is to replace; `genworker.core.ids.seed_for`.
        """
        key = (stage, model_id, endpoint)
        found = self._samplings.get(key)
        if found is None:
            found = self._samplings[key] = self._sampling(*key)
        sampling, has_own_seed = found
        return replace(sampling, seed=seed_for(gen_id, after)) if has_own_seed else sampling

    def _sampling(self, stage: Stage, model_id: str, endpoint: str) -> tuple[Sampling, bool]:
        """What the sections say, and whether each generation is to have a seed of its own."""
        layers = self._layers(stage, model_id, endpoint)
        section = self.settings.endpoints[endpoint]
        kind = kind_of(section)
        defaults = {"seed": kind.takes_seed(section), "max_tokens": kind.default_max_tokens}
        chosen: dict[str, Any] = dict(defaults)
        extra: dict[str, Any] = {}
        for layer in layers:
            for name in SAMPLED[:-1]:
                value = getattr(layer, name)
                if name in layer.unset:
                    # What an API demands is sent all the same.
                    chosen[name] = None if name == "seed" else defaults.get(name)
                elif value is not None:
                    chosen[name] = value
            extra = {} if "extra_body" in layer.unset else _merge(extra, layer.extra_body)
        seed = chosen["seed"]
        sampling = Sampling(
            temperature=chosen.get("temperature"),
            top_p=chosen.get("top_p"),
            max_tokens=chosen["max_tokens"],
            stop=tuple(chosen.get("stop") or ()),
            seed=None if isinstance(seed, bool) else seed,
            system=chosen.get("system"),
            service_tier=chosen.get("service_tier"),
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
        _drop_replaced_kinds(merged, values)
        merged = _merge(merged, values)
        for key in _leaves(values):
            origins[key] = origin
    secrets = {
        name: SecretStr(value) for name, value in dotenv.items() if value and not name.startswith(PREFIX)
    }
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        faults.extend(_fault(item, origins, path, merged) for item in error.errors(include_url=False))
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
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def _drop_replaced_kinds(under: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Where a source gives an endpoint another kind, take out what only its former kind has.

    So ``GENWORKER_ENDPOINTS__X__KIND=scripted`` tries a cohort out without another file.
    """
    sections, changed = under.get("endpoints"), over.get("endpoints")
    if not isinstance(sections, dict) or not isinstance(changed, Mapping):
        return
    for name, values in changed.items():
        section = sections.get(name)
        if not isinstance(section, dict) or not isinstance(values, Mapping):
            continue
        kind, former = KINDS.get(str(values.get("kind"))), KINDS.get(str(section.get("kind")))
        if kind is not None and former is not None and kind is not former:
            own = set(former.settings.model_fields) - set(kind.settings.model_fields)
            sections[name] = {key: value for key, value in section.items() if key not in own}


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


def _fault(item: Any, origins: Mapping[str, str], path: Path | None, merged: Mapping[str, Any]) -> Fault:
    location = [str(part) for part in item["loc"] if part not in ("bool", "int", "[key]")]
    if location[:1] == ["endpoints"] and len(location) > 2 and location[2] in KINDS:
        del location[2]  # which of the classes of `AnyEndpoint` it was
    dotted = ".".join(location)
    if item["type"].startswith("union_tag_"):
        location.append("kind")
    origin = origins.get(dotted) or next(
        (origin for key, origin in origins.items() if key.startswith(f"{dotted}.")),
        str(path or DEFAULT_CONFIG),
    )
    what, fix = str(item["msg"]).removeprefix("Value error, "), None
    if item["type"] == "extra_forbidden":
        what = f"unknown key {location[-1]!r}"
        what, fix = _unknown_key(location, merged) or (
            what,
            _suggestion(location[-1], _fields_at(location[:-1], merged)),
        )
    elif item["type"] in ("missing", "union_tag_not_found"):
        what = f"the key {location[-1]!r} is missing"
        if location[-1] == "kind":
            fix = f"one of: {', '.join(KINDS)}"
    elif item["type"] == "union_tag_invalid":
        known = ", ".join(repr(kind) for kind in KINDS)
        what = f"kind: {item['ctx']['tag']!r} is none of {known}"
    else:
        what = f"{location[-1] if location else 'the configuration'}: {what}"
    return Fault(what, where=_at(origin, *location), fix=fix)


def _unknown_key(location: list[str], merged: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what, fix) for a key of an endpoint that another kind of endpoint has."""
    if len(location) != 3 or location[0] != "endpoints":
        return None
    key, kind = location[2], merged["endpoints"][location[1]].get("kind")
    owners = [name for name, facts in KINDS.items() if key in facts.settings.model_fields]
    if not owners:
        return None
    return (
        f"{key!r} is a key of kind {' and '.join(repr(name) for name in owners)}, not of {kind!r}",
        "take it out, or correct the kind",
    )


def _at(origin: str, *location: str) -> str:
    """A section of the configuration, as people find it: ``FILE [section] key``."""
    *section, key = location
    return f"{origin} [{'.'.join(section)}] {key}" if section else f"{origin} {key}"


def _fields_at(location: list[str], merged: Mapping[str, Any]) -> Mapping[str, FieldInfo]:
    """The fields of the section at a path of the configuration."""
    model: type[BaseModel] = Settings
    inside_mapping = False
    values: Any = merged
    for part in location:
        values = values.get(part) if isinstance(values, Mapping) else None
        if inside_mapping:
            inside_mapping = False
            kind = values.get("kind") if isinstance(values, Mapping) else None
            if model is EndpointSettings and isinstance(kind, str) and kind in KINDS:
                model = KINDS[kind].settings
            continue
        info = model.model_fields.get(part)
        if info is None:
            break
        candidate: Any = info.annotation
        if typing.get_origin(candidate) is dict:
            inside_mapping = True
            candidate = typing.get_args(candidate)[1]
            if part == "endpoints" and model is Settings:
                candidate = EndpointSettings
        if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
            break
        model = candidate
    return model.model_fields


def _sampling_sections(settings: Settings) -> Iterator[tuple[list[str], SamplingSettings]]:
    """Every section that says how answers are drawn, with its path."""
    for name, endpoint in settings.endpoints.items():
        yield ["endpoints", name], endpoint
    for stage, demands in settings.stages.items():
        yield ["stages", stage.value], demands
    for model_id, model in settings.models.items():
        yield ["models", model_id], model
        for stage, section in model.stages.items():
            yield ["models", model_id, "stages", stage.value], section


def _replacing_fields(loaded: LoadedSettings) -> Iterator[Fault]:
    """Fields of ``extra_body`` that the adapter writes: price and metadata would speak of others."""
    settings = loaded.settings
    every = frozenset[str]().union(*(kind_of(section).own_fields for section in settings.endpoints.values()))
    for location, section in _sampling_sections(settings):
        own = kind_of(section).own_fields if isinstance(section, EndpointSettings) else every
        for name in section.extra_body:
            if name not in own:
                continue
            key = {"stop_sequences": "stop"}.get(name, name)
            yield Fault(
                f"extra_body may not hold {name!r}: genworker writes it itself",
                where=_at(loaded.origin(".".join([*location, "extra_body", name])), *location, "extra_body"),
                fix=f"set {key} in this section" if key in SAMPLED else "take it out",
            )


def _ways(loaded: LoadedSettings, name: str, section: HttpSettings) -> Iterator[Fault]:
    """What is wrong with an endpoint's addresses."""
    ways = {"base_url": section.base_url, "base_urls": section.base_urls, "serve": section.serve}
    said = [key for key, value in ways.items() if value]
    places = {key: _at(loaded.origin(f"endpoints.{name}.{key}"), "endpoints", name, key) for key in said}
    if len(said) > 1:
        what = f"{' and '.join(said)}: one of them says where the endpoint is"
        yield Fault(what, where=places[said[-1]], fix=f"leave {' or '.join(said)} out")
    several = section.base_urls if isinstance(section.base_urls, list) else []
    for key, url in [("base_url", section.base_url), *(("base_urls", url) for url in several)]:
        if url is None:
            continue
        try:
            check_way(section, url)
        except ValueError as error:
            what, _, fix = str(error).partition("; ")
            yield Fault(what, where=places[key], fix=fix)


def _cross_check(loaded: LoadedSettings) -> Iterator[Fault]:
    settings = loaded.settings
    yield from _replacing_fields(loaded)
    names = settings.endpoints
    there = ", ".join(names) or "none yet"
    if settings.default_endpoint is not None and settings.default_endpoint not in names:
        yield Fault(
            f"default_endpoint names {settings.default_endpoint!r}, which has no section",
            where=_at(loaded.origin("default_endpoint"), "default_endpoint"),
            fix=f"add [endpoints.{settings.default_endpoint}], or name one of: {there}",
        )
    for name, endpoint in names.items():
        if isinstance(endpoint, HttpSettings):
            yield from _ways(loaded, name, endpoint)
        found = kind_of(endpoint).fault(endpoint)
        if found is not None:
            key, fault = found
            where = _at(loaded.origin(f"endpoints.{name}.{key}"), "endpoints", name, key)
            yield replace(fault, where=where)
    for section, limited in (("endpoints", names), ("models", settings.models)):
        for name, facts in limited.items():
            if facts.fallback_endpoint is not None and facts.fallback_endpoint not in names:
                yield Fault(
                    f"fallback_endpoint names {facts.fallback_endpoint!r}, which has no section",
                    where=_at(
                        loaded.origin(f"{section}.{name}.fallback_endpoint"),
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
                where=_at(loaded.origin(f"models.{model_id}.endpoint"), "models", model_id, "endpoint"),
                fix=f"add [endpoints.{model.endpoint}], or name one of: {there}",
            )
