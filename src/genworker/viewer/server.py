"""The application of the live view: its addresses, and what runs beside them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.routing import Mount, Route

from genworker.viewer.guard import Guard
from genworker.viewer.pages import Pages, not_found
from genworker.viewer.state import Viewer


def make_app(viewer: Viewer) -> Starlette:
    """The application over a viewer."""

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        viewer.background.start()
        try:
            yield
        finally:
            viewer.background.stop()
            await run_in_threadpool(viewer.background.join, 5.0)
            viewer.index.close()

    pages = Pages(viewer)
    routes = [
        Route("/", pages.cohorts),
        Route("/static/{name}", pages.static),
        Route("/metrics", pages.metrics),
        Route("/c/{cohort}/", pages.cohort),
        Route("/c/{cohort}/live", pages.live),
        Route("/c/{cohort}/events", pages.events),
        Route("/c/{cohort}/report/", pages.report),
        Route("/c/{cohort}/report/{name:path}", pages.report_file),
        Route("/c/{cohort}/rows", pages.rows),
        Route("/c/{cohort}/rows.csv", pages.rows_csv),
        Route("/c/{cohort}/g/{stage}/{gen_id}", pages.generation),
        Route("/c/{cohort}/compare", pages.compare),
        Route("/c/{cohort}/rate", pages.rate, methods=["GET"]),
        Route("/c/{cohort}/rate", pages.take_rating, methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount(f"/{viewer.token}", routes=routes)],
        middleware=[Middleware(Guard, token=viewer.token)],
        lifespan=lifespan,
        exception_handlers={404: not_found},
    )
