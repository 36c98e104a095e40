"""Freeze the settings that each stage's result depends on, and no others: a change of evaluation never retrains."""

from pathlib import Path

from ..config import (
    SEEDS,
    BaselineSettings,
    Block,
    Captions,
    Config,
    FeatureSettings,
    GenerateSettings,
    ImportSettings,
    PromptsSettings,
    Sampling,
    ScoreSettings,
    baselines,
    distillations,
    imported_run,
    part,
    reference_settings,
    resamplings,
    runs,
)
from .paths import Results, settings_beside


def first_seed(config: Config) -> int:
    """Return the seed of sample 0. The validation split has the upper half of the 2^32 seeds: the splits share no noise."""
    return config.generate.seed + (SEEDS // 2 if config.prompts.split == "validation" else 0)


def stage_settings(config: Config) -> dict[str, Block]:
    """Return every settings file of the experiment, by its path below results/EXPERIMENT."""
    below, evaluate, split = Results(Path()), config.evaluate, config.prompts.split
    sampling = part(Sampling, config.generate).model_copy(update={"seed": first_seed(config)})
    files: dict[Path, Block] = {
        settings_beside(below.teacher()): config.teacher,
        settings_beside(below.prompts.parent): PromptsSettings(prompts=part(Captions, config.prompts)),
        below.reference("reference").settings: reference_settings(evaluate, split),
        below.features_settings: part(FeatureSettings, evaluate),
        below.score_settings: ScoreSettings(evaluate=evaluate, samples=config.generate.samples, seed=sampling.seed),
    }
    if any(run.uses_real_images for run in runs(config)):
        files[settings_beside(below.real_pairs.parent)] = config.distill.real
    if config.distill.proxy_samples:
        watched = "watch" if evaluate.reference == "embedded" else split
        files[below.reference("watch").settings] = reference_settings(evaluate, watched)
    for name, teacher in config.teachers.items():
        files[settings_beside(below.teacher(name))] = teacher
    imports = [(imported, imported_run(imported)) for imported in config.imports]
    sampled = [(settings, settings.run, config.distill.t_init) for settings in distillations(config)]
    sampled += [(ImportSettings(run=run, imported=imported), run, imported.t_init) for imported, run in imports]
    sampled += [(settings, settings.run, config.distill.t_init) for settings in resamplings(config)]
    for settings, run, t_init in sampled:
        files[below.run(run.name).settings] = settings
        steps = {"num_steps": run.num_steps, "step_noise": run.step_noise}
        files[below.run(run.name).generation] = GenerateSettings(t_init=t_init, sampling=sampling, **steps)
    for baseline in baselines(config):
        settings = BaselineSettings(baseline=baseline, split=split, sampling=sampling)
        files[below.baseline(baseline.name).generation] = settings
    return {str(path): settings for path, settings in files.items()}
