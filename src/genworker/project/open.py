"""A data root with its settings and its catalogue, its memberships and what is to be done of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from genworker.core.catalog import Catalog
from genworker.core.generation import Failure
from genworker.core.ids import id_fault
from genworker.core.membership import Known, Membership
from genworker.core.plan import Plan, make_plan
from genworker.core.stages import STAGES
from genworker.errors import CatalogError, Fault
from genworker.paths import Paths
from genworker.project.plugins import load_parser_plugins
from genworker.project.settings import LoadedSettings, load_settings
from genworker.store.catalog import load_membership, load_membership_as_it_stands, read_catalog
from genworker.store.index import StoreIndex


@dataclass(frozen=True, slots=True)
class Project:
    """A data root with its settings and its catalogue.

    Attributes:
        catalog_faults: what is wrong in the catalogue; refused by what runs, passed over by what reads.
    """

    loaded: LoadedSettings
    paths: Paths
    catalog: Catalog
    catalog_faults: tuple[Fault, ...]

    def known(self) -> Known:
        """What membership rows may name."""
        models = set(self.catalog.models) | {
            name for name, model in self.loaded.settings.models.items() if model.model
        }
        return Known(
            templates={stage: frozenset(self.catalog.templates[stage]) for stage in STAGES},
            copies={stage: self.catalog.copies(stage) for stage in STAGES},
            models=models,
            template_files={stage: str(self.paths.templates_csv(stage)) for stage in STAGES},
            models_file=str(self.paths.models_csv),
        )


def open_project(config: Path | None = None, data_root: Path | None = None) -> Project:
    """Read settings and catalogue, and register the parsers of other packages.

    Raises:
        ConfigError: the settings are wrong. Faults of the catalogue and of parsers are only collected.
    """
    loaded = load_settings(config, {} if data_root is None else {"data_root": data_root})
    paths = Paths.from_str(loaded.settings.data_root)
    plugin_faults = load_parser_plugins()
    catalog, faults = read_catalog(paths)
    return Project(loaded, paths, catalog, (*plugin_faults, *faults))


def open_membership(project: Project, cohort_id: str, *, strict: bool) -> Membership:
    """Read a cohort.

    Args:
        strict: refuse names that the catalogue does not know, and a catalogue with faults.

    Raises:
        CatalogError, MembershipError, UsageError: every fault at once.
    """
    if not strict:
        return load_membership_as_it_stands(project.paths, cohort_id)
    index = StoreIndex(project.paths)
    reason = id_fault(cohort_id)
    if reason is None and project.catalog_faults:
        raise CatalogError(project.catalog_faults, title="the catalogue is refused, nothing was sent")
    return load_membership(
        project.paths,
        cohort_id,
        project.known(),
        lambda stage, gen_id: index.is_done(stage, gen_id) or index.held(stage, gen_id) is not None,
    )


Redo = Callable[[int, Failure | None], bool]


def plan_cohort(
    project: Project, membership: Membership, redo: Redo | None = None, index: StoreIndex | None = None
) -> Plan:
    """What is to be done, as the store stands now, or stood when `index` was taken."""
    return make_plan(membership, index or StoreIndex(project.paths), redo)
