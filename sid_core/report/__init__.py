"""Write the results of an experiment: tables, figures and one offline page, from files alone."""

import io
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from ..config import Config
from ..pipeline.inputs import Inputs
from ..storage.files import write_text
from . import curves, entries, figures, health, methods, page, paper, samples, summary, table
from .theme import RenderedFigure, to_png, write_png


def write_report(config: Config, inputs: Inputs) -> None:
    """Write summary.csv, summary.md, convergence.csv, figures/ and report.html, each atomically, after all are made."""
    folder, out = inputs.results.folder, inputs.out
    scores = table.read_scores(inputs.scores)
    rows = table.make_rows(config, folder, scores)
    settings = entries.make_entries(config, rows, scores, entries.read_intervals(out.seeds))
    differences = entries.read_differences(out.pairs, settings)
    compared = methods.compare(settings, differences)
    logs = curves.read_curves(config, inputs.trainings)
    grid = samples.read_grid(config, folder, settings)
    condition = health.examine(config.distill.alarms, logs, folder)
    warnings = [*summary.unfinished(config, scores), *summary.warnings(config, settings), *health.warnings(condition)]
    notes, headline = summary.notes(settings, scores), summary.finding(settings, differences)
    terms, progress = summary.terms(config), samples.read_progress(config, inputs.trainings)
    words = notes + [f"{word}: {meaning}" for word, meaning in terms.items()]
    csv = {out.summary: table.to_csv(rows), out.convergence: paper.to_convergence_csv(logs)}
    whole, convergence = (pd.read_csv(io.StringIO(text)) for text in csv.values())

    draw: dict[str, Callable[[], Figure]] = {
        "overview": lambda: figures.overview(settings),
        "fid_clip": lambda: figures.fid_clip(settings),
        "training": lambda: curves.training(config.distill.alarms, logs),
        "scales": lambda: paper.scales(whole),
        "convergence": lambda: paper.convergence(convergence),
    }
    if compared:
        draw["methods"] = lambda: methods.draw(compared.methods)
    rendered, reasons = _render(draw)
    content = page.Content(headline, notes, terms, warnings, reasons, condition, differences, grid, progress, compared)
    html = page.render(config, settings, scores, rendered, content)
    del rendered["overview"]  # of the page alone
    sheet = to_png(samples.draw(grid))

    for path, text in csv.items():
        write_text(path, text)
    write_text(out.summary_text, summary.to_markdown(config, settings, headline, words, warnings))
    for name, figure in rendered.items():
        write_png(out.figure(f"{name}.png"), figure.png)
        write_text(out.figure(f"{name}.svg"), figure.svg)
    for name in reasons:  # of an earlier report
        for suffix in ("png", "svg"):
            out.figure(f"{name}.{suffix}").unlink(missing_ok=True)
    write_png(out.figure("samples.png"), sheet)
    write_text(out.report, html)


def _render(draw: dict[str, Callable[[], Figure]]) -> tuple[dict[str, RenderedFigure], dict[str, str]]:
    """Render figures by name, and return the reasons of those without data."""
    rendered, reasons = {}, {}
    for name, plot in draw.items():
        try:
            rendered[name] = RenderedFigure.from_figure(plot())
        except paper.NoData as error:
            reasons[name] = str(error)
    return rendered, reasons
