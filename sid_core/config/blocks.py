"""Define the blocks of config.yaml: every setting once, with its unit, range and default."""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

SEEDS = 2**32  # torch's CPU generator reads the low 32 bits of a seed
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Strategy = Literal["lsg", "long", "short", "none", "zero", "anti", "custom"]
UNSCALED = ("none", "zero")  # strategies without a scale
StepsObjective = Literal["last", "mixture"]
StepNoise = Literal["fresh", "fixed", "ddim"]
Timestep = Annotated[int, Field(ge=0, le=999)]
InitialTimestep = Annotated[int, Field(ge=0, le=1000)]
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
        """Read YAML's words for null, which Snakemake's --config passes as text, and empty text if null is allowed."""
        if not isinstance(values, dict):
            return values
        optional = {key for key, field in cls.model_fields.items() if type(None) in get_args(field.annotation)}
        null = {key for key, value in values.items() if value in NULLS or (value == "" and key in optional)}
        return values | dict.fromkeys(null & cls.model_fields.keys())


class Teacher(Block):
    """Source of the teacher: `embedded` (in sid_core), `local` (a diffusers directory) or `hub`."""

    source: Literal["embedded", "embedded-flow", "local", "hub"] = Field(
        "embedded",
        description="`embedded`: a UNet that predicts the noise; `embedded-flow`: a transformer by flow matching",
    )
    path: str | None = Field(None, description="the diffusers directory, for source: local")
    repo: str | None = Field(None, description="OWNER/NAME, for source: hub")
    revision: str | None = Field(None, description="commit of repo; a branch or tag is resolved, with a warning")
    variant: Literal["fp16"] | None = Field(None, description="fp16: half the download; null: float32 where it exists")
    sha256: dict[str, Sha256] | None = Field(None, description="of files of repo, by name there; null: recorded only")

    @model_validator(mode="after")
    def _keys_belong_to_their_source(self) -> "Teacher":
        if (self.source == "local") != (self.path is not None):
            raise ValueError("path: give the diffusers directory with source: local, and only there")
        place = (self.repo, self.revision)
        if None in place if self.source == "hub" else any((*place, self.sha256)):
            raise ValueError("repo, revision: give both with source: hub, and only there; so sha256")
        if self.is_embedded and self.variant is not None:
            raise ValueError("repo, revision: give both with source: hub; variant belongs to hub and local")
        return self

    @property
    def is_embedded(self) -> bool:
        return self.source.startswith("embedded")


class Adversarial(Block):
    """A GAN on real images, whose discriminator is the fake score's encoder (SiDA, arXiv 2410.14919)."""

    weight: Positive = Field(0.01, description="of the generator's GAN loss; published: 0.01, few steps 0.001")
    discriminator_weight: Positive = Field(1.0, description="of the discriminator's loss; published: 1")
    start_nimg: int = Field(
        ge=0,
        description="images at which the generator's GAN loss starts; the discriminator learns from the first. "
        "Published: 200,000 and 40,000",
    )


class RealUID(Block):
    """Weights of samples and real images in `objective: real_uid`; a = b = 1 uses no real images."""

    a: Annotated[float, Field(gt=0, le=1, description="published: 0.85 to 1")]
    b: Annotated[float, Field(gt=0, le=1, description="published: 0.98 a or 1.02 a; the result is sensitive to it")]


class Real(Block):
    """Real images with captions, for `adversarial` and `objective: real_uid`; encoded once by the teacher's VAE."""

    source: str = Field("embedded", description="`embedded`: scenes; else a folder, .tar (webdataset) or .parquet")
    pairs: Count | None = Field(None, description="the first ones in order of names; null: all, 10,000 scenes")
    captions: str | None = Field(None, description="of a folder: a table with both columns; null: a .txt per image")
    image_column: str = Field("image", description="of a table: file names below the folder; of a .parquet: the bytes")
    caption_column: str = Field("caption", description="of a table or .parquet")

    @model_validator(mode="after")
    def _captions_belong_to_a_folder(self) -> "Real":
        if self.captions is not None and (self.source == "embedded" or self.source.endswith((".tar", ".parquet"))):
            raise ValueError(f"captions={self.captions}: belongs to a folder of images, not to source={self.source}")
        if self.captions is not None and not self.captions.lower().endswith(TABLES):
            raise ValueError(f"captions={self.captions}: expected a table ({', '.join(TABLES)}), or null")
        return self


class Lora(Block):
    """Adapters of a small rank on one frozen copy of the teacher, which teacher, fake score and generator share."""

    rank: Count
    targets: list[str] | None = Field(
        None,
        min_length=1,
        description="endings of the names of adapted layers; null: attention, feed-forward and convolutions of all blocks",
    )
    lr_factor: Positive = Field(1.0, description="times distill.lr and fake_lr; adapters need larger ones than weights")


class ExtraRun(Block):
    """A distillation beside the sweep: a strategy at a scale, or four scales of its own (`custom`)."""

    name: Name | None = Field(None, description="default: <strategy>-<scale>; a custom run needs one")
    strategy: Strategy
    objective: Name = Field("sid", description="sid, dmd, diff_instruct or real_uid: a key of method.OBJECTIVES")
    scale: Finite | None = Field(None, description="of lsg (all), long (teacher > 1), short (< 1) and anti (< 0)")
    fake_train: Finite | None = Field(None, description="kappa_1, for strategy: custom")
    fake_eval: Finite | None = Field(None, description="kappa_2 = kappa_3, for strategy: custom")
    teacher: Positive | None = Field(None, description="kappa_4, for strategy: custom")
    alpha: Positive | None = Field(None, description="default: distill.alpha")
    num_steps: Count | None = Field(None, description="default: distill.num_steps")
    steps_objective: StepsObjective | None = Field(None, description="default: distill.steps_objective")
    step_noise: StepNoise | None = Field(None, description="default: distill.step_noise")
    sample_steps: list[Count] = Field([], description="rows in fewer evaluations, each a divisor of num_steps")
    fake_updates: Count | None = Field(None, description="default: distill.fake_updates")
    ida: Fraction | None = Field(None, description="default: distill.ida")
    adversarial: Adversarial | None = Field(None, description="default: distill.adversarial")
    real_uid: RealUID | None = Field(None, description="needed by objective: real_uid")
    train_kimg: Positive | None = Field(None, description="default: distill.train_kimg")
    lora: Lora | None = Field(None, description="default: distill.lora")

    @model_validator(mode="after")
    def _scales_fit_strategy(self) -> "ExtraRun":
        kappas = (self.fake_train, self.fake_eval, self.teacher)
        if self.strategy == "custom":
            if None in kappas or self.name is None or self.scale is not None:
                raise ValueError("strategy: custom needs name, fake_train, fake_eval and teacher, and no scale")
        elif any(k is not None for k in kappas):
            raise ValueError(f"fake_train, fake_eval, teacher belong to strategy: custom, not to {self.strategy}")
        elif (self.strategy in UNSCALED) == (self.scale is not None):
            raise ValueError(f"strategy: {self.strategy} {'has no' if self.scale is not None else 'needs a'} scale")
        if (self.objective == "real_uid") != (self.real_uid is not None):
            raise ValueError("real_uid: give a and b with objective: real_uid, and only there")
        if self.real_uid and self.adversarial:
            raise ValueError("adversarial: objective: real_uid has no discriminator; give one of the two")
        if self.strategy == "lsg" and self.scale <= 0:
            raise ValueError(f"scale={self.scale:g}: long-short guidance guides the teacher too, expected more than 0")
        if self.strategy == "long" and self.scale <= 1:
            raise ValueError(f"scale={self.scale:g}: long guidance strengthens the teacher, expected more than 1")
        if self.strategy == "short" and self.scale >= 1:
            raise ValueError(f"scale={self.scale:g}: short guidance weakens the fake score, expected less than 1")
        if self.strategy == "anti" and self.scale >= 0:
            raise ValueError(f"scale={self.scale:g}: Anti-CFG turns the fake score away, expected less than 0")
        return self


class Imported(Block):
    """A published generator, instead of a distillation: a pickle, read by a restricted unpickler."""

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
            "Fix: convert the file, or rename a text of one caption a line to .txt"
        )
    return "" if suffix == ".txt" else suffix


class Captions(Block):
    """Captions: `embedded` draws them with the scenes, `file` reads them, `hub` reads them from a repository's file."""

    source: Literal["embedded", "file", "hub"] = "embedded"
    train: Count | str = Field(20_000, description="of training: a number (embedded), a path, or a file in `repo`")
    evaluation: Count | str = Field(5_000, description="of scores: a number (embedded), else a path or coco2014-30k")
    column: str | None = Field(None, description="of a table: name of the captions' column")
    member: str | None = Field(None, description="of a .tar: file of the training captions")
    repo: str | None = Field(None, description="the hub's repository, for source: hub")
    revision: str | None = Field(None, description="its commit; null: the newest of `main`")
    split: Split = Field(
        "evaluation", description="choose on `validation`, report on `evaluation`: they share no noise"
    )

    @model_validator(mode="after")
    def _kinds_agree(self) -> "Captions":
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
        """Reject unreadable file formats by name, and a column that no file has."""
        formats = {}
        for key in ("train", "evaluation", "member"):
            name = getattr(self, key)
            try:
                formats |= {} if name is None else {key: caption_format(name)}
            except ValueError as error:
                raise ValueError(f"{key}={name!r}: {error}") from None
        if formats["evaluation"] == ".tar":
            raise ValueError(f"evaluation={self.evaluation!r}: an archive, expected a text or a table. Fix: unpack it")
        # an archive's member may be a table as long as none is named
        holds = {formats.get("member", formats["train"]), formats["evaluation"]}
        if self.column is not None and holds == {""}:
            raise ValueError(
                f"column={self.column!r}: train and evaluation are text of one caption a line, no table. "
                f"Fix: omit column, or give a table ({', '.join(TABLES)})"
            )


class Prompts(Captions):
    """Captions, and the place of their embeddings."""

    embeddings: Literal["memory", "disk"] = Field("memory", description="disk: encoded once, with no encoder later")


class Alarms(Block):
    """Limits on health metrics; a run that exceeds one for `patience` logged points in a row fails."""

    score_gap_max: Positive = Field(description="RMS of f_teacher - f_fake, latent units")
    latent_std_min: NonNegative = Field(description="std of x_g; below: the generator collapses")
    latent_std_max: Positive = Field(description="std of x_g; above: it diverges")
    generator_loss_max: Positive = Field(description="|generator loss|")
    discriminator_accuracy_max: Positive = Field(0.95, description="of its logits, from start_nimg; 0.5: chance")
    patience: Count = Field(description="logged points in a row beyond a limit")
    warmup_nimg: int = Field(ge=0, description="images before limits are checked; an untrained generator exceeds them")


# explained in docs/performance.md
FAST = {"micro_batch": 16, "checkpointing": False, "offload": "none", "shard": "none", "compile": True}
MEMORY = {
    "fast": FAST,
    "balanced": FAST | {"micro_batch": 4, "offload": "optimizer", "shard": "optimizer"},
    "smallest": {"micro_batch": 4, "checkpointing": True, "offload": "all", "shard": "all", "compile": False},
}


def _by_memory(description: str) -> Any:
    """Define a field that takes the value of `memory` if it is null."""
    return Field(None, description=description, validate_default=True)


# former settings of a distillation, with their values, which hashes of runs still hold
CONSTANTS = {"t_min": 20, "t_max": 980, "prompt_dropout": 0.1, "keep_best": None}


class Distill(Block):
    """One distillation; METHOD: Adam, constant lr 1e-6, batch 512, t_init 625 for the published runs."""

    train_kimg: Positive = Field(description="thousand images seen by the generator")
    batch: Count = Field(description="images per iteration and phase")
    lr: Positive = Field(description="learning rate of both networks")
    fake_lr: Positive | None = Field(None, description="learning rate of the fake score; null: lr")
    lr_final: Positive | None = Field(None, description="linear decay towards it over the run; null: constant")
    fake_updates: Count = Field(1, description="updates of the fake score in an iteration, each with images of its own")
    ida: Fraction = Field(0.0, description="r of distribution alignment: psi <- (1 - r) psi + r theta; 0: off")
    real: Real | None = Field(None, description="null: no real images, as `adversarial` and real_uid need them")
    adversarial: Adversarial | None = Field(None, description="of every run but those of real_uid; null: none")
    lora: Lora | None = Field(None, description="null: all weights are trained")
    alpha: Positive = Field(1.0, description="of the generator loss")
    t_init: InitialTimestep = Field(625, description="noise level the generator starts at; 1000 (flow): noise alone")
    num_steps: Count = Field(1, description="network evaluations per image")
    steps_objective: StepsObjective = Field(
        "last", description="last: train the last evaluation through all; mixture: a random one, in the memory of one"
    )
    step_noise: StepNoise = Field("fresh", description="of later evaluations: fresh, fixed (the first), ddim (implied)")
    ema_halflife_nimg: NonNegative = Field(description="images; at first 5 % of the images seen")
    nonfinite: Literal["stop", "skip"] = Field("stop", description="on a NaN or infinity; ten skips in a row also stop")
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        "float32", description="of the networks' arithmetic; weights, gradients and losses are float32 in all"
    )
    memory: Literal["fast", "balanced", "smallest"] = Field("fast", description="sets the next five where null")
    micro_batch: Count | None = _by_memory("images per backward pass; divides batch, changes memory only")
    checkpointing: bool | None = _by_memory("recompute activations in backward: a third slower, less memory")
    offload: Literal["none", "ema", "optimizer", "all"] | None = _by_memory(
        "to host memory: averages, or float32 weights and second moments, or both"
    )
    shard: Literal["none", "optimizer", "all"] | None = _by_memory(
        "optimizer: split float32 weights, second moments and averages among the GPUs; all: the teacher too"
    )
    compile: bool | None = _by_memory("compile blocks of the networks; minutes at the start, faster on GPUs")
    deterministic: bool = Field(True, description="kernels with equal bits in repeated and resumed runs; maybe slower")
    state_every_nimg: Count = Field(description="images between checkpoints")
    log_every_nimg: Count = Field(description="images between logged points")
    samples_every_nimg: Count = Field(description="images between sample grids")
    proxy_samples: int = Field(0, ge=0, description="last training captions, held out for two proxy metrics; 0: none")
    proxy_every_nimg: Count = Field(100_000, description="images between proxy evaluations")
    alarms: Alarms

    @field_validator(*MEMORY["fast"])
    @classmethod
    def _follow_memory(cls, value: Any, info: ValidationInfo) -> Any:
        """Replace null by the preset of `memory`, so that all other code reads plain values."""
        if value is not None or not {"memory", "batch"} <= info.data.keys():
            return value
        chosen = MEMORY[info.data["memory"]][info.field_name]
        if info.field_name != "micro_batch":
            return chosen
        return next(n for n in range(min(chosen, info.data["batch"]), 0, -1) if info.data["batch"] % n == 0)

    @model_validator(mode="after")
    def _consistent(self) -> "Distill":
        if self.compile and self.checkpointing:
            raise ValueError("compile, checkpointing: recomputed activations are not compiled; set one to false")
        if self.proxy_samples == 1:
            raise ValueError("proxy_samples=1: expected 2, better hundreds, or 0")
        if self.lr_final is not None and self.lr_final > self.lr:
            raise ValueError(
                f"lr_final={self.lr_final:g}: expected at most lr={self.lr:g}, which decays to it; or null"
            )
        if self.batch % self.micro_batch:
            raise ValueError(f"micro_batch={self.micro_batch}: expected a divisor of batch={self.batch}")
        if self.num_steps > max(self.t_init, 1):
            raise ValueError(f"num_steps={self.num_steps}: expected at most t_init={self.t_init}")
        return self


class Sampling(Block):
    """Settings of a sample: sample i has caption i and noise from seed + i, whatever the batch or shard."""

    batch: Count = Field(description="images at once; changes speed and memory only")
    seed: int = Field(0, ge=0, description="sample i is seeded with seed + i")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="of the networks' arithmetic")
    image_size: Count | None = Field(None, description="stored after crop and LANCZOS to this side; null: as decoded")


class Generate(Sampling):
    """Scored samples, in shards."""

    samples: Count = Field(description="images per run; as many captions are used, in order")
    samples_per_shard: Count = Field(description="images per file and job; more samples add shards")


Solver = Literal["ddim", "dpm-solver", "dpm-solver-karras", "flow-euler"]


class Baselines(Block):
    """Rows without distillation: the teacher at several steps and guidance scales, its VAE, real images."""

    solver: Solver = Field(
        "dpm-solver",
        description="DDIM (eta 0), DPM-Solver++ (2M), or the latter on Karras' noise levels; with flow matching dpm-solver or "
        "flow-euler",
    )
    steps: list[Count] = Field(description="of the teacher's solver; a guided step is two network evaluations")
    guidance_scales: list[Positive]
    vae: bool = Field(False, description="real images, encoded and decoded: the lower bound of every latent model")
    real: bool = Field(False, description="a second draw of real images: the lower bound of the metric")


class Network(Block):
    """Source of an evaluation network; text alone is its `source`."""

    source: str = Field(description="`embedded`, a path, or OWNER/NAME on a hub")
    revision: Commit | None = Field(None, description="full commit on the hub; null: no hub")
    sha256: Sha256 | None = Field(None, description="of its weight file; null: recorded only")

    @model_validator(mode="before")
    @classmethod
    def _read_source(cls, values: Any) -> Any:
        return {"source": values} if isinstance(values, str) else values


EMBEDDED = Network(source="embedded")


def _network(description: str, default: Network | None = None) -> Any:
    """Define a field that takes a Network or, also in the JSON schema, its source as text."""

    def or_text(schema: dict) -> None:
        blocks = schema.pop("anyOf", None) or [{"$ref": schema.pop("$ref")}]
        schema["anyOf"] = [{"type": "string"}, *blocks]

    return Field(default, description=description, json_schema_extra=or_text)


class FeatureSettings(Block):
    """Evaluation networks and image size of features."""

    feature_network: Network = _network(
        "a folder with config.json and model.safetensors, or the path or URL of a TorchScript file; default: `embedded`",
        EMBEDDED,
    )
    clip: Network = _network("a folder or repository in open_clip's layout; default: `embedded`", EMBEDDED)
    dinov2: Network | None = _network("transformers' Dinov2, for fd_dinov2; null: not computed")
    hps: Network | None = _network("HPS_v2.1_compressed.pt, for hps (HPSv2.1); null: not computed")
    pickscore: Network | None = _network("transformers' PickScore, for pickscore; null: not computed")
    imagereward: Network | None = _network("ImageReward.pt and med_config.json, for imagereward; null: not computed")
    patches: bool = Field(False, description="patch_fid, of central crops of stored images")
    caption_prefix: str = Field("", description="put before a caption for the CLIP score")
    image_size: Count | None = Field(None, description="centre crop and LANCZOS to this side first; null: as stored")
    feature_size: Count | None = Field(None, description="float bicubic (clean-fid) to this side; null: as is")
    batch: Count = Field(description="images at once in feature extraction")

    def networks(self) -> dict[str, Network]:
        """Return the evaluation networks that are set, by key."""
        return {key: value for key, value in self if isinstance(value, Network)}


class ReferenceSettings(FeatureSettings):
    """Reference images and the settings of their features."""

    reference: str = Field("embedded", description="`embedded`, a folder or zip, or a zip's URL (passwords: ~/.netrc)")
    reference_sha256: Sha256 | None = Field(None, description="of the zip behind a URL; null: recorded on first use")
    reference_samples: Count = Field(description="reference images; a folder or zip must hold exactly as many")


COCO = {
    "evaluate.caption_prefix": "A photo depicts ",
    "evaluate.feature_size": 299,
    "evaluate.feature_network.sha256": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",  # Inception's
}
COCO_2014 = COCO | {"prompts.evaluation": COCO2014_30K, "evaluate.reference_samples": 40_504}
# settings that a protocol's name guarantees (docs/explanation/protocol.md); other names are free
PROTOCOLS: dict[str, dict[str, Any]] = {
    "coco2014-30k": COCO_2014 | {"generate.samples": 30_000, "evaluate.image_size": 256},
    "coco2014-10k": COCO_2014 | {"generate.samples": 10_000, "evaluate.image_size": 512},
    "coco2017-5k": COCO | {"generate.samples": 5_000, "evaluate.reference_samples": 5_000, "evaluate.image_size": 512},
}


class Evaluate(ReferenceSettings):
    """A protocol: features, reference images and the formulas of the scores."""

    protocol: Name = Field(description=f"a name of your own; {', '.join(PROTOCOLS)} guarantee settings")
    fid_teacher: bool = Field(False, description="FID-T, to the teacher's row of the lowest FID; runs wait for it")
    neighbours: Count = Field(3, description="k of precision, recall, density and coverage")


class Plan(Block):
    """Sizes and throughputs of one GPU (or process) for `sid-core plan`; they change no result."""

    speeds: str = Field("unknown", description="origin of the throughputs, printed with the plan; change it with them")
    unet_million: Positive = Field(description="million parameters of the UNet")
    train_images_per_s: Positive = Field(description="of a training by LSG, per GPU; others follow by network passes")
    generate_images_per_s: Positive = Field(description="of a one-step generator with its VAE, per job")
    evaluations_per_s: Positive = Field(description="of the teacher (a guided pair is two), per job")
    feature_images_per_s: Positive = Field(description="per job")
    image_kb: Positive = Field(description="of a stored sample")
    embedding_kb: Positive = Field(240, description="of a prompt's, float32; 77 x 768 values are 240, 256 x 4096 4,200")
    download_gb: NonNegative = Field(description="of all downloads")


class JobResources(Block):
    """Requests of one job of a stage; a profile's --set-resources overrides them."""

    gpu: int | None = Field(None, ge=0, description="GPUs; null: one where the machine has one")
    threads: Count = 1
    mem_mb: Count = 6000
    runtime: str = Field("4h", pattern=LIMIT, description="limit, such as 30m, 12h, 5d")

    def gpus(self, here: int) -> int:
        """Return the GPUs of a job, `here` if the setting is null."""
        return here if self.gpu is None else self.gpu


class DistillResources(JobResources):
    """Requests of a distillation; one longer than `runtime` is continued."""

    nodes: Count = Field(1, description="of a Slurm job; its GPUs are shared equally among them")
    continuations: int = Field(100, ge=0, description="of one call of Snakemake, at most")
    save_s: Count = Field(180, description="seconds of the time limit reserved for saving")


class Resources(Block):
    """Requests of each stage's jobs."""

    teacher: JobResources
    prompts: JobResources
    distill: DistillResources
    generate: JobResources
    reference: JobResources
    features: JobResources
    score: JobResources


class Tracking(Block):
    """The mirror of results in MLflow; the files are the record."""

    enabled: bool = True
    uri: str | None = Field(
        None, description="null: MLFLOW_TRACKING_URI (for passwords), else sqlite:///mlflow.db here"
    )
    best: Literal["fid", "clip"] | None = Field("fid", description="registers its best generator; null: none")
