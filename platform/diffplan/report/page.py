"""The report: one self-contained HTML page of a run."""

from __future__ import annotations

from html import escape
from pathlib import Path

from diffplan.data.store import LocalStore, open_store
from diffplan.report.contents import RunContents, read_run
from diffplan.report.markup import Section
from diffplan.report.sections import make_data, make_key_figures, make_making, make_scores, make_times, make_training
from diffplan.report.sections_planning import make_plans, make_rollouts, make_search
from diffplan.report.template import PAGE
from diffplan.run_directory import REPORT


def write_report(run: str | Path) -> Path | str:
    """Write the report page of a run into its directory, in place of the one there.

    Args:
        run: directory or URL with some of `dataset/`, `checkpoint/`, `tensorboard/`, `search/`, `evaluation/` and
            `pipeline.json`. A line on the page stands for each stage that has not run.

    Returns:
        Path or URL of the page.

    Raises:
        DataError: nothing of a run is there, or a part is damaged.
        CheckpointError: the checkpoint is damaged.
        ConfigError: the environment cannot be made here.
        StoreError: the store of a URL cannot be reached.
    """
    page = render_page(read_run(run))
    store = open_store(run)
    store.replace(REPORT, page.encode())
    return store.root / REPORT if isinstance(store, LocalStore) else store.locate(REPORT)


def render_page(run: RunContents) -> str:
    """The report page of a run as HTML."""
    found: list[Section | None] = [
        make_scores(run),
        make_data(run),
        make_training(run),
        make_plans(run),
        make_rollouts(run),
        make_search(run),
        make_times(run),
        make_making(run),
    ]
    sections = [section for section in found if section is not None]
    title = run.env.env_id.removeprefix("diffplan/") if run.env else run.path.name
    return PAGE.substitute(
        title=escape(f"{title} — diffplan report"),
        heading=escape(title),
        subtitle=_subtitle(run),
        navigation=" ".join(f'<a href="#{escape(s.anchor)}">{escape(s.title)}</a>' for s in sections),
        body="\n".join([make_key_figures(run).source, *(section.render() for section in sections)]),
    )


def _subtitle(run: RunContents) -> str:
    preset = run.pipeline.get("preset")
    named = f"Preset <code>{escape(str(preset))}</code>: planning" if preset else "Planning"
    return f"{named} with diffusion, from collecting data to evaluation, made with diffplan"
