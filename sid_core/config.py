"""The configuration: every setting once, with its unit, range and default; validated before anything runs.

`load_config` turns config.yaml (plus what Snakemake merged over it) into a frozen `Config`. Every stage receives a settings
file of its own (`stage_settings`) that holds what shapes that stage's result and nothing else, so that a change to evaluation
never retrains and a new scale trains only itself.
"""

import difflib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError, redact
from .files import digest

SEEDS = 2**32  # torch's CPU generator reads the low 32 bits of a seed
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Timestep = Annotated[int, Field(ge=0, le=999)]
SHA256, COMMIT, NAME, LIMIT = r"^[0-9a-f]{64}$", r"^[0-9a-f]{40}$", r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^[1-9]\d*[mhd]$"
IN_WORDS = {
    SHA256: "64 digits 0-9 a-f",
    COMMIT: "a full commit, 40 digits 0-9 a-f",
    NAME: "letters, digits, '.', '_' and '-', the first a letter or digit",
    LIMIT: "minutes, hours or days, such as '30m', '12h', '5d'",
}
Sha256 = Annotated[str, Field(pattern=SHA256)]
Commit = Annotated[str, Field(pattern=COMMIT)]
Name = Annotated[str, Field(pattern=NAME, max_length=80)]


NULLS = ("null", "Null", "NULL", "~")


class Block(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _read_null(cls, values: Any) -> Any:
        """Take YAML's words for null as null, and an empty text where a setting may be null.

        Snakemake's --config hands over the words as text, and a run called null, or a store, is nobody's wish.
        """
        if not isinstance(values, dict):
            return values
        optional = {key for key, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        null = {key for key, value in values.items() if value in NULLS or (value == "" and key in optional)}
        return values | dict.fromkeys(null & cls.model_fields.keys())


class Teacher(Block):
    """Where the teacher comes from: `embedded` (ships with sid_core), `local` (a diffusers directory) or `hub`."""

    source: Literal["embedded", "local", "hub"] = "embedded"
    path: str | None = Field(None, description="the diffusers directory, for source: local")
    repo: str | None = Field(None, description="OWNER/NAME, for source: hub")
    revision: str | None = Field(None, description="commit of repo; a branch or tag is resolved, with a warning")
    variant: Literal["fp16"] | None = Field(
        None,
        description="fp16: half the download; loaded as float32 all the same; null: fp16 where there is nothing else",
    )
    sha256: dict[str, Sha256] | None = Field(None, description="of files of repo, by name there; null: recorded only")

    @model_validator(mode="after")
    def _keys_belong_to_their_source(self) -> "Teacher":
        if (self.source == "local") != (self.path is not None):
            raise ValueError("path: give the diffusers directory with source: local, and only there")
        place = (self.repo, self.revision)
        if None in place if self.source == "hub" else any((*place, self.sha256)):
            raise ValueError("repo, revision: give both with source: hub, and only there; so sha256")
        if self.source == "embedded" and self.variant is not None:
            raise ValueError(
                "repo, revision: give both with source: hub; variant belongs to source: hub and source: local"
            )
        return self


class ExtraRun(Block):
    """A distillation beside the sweep: a strategy at a scale, or four scales of its own (`custom`)."""

    name: Name | None = Field(None, description="default: <strategy>-<scale>; a custom run needs one")
    strategy: Literal["lsg", "long", "short", "none", "custom"]
    scale: Positive | None = Field(
        None, description="kappa of lsg (all), long (teacher > 1) and short (fake_train < 1)"
    )
    fake_train: Positive | None = Field(None, description="kappa_1, for strategy: custom")
    fake_eval: Positive | None = Field(None, description="kappa_2 = kappa_3, for strategy: custom")
    teacher: Positive | None = Field(None, description="kappa_4, for strategy: custom")
    alpha: Positive | None = Field(None, description="default: distill.alpha")
    num_steps: Count | None = Field(None, description="default: distill.num_steps")
    train_kimg: Positive | None = Field(None, description="default: distill.train_kimg")

    @model_validator(mode="after")
    def _scales_fit_strategy(self) -> "ExtraRun":
        kappas = (self.fake_train, self.fake_eval, self.teacher)
        if self.strategy == "custom":
            if None in kappas or self.name is None or self.scale is not None:
                raise ValueError("strategy: custom needs name, fake_train, fake_eval and teacher, and no scale")
        elif any(k is not None for k in kappas):
            raise ValueError(
                f"fake_train, fake_eval and teacher belong to strategy: custom; {self.strategy} has one scale"
            )
        elif (self.strategy == "none") == (self.scale is not None):
            raise ValueError(f"strategy: {self.strategy} {'has no' if self.strategy == 'none' else 'needs a'} scale")
        if self.strategy == "long" and self.scale <= 1:
            raise ValueError(f"scale={self.scale:g}: long guidance strengthens the teacher, expected more than 1")
        if self.strategy == "short" and self.scale >= 1:
            raise ValueError(f"scale={self.scale:g}: short guidance weakens the fake score, expected less than 1")
        return self


class Imported(Block):
    """A published generator, taken as it is instead of distilled: a pickle, read by a restricted unpickler."""

    name: Name
    file: str = Field(description="a path, or with `repo` the name of a file there")
    repo: str | None = Field(None, description="hub repository; null: `file` is a path")
    revision: str | None = Field(None, description="commit of `repo`")
    teacher: Name | None = Field(None, description="a key of `teachers`; null: `teacher`")
    scale: Positive = Field(description="kappa it was distilled with (LSG: all four)")
    train_kimg: Positive = Field(description="thousand images it was distilled with")
    t_init: Timestep = 625
    num_steps: Count = 1


Split = Literal["evaluation", "validation"]
COCO2014_30K = "coco2014-30k"  # the 30,000 captions of the published evaluation, which ship with sid_core
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")
ARCHIVES = (".tar", ".tar.gz", ".tgz")


def caption_format(name: str) -> str:
    """Return '.tar', a table's suffix or '' for text, by how a file's name ends in any case; .gz does not count.

    Raises:
        ValueError: the name ends in another suffix.
    """
    name = name.lower()
    if name.endswith(ARCHIVES):
        return ".tar"
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix
    if suffix not in ("", ".txt", *TABLES):
        raise ValueError(
            f"expected .txt, {', '.join(TABLES)}, any of them with .gz, or .tar, got {suffix}. "
            "Fix: convert the file; a text of one caption a line may be renamed to .txt"
        )
    return "" if suffix == ".txt" else suffix


class Prompts(Block):
    """Captions: `embedded` draws them with the scenes, `file` reads them, `hub` reads them from a repository's file."""

    source: Literal["embedded", "file", "hub"] = "embedded"
    train: Count | str = Field(
        20_000, description="captions to distil with: a number (embedded), a path (file) or a file of `repo` (hub)"
    )
    evaluation: Count | str = Field(
        5_000, description="captions to score with: a number (embedded), else a path or coco2014-30k"
    )
    column: str | None = Field(None, description="of a table: the one that holds the captions")
    member: str | None = Field(None, description="of a .tar: the file that holds the training captions")
    repo: str | None = Field(None, description="the hub's repository, for source: hub")
    revision: str | None = Field(None, description="its commit; null: what `main` is on the day")
    split: Split = Field(
        "evaluation",
        description="which captions, noise and embedded reference are scored; choose settings on `validation`, report on `evaluation`",
    )

    @model_validator(mode="after")
    def _kinds_agree(self) -> "Prompts":
        for key in ("train", "evaluation"):
            value = getattr(self, key)
            if isinstance(value, str) != (self.source != "embedded"):
                expected = "a number of captions" if self.source == "embedded" else "a caption file"
                raise ValueError(f"{key}={value!r}: expected {expected} with source: {self.source}")
        if (self.source == "hub") != (self.repo is not None) or (self.revision is not None and self.repo is None):
            raise ValueError("repo, revision: give the repository with source: hub, and only there")
        if self.source == "embedded" and (self.column is not None or self.member is not None):
            raise ValueError("column, member: belong to source: file and source: hub")
        if self.source != "embedded":
            self._check_formats()
        return self

    def _check_formats(self) -> None:
        """Refuse files by name that no stage could read, and a column that no file has."""
        formats = {}
        for key in ("train", "evaluation", "member"):
            if (name := getattr(self, key)) is not None:
                try:
                    formats[key] = caption_format(name)
                except ValueError as error:
                    raise ValueError(f"{key}={name!r}: {error}") from None
        if formats["evaluation"] == ".tar":
            raise ValueError(f"evaluation={self.evaluation!r}: an archive, expected a text or a table. Fix: unpack it")
        # an archive holds its member, which may be a table where none is named yet
        holds = {formats.get("member", formats["train"]), formats["evaluation"]}
        if self.column is not None and holds == {""}:
            raise ValueError(
                f"column={self.column!r}: train and evaluation are text of one caption a line, no table. "
                f"Fix: leave column out, or give a table ({', '.join(TABLES)})"
            )


class Alarms(Block):
    """Limits on health metrics; a run that stays beyond one for `patience` logged points ends as failed."""

    score_gap_max: Positive = Field(description="RMS of f_teacher - f_fake, latent units")
    latent_std_min: NonNegative = Field(description="std of x_g; below: the generator makes nothing")
    latent_std_max: Positive = Field(description="std of x_g; above: it diverges")
    generator_loss_max: Positive = Field(description="|generator loss|")
    patience: Count = Field(description="logged points in a row beyond a limit")
    warmup_nimg: int = Field(ge=0, description="images before the alarms listen; an untrained generator trips them")


class Distill(Block):
    """One distillation; METHOD: Adam, constant lr 1e-6, batch 512, t_init 625 for the published runs."""

    train_kimg: Positive = Field(description="thousand images seen by the generator")
    batch: Count = Field(description="images per iteration and half")
    micro_batch: Count = Field(description="images per backward pass; divides batch, changes memory only")
    lr: Positive = Field(description="learning rate of both networks")
    fake_lr: Positive | None = Field(None, description="learning rate of the fake score; null: lr")
    lr_final: Positive | None = Field(None, description="linear decay towards it over the run; null: constant")
    adam_beta1: float = Field(0.0, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_eps: Positive = 1e-8
    weight_decay: NonNegative = Field(0.0, description="above 0: AdamW")
    alpha: Positive = Field(1.0, description="of the generator loss")
    t_init: Timestep = Field(625, description="noise level the generator starts at")
    t_min: Timestep = Field(20, description="training noise levels: t_min <= t < t_max")
    t_max: Annotated[int, Field(ge=1, le=1000)] = 980
    num_steps: Count = Field(1, description="network evaluations per image")
    prompt_dropout: float = Field(0.1, ge=0, lt=1, description="in the fake score's half, where its guidance is not 1")
    ema_halflife_nimg: NonNegative = Field(description="images; ramps up as ema_ramp * images seen")
    ema_ramp: Positive = Field(0.05, description="half-life at most this fraction of the images seen")
    nonfinite: Literal["stop", "skip"] = Field("stop", description="what a NaN or infinity in a loss or gradient does")
    nonfinite_limit: Count = Field(10, description="skips in a row that stop the run")
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        "float32", description="of the networks' arithmetic; weights, gradients and losses are float32 in all"
    )
    checkpointing: bool = Field(False, description="compute activations again in backward: a third slower, less memory")
    offload: Literal["none", "ema", "optimizer", "all"] = Field(
        "none", description="what lives in the host's memory: averages, or float32 weights and second moments, or both"
    )
    shard: Literal["none", "optimizer", "all"] = Field(
        "none", description="of what each of several GPUs keeps a part alone: of both of these; all: of the teacher too"
    )
    compile: bool = Field(False, description="compile blocks of the networks; minutes at the start, faster on GPUs")
    deterministic: bool = Field(
        True,
        description="kernels of a GPU that give the same bits whenever a run is repeated or continued; may be slower",
    )
    text_cache: int = Field(4096, ge=0, description="distinct prompts whose encodings are kept in memory")
    state_every_nimg: Count = Field(description="images between saved states")
    state_every_s: Positive = Field(1800, description="seconds between saved states, at most")
    keep_states: Count = Field(2, description="newest states kept")
    log_every_nimg: Count = Field(description="images between logged points")
    samples_every_nimg: Count = Field(description="images between sample grids")
    proxy_samples: int = Field(0, ge=0, description="last training captions, held out to watch two scores on; 0: none")
    proxy_every_nimg: Count = Field(100_000, description="images between two looks at those scores")
    keep_best: Literal["fid_proxy"] | None = Field(
        None,
        description="the generator is that of the lowest fid_proxy seen, with an embedded reference alone; null: the last one",
    )
    alarms: Alarms

    @model_validator(mode="after")
    def _consistent(self) -> "Distill":
        if self.compile and self.checkpointing:
            raise ValueError(
                "compile, checkpointing: what is computed again in backward is not compiled; set one to false"
            )
        if self.proxy_samples == 1 or (self.keep_best and not self.proxy_samples):
            raise ValueError(
                f"proxy_samples={self.proxy_samples}: expected 2, better hundreds, or 0 and keep_best: null"
            )
        if self.lr_final is not None and self.lr_final > self.lr:
            raise ValueError(
                f"lr_final={self.lr_final:g}: expected at most lr={self.lr:g}, which decays to it; or null, for a constant rate"
            )
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min={self.t_min}, t_max={self.t_max}: expected t_min < t_max")
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch}: expected a divisor of batch={self.batch}")
        if self.num_steps > max(self.t_init, 1):
            raise ValueError(f"num_steps={self.num_steps}: expected at most t_init={self.t_init}")
        return self


class Sampling(Block):
    """What shapes a sample: sample i has caption i and noise from seed + i, whatever the batch or shard."""

    batch: Count = Field(description="images at once; changes speed and memory only")
    seed: int = Field(0, ge=0, description="sample i is seeded with seed + i")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the networks; noise, x_0 and quantisation stay float32"
    )
    vae_slicing: Count | None = Field(None, description="images decoded at once, to save memory; null: a whole block")
    image_size: Count | None = Field(
        None, description="stored after centre crop and LANCZOS to this side, evaluate.image_size; null: as decoded"
    )
    png_level: int = Field(1, ge=0, le=9, description="packing of stored images: 0 fast and large, 9 slow and small")
    eps_error_samples: int = Field(ge=0, description="samples on which the teacher's own eps error is measured")


class Generate(Sampling):
    """The samples that are scored, in shards."""

    samples: Count = Field(description="images per run; as many captions are used, in order")
    samples_per_shard: Count = Field(description="images per file and job; more samples add shards")


Solver = Literal["ddim", "dpm-solver", "dpm-solver-karras"]


class Baselines(Block):
    """What the generators are set beside: the teacher at several steps and guidance scales, its VAE, real images."""

    solver: Solver = Field(
        "dpm-solver", description="DDIM (eta 0), DPM-Solver++ (2M), or the latter on Karras' noise levels"
    )
    steps: list[Count] = Field(description="of the teacher's solver; a guided step is two network evaluations")
    guidance_scales: list[Positive]
    vae: bool = Field(description="real images through encoder and decoder: the floor of every latent model")
    real: bool = Field(description="a second draw of real images: the floor of the metric")


class Network(Block):
    """The network of a further metric."""

    source: str = Field(description="a folder with its files, or OWNER/NAME on a hub")
    revision: Commit | None = Field(None, description="full commit on the hub; null: source is a folder")
    sha256: Sha256 | None = Field(None, description="of its weight file; null: recorded only")


class FeatureSettings(Block):
    """What is done to images, and which networks look at them: all that shapes the features of samples."""

    feature_network: str = Field(
        "embedded",
        description="`embedded`, a folder with config.json and model.safetensors, or the path or URL of a TorchScript file",
    )
    feature_network_sha256: Sha256 | None = Field(None, description="of its weight file; null: recorded only")
    clip: str = Field("embedded", description="`embedded`, a folder in open_clip's layout, or OWNER/NAME on a hub")
    clip_revision: Commit | None = Field(None, description="full commit of clip on the hub; null: clip is not there")
    clip_sha256: Sha256 | None = Field(None, description="of its weight file; null: recorded only")
    clip_strict: bool = Field(
        False, description="lower 63 of 256 levels by one before CLIP, as the published script's rounding does"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of both networks; 16 bits are faster on a GPU, and another protocol"
    )
    dinov2: Network | None = Field(
        None, description="config.json, model.safetensors of transformers' Dinov2, for fd_dinov2; null: not computed"
    )
    hps: Network | None = Field(None, description="HPS_v2.1_compressed.pt, for hps (HPSv2.1); null: not computed")
    pickscore: Network | None = Field(
        None, description="config.json, model.safetensors of PickScore, for pickscore; null: not computed"
    )
    caption_prefix: str = Field("", description="put before a caption for the CLIP score")
    image_size: Count | None = Field(None, description="centre crop and LANCZOS to this side first; null: as stored")
    feature_size: Count | None = Field(
        None, description="per-channel float bicubic (clean-fid) to this side; null: as is"
    )
    batch: Count = Field(description="images at once in feature extraction")


class ReferenceSettings(FeatureSettings):
    """The images that samples are compared with: all that shapes their features."""

    reference: str = Field(
        "embedded", description="`embedded`, a folder or zip of images, or the URL of a zip (passwords: ~/.netrc)"
    )
    reference_sha256: Sha256 | None = Field(None, description="of the zip behind a URL; null: recorded on first use")
    reference_samples: Count = Field(description="reference images; a folder or zip must hold exactly as many")


class BuildReferenceSettings(ReferenceSettings):
    """Everything that shapes the reference features."""

    split: Split | Literal["watch"] = Field(
        "evaluation",
        description="whose embedded reference images: validation and the watch over a training have their own",
    )


class Evaluate(ReferenceSettings):
    """A protocol: how images are seen, what they are compared with, and the formulas of the scores."""

    protocol: Name
    kid_subsets: Count = 100
    kid_subset_size: Count = 1000
    neighbours: Count = Field(3, description="k of precision, recall, density and coverage")
    jackknife_groups: Annotated[int, Field(ge=3)] = Field(
        20, description="groups of samples left out in turn, for all intervals but those of means over samples"
    )
    bootstrap: Annotated[int, Field(ge=10)] = Field(
        1000, description="resamples for the intervals of means over samples: CLIP score, hps, pickscore"
    )


class Plan(Block):
    """What `sid-core plan` reckons with: sizes and speeds of one GPU (or process). It changes no result."""

    unet_million: Positive = Field(description="million parameters of the UNet")
    train_images_per_s: Positive = Field(description="of a distillation, per GPU")
    generate_images_per_s: Positive = Field(description="of a one-step generator with its VAE, per job")
    evaluations_per_s: Positive = Field(description="of the teacher (a guided pair is two), per job")
    feature_images_per_s: Positive = Field(description="per job")
    image_kb: Positive = Field(description="of a stored sample")
    download_gb: NonNegative = Field(description="of all that is fetched")


class JobResources(Block):
    """What one job of a stage asks for; a profile's --set-resources goes over it."""

    gpu: int | None = Field(None, ge=0, description="GPUs; null: one where the machine has one")
    threads: Count = 1
    mem_mb: Count = 6000
    runtime: str = Field("4h", pattern=LIMIT, description="limit, such as 30m, 12h, 5d")

    def gpus(self, here: int) -> int:
        """GPUs of a job; `here`: how many it gets where nothing is said."""
        return here if self.gpu is None else self.gpu


class DistillResources(JobResources):
    """What a distillation asks for; longer ones than `runtime` are continued."""

    nodes: Count = Field(1, description="of a Slurm job; its GPUs are shared equally among them")
    continuations: int = Field(100, ge=0, description="of one call of Snakemake, at most")
    save_s: Count = Field(180, description="seconds of the time limit that are kept for saving")


class Resources(Block):
    """Of each stage's jobs, in one place."""

    teacher: JobResources
    prompts: JobResources
    distill: DistillResources
    generate: JobResources
    reference: JobResources
    features: JobResources
    score: JobResources


class Tracking(Block):
    """MLflow mirrors the record; the files are the record."""

    enabled: bool = True
    uri: str | None = Field(
        None,
        description="null: MLFLOW_TRACKING_URI (a password belongs there alone), else sqlite:///mlflow.db in the working folder",
    )
    best: Literal["fid", "clip"] | None = Field(
        "fid", description="the generator of the lowest FID or highest CLIP score is registered as a model; null: none"
    )


class Config(Block):
    """The whole experiment."""

    experiment: Name
    teacher: Teacher
    teachers: dict[Name, Teacher] = Field({}, description="further ones, by name, for `imports`")
    guidance_scales: list[Positive] = Field(description="one LSG distillation each")
    extra_runs: list[ExtraRun] = []
    imports: list[Imported] = []
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    prompts: Prompts
    distill: Distill
    generate: Generate
    baselines: Baselines
    evaluate: Evaluate
    resources: Resources
    plan: Plan
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        names = [run.name for run in generators(self)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"two runs would be called {name!r}; give extra_runs a name of their own, seeds and scales once"
                )
        if not names:
            raise ValueError("nothing to distil: give guidance_scales, extra_runs or imports")
        for imported in self.imports:
            if imported.teacher is not None and imported.teacher not in self.teachers:
                raise ValueError(
                    f"imports.{imported.name}: teacher={imported.teacher}: expected a key of teachers"
                    f" ({', '.join(self.teachers) or 'none there'}), or null"
                )
        captions = 30_000 if self.prompts.evaluation == COCO2014_30K else self.prompts.evaluation
        if isinstance(captions, int) and captions < self.generate.samples:
            raise ValueError(
                f"generate.samples={self.generate.samples}: only prompts.evaluation={captions} captions; lower one or raise the other"
            )
        if self.generate.seed + self.generate.samples > SEEDS // 2:
            raise ValueError(
                f"generate.seed={self.generate.seed}: expected seed + samples up to 2^31 (the validation split has the seeds above); "
                "choose a smaller seed"
            )
        if self.distill.keep_best and self.evaluate.reference != "embedded":
            raise ValueError(
                f"distill.keep_best={self.distill.keep_best}: expected null with evaluate.reference={self.evaluate.reference}, "
                "as the generator would be chosen on the images it is scored against"
            )
        if self.generate.image_size not in (None, self.evaluate.image_size):
            raise ValueError(
                f"generate.image_size={self.generate.image_size}: expected null or evaluate.image_size="
                f"{self.evaluate.image_size}; an image must not be resized twice"
            )
        if (self.baselines.vae or self.baselines.real) and self.prompts.source != "embedded":
            raise ValueError(
                "baselines.vae and baselines.real need real images of the captions; set both to false with prompts.source: file"
            )
        return self


# --- runs ------------------------------------------------------------------------------------------------------------


class Run(Block):
    """One distillation: its four guidance scales (kappa_2 = kappa_3 share one), alpha, steps and seed."""

    name: Name
    strategy: Literal["lsg", "long", "short", "none", "custom"]
    fake_train: Positive
    fake_eval: Positive
    teacher: Positive
    alpha: Positive | None = Field(description="null: unknown, of an import")
    num_steps: Count
    seed: int | None = Field(description="null: unknown, of an import")

    @property
    def scale(self) -> str:
        """Return the scale that names the strategy: kappa_1 of short, kappa_4 of long, all of a custom one."""
        if self.strategy == "custom":
            return f"{self.fake_train:g}/{self.fake_eval:g}/{self.teacher:g}"
        return f"{self.fake_train if self.strategy == 'short' else self.teacher:g}"


def teacher_folder(imported: "Imported | None" = None) -> str:
    """Where a generator's teacher lies below results/<experiment>/."""
    return "teacher" if imported is None or imported.teacher is None else f"teachers/{imported.teacher}"


def scale_name(scale: float) -> str:
    """The exact shortest decimal: 2.0 -> '2', 1.5 -> '1.5', 1.52 -> '1.52'. Two scales never share a name."""
    return repr(float(scale)).removesuffix(".0")


def runs(config: Config) -> list[Run]:
    """All distillations, in the order of the tables."""
    return [settings.run for settings in distillations(config)]


def distillations(config: Config) -> "list[DistillSettings]":
    """Each run with its settings. Seed 0 carries no suffix, so that adding seeds renames nothing."""
    wanted = [ExtraRun(strategy="lsg", scale=scale) for scale in config.guidance_scales] + list(config.extra_runs)
    result = []
    for extra in wanted:
        scale = extra.scale or 1.0
        fake_train, fake_eval, teacher = {
            "lsg": (scale, scale, scale),
            "long": (1.0, 1.0, scale),
            "short": (scale, 1.0, 1.0),
            "none": (1.0, 1.0, 1.0),
            "custom": (extra.fake_train, extra.fake_eval, extra.teacher),
        }[extra.strategy]
        base = extra.name or (extra.strategy if extra.scale is None else f"{extra.strategy}-{scale_name(scale)}")
        distill = config.distill
        if extra.train_kimg is not None:
            distill = distill.model_copy(update={"train_kimg": extra.train_kimg})
        for seed in config.seeds:
            run = Run(
                name=base if seed == 0 else f"{base}-seed{seed}",
                strategy=extra.strategy,
                fake_train=fake_train,
                fake_eval=fake_eval,
                teacher=teacher,
                alpha=extra.alpha or config.distill.alpha,
                num_steps=extra.num_steps or config.distill.num_steps,
                seed=seed,
            )
            result.append(DistillSettings(run=run, distill=distill))
    return result


def imported_run(imported: Imported) -> Run:
    """Return what is known of a published generator's distillation: its seed is not, nor its alpha."""
    return Run(
        name=imported.name,
        strategy="lsg",
        fake_train=imported.scale,
        fake_eval=imported.scale,
        teacher=imported.scale,
        alpha=None,
        num_steps=imported.num_steps,
        seed=None,
    )


def generators(config: Config) -> list[Run]:
    """All that is sampled and scored as a generator: distillations and imports."""
    return runs(config) + [imported_run(imported) for imported in config.imports]


class Baseline(Block):
    """One row of comparison that needs no distillation."""

    name: Name
    kind: Literal["teacher", "vae", "real"]
    solver: Solver | None = None
    steps: int = Field(0, description="of the solver")
    guidance_scale: Positive | None = None

    @property
    def nfe(self) -> int:
        """Count network evaluations per image: a guided step of the teacher evaluates both branches."""
        return self.steps if self.guidance_scale in (None, 1) else 2 * self.steps


def baselines(config: Config) -> list[Baseline]:
    """All baselines: teacher by steps and scale, then VAE and real images."""
    block = config.baselines
    result = [
        Baseline(
            name=f"teacher-{block.solver}-cfg{scale_name(scale)}-{steps}steps",
            kind="teacher",
            solver=block.solver,
            steps=steps,
            guidance_scale=scale,
        )
        for steps in block.steps
        for scale in block.guidance_scales
    ]
    result += [Baseline(name=kind, kind=kind) for kind in ("vae", "real") if getattr(block, kind)]
    return result


def score_paths(config: Config, results: Path, so_far: bool = False) -> dict[str, Path]:
    """Where the scores lie: by name of generator or baseline, in the order of the tables.

    Args:
        so_far: of an unfinished experiment, those that are there.

    Raises:
        UserError: `so_far`, and no generator is scored.
    """
    folders = {"runs": generators(config), "baselines": baselines(config)}
    paths = {one.name: results / kind / one.name / "score.json" for kind, items in folders.items() for one in items}
    if not so_far:
        return paths
    found = {name: path for name, path in paths.items() if path.is_file()}
    if not any(run.name in found for run in generators(config)):
        raise UserError(f"{results}: no run is scored yet; sid-core status --results {results} tells how far they are")
    return found


def shards(config: Config) -> list[str]:
    """Shard names '00000', '00001', …: shard k holds samples k * samples_per_shard onwards."""
    return [f"{k:05d}" for k in range(math.ceil(config.generate.samples / config.generate.samples_per_shard))]


# --- settings of one stage -------------------------------------------------------------------------------------------


class DistillSettings(Block):
    """All that shapes a distillation (the teacher and the prompts are inputs beside it)."""

    run: Run
    distill: Distill

    @model_validator(mode="after")
    def _complete(self) -> "DistillSettings":
        if self.run.alpha is None or self.run.seed is None:
            raise ValueError("run: expected alpha and seed; only an import may leave them unknown")
        return self


class ImportSettings(Block):
    """All that shapes an imported generator."""

    run: Run
    imported: Imported


class GenerateSettings(Block):
    """All that shapes the samples of a generator."""

    t_init: Timestep
    num_steps: Count
    sampling: Sampling


class BaselineSettings(Block):
    """All that shapes the samples of a baseline."""

    baseline: Baseline
    split: Split
    sampling: Sampling


class PromptsSettings(Block):
    """All that shapes the prompt files."""

    prompts: Prompts


class ScoreSettings(Block):
    """All that shapes a score beside the features it is made from."""

    evaluate: Evaluate
    samples: Count
    seed: int


def reference_settings(evaluate: Evaluate, split: str = "evaluation") -> BuildReferenceSettings:
    """Return the reference's part of a protocol."""
    return BuildReferenceSettings(**_part(ReferenceSettings, evaluate).model_dump(), split=split)


def noise_seed(config: Config) -> int:
    """Seed of sample 0. The validation split takes the upper half of the 2^32 seeds, so no noise is shared between the splits."""
    return config.generate.seed + (SEEDS // 2 if config.prompts.split == "validation" else 0)


def stage_settings(config: Config) -> dict[str, Block]:
    """Every settings file of the experiment, by its path below results/<experiment>/."""
    evaluate, seed = config.evaluate, noise_seed(config)
    sampling = _part(Sampling, config.generate).model_copy(update={"seed": seed})
    files: dict[str, Block] = {
        "teacher.settings.yaml": config.teacher,
        "prompts.settings.yaml": PromptsSettings(prompts=config.prompts),
        "reference/settings.yaml": reference_settings(evaluate, config.prompts.split),
        "features.settings.yaml": _part(FeatureSettings, evaluate),
        "score.settings.yaml": ScoreSettings(evaluate=evaluate, samples=config.generate.samples, seed=seed),
    }
    if config.distill.proxy_samples:
        split = "watch" if evaluate.reference == "embedded" else config.prompts.split
        files["watch/settings.yaml"] = reference_settings(evaluate, split)
    for name, teacher in config.teachers.items():
        files[f"teachers/{name}.settings.yaml"] = teacher
    for settings in distillations(config):
        run = settings.run
        files[f"runs/{run.name}/settings.yaml"] = settings
        files[f"runs/{run.name}/generate.yaml"] = GenerateSettings(
            t_init=config.distill.t_init, num_steps=run.num_steps, sampling=sampling
        )
    for imported in config.imports:
        run = imported_run(imported)
        files[f"runs/{run.name}/settings.yaml"] = ImportSettings(run=run, imported=imported)
        files[f"runs/{run.name}/generate.yaml"] = GenerateSettings(
            t_init=imported.t_init, num_steps=run.num_steps, sampling=sampling
        )
    for baseline in baselines(config):
        files[f"baselines/{baseline.name}/generate.yaml"] = BaselineSettings(
            baseline=baseline, split=config.prompts.split, sampling=sampling
        )
    return files


def _part(kind: type[Block], block: Block) -> Block:
    """The settings of `kind` that `block`, of a class below it, holds among others."""
    return kind(**{key: getattr(block, key) for key in kind.model_fields})


def dump(settings: Block) -> str:
    """YAML text of settings, keys in declaration order."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def settings_digest(settings: Block) -> str:
    """Hex sha256 of settings by value."""
    return digest(settings.model_dump(mode="json"))


# --- reading and complaining -----------------------------------------------------------------------------------------


def load_config(path: str | Path, over: str | Path | None = None) -> Config:
    """Read and validate a configuration file, with what `over` says differently, as Snakemake's --configfile does it.

    Raises UserError naming key, value, expectation and remedy.
    """
    values = read_yaml(path)
    merged = merge(values, read_yaml(over)) if over else values
    return parse_config(merged, str(over or path), [over, path] if over else [path])


def merge(values: dict, over: dict) -> dict:
    """`values` with the mappings of `over` laid over its own; lists and values are replaced."""
    merged = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict)
        merged[key] = merge(values[key], value) if both else value
    return merged


def load_settings(kind: type[Block], path: str | Path) -> Any:
    """Read a stage's settings file as `kind`."""
    return parse(kind, read_yaml(path), str(path), [path])


def parse_config(
    values: dict, source: str = "config", files: Sequence[str | Path] = (), arguments: Sequence[str] = ()
) -> Config:
    """Validate an already merged configuration.

    Args:
        source: what messages begin with.
        files, arguments: configuration files and Snakemake's command line, to show in messages what was typed there.
    """
    return parse(Config, values, source, files, arguments)


class _EveryKeyOnce(yaml.SafeLoader):
    """YAML itself takes the last of several values of a key, and drops a whole block without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := seen.setdefault((key.tag, key.value), key)) is not key:
                lines = f"lines {first.start_mark.line + 1} and {key.start_mark.line + 1}"
                raise UserError(f"{self.name}, {lines}: {key.value!r} is given twice; keep one")
        return node


def read_yaml(path: str | Path) -> dict:
    """Read a YAML mapping; a missing or malformed file, or a key that is given twice, is a UserError that names the place."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        if Path(path).suffix == ".json":
            text = text.replace("\t", " ")  # YAML refuses tabs, which JSON has between its tokens and nowhere else
        stream = io.StringIO(text)
        stream.name = str(path)  # of messages
        values = yaml.load(stream, _EveryKeyOnce)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return values


def parse(
    kind: type[Block], values: dict, source: str, files: Sequence[str | Path] = (), arguments: Sequence[str] = ()
) -> Any:
    """Validate `values` as `kind`; all mistakes are listed in one UserError, a line each."""
    if secret := [_without_secret(key, text) for key, text in _texts(values) if redact(text) != text]:
        raise UserError("\n".join(f"{source}: {line}" for line in secret))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_explain(kind, problem, files, arguments) for problem in error.errors()]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in settings, with its key."""
    if isinstance(values, str):
        yield key.removeprefix("."), values
    elif isinstance(values, dict | list):
        for part, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _texts(value, f"{key}.{part}")


def _without_secret(key: str, text: str) -> str:
    """One line on a URL with a password: settings are frozen under results/, and shown in the report and in MLflow."""
    if key.startswith("tracking."):
        fix = (
            "set MLFLOW_TRACKING_URI to it in the environment, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    else:
        fix = "put user and password into ~/.netrc, or download the file by hand and give its path"
    return f"{key}={text}: expected a URL without user, password or token, since settings are copied into results/. Fix: {fix}"


def _explain(kind: type[Block], problem: dict, files: Sequence[str | Path], arguments: Sequence[str]) -> str:
    """One line of a validation error: key, value, expectation, remedy."""
    location = [part for part in problem["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(str(part) for part in location)
    value = problem["input"]
    if problem["type"] == "string_type" and isinstance(value, bool | int | float | date):
        if problem["loc"][-1] == "[key]":
            return f"{key}: expected text as a key, which YAML reads as another value. Fix: quote the key"
        return f"{key}={_not_quoted(location, value, files, arguments)}"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), _keys(kind, location[:-1]), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(_keys(kind, location[:-1]))}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; add it (config.yaml shows every key with its unit)"
    if problem["type"] == "string_pattern_mismatch":
        return f"{key}={value!r}: expected {IN_WORDS[problem['ctx']['pattern']]}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith("Input") else message
    if problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message.replace("input should be", "expected")
    if value is None:
        return f"{key}=null: {message}, got no value. Fix: give it one"
    return f"{key}={value!r}: {message}"


def _not_quoted(location: list, value: Any, files: Sequence[str | Path], arguments: Sequence[str]) -> str:
    """The end of a message about a text that YAML, or Snakemake, reads as a number, a date or a truth value."""
    typed, by_command = _typed(location, value, files, arguments)
    read = (
        str(value).lower()
        if isinstance(value, bool)
        else f"the {'date' if isinstance(value, date) else 'number'} {value}"
    )
    fix = f'quote it: {location[-1]}: "{typed}"'
    if by_command:
        fix = f'quote it in a --configfile: {location[-1]}: "{typed}" (Snakemake takes quotes off --config: there, begin it with a letter)'
    return f"{typed}: expected text, which {'Snakemake' if by_command else 'YAML'} reads as {read}. Fix: {fix}"


def _typed(location: list, value: Any, files: Sequence[str | Path], arguments: Sequence[str]) -> tuple[str, bool]:
    """Return what was typed for `value` on Snakemake's command line, whose --config goes over files, or in a file."""
    for argument in arguments:
        key, _, text = argument.removeprefix("--config=").partition("=")
        if [key] == location:
            return text, True
    for file in files:
        with suppress(OSError, yaml.YAMLError, LookupError, TypeError):
            text = yaml.load(Path(file).read_text(encoding="utf-8"), yaml.BaseLoader)  # leaves every value as text
            for part in location:
                text = text[part]
            if isinstance(text, str) and yaml.safe_load(text) == value:
                return text, False
    return str(value), False


def _keys(kind: type[Block], location: list) -> list[str]:
    """Names that are allowed at a place in the settings."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = kind.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, Block)]
        kind = inner[0] if inner else annotation
    return list(kind.model_fields)
