"""``view``: the findings, tables and texts as a live page on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.cli.app import ConfigOption, DataRootOption, app, command, put, say
from genworker.cli.options import data_paths_and_settings
from genworker.errors import Fault, UsageError

if TYPE_CHECKING:
    from genworker.paths import Paths
    from genworker.project.settings import Settings
    from genworker.viewer.state import Viewer


@app.command("view")
@command
def view(
    cohorts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COHORT]...", help="Cohorts to show; all when none is named."),
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 0,
    no_open: Annotated[bool, typer.Option("--no-open", help="Do not open a browser.")] = False,
    save: Annotated[
        Path | None,
        typer.Option("--save", metavar="DIR", help="Write all of it as static pages, and serve nothing."),
    ] = None,
) -> int:
    """Show cohorts live in a browser: progress, findings, search, comparison, ratings by hand.

    The page is served on this machine only, reads while a worker writes, and takes no lock. From another
    machine reach it through a tunnel; the second line that is printed says how.
    """
    viewer = make_viewer(config, data_root, cohorts or None)
    if save is not None:
        from genworker.viewer.save import save as save_pages

        paths, settings = data_paths_and_settings(config, data_root)
        pages = save_pages(
            viewer, save, lambda cohort, directory: make_report(paths, settings, cohort, directory)
        )
        put(str(save / "index.html"))
        say(f"{pages} pages; they work from a disk, and search where script is on.")
        return 0
    return serve(viewer, port, open_browser=not no_open)


def make_viewer(config: Path | None, data_root: Path | None, cohorts: list[str] | None) -> Viewer:
    """The view of a data root, with the report and the account of money that the other commands use.

    Raises:
        UsageError: a cohort that is named does not exist, or the extra is not installed.
    """
    try:
        from genworker.viewer.state import Viewer
    except ImportError as error:
        raise UsageError(
            [
                Fault(
                    f"the view needs {error.name}, which is not installed",
                    fix="pip install 'genworker[view]'",
                )
            ]
        ) from None
    from genworker import __version__
    from genworker.store.catalog import list_cohorts

    paths, settings = data_paths_and_settings(config, data_root)
    known = list_cohorts(paths)
    unknown = [name for name in cohorts or [] if name not in known]
    if unknown:
        there = ", ".join(known) or "none yet"
        raise UsageError(
            [
                Fault(
                    f"there is no cohort {name!r}", where=str(paths.cohorts_dir), fix=f"name one of: {there}"
                )
                for name in unknown
            ]
        )
    return Viewer(
        paths,
        cohorts=cohorts,
        version=__version__,
        make_report=lambda cohort, directory: make_report(paths, settings, cohort, directory),
        read_money=lambda cohort: money_words(paths, settings, cohort),
        read_combos=lambda: combos_of(paths),
    )


def make_report(paths: Paths, settings: Settings | None, cohort: str, directory: Path) -> None:
    """Write the page of ``genworker report``, and the tables that it links to, into a directory."""
    from genworker.api import read_report
    from genworker.cli.report import write_report
    from genworker.reports.choices import choice_tables
    from genworker.reports.files import write_csv
    from genworker.reports.tables import all_tables, pivot
    from genworker.store.reader import StoreReader

    reader = StoreReader(paths)
    reading = read_report(reader, [cohort], settings=settings)
    rows = pivot(reading.scores)
    contents = all_tables(reading.scores, rows) | choice_tables(reading.scores, reading.choices)
    files = {}
    for name, content in contents.items():
        files[name] = directory / f"{name}.csv"
        write_csv(content, files[name])
    write_report(reading, rows, contents["agreement"], reader, directory, files, all_texts=False)


def money_words(paths: Paths, settings: Settings | None, cohort: str) -> str:
    """What a cohort has cost, as every other command says it."""
    from genworker.core.money import money_text
    from genworker.run.ledger import read_money
    from genworker.store.catalog import load_membership_as_it_stands

    money = read_money(paths, load_membership_as_it_stands(paths, cohort), settings)
    return f"Cost: {money_text(money.total)}."


def combos_of(paths: Paths) -> dict[str, tuple[tuple[str, ...], str]]:
    """Combo id → (ids and names of its concepts, the names joined)."""
    from genworker.store.catalog import read_combos
    from genworker.store.concepts import concepts_of

    combos = {**read_combos(paths.selected_combos_csv, []), **read_combos(paths.combo_mappings_csv, [])}
    names = concepts_of(paths, set(combos))
    found = {}
    for combo_id, combo in combos.items():
        shown = names.get(combo_id, combo.concept_ids)
        found[combo_id] = ((*combo.concept_ids, *shown), " + ".join(shown))
    return found


def serve(viewer: Viewer, port: int, *, open_browser: bool) -> int:
    """Serve until Ctrl-C; the address is the first line on stdout."""
    import socket
    import webbrowser

    import uvicorn

    from genworker.viewer.server import make_app

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise UsageError(
            [
                Fault(
                    f"port {port} cannot be used: {error.strerror}",
                    fix="leave --port out: any free one is taken",
                )
            ]
        ) from error
    chosen = listener.getsockname()[1]
    address = f"http://127.0.0.1:{chosen}{viewer.root}"
    put(address)
    say(
        f"From another machine: ssh -L {chosen}:127.0.0.1:{chosen} {socket.gethostname()}, "
        "then open that address there."
    )
    say("Ctrl-C ends it.")
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(
        make_app(viewer),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises it again once it has shut down
        pass
    finally:
        listener.close()
    return 0
