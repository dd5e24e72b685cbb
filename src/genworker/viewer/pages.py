"""What each address of the live view shows. Every text of the store is escaped by the templates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)

from genworker.core.ids import id_fault
from genworker.core.stages import STAGES, Stage
from genworker.core.visible import visible
from genworker.errors import StoreError
from genworker.paths import PARSED_FILE, RAW_FILE
from genworker.reports.differences import compare
from genworker.reports.prose import prose
from genworker.store.ratings import (
    Choice,
    Rating,
    RatingError,
    check_rater,
    write_choice,
    write_rating,
)
from genworker.viewer.guard import PAGE_HEADERS
from genworker.viewer.metrics import metrics_text
from genworker.viewer.queries import SORTS, Filter, FilterError, Found, Queries, Row
from genworker.viewer.queue import queue_name, rating_queue
from genworker.viewer.state import LOOK_EVERY_S, SHOWN_CHARS, Viewer, read_text

MAX_FORM_BYTES = 16_384


async def not_found(_request: Request, _error: Exception) -> Response:
    """The answer to an address that names nothing."""
    return PlainTextResponse("there is nothing at this address\n", 404, headers=PAGE_HEADERS)


class Pages:
    """One method for each address; `make_app` says which."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer

    async def cohorts(self, _request: Request) -> Response:
        """Every cohort with its bars."""
        found = await run_in_threadpool(self.viewer.cohorts)
        return self.viewer.page("cohorts.html", cohorts=found, reload_s=5)

    async def static(self, request: Request) -> Response:
        """The script and the style sheet."""
        found = _static(request.path_params["name"])
        if found is None:
            return await not_found(request, Exception())
        content, kind = found
        return Response(content, media_type=kind, headers={**PAGE_HEADERS, "Cache-Control": "max-age=60"})

    async def cohort(self, request: Request) -> Response:
        """One cohort, live."""
        cohort = request.path_params["cohort"]
        try:
            live = await run_in_threadpool(self.viewer.live, cohort)
        except KeyError:
            return self._unknown(cohort)
        return self.viewer.page(
            "cohort.html", cohort=cohort, here="cohort", events="events", reload_s=5, **live
        )

    async def live(self, request: Request) -> Response:
        """The part of a cohort's page that changes while a run goes on."""
        cohort = request.path_params["cohort"]
        try:
            live = await run_in_threadpool(self.viewer.live, cohort)
        except KeyError:
            return self._unknown(cohort)
        return self.viewer.page("live.html", cohort=cohort, **live)

    async def events(self, request: Request) -> Response:
        """Server-sent events: one ``changed`` whenever something has, at most one a second."""
        background = self.viewer.background

        async def stream() -> AsyncIterator[bytes]:
            seen, silent = -1, 0.0
            while not await request.is_disconnected():
                if background.version != seen or self.viewer.index.progress.is_building:
                    seen, silent = background.version, 0.0
                    yield b"event: changed\ndata: %d\n\n" % seen
                elif silent >= 15.0:  # so that both sides notice a connection that is gone
                    silent = 0.0
                    yield b": here\n\n"
                await asyncio.sleep(LOOK_EVERY_S)
                silent += LOOK_EVERY_S

        return StreamingResponse(stream(), media_type="text/event-stream", headers=PAGE_HEADERS)

    def _unknown(self, cohort: str) -> Response:
        if self.viewer.index.progress.is_building:
            return self.viewer.page("cohorts.html", 404, cohorts=[], reload_s=2)
        name = visible(cohort, limit=100, one_line=True)
        return PlainTextResponse(f"there is no cohort {name} in this view\n", 404, headers=PAGE_HEADERS)

    # The report

    async def report(self, request: Request) -> Response:
        """The report, or word that it is being made."""
        cohort = request.path_params["cohort"]
        try:
            with self.viewer.queries(cohort):
                pass
        except KeyError:
            return self._unknown(cohort)
        report = self.viewer.report(cohort)
        for _ in range(20):  # a small one is there in a moment
            if report.is_done or report.has_page:
                break
            await asyncio.sleep(0.1)
        if report.has_page:
            return RedirectResponse("report.html", 303, headers=PAGE_HEADERS)
        return self.viewer.page(
            "report.html",
            cohort=cohort,
            here="report",
            trouble=report.trouble,
            reload_s=0 if report.trouble else 2,
        )

    async def report_file(self, request: Request) -> Response:
        """A page or a table of the report."""
        cohort, name = request.path_params["cohort"], request.path_params["name"]
        report = self.viewer.report(cohort) if cohort in self.viewer._reports else None
        if report is None:
            return RedirectResponse(f"{self.viewer.root}c/{quote(cohort, safe='')}/report/", 303)
        parts = name.split("/")
        if len(parts) > 2 or any(id_fault(part) for part in parts):
            return await not_found(request, Exception())
        path = report.directory.joinpath(*parts)
        if path.is_symlink() or not path.is_file():
            return await not_found(request, Exception())
        # Each page of a report carries a policy of its own, with the digest of its style sheet.
        headers = {name: value for name, value in PAGE_HEADERS.items() if name != "Content-Security-Policy"}
        return FileResponse(path, headers=headers)

    # Rows

    async def rows(self, request: Request) -> Response:
        """A table of rows: search, filters, sorting."""
        cohort = request.path_params["cohort"]
        asked = Filter.from_address(request.query_params)

        def find() -> tuple[Found, list[tuple[str, list[str]]], str]:
            with self.viewer.queries(cohort) as queries:
                fields = [
                    ("stage", [stage.value for stage in STAGES]),
                    ("state", ["failed", *queries.choices("state")]),
                    *(
                        (name, queries.choices(name))
                        for name in ("template", "draft_template", "essay_template", "model", "author")
                    ),
                ]
                try:
                    return queries.find(asked), fields, ""
                except FilterError as error:
                    return Found([], 0), fields, str(error)

        try:
            found, fields, trouble = await run_in_threadpool(find)
        except KeyError:
            return self._unknown(cohort)
        return self.viewer.page(
            "rows.html",
            400 if trouble else 200,
            cohort=cohort,
            here="rows",
            asked=asked,
            found=found,
            fields=fields,
            sorts=[name for key in SORTS for name in ((key,) if key == "plan" else (key, f"-{key}"))],
            trouble=trouble,
        )

    async def rows_csv(self, request: Request) -> Response:
        """The same rows as CSV, all pages of them."""
        cohort = request.path_params["cohort"]
        asked = Filter.from_address(request.query_params)
        try:
            with self.viewer.queries(cohort) as queries:
                queries.find(asked)
        except KeyError:
            return self._unknown(cohort)
        except FilterError as error:
            return PlainTextResponse(f"{error}\n", 400, headers=PAGE_HEADERS)

        def pieces() -> Iterator[str]:
            with self.viewer.queries(cohort) as queries:
                yield from queries.csv(asked)

        headers = {**PAGE_HEADERS, "Content-Disposition": 'attachment; filename="rows.csv"'}
        return StreamingResponse(pieces(), media_type="text/csv", headers=headers)

    async def generation(self, request: Request) -> Response:
        """One generation with its lineage and its files."""
        cohort, stage_name, gen_id = (request.path_params[name] for name in ("cohort", "stage", "gen_id"))
        if stage_name not in {stage.value for stage in STAGES} or id_fault(gen_id) is not None:
            return await not_found(request, Exception())
        stage = Stage(stage_name)

        def look() -> dict[str, Any] | None:
            with self.viewer.queries(cohort) as queries:
                row = queries.one(stage_name, gen_id)
                if row is None:
                    return None
                lineage: list[Row] = []
                above = row
                while (
                    above.parent is not None
                    and (parent := STAGES[Stage(above.stage).order].parent) is not None
                ):
                    found = queries.one(parent.value, above.parent)
                    if found is None:
                        break
                    lineage.insert(0, found)
                    above = found
                parent = stage.parent
                other = None if row.other is None or parent is None else queries.one(parent.value, row.other)
                replicates = [one for one in queries.replicates(row) if one.gen_id != gen_id]
                children = queries.children(gen_id, stage_name)
            ids = [f"{stage_name}/{gen_id}", *(f"{one.stage}/{one.gen_id}" for one in replicates[:3])]
            with_parent = [f"{lineage[-1].stage}/{lineage[-1].gen_id}", ids[0]] if lineage else []
            before = self.viewer.aside(stage, gen_id)
            pair = [f"{one.stage}/{one.gen_id}" for one in (*lineage[-1:], other) if one is not None]
            return {
                "row": row,
                "lineage": lineage,
                "other": other,
                "winner": {"first": row.parent, "second": row.other}.get(row.choice or ""),
                "compare_pair": _ids(pair) if len(pair) == 2 else "",
                "children": children,
                "compare_replicates": _ids(ids) if replicates else "",
                "compare_parent": _ids(with_parent) if with_parent and not stage.is_scored else "",
                "compare_before": _ids([f"aside/{stage_name}/{gen_id}/{before[0].name}", ids[0]])
                if before
                else "",
                "texts": self.viewer.texts(stage, gen_id),
            }

        try:
            found = await run_in_threadpool(look)
        except KeyError:
            return self._unknown(cohort)
        if found is None:
            return await not_found(request, Exception())
        return self.viewer.page("generation.html", cohort=cohort, here="rows", **found)

    async def compare(self, request: Request) -> Response:
        """Two to four texts side by side."""
        cohort = request.path_params["cohort"]
        ids = request.query_params.getlist("id")[:4]

        def look() -> tuple[list[_Side], str]:
            if len(ids) < 2:
                return [], "tick two to four rows, then compare"
            with self.viewer.queries(cohort) as queries:
                return _sides(self.viewer, queries, ids)

        try:
            sides, trouble = await run_in_threadpool(look)
        except KeyError:
            return self._unknown(cohort)
        return self.viewer.page(
            "compare.html", 400 if trouble else 200, cohort=cohort, here="rows", sides=sides, trouble=trouble
        )

    # Ratings

    async def rate(self, request: Request) -> Response:
        """What a rater is shown next."""
        return await run_in_threadpool(self._rate, request.path_params["cohort"], request.query_params)

    def _rate(self, cohort: str, asked: Mapping[str, str]) -> Response:
        rater, mode = asked.get("rater", "").strip(), asked.get("mode", "score")
        seed = _whole(asked.get("seed", "1"))
        values: dict[str, Any] = {
            "cohort": cohort,
            "here": "rate",
            "rater": "",
            "mode": mode if mode in ("score", "pair") else "score",
            "seed": seed,
            "trouble": "",
            "skipped": asked.get("skipped", ""),
        }
        if not rater:
            return self.viewer.page("rate.html", **values)
        try:
            check_rater(rater)
        except RatingError as error:
            return self.viewer.page("rate.html", 400, **{**values, "trouble": str(error)})
        values["rater"] = rater
        skipped = set(asked.get("skipped", "").split(",")) - {""}
        try:
            queue, done = rating_queue(self.viewer, cohort, rater, values["mode"], seed)
        except KeyError:
            return self._unknown(cohort)
        left = [one for one in queue if queue_name(one) not in skipped]
        if not left:
            return self.viewer.page("rate.html", **values, finished=True, done=done)
        texts = []
        for gen_id in left[0]:
            text = self._text(gen_id) or ""
            texts.append({"gen_id": gen_id, "shown": text[:SHOWN_CHARS], "laid_out": prose(text)})
        return self.viewer.page("rate.html", **values, finished=False, done=done, left=len(left), texts=texts)

    def _text(self, gen_id: str) -> str | None:
        return read_text(str(self.viewer.paths.parsed_path(Stage.ESSAY, gen_id)))

    async def take_rating(self, request: Request) -> Response:
        """Keep a rating, then show the next text."""
        cohort = request.path_params["cohort"]
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdecimal() and int(length) <= MAX_FORM_BYTES):
            return PlainTextResponse("the form is too large\n", 413, headers=PAGE_HEADERS)
        body = await request.body()
        return await run_in_threadpool(self._take_rating, cohort, _form(body))

    def _take_rating(self, cohort: str, form: Mapping[str, list[str]]) -> Response:
        def one(name: str) -> str:
            return form.get(name, [""])[0]

        rater, mode, seed = one("rater"), one("mode"), _whole(one("seed"))
        ids = form.get("gen_id", [])
        again = {"rater": rater, "mode": mode, "seed": str(seed)}
        try:
            if one("skip"):
                names = one("skipped").split(",") if one("skipped") else []
                again["skipped"] = ",".join([*names, queue_name(tuple(ids))])[-4000:]
            else:
                self._keep(cohort, rater, mode, seed, ids, form)
        except KeyError:
            return self._unknown(cohort)
        except (RatingError, StoreError) as error:
            name = visible(str(error), limit=300, one_line=True)
            return PlainTextResponse(f"not kept: {name}\n", 400, headers=PAGE_HEADERS)
        return RedirectResponse(f"rate?{urlencode(again)}", 303, headers=PAGE_HEADERS)

    def _keep(
        self, cohort: str, rater: str, mode: str, seed: int, ids: Sequence[str], form: Mapping[str, list[str]]
    ) -> None:
        with self.viewer.queries(cohort) as queries:
            for gen_id in ids:
                if id_fault(gen_id) is not None or queries.one(Stage.ESSAY.value, gen_id) is None:
                    raise RatingError("the cohort has no such essay")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        reason = form.get("reason", [""])[0][:2000]
        if mode == "pair":
            if len(ids) != 2:
                raise RatingError("a choice is between two texts")
            choice = form.get("choice", [""])[0]
            write_choice(self.viewer.paths, Choice(rater, ids[0], ids[1], choice, reason, now, seed, cohort))
            return
        if len(ids) != 1:
            raise RatingError("a score is of one text")
        try:
            score = float(form.get("score", [""])[0])
        except ValueError:
            raise RatingError("a score is a number from 0 to 10") from None
        write_rating(self.viewer.paths, Rating(rater, ids[0], score, reason, now, seed, cohort))

    async def metrics(self, _request: Request) -> Response:
        """Prometheus text."""
        text = await run_in_threadpool(metrics_text, self.viewer)
        return Response(text, media_type="text/plain; version=0.0.4", headers=PAGE_HEADERS)


def _static(name: str) -> tuple[bytes, str] | None:
    if name == "style.css":
        report = files("genworker.reports") / "templates" / "style.css"
        own = files("genworker.viewer") / "static" / "view.css"
        return report.read_bytes() + b"\n" + own.read_bytes(), "text/css"
    if name in ("view.js", "saved.js"):
        return (files("genworker.viewer") / "static" / name).read_bytes(), "text/javascript"
    return None


def _ids(ids: Sequence[str]) -> str:
    return urlencode([("id", name) for name in ids])


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _form(body: bytes) -> dict[str, list[str]]:
    return parse_qs(body.decode("utf-8", "replace"), max_num_fields=50)


class _Side(NamedTuple):
    """One text among those that are compared."""

    title: str
    names: tuple[str, ...]
    pieces: Sequence[Any]
    left_off: int
    score: float | None
    judges: Sequence[Mapping[str, Any]]


def _sides(viewer: Viewer, queries: Queries, ids: Sequence[str]) -> tuple[list[_Side], str]:
    """The texts of a comparison, equal ones together."""
    texts: list[tuple[str, str]] = []
    judges: dict[str, list[dict[str, Any]]] = {}
    scores: dict[str, float | None] = {}
    for name in ids:
        parts = name.split("/")
        is_aside = parts[0] == "aside" and len(parts) == 4
        stage_name, gen_id = (parts[1], parts[2]) if is_aside else (parts[0], parts[-1])
        if (
            stage_name not in {stage.value for stage in STAGES}
            or id_fault(gen_id) is not None
            or len(parts) not in (2, 4)
        ):
            return [], "an address names no generation"
        row = queries.one(stage_name, gen_id)
        if row is None:
            return [], f"the cohort has no {stage_name} {visible(gen_id, limit=60, one_line=True)}"
        directory = str(viewer.paths.generation_dir(stage_name, gen_id))
        label = f"{row.stage} {gen_id}"
        if is_aside:
            if id_fault(parts[3]) is not None:
                return [], "an address names no generation"
            directory = str(viewer.paths.aside_dir(Stage(stage_name), gen_id) / parts[3])
            label += " before it was replaced"
        first, second = (RAW_FILE, PARSED_FILE) if Stage(stage_name).is_scored else (PARSED_FILE, RAW_FILE)
        text = read_text(f"{directory}/{first}") or read_text(f"{directory}/{second}") or ""
        label += f": {row.template or ''}, {row.model or ''}, r{row.replicate}"
        texts.append((label, text))
        scores[label] = row.score
        judges[label] = [
            {
                "template": child.template,
                "model": child.model,
                "score": child.score,
                "state": child.state,
                "words": (read_text(str(viewer.paths.raw_path(child.stage, child.gen_id))) or "")[:4000],
            }
            for child in queries.children(gen_id, stage_name)
            if Stage(child.stage).is_scored and not is_aside
        ][:20]
    sides = []
    for version in compare(texts):
        label = version.labels[0]
        sides.append(
            _Side(
                label.partition(":")[0],
                tuple(version.labels),
                version.pieces,
                version.left_off,
                scores[label],
                judges[label],
            )
        )
    return sides, ""
