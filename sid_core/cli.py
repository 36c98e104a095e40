"""Define the command line: a thin subcommand for each stage, which Snakemake calls too.

A user's error ends in one message and exit code 1. Libraries are imported by the stage that needs them: they take seconds.
"""

import argparse
import errno
import gc
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from . import config, tracking
from .cluster import gpus
from .cluster.machine import has_gpu
from .errors import UserError, log_to_stderr, redact
from .pipeline.digests import stage_digest
from .pipeline.inputs import Inputs
from .pipeline.paths import Results, State
from .pipeline.rules import RULES
from .storage import job_record

if TYPE_CHECKING:
    from .models.vae import ImageCodec

# errors of the machine, no defects: full disk, quota, permissions, read-only folders
SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
OUTPUTS = {"out", "state", "tracking"}  # arguments that a stage writes to
COLLECT = gc.get_threshold()
RARELY = 100_000  # objects between two garbage collections: with Python's 700 they are a seventh of an import's time
LAST_WORD_S = 30.0  # longer than rank 0 takes to print its message


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand and return the exit code: 0, 1 after a user's error, 128 + signal when interrupted."""
    gc.set_threshold(RARELY)
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    os.environ["MPLBACKEND"] = "Agg"  # needs no display
    if given.threads:  # read by torch and numpy when they are imported
        os.environ["OMP_NUM_THREADS"] = str(max(given.threads // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1))
    log_to_stderr()
    job_record.begin()
    try:
        claim = getattr(given, "claim", None)
        with nullcontext() if claim is None else gpus.acquire_gpus(claim):
            if given.command not in WITHOUT_NETWORKS:
                from .models.devices import disable_tf32

                disable_tf32()  # training sets its own, by distill.precision
            given.run(given)
    except UserError as error:
        return print_error(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- Python flushes it when it ends
        return 0
    except KeyboardInterrupt:
        return print_error("interrupted; what is finished is kept, running again continues", 128 + signal.SIGINT)
    except Exception as error:
        message = _argument_error(error, given) or _system_error(error, given)
        if message is not None:
            return print_error(message)
        job_record.update(ended="failed", message=redact(f"{type(error).__name__}: {error}".splitlines()[0]))
        raise
    return 0


def _argument_error(error: Exception, given: argparse.Namespace) -> str | None:
    """Describe an argument whose file is missing or of another kind; None for every other error."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or error.filename is None:
        return None
    file = Path(os.fsdecode(error.filename))
    for name, value in vars(given).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path) and name not in OUTPUTS and file.is_relative_to(path):
                return f"--{name.replace('_', '-')} {path}: {error.filename}: {error.strerror.lower()}; see sid-core --help"
    return None


def _system_error(error: Exception, given: argparse.Namespace) -> str | None:
    """Describe a file that the machine does not let a stage write; None for every other error."""
    number = getattr(error, "errno", None)
    # safetensors and shutil.copytree wrap the system's error in text
    if isinstance(error, shutil.Error) or type(error).__name__ == "SafetensorError":
        match = re.search(r"(?:\[Errno |\(os error )(\d+)", str(error))
        number = int(match[1]) if match else None
    if number not in SYSTEM_ERRORS:
        return None
    outputs = [str(getattr(given, name)) for name in ("out", "state", "results") if name in given]
    place = getattr(error, "filename", None) or " or ".join(outputs)
    return f"{place}: {os.strerror(number).lower()}; make room or choose another place, then run again"


def print_error(message: str, code: int = 1) -> int:
    """Print a message on stderr and record it for the job; return the exit code."""
    job_record.fail(message, interrupted=code > 128)
    return code


# --- stages ----------------------------------------------------------------------------------------------------------


SAMPLING = "generator teacher captions start stop out workers embeddings"
EXPORT = "benchmark generator prompts out teacher seed workers"
# commands that call a function with its settings, if it has any, and some of their arguments
CALLS = {
    "teacher": ("models.teacher:prepare_teacher", config.Teacher, "out"),
    "prompts": ("data.prompts:prepare_prompts", config.PromptsSettings, "out teacher"),
    "real-pairs": ("models.encode_pairs:encode_pairs", config.Real, "out teacher workers"),
    "embed-prompts": ("models.embeddings:embed_prompts", None, "captions teacher out"),
    "evaluation-networks": ("evaluation.networks.weights:prepare_networks", config.BuildReferenceSettings, "out"),
    "resample": ("models.generator:resample", config.ResampleSettings, "generator out"),
    "generate": ("sampling.generation:generate", config.GenerateSettings, SAMPLING),
    "generate-baseline": ("sampling.generation:generate", config.BaselineSettings, SAMPLING),
    "features": ("evaluation.features:extract_features", config.FeatureSettings, "samples captions out workers"),
    "score": ("evaluation.scoring:score", config.ScoreSettings, "features reference captions out teacher_scores"),
    "reference": ("evaluation.features:build_reference", config.BuildReferenceSettings, "out workers code"),
    "status": ("pipeline.status:show", None, "results configfile watch"),
    "serve": ("serve:serve", None, "results port"),
    "export": ("models.convert.pipeline:export", None, "generator teacher out score"),
    "export-benchmark": ("evaluation.benchmarks:export_benchmark", None, EXPORT),
    "import-benchmark": ("evaluation.benchmarks:import_benchmark", None, "benchmark file exported row"),
    "push": ("models.convert.pipeline:push", None, "pipeline repo private"),
    "vote": ("report.vote:write_vote_page", None, "runs out count seed"),
}


def _call(given: argparse.Namespace) -> None:
    function, settings, arguments = CALLS[given.command]
    module, name = function.split(":")
    call = getattr(import_module(f".{module}", __package__), name)
    values, names = {"generator": None} | vars(given) | {"workers": given.threads or 1}, arguments.split()
    if "code" in names:
        values["code"] = stage_digest(RULES[given.command].code)
    first = [config.load_settings(settings, given.settings)] if settings else []
    call(*first, *(values[name] for name in names))


def _distill(given: argparse.Namespace) -> None:
    settings = config.load_settings(config.DistillSettings, given.settings)
    from .data.prompts import training_prompts
    from .models.teacher import load_image_codec
    from .models.vae import AT_ONCE
    from .sampling.preview import write_grid
    from .storage.files import check_place, verify_manifest
    from .tracking import Mirror
    from .training.distributed import PeerLost, is_first
    from .training.health import TrainingStopped
    from .training.precision import set_determinism
    from .training.run import Interrupted, distill

    gc.freeze()  # the libraries' own objects stay
    gc.set_threshold(*COLLECT)  # a cycle may hold a tensor
    set_determinism(settings.distill.deterministic)
    check_place(given.out, "generator.json")  # fails here and not days later
    if any(path.is_file() for path in (given.state, *given.state.parents)):
        raise UserError(f"--state {given.state}: is a file or below one; expected the folder of a training state")
    verify_manifest(given.prompts.parent)
    prompts = training_prompts(given.prompts)
    codec = load_image_codec(given.teacher, AT_ONCE)

    def draw(nimg: int, latents) -> None:
        write_grid(codec.to(latents.device).decode(latents), State(given.state).grids / f"{nimg:08d}.png")

    proxy = _proxy(given, settings, prompts, codec) if is_first() and settings.distill.proxy_samples else None
    mirror = Mirror(given.tracking, settings, given.state) if is_first() else nullcontext()
    try:
        with mirror:
            code = stage_digest(RULES["distill"].code)
            inputs = (given.teacher, prompts, given.state, given.out)
            distill(settings, *inputs, draw, proxy, code, given.real_pairs, given.embeddings)
    except Interrupted as error:
        message = f"{settings.run.name}: interrupted; its state is saved, running again continues"
        sys.exit(print_error(message, 128 + error.signum) if is_first() else 128 + error.signum)
    except (TrainingStopped, PeerLost):
        if is_first():
            raise
        time.sleep(LAST_WORD_S)  # rank 0 prints the cause first: torchrun and srun kill all ranks once one exits
        sys.exit(1)


def _proxy(given: argparse.Namespace, settings: config.DistillSettings, prompts: Sequence[str], codec: "ImageCodec"):
    """Build the proxy evaluation on the held-out captions."""
    from .evaluation.proxy import Proxy

    if given.reference is None or given.reference_settings is None:
        raise UserError("distill.proxy_samples: needs --reference and --reference-settings; or set it to 0")
    reference_settings = config.load_settings(config.BuildReferenceSettings, given.reference_settings)
    captions = [prompts[i] for i in range(max(len(prompts) - settings.distill.proxy_samples, 0), len(prompts))]
    return Proxy(reference_settings, given.reference, captions, lambda x: codec.to(x.device).decode(x))


def _pairs(given: argparse.Namespace) -> None:
    from .evaluation.pairs import write_pairs

    settings = _settings_of_results(given)
    write_pairs(settings, Inputs.finished(settings, given.results))


def _settings_of_results(given: argparse.Namespace) -> config.Config:
    """Load --settings, which must be of the same experiment as --results."""
    settings, frozen = config.load_config(given.settings), Results(given.results).config
    if frozen.is_file() and (experiment := config.read_yaml(frozen).get("experiment")) != settings.experiment:
        raise UserError(
            f"--settings {given.settings}: of experiment {settings.experiment}, but --results {given.results} is of "
            f"{experiment}; give {frozen}"
        )
    return settings


def _compare(given: argparse.Namespace) -> None:
    from .evaluation.comparison import compare_runs

    print(compare_runs(given.runs))


def _votes(given: argparse.Namespace) -> None:
    from .evaluation.votes import summarise

    print(summarise(given.files))


def _report(given: argparse.Namespace) -> None:
    from .evaluation.pairs import write_pairs
    from .report import overview, write_report

    if given.all:
        return overview.write_overview(given.results or Path("results"))
    if given.results is None:
        raise UserError(f"--settings {given.settings}: expected --results too. Fix: give results/EXPERIMENT")
    settings = _settings_of_results(given)
    inputs = (Inputs.so_far if given.so_far else Inputs.finished)(settings, given.results)
    if given.so_far:
        write_pairs(settings, inputs)
    write_report(settings, inputs)


def _tracking_init(given: argparse.Namespace) -> None:
    tracking.init(given.experiment, None if given.off else tracking.resolve_uri(given.uri), given.out, given.attempt)


def _track(given: argparse.Namespace) -> None:
    if given.sync:
        tracking.sync(given.results, given.uri)
    else:
        tracking.track(given.results)


def _sample(given: argparse.Namespace) -> None:
    logging.getLogger(__name__).info("loading libraries")  # takes seconds, on a file server many
    from .sampling.session import sample

    print(sample(given.generator, given.teacher, given.prompt, given.seed, given.out, given.count))


def _import_official(given: argparse.Namespace) -> None:
    from .models.convert.official import import_file, import_settings

    if (given.network is None) == (given.settings is None):
        raise UserError("import-official: expected a pickle, or --settings that name one, and not both")
    if given.settings:
        settings = config.load_settings(config.ImportSettings, given.settings)
        import_settings(settings, given.teacher, given.out)
    else:
        import_file(given.network, given.teacher, given.out, given.t_init, given.num_steps)


def _plan(given: argparse.Namespace) -> None:
    from .data.captions import check_enough
    from .pipeline.plan import to_text, with_measured_speeds
    from .training.iteration import passes_an_image

    settings = config.load_config("config.yaml", given.configfile)
    check_enough(settings.prompts, settings.generate.samples)
    settings = settings.model_copy(update={"plan": with_measured_speeds(settings.plan)})
    print(to_text(settings, int(has_gpu()), passes_an_image))


def _doctor(given: argparse.Namespace) -> None:
    from .pipeline.doctor import ERROR, diagnose

    blockers = []
    for finding in diagnose(config.load_config("config.yaml", given.configfile), tracking.check):
        print(finding, flush=True)  # a server may take seconds to answer the next
        if finding.level == ERROR:
            blockers.append(finding.part)
    if blockers:
        raise UserError(f"doctor: {len(blockers)} blockers: {', '.join(blockers)}. Fix: as printed with each")


def _plan_memory(given: argparse.Namespace) -> None:
    from .models import architectures
    from .training import memory

    if given.gpus < 1:
        raise UserError(f"--gpus {given.gpus}: expected 1 or more")
    if given.lora is not None and given.lora < 1:
        raise UserError(f"--lora {given.lora}: expected a rank of 1 or more; without --lora all weights are trained")
    if given.kappa is not None and not 0 < given.kappa < math.inf:
        raise UserError(f"--kappa {given.kappa:g}: expected more than 0; 1 is no guidance")
    architecture = architectures.from_directory(given.teacher) if given.teacher else architectures.from_name(given.size)
    kappa = given.kappa or (2.0 if architecture.family.GUIDED else 1.0)
    rows = memory.search_settings(architecture, kappa, given.precision, given.gpus, given.gan, given.lora)
    print(memory.to_markdown(rows), memory.advice(rows), memory.NOTE, sep="\n\n")


SIZES = ("sd15", "sd21-base", "sd21-768", "sdxl", "sd35-medium", "sana-600m", "flux-dev", "shapes")  # of plan-memory


# --- arguments -------------------------------------------------------------------------------------------------------

# help of files and folders; COMMAND.NAME is of one command
PATHS = {
    "settings": "the stage's frozen settings (YAML)",
    "teacher": "a prepared teacher: results/EXPERIMENT/teacher",
    "export-benchmark.teacher": "default: the one it was distilled from, next to runs/",
    "export-benchmark.prompts": "GenEval's evaluation_metadata.jsonl, or DPG-Bench's folder of .txt files",
    "exported": "what export-benchmark wrote",
    "row": "the run it is of, results/EXPERIMENT/runs/RUN",
    "prompts.teacher": "counts tokens with its tokenizer",
    "sample.teacher": "default: the one it was distilled from, next to runs/",
    "plan-memory.teacher": "a diffusers directory; its weights are not read",
    "prompts": "training captions, one a line",
    "captions": "evaluation captions, one a line",
    "embed-prompts.captions": "any captions, one a line",
    "state": "folder of the training state; running again continues from it",
    "tracking": "what tracking-init wrote; training mirrors itself to MLflow once it is there",
    "generator": "runs/RUN/generator of a finished distillation",
    "samples": "a shard of samples (.tar)",
    "reference": "the reference features (.safetensors)",
    "distill.reference": "reference features, where distill.proxy_samples is set",
    "reference-settings": "the settings they were made with",
    "real-pairs": "what real-pairs wrote, for a run that uses real images",
    "embeddings": "what embed-prompts wrote: folders train, evaluation, real; no text encoder is loaded",
    "results": "results/EXPERIMENT",
    "report.results": "results/EXPERIMENT; with --all: the folder of all (default: results)",
    "status.results": "results/EXPERIMENT, by the settings frozen there",
    "configfile": "such as experiments/sd15.yaml (default: config.yaml alone)",
    "pipeline": "what export wrote",
    "import-official.settings": "frozen settings of an import, in place of NETWORK.pkl",
    "score": "score.json of the run, for the model card",
    "out": "output, written atomically",
}
FLAGS = {
    "gan": "with distill.adversarial, whose discriminator sees real images",
    "off": "record that tracking is off",
    "sync": "again, also where MLflow was unavailable; nothing is logged twice",
    "all": "write one page over all experiments of RESULTS, RESULTS/report.html",
    "so-far": "report the scored runs of an unfinished experiment in RESULTS/so-far",
    "watch": "repeat every two seconds until all is done",
    "private": "make a new repository private",
}
OPTIONS: dict[str, dict] = {
    **{name: {"type": Path, "help": text} for name, text in PATHS.items()},
    **{name: {"action": "store_true", "help": text} for name, text in FLAGS.items()},
    "features": {"type": Path, "nargs": "+", "help": "all feature shards of a run or baseline (.safetensors)"},
    "teacher-scores": {"type": Path, "nargs": "*", "help": "score.json of the teacher's baselines, for FID-T"},
    "range": {"type": int, "nargs": 2, "metavar": ("START", "STOP"), "help": "samples START to STOP - 1"},
    "experiment": {"help": "name of the MLflow experiment"},
    "attempt": {"type": int, "default": 1, "help": "number of the attempt: Snakemake reruns after a failed one"},
    "uri": {"help": "default: MLFLOW_TRACKING_URI, else mlflow.db in this folder"},
    "track.uri": {"help": "with --sync: default: MLFLOW_TRACKING_URI, else the settings'"},
    "prompt": {"help": "text of the image"},
    "repo": {"help": "OWNER/NAME on the hub, created if missing"},
    "port": {"type": int, "default": 7860, "help": "of 127.0.0.1 (default: 7860; 0: any free one)"},
    "seed": {"type": int, "default": 0, "help": "of the noise (default: 0)"},
    "count": {"type": int, "default": 1, "help": "images, of this seed and the next (default: 1)"},
    "vote.seed": {"type": int, "default": 0, "help": "of prompts, order and sides (default: 0)"},
    "vote.count": {"type": int, "default": 50, "help": "prompts, each with a pair of every two runs (default: 50)"},
    "t-init": {"type": int, "help": "timestep it starts at (default: the file name's, else 625)"},
    "num-steps": {"type": int, "default": 1, "help": "evaluations per image (default: 1)"},
    "kappa": {"type": float, "help": "guidance scale; 1 is no guidance (default: 2, and 1 of FLUX)"},
    "size": {"choices": SIZES, "help": "or one by its name"},
    "precision": {"nargs": "+", "default": ["bfloat16", "float32"], "help": "float16: as bfloat16; tf32: as float32"},
    "gpus": {
        "type": int,
        "dest": "claim",
        "metavar": "N",
        "help": "number of GPUs to acquire for this process alone (default: all, shared)",
    },
    "lora": {"type": int, "metavar": "RANK", "help": "of adapters (distill.lora.rank; default: all weights)"},
    "plan-memory.gpus": {"type": int, "default": 1, "metavar": "N", "help": "that train together (default: 1)"},
    "threads": {"type": int, "metavar": "N", "help": "of torch and numpy"},
}
POSITIONAL = {
    "benchmark": {"type": str, "choices": ("geneval", "dpg"), "help": "GenEval or DPG-Bench"},
    "file": {"metavar": "FILE", "help": "the result file of its program: results.jsonl of GenEval, .txt of DPG-Bench"},
    "runs": {"nargs": "+", "metavar": "RUN", "help": "folders such as results/shapes/runs/lsg-2, of any experiments"},
    "files": {"nargs": "+", "metavar": "FILE", "help": "votes that the page saved, one file a voter"},
    "network": {"nargs": "?", "metavar": "NETWORK.pkl", "help": "a pickle of dict(ema=UNet)"},
}


@dataclass(frozen=True)
class Command:
    """One subcommand. In `arguments`, `name?` is optional, and `a|b` exclude each other."""

    run: Callable[[argparse.Namespace], None]
    help: str
    arguments: str = ""

    @property
    def needs(self) -> list[str]:
        """Return the options that are required."""
        return [word for word in self.arguments.split() if not {"?", "|"} & set(word) and word not in POSITIONAL]


SHARD = "settings teacher captions range out embeddings? gpus?"
DISTILL = "settings teacher prompts state tracking out reference? reference-settings? real-pairs? embeddings?"
IMPORT = "teacher out network settings? t-init? num-steps? gpus?"
BENCHMARK = "benchmark generator prompts out teacher? seed?"
MEMORY = "teacher|size kappa? gan? lora? gpus? precision?"
SCORE = "settings features reference captions out teacher-scores? gpus?"
GROUPS = {
    "Run": {
        "report": Command(_report, "make tables, figures and a page, of one or all", "settings|all results? so-far?"),
        "track": Command(_track, "mirror an experiment's files to MLflow", "results sync? uri?"),
        "import-official": Command(_import_official, "write a published checkpoint as a generator", IMPORT),
    },
    "Inspect": {
        "status": Command(_call, "print jobs done, running or failed, and time left", "results|configfile? watch?"),
        "compare": Command(_compare, "compare scored runs: differences, intervals and the better run", "runs"),
    },
    "Try": {
        "sample": Command(_sample, "sample images for a prompt", "generator prompt out seed? count? teacher?"),
        "serve": Command(_call, "serve a page on this machine to try prompts on generators", "results port?"),
    },
    "Plan": {
        "doctor": Command(_doctor, "check machine, hub, Slurm and tracking for an experiment", "configfile?"),
        "plan": Command(_plan, "estimate jobs, GPU hours, memory and disk of an experiment", "configfile?"),
        "plan-memory": Command(_plan_memory, "estimate the GPU memory of a training by its settings", MEMORY),
    },
    "Share": {
        "export": Command(_call, "write a diffusers pipeline with model card and demo", "generator teacher out score?"),
        "export-benchmark": Command(_call, "write images in the layout of GenEval or DPG-Bench", BENCHMARK),
        "import-benchmark": Command(_call, "read a benchmark's results into a table", "benchmark file exported row"),
        "push": Command(_call, "upload an exported pipeline to a hub", "pipeline repo private?"),
        "vote": Command(_call, "write a page to vote on blind pairs of samples", "runs out count? seed?"),
        "votes": Command(_votes, "print win rates, intervals and agreement of votes", "files"),
    },
    "Internal stages": {
        "tracking-init": Command(_tracking_init, "make MLflow's experiment", "experiment out uri? off? attempt?"),
        "teacher": Command(_call, "fetch the teacher and check it", "settings out gpus?"),
        "prompts": Command(_call, "write the captions", "settings out teacher? gpus?"),
        "real-pairs": Command(_call, "encode real images with their captions", "settings teacher out gpus?"),
        "embed-prompts": Command(_call, "encode captions by the teacher's text encoders", "captions teacher out gpus?"),
        "evaluation-networks": Command(_call, "fetch evaluation networks and reference images", "settings out gpus?"),
        "reference": Command(_call, "extract features of the reference images", "settings out gpus?"),
        "distill": Command(_distill, "train a generator, or resume", DISTILL),
        "resample": Command(_call, "write a generator of fewer evaluations", "settings generator out"),
        "generate": Command(_call, "generate a shard of a generator's samples", f"generator {SHARD}"),
        "generate-baseline": Command(_call, "generate a shard of a baseline's samples", SHARD),
        "features": Command(_call, "extract features of a shard of samples", "settings samples captions out gpus?"),
        "score": Command(_call, "compute all metrics from features", SCORE),
        "pairs": Command(_pairs, "compute differences of all scores, and means over seeds", "settings results"),
    },
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}
# all other commands, also new ones, disable TF32
WITHOUT_NETWORKS = {
    *("prompts", "evaluation-networks", "pairs", "report", "compare", "tracking-init", "track", "status", "push"),
    "import-benchmark",
    *("plan", "plan-memory", "doctor", "vote", "votes"),
}


def _parser() -> argparse.ArgumentParser:
    lines = []
    for group, commands in GROUPS.items():
        lines += [f"\n{group}:", *(f"  {name:21s}{command.help}" for name, command in commands.items())]
    parser = argparse.ArgumentParser(
        prog="sid-core",
        usage="sid-core COMMAND ...",
        description="SiD-LSG stage by stage; `snakemake --cores all` calls them in their order.",
        epilog="\n".join(lines).strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND", help=argparse.SUPPRESS)
    for name, command in COMMANDS.items():
        added = subparsers.add_parser(name, prog=f"sid-core {name}", description=command.help)
        added.set_defaults(run=command.run)
        for word in (*command.arguments.split(), "threads?"):
            required, options = not word.endswith("?"), word.removesuffix("?").split("|")
            place = added.add_mutually_exclusive_group(required=required) if len(options) > 1 else added
            for option in options:
                if option in POSITIONAL:
                    place.add_argument(option, **({"type": Path} | POSITIONAL[option]))
                else:
                    given = OPTIONS.get(f"{name}.{option}") or OPTIONS[option]
                    flags = ["-n"] * (option == "count") + [f"--{option}"]
                    place.add_argument(*flags, required=required and place is added, **given)
    return parser


def _parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; a mistyped command ends in exit code 2 and the nearest one."""
    parser, word = _parser(), arguments[0] if arguments else "-"
    if word not in COMMANDS and not word.startswith("-"):
        near = get_close_matches(word, COMMANDS, 1)
        parser.error(f"{word}: no such command{f'; did you mean {near[0]}?' if near else ''} See sid-core --help")
    given = parser.parse_args(arguments)
    if "range" in given:
        given.start, given.stop = given.range
    return given
