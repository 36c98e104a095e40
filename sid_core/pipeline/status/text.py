"""Format the status of an experiment for a terminal or a log."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ...config import Config, load_config
from ..inputs import load_frozen
from .poll import JobStatus, job_statuses

REFRESH_S = 2.0
STATES = ("done", "running", "queued", "failed", "stopped", "waiting")
LISTED = STATES[1:5]  # job by job


def headline(experiment: str, statuses: list[JobStatus]) -> str:
    """Format one line: numbers of jobs by state, and the estimated time left."""
    count = Counter(status.state for status in statuses)
    parts = [f"{count['done']} of {len(statuses)} jobs done"]
    parts += [f"{count[state]} {state}" for state in LISTED if count[state]]
    if count["done"] < len(statuses):
        at_once = max(count["running"], 1)
        left = max(sum(s.left_s for s in statuses) / at_once, *(s.left_s for s in statuses if s.state != "waiting"), 0)
        parts.append(f"about {_duration(left)} {'left' if count['running'] else 'of work left, and nothing runs'}")
    return f"{experiment}: {', '.join(parts)}"


def to_text(experiment: str, folder: Path, statuses: list[JobStatus]) -> str:
    """Format the headline, a line for each stage, and one for each job that is running, queued, failed or stopped."""
    lines = [headline(experiment, statuses), ""]
    for stage in dict.fromkeys(status.job.stage for status in statuses):
        count = Counter(status.state for status in statuses if status.job.stage == stage)
        others = ", ".join(f"{count[state]} {state}" for state in STATES[1:] if count[state])
        lines.append(f"  {stage:19s} {count['done']:4d} of {sum(count.values()):4d}  {others}".rstrip())
    for state in LISTED:
        chosen = [status for status in statuses if status.state == state]
        lines += ["", f"{state}:"] if chosen else []
        for status in chosen:
            left = f"about {_duration(status.left_s)} left" if state == "running" else ""
            text = ", ".join(part for part in (status.text, left) if part)
            lines.append(f"  {status.job.stage} {status.job.name}".rstrip() + f": {text}")
            if state in ("failed", "stopped"):
                lines.append(f"    {folder / status.job.log}")
    return "\n".join(lines)


def show(results: Path | None, configfile: Path | None, watch: bool) -> None:
    """Print the status of `results`, or of config.yaml with `configfile`; `watch` repeats until all is done."""
    if results is None:
        config = load_config("config.yaml", configfile)
        results = Path("results") / config.experiment
    else:
        config = load_frozen(results)
    terminal = sys.stdout.isatty()
    with suppress(KeyboardInterrupt):
        for statuses in _polls(config, results, watch):
            if watch and terminal:
                text = to_text(config.experiment, results, statuses)
                print(f"\033[H\033[J{text}\n\n{time.strftime('%H:%M:%S')}, again every {REFRESH_S:.0f} s; Ctrl-C ends")
            elif watch:
                print(headline(config.experiment, statuses), flush=True)
            else:
                print(to_text(config.experiment, results, statuses))


def _polls(config: Config, results: Path, watch: bool) -> Iterator[list[JobStatus]]:
    """Poll once, with `watch` every REFRESH_S until all is done; yield all on a terminal, else the polls that differ."""
    last = None
    while True:
        statuses = job_statuses(config, results)
        states = [status.state for status in statuses]
        if states != last or sys.stdout.isatty():
            yield statuses
        if not watch or set(states) == {"done"}:
            return
        last = states
        time.sleep(REFRESH_S)


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
