"""Define the settings of the recipe steps: those of the shipped weights (defaults) and the smallest that work."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class AutoencoderSettings:
    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 4  # with 8, the KL term leaves three as pure noise, which the teacher has to model
    steps: int = 3500
    batch: int = 32
    learning_rate: float = 2e-3
    kl_weight: float = 1e-3  # of the mean KL per latent element, against mean absolute errors


@dataclass(frozen=True)
class ClipSettings:
    width: int = 64  # of both towers and of the embedding
    text_layers: int = 2
    text_heads: int = 4
    vision_layers: int = 4
    patch: int = 4
    tokens: int = 12  # the longest caption has 8 words
    steps: int = 400
    batch: int = 256
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class FeatureSettings:
    channels: tuple[int, ...] = (24, 48, 96, 128)
    features: int = 64
    steps: int = 2000
    batch: int = 64
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class TeacherSettings:
    channels: tuple[int, int] = (32, 64)
    scenes: int = 100_000  # encoded once
    steps: int = 45_000
    batch: int = 64
    learning_rate: float = 1.5e-3
    prompt_dropout: float = 0.1  # for classifier-free guidance


@dataclass(frozen=True)
class FlowSettings:
    layers: int = 4
    heads: int = 4
    head_width: int = 24
    patch: int = 2
    scenes: int = 100_000  # encoded once
    steps: int = 18_000
    batch: int = 64
    learning_rate: float = 3e-3
    prompt_dropout: float = 0.1  # for classifier-free guidance


@dataclass(frozen=True)
class QualitySettings:
    samples: int = 5000
    reference: int = 10_000
    sampling_steps: int = 8
    guidance_scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.5)


@dataclass(frozen=True)
class RecipeSettings:
    seed: int = 0
    autoencoder: AutoencoderSettings = field(default_factory=AutoencoderSettings)
    clip: ClipSettings = field(default_factory=ClipSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    flow: FlowSettings = field(default_factory=FlowSettings)
    quality: QualitySettings = field(default_factory=QualitySettings)
    flow_quality: QualitySettings = field(default_factory=QualitySettings)


SMALLEST = RecipeSettings(
    autoencoder=AutoencoderSettings(steps=10, batch=16),
    clip=ClipSettings(steps=4, batch=64),
    features=FeatureSettings(steps=10, batch=32),
    teacher=TeacherSettings(scenes=512, steps=10, batch=32),
    flow=FlowSettings(layers=1, scenes=512, steps=10, batch=32),
    quality=QualitySettings(samples=128, reference=128, sampling_steps=2, guidance_scales=(1.0, 3.0)),
    flow_quality=QualitySettings(samples=128, reference=128, sampling_steps=2, guidance_scales=(1.0,)),
)
