"""The command line: one thin subcommand a stage, `sid-core STAGE --settings … --out …`; Snakemake calls the same.

A user's mistake ends in one message and exit code 1. Libraries are imported by the stage that needs them: they take seconds.
"""

import argparse
import errno
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from . import config
from .cluster import gpus
from .errors import UserError, log_to_stderr, redact

if TYPE_CHECKING:
    from .models.vae import ImageCodec

# what the machine refuses, and no defect: full disk, quota, permissions, read-only folders
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}

OUTPUTS = {"out", "state", "tracking"}  # arguments that a stage writes to
LAST_WORD_S = 30.0  # more than the first process of a training takes from its end to its message


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand. Returns the exit code: 0, 1 after a user's mistake, 128 + signal when interrupted."""
    given = _parser().parse_args(arguments)
    os.environ["MPLBACKEND"] = "Agg"  # no display is needed, whatever the user's shell says
    if given.threads:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that torchrun has started on this node
        # read by torch and numpy when they are imported
        os.environ["OMP_NUM_THREADS"] = str(max(given.threads // here, 1))
    log_to_stderr()
    try:
        claim = getattr(given, "claim", None)
        with nullcontext() if claim is None else gpus.claimed(claim):
            if given.stage not in WITHOUT_NETWORKS:
                from .models.devices import exact_products

                exact_products()  # training sets its own, by distill.precision
            given.run(given)
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # what reads the output, such as `head`, has enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- Python flushes it when it ends
        return 0
    except KeyboardInterrupt:
        return _complain("interrupted; what is finished is kept, running again continues", 128 + signal.SIGINT)
    except Exception as error:
        if (mistaken := _mistaken(error, given)) is not None:
            return _complain(mistaken)
        refusal = _refusal(error)
        if refusal is None:
            raise
        return _complain(f"{_place(error, given)}: {refusal}; make room or choose another place, then run again")
    return 0


def _mistaken(error: Exception, given: argparse.Namespace) -> str | None:
    """What is wrong with an argument in which a file is missing or of another kind; None for every other error."""
    if not isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) or error.filename is None:
        return None
    for name, value in vars(given).items():
        for path in value if isinstance(value, list) else [value]:
            if (
                isinstance(path, Path)
                and name not in OUTPUTS
                and Path(os.fsdecode(error.filename)).is_relative_to(path)
            ):
                return f"--{name.replace('_', '-')} {path}: {error.filename}: {error.strerror.lower()}; see sid-core --help"
    return None


def _refusal(error: Exception) -> str | None:
    """What the machine said when it refused a file; None for every other error."""
    number = getattr(error, "errno", None)
    # safetensors and shutil.copytree wrap the system's error in text
    if isinstance(error, shutil.Error) or type(error).__name__ == "SafetensorError":
        match = re.search(r"(?:\[Errno |\(os error )(\d+)", str(error))
        number = int(match[1]) if match else None
    return os.strerror(number).lower() if number in REFUSALS else None


def _place(error: Exception, given: argparse.Namespace) -> str:
    """The file an error is about; where it does not say, the places the stage writes to."""
    places = [str(getattr(given, name)) for name in ("out", "state", "results") if name in given]
    return str(getattr(error, "filename", None) or " or ".join(places))


def _complain(message: str, code: int = 1) -> int:
    print(f"error: {redact(message)}", file=sys.stderr)
    return code


# --- stages ----------------------------------------------------------------------------------------------------------


def _teacher(given: argparse.Namespace) -> None:
    from .models.teacher import prepare_teacher

    prepare_teacher(config.load_settings(config.Teacher, given.settings), given.out)


def _prompts(given: argparse.Namespace) -> None:
    from .data.prompts import prepare_prompts

    prepare_prompts(config.load_settings(config.PromptsSettings, given.settings), given.out, given.teacher)


def _distill(given: argparse.Namespace) -> None:
    from .data.prompts import training_prompts
    from .models.vae import AT_ONCE, ImageCodec
    from .pipeline.digests import stage_digest
    from .pipeline.paths import State
    from .sampling.preview import write_grid
    from .storage.files import check_place, verify_manifest
    from .tracking import Mirror
    from .training.distributed import PeerLost, is_first
    from .training.health import TrainingStopped
    from .training.precision import set_determinism
    from .training.run import Interrupted, distill

    settings = config.load_settings(config.DistillSettings, given.settings)
    set_determinism(settings.distill.deterministic)
    check_place(given.out, "generator.json")  # days later it would be refused
    if any(path.is_file() for path in (given.state, *given.state.parents)):
        raise UserError(
            f"--state {given.state}: is a file or below one; expected the folder of a training state, or a new one"
        )
    verify_manifest(given.prompts.parent)
    prompts = training_prompts(given.prompts)
    codec = ImageCodec.from_directory(given.teacher, AT_ONCE)

    def draw(nimg: int, latents) -> None:
        write_grid(codec.to(latents.device).decode(latents), State(given.state).grids / f"{nimg:08d}.png")

    look = _proxy(given, settings, prompts, codec) if is_first() and settings.distill.proxy_samples else None
    mirror = Mirror(given.tracking, settings, given.state) if is_first() else nullcontext()
    try:
        with mirror:
            code = stage_digest("training.run")
            distill(settings, given.teacher, prompts, given.state, given.out, draw, look, code)
    except Interrupted as error:
        message = f"{settings.run.name}: interrupted; its state is saved, running again continues"
        sys.exit(_complain(message, 128 + error.signum) if is_first() else 128 + error.signum)
    except (TrainingStopped, PeerLost):
        if is_first():
            raise
        time.sleep(LAST_WORD_S)  # the first one tells why; as soon as one has ended, torchrun and srun end all
        sys.exit(1)


def _proxy(given: argparse.Namespace, settings: config.DistillSettings, prompts: Sequence[str], codec: "ImageCodec"):
    """What looks at samples for the held-out captions."""
    from .evaluation.proxy import Proxy

    if given.reference is None or given.reference_settings is None:
        raise UserError("distill.proxy_samples: needs --reference and --reference-settings; or set it to 0")
    reference_settings = config.load_settings(config.BuildReferenceSettings, given.reference_settings)
    if settings.distill.keep_best and reference_settings.split != "watch":
        raise UserError(
            f"distill.keep_best={settings.distill.keep_best}: expected a reference of split watch, got "
            f"{reference_settings.split}. Fix: build one with split: watch, or keep_best: null"
        )
    captions = [prompts[i] for i in range(max(len(prompts) - settings.distill.proxy_samples, 0), len(prompts))]
    return Proxy(reference_settings, given.reference, captions, lambda x: codec.to(x.device).decode(x))


def _generate(given: argparse.Namespace) -> None:
    from .sampling.generation import generate_run

    settings = config.load_settings(config.GenerateSettings, given.settings)
    generate_run(settings, given.generator, given.teacher, given.captions, *given.range, given.out, given.threads or 1)


def _generate_baseline(given: argparse.Namespace) -> None:
    from .sampling.generation import generate_baseline

    settings = config.load_settings(config.BaselineSettings, given.settings)
    generate_baseline(settings, given.teacher, given.captions, *given.range, given.out, given.threads or 1)


def _evaluation_networks(given: argparse.Namespace) -> None:
    from .evaluation.networks.weights import prepare_networks

    prepare_networks(config.load_settings(config.BuildReferenceSettings, given.settings), given.out)


def _reference(given: argparse.Namespace) -> None:
    from .evaluation.features import build_reference
    from .pipeline.digests import stage_digest

    settings = config.load_settings(config.BuildReferenceSettings, given.settings)
    build_reference(settings, given.out, given.threads or 1, stage_digest("evaluation.features"))


def _features(given: argparse.Namespace) -> None:
    from .evaluation.features import extract_features

    settings = config.load_settings(config.FeatureSettings, given.settings)
    extract_features(settings, given.samples, given.captions, given.out, given.threads or 1)


def _score(given: argparse.Namespace) -> None:
    from .evaluation.scoring import score

    settings = config.load_settings(config.ScoreSettings, given.settings)
    score(settings, given.features, given.reference, given.captions, given.out)


def _pairs(given: argparse.Namespace) -> None:
    from .evaluation.pairs import write_pairs
    from .pipeline.inputs import Inputs

    settings = _settings_of_results(given)
    write_pairs(settings, Inputs.finished(settings, given.results))


def _settings_of_results(given: argparse.Namespace) -> config.Config:
    """--settings, which must be those of --results: of another experiment nothing would be found there."""
    from .pipeline.paths import Results

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


def _report(given: argparse.Namespace) -> None:
    from .pipeline.inputs import Inputs
    from .report import write_report

    settings = _settings_of_results(given)
    if given.so_far:
        from .evaluation.pairs import write_pairs

        inputs = Inputs.so_far(settings, given.results)
        write_pairs(settings, inputs)
    else:
        inputs = Inputs.finished(settings, given.results)
    write_report(settings, inputs)


def _tracking_init(given: argparse.Namespace) -> None:
    from . import tracking

    tracking.init(given.experiment, None if given.off else tracking.resolve_uri(given.uri), given.out, given.attempt)


def _track(given: argparse.Namespace) -> None:
    from . import tracking

    if given.sync:
        tracking.sync(given.results, given.uri)
    else:
        tracking.track(given.results)


def _status(given: argparse.Namespace) -> None:
    from .pipeline.status import show

    show(given.results, given.configfile, given.watch)


def _serve(given: argparse.Namespace) -> None:
    from .serve import serve

    serve(given.results, given.port)


def _sample(given: argparse.Namespace) -> None:
    logging.getLogger(__name__).info("loading libraries")  # they take seconds, and many on a file server
    from .sampling.studio import sample

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


def _export(given: argparse.Namespace) -> None:
    from .models.convert.pipeline import export

    export(given.generator, given.teacher, given.out, given.score)


def _push(given: argparse.Namespace) -> None:
    from .models.convert.pipeline import push

    push(given.pipeline, given.repo, given.private)


def _shapes_assets(given: argparse.Namespace) -> None:
    from .recipes.build import make_assets
    from .recipes.settings import SMALLEST, RecipeSettings

    make_assets(given.out, SMALLEST if given.smallest else RecipeSettings())


def _plan(given: argparse.Namespace) -> None:
    from .cluster.machine import has_gpu
    from .data.captions import check_enough
    from .pipeline.plan import to_text

    settings = config.load_config("config.yaml", given.configfile)
    check_enough(settings.prompts, settings.generate.samples)
    print(to_text(settings, int(has_gpu())))


def _plan_memory(given: argparse.Namespace) -> None:
    from .models import architectures
    from .training import memory

    if given.gpus < 1:
        raise UserError(f"--gpus {given.gpus}: expected 1 or more")
    if not 0 < given.kappa < math.inf:
        raise UserError(f"--kappa {given.kappa:g}: expected more than 0; 1 is no guidance")
    architecture = architectures.of_directory(given.teacher) if given.teacher else architectures.named(given.size)
    rows = memory.survey(architecture, given.kappa, given.precision, given.gpus)
    print(memory.to_markdown(rows), memory.advice(rows), memory.NOTE, sep="\n\n")


def _manual(given: argparse.Namespace) -> None:
    from .pipeline import manual

    manual.write(_parser(), Path("config.yaml"), given.out)


def _schema(given: argparse.Namespace) -> None:
    print(json.dumps(config.Config.model_json_schema(), indent=2))


# --- arguments -------------------------------------------------------------------------------------------------------

OPTIONS = {
    "settings": {"type": Path, "help": "the stage's frozen settings (YAML)"},
    "teacher": {"type": Path, "help": "a prepared teacher: results/EXPERIMENT/teacher"},
    "prompts": {"type": Path, "help": "training captions, one a line"},
    "captions": {"type": Path, "help": "evaluation captions, one a line"},
    "state": {"type": Path, "help": "folder of the training state; running again continues from it"},
    "tracking": {"type": Path, "help": "what tracking-init wrote; training mirrors itself to MLflow once it is there"},
    "generator": {"type": Path, "help": "runs/RUN/generator of a finished distillation"},
    "range": {"type": int, "nargs": 2, "metavar": ("START", "STOP"), "help": "samples START to STOP - 1"},
    "samples": {"type": Path, "help": "a shard of samples (.tar)"},
    "features": {"type": Path, "nargs": "+", "help": "all feature shards of a run or baseline (.safetensors)"},
    "reference": {"type": Path, "help": "the reference features (.safetensors)"},
    "results": {"type": Path, "help": "results/EXPERIMENT"},
    "experiment": {"help": "name of the MLflow experiment"},
    "prompt": {"help": "what to draw"},
    "pipeline": {"type": Path, "help": "what export wrote"},
    "repo": {"help": "OWNER/NAME on the hub; it is made where it is not there"},
    "out": {"type": Path, "help": "what to write; it appears whole or not at all"},
}
STAGES = {
    "teacher": (_teacher, "bring the teacher from its source and check it", "settings out"),
    "prompts": (_prompts, "write the captions", "settings out"),
    "distill": (_distill, "train one generator, or go on with it", "settings teacher prompts state tracking out"),
    "generate": (_generate, "samples of a generator", "settings generator teacher captions range out"),
    "generate-baseline": (_generate_baseline, "samples of a baseline", "settings teacher captions range out"),
    "evaluation-networks": (
        _evaluation_networks,
        "fetch and verify what looks at images, and the reference images",
        "settings out",
    ),
    "reference": (_reference, "features of the reference images", "settings out"),
    "features": (_features, "features of a shard of samples", "settings samples captions out"),
    "score": (_score, "FID, CLIP score and more, from features", "settings features reference captions out"),
    "pairs": (_pairs, "differences of all scores with intervals, means over training seeds", "settings results"),
    "report": (_report, "table, figures and page of an experiment", "settings results"),
    "tracking-init": (_tracking_init, "make MLflow's database and experiment", "experiment out"),
    "track": (_track, "mirror an experiment's files to MLflow", "results"),
    "compare": (_compare, "scored runs side by side: intervals, and which is shown to be better", ""),
    "status": (_status, "what is done, running, failed, and how long still", ""),
    "serve": (_serve, "a page on this machine to try prompts on an experiment's generators", "results"),
    "import-official": (_import_official, "a published checkpoint as a generator", "teacher out"),
    "export": (_export, "a generator as a diffusers pipeline with a model card", "generator teacher out"),
    "push": (_push, "upload an exported pipeline to a hub", "pipeline repo"),
    "sample": (_sample, "one image for a prompt", "generator prompt out"),
    "shapes-assets": (_shapes_assets, "train the shipped networks of the embedded experiment (hours)", "out"),
    "plan": (_plan, "what an experiment will take: jobs, GPU hours, memory, disk", ""),
    "plan-memory": (_plan_memory, "GPU memory of a training run by its settings, and which fit which card", ""),
    "schema": (_schema, "print the JSON schema of config.yaml", ""),
    "manual": (_manual, "write the reference pages of settings and command line", "out"),
}
# every other stage, also one that is added here, starts with exact float32 products
WITHOUT_NETWORKS = {
    *("prompts", "evaluation-networks", "pairs", "report", "compare", "tracking-init", "track", "status", "push"),
    *("plan", "plan-memory", "schema", "manual"),
}
# beside `distill`, whose GPUs `launch` takes
USING_GPUS = (
    *("teacher", "prompts", "generate", "generate-baseline", "evaluation-networks", "reference", "features", "score"),
    "import-official",
)


def _parser() -> argparse.ArgumentParser:
    about = "SiD-LSG stage by stage; `snakemake --cores all` calls them in their order."
    parser = argparse.ArgumentParser(prog="sid-core", description=about)
    commands = parser.add_subparsers(title="stages", required=True, dest="stage", metavar="STAGE")
    named = {}
    for name, (run, description, options) in STAGES.items():
        command = named[name] = commands.add_parser(name, help=description, description=description)
        command.set_defaults(run=run)
        for option in options.split():
            command.add_argument(f"--{option}", required=True, **OPTIONS[option])
        command.add_argument("--threads", type=int, metavar="N", help="of torch and numpy")
    named["tracking-init"].add_argument("--uri", help="default: MLFLOW_TRACKING_URI, else mlflow.db in this folder")
    named["tracking-init"].add_argument("--off", action="store_true", help="record that nothing is to be tracked")
    named["tracking-init"].add_argument(
        "--attempt",
        type=int,
        default=1,
        metavar="N",
        help="number of this try, by which Snakemake makes a failed one again",
    )
    named["track"].add_argument(
        "--sync", action="store_true", help="anew, also where MLflow could not be used before; nothing is logged twice"
    )
    named["track"].add_argument("--uri", help="with --sync: default: MLFLOW_TRACKING_URI, else the settings'")
    named["distill"].add_argument(
        "--reference", type=Path, help="reference features, where distill.proxy_samples is set"
    )
    named["distill"].add_argument("--reference-settings", type=Path, help="the settings they were made with")
    named["prompts"].add_argument("--teacher", type=Path, help="counts tokens with its tokenizer")
    named["compare"].add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folders such as results/shapes/runs/lsg-2, of any experiments",
    )
    named["report"].add_argument(
        "--so-far", action="store_true", help="of an unfinished experiment, what is there, to RESULTS/so-far"
    )
    status = named["status"].add_mutually_exclusive_group()
    status.add_argument("--results", type=Path, help="results/EXPERIMENT, by the settings frozen there")
    status.add_argument("--configfile", type=Path, help="such as experiments/sd15.yaml (default: config.yaml alone)")
    named["status"].add_argument("--watch", action="store_true", help="look again every two seconds until all is done")
    named["serve"].add_argument("--port", type=int, default=7860, help="of 127.0.0.1 (default: 7860; 0: any free one)")
    named["sample"].add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    named["sample"].add_argument(
        "-n", "--count", type=int, default=1, metavar="N", help="images, of this seed and the next (default: 1)"
    )
    named["sample"].add_argument("--teacher", type=Path, help="default: the one it was distilled from, beside runs/")
    official = named["import-official"]
    official.add_argument("network", type=Path, nargs="?", metavar="NETWORK.pkl", help="a pickle of dict(ema=UNet)")
    official.add_argument("--settings", type=Path, help="frozen settings of an import, in place of NETWORK.pkl")
    official.add_argument("--t-init", type=int, help="noise level it starts at (default: the file name's, else 625)")
    official.add_argument("--num-steps", type=int, default=1, help="evaluations per image (default: 1)")
    named["export"].add_argument("--score", type=Path, help="score.json of the run, for the model card")
    named["push"].add_argument("--private", action="store_true", help="a new repository is private")
    named["plan"].add_argument(
        "--configfile", type=Path, help="such as experiments/sd15.yaml (default: config.yaml alone)"
    )
    memory = named["plan-memory"]
    teacher = memory.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher", type=Path, help="a diffusers directory; its weights are not read")
    teacher.add_argument("--size", choices=("sd15", "sd21-base", "sd21-768", "shapes"), help="or one by its name")
    memory.add_argument("--kappa", type=float, default=2.0, help="guidance scale; 1 is no guidance (default: 2)")
    memory.add_argument("--gpus", type=int, default=1, metavar="N", help="that train together (default: 1)")
    memory.add_argument(
        "--precision",
        nargs="+",
        default=["bfloat16", "float32"],
        help="float16 takes what bfloat16 does, tf32 what float32",
    )
    named["shapes-assets"].add_argument("--smallest", action="store_true", help="a minute's worth: loadable, not good")
    for name in USING_GPUS:
        named[name].add_argument(
            "--gpus", type=int, dest="claim", metavar="N", help="take so many that no other job has (default: use all)"
        )
    return parser
