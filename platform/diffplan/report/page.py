"""The report: one self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffplan.config import config_to_dict
from diffplan.planning.trust import require_trust
from diffplan.report.contents import RunContents, read_run
from diffplan.report.sections import make_data, make_key_figures, make_making, make_scores, make_times, make_training
from diffplan.report.sections_planning import make_plans, make_rollouts
from diffplan.report.sections_search import make_search
from diffplan.runs.layout import REPORT
from diffplan.storage.opening import open_store
from diffplan.storage.store import LocalStore

SECTIONS = (make_scores, make_data, make_training, make_plans, make_rollouts, make_search, make_times, make_making)
"""Sections in the order of the page; None for a section without content."""


def write_report(run: str | Path, *, trust: bool = True) -> Path | str:
    """Write the report page of a run into its directory, replacing an old one.

    Args:
        run: directory or URL with some of `dataset/`, `checkpoint/`, `tensorboard/`, `search/`, `evaluation/` and
            `pipeline.json`. The page has a line for each stage that has not run.
        trust: whether the settings of the run may name functions and URLs; the page shows plans made with them.

    Returns:
        Path or URL of the page.

    Raises:
        DataError: there is no part of a run, or a part is damaged.
        CheckpointError: the checkpoint is damaged.
        ConfigError: the environment cannot be made on this machine, or settings name functions or URLs without trust.
        StoreError: the store of a URL cannot be reached.
    """
    contents = read_run(run)
    if not trust and contents.settings is not None:
        require_trust(config_to_dict(contents.settings), str(run))
    page = render_page(contents)
    store = open_store(run)
    store.replace(REPORT, page.encode())
    return store.root / REPORT if isinstance(store, LocalStore) else store.locate(REPORT)


def render_page(run: RunContents) -> str:
    """The report page of a run as HTML."""
    templates = Environment(
        loader=PackageLoader("diffplan.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found = [make_section(run) for make_section in SECTIONS]
    return templates.get_template("page.html.j2").render(
        title=run.env.env_id.rpartition("/")[2] if run.env else run.path.name,
        preset=run.pipeline.get("preset"),
        key_figures=make_key_figures(run),
        sections=[section for section in found if section is not None],
    )
