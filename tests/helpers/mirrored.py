"""Make settings of a distillation that takes seconds and is mirrored to MLflow."""

from sid_core.config import DistillSettings


def make_settings(**values) -> DistillSettings:
    distill = {
        "train_kimg": 0.016,
        "batch": 4,
        "micro_batch": 4,
        "compile": False,
        "lr": 1e-4,
        "ema_halflife_nimg": 8,
        "state_every_nimg": 8,
        "log_every_nimg": 4,
        "samples_every_nimg": 8,
        "alarms": {
            "score_gap_max": 1e9,
            "latent_std_min": 0,
            "latent_std_max": 1e9,
            "generator_loss_max": 1e9,
            "patience": 2,
            "warmup_nimg": 0,
        },
    }
    scales = {"fake_train": 1.5, "fake_eval": 1.5, "teacher": 1.5}
    run = {"name": "lsg-1.5", "strategy": "lsg", **scales, "alpha": 1, "num_steps": 1, "seed": 0}
    return DistillSettings(run=run, distill=distill | values)
