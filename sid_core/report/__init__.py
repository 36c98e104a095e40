"""What the experiment found: summary.csv and summary.md, three figures and one offline page, made from files alone."""

from pathlib import Path

from ..config import Config
from ..files import write_text
from . import figures, page, samples, summary, table
from .theme import Picture, to_png, write_png


def compare(config: Config, experiment_dir: str | Path) -> None:
    """Write summary.csv, summary.md, figures/*.png and report.html of a finished experiment, each whole or not at all.

    Everything is read and drawn before the first file is written.

    Raises:
        UserError: an input is missing or damaged, or two scores were measured by different protocols.
    """
    folder = Path(experiment_dir)
    scores = table.read_scores(config, folder)
    rows = table.make_rows(config, folder, scores)
    entries = summary.make_entries(config, rows)
    curves = figures.read_curves(config, folder)
    grid = samples.read_grid(config, folder, entries)
    skipped = {run.name: int(points["skipped"][-1]) for run, points in curves}
    warnings = summary.warnings(config, entries, skipped)

    pictures = {
        "fid_clip": Picture.of(lambda theme, narrow: figures.fid_clip(entries, theme, narrow)),
        "training": Picture.of(lambda theme, narrow: figures.training(config.distill.alarms, curves, theme, narrow)),
    }
    html = page.render(config, entries, scores, grid, warnings, pictures)
    sheet = to_png(samples.draw(grid))

    write_text(folder / "summary.csv", table.to_csv(rows))
    write_text(folder / "summary.md", summary.to_markdown(config, entries, warnings))
    for name, picture in pictures.items():
        write_png(folder / "figures" / f"{name}.png", picture.light)
    write_png(folder / "figures" / "samples.png", sheet)
    write_text(folder / "report.html", html)
