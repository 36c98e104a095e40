"""Test which packages training and help do not import. The layers are contracts of import-linter (pyproject.toml)."""

import subprocess
import sys


def test_training_imports_no_configuration_library():
    """Check a machine that has torch, diffusers and safetensors alone."""
    unwanted = ("pydantic", "snakemake", "mlflow", "pandas", "matplotlib", "open_clip")
    code = f"import sys; sys.modules.update(dict.fromkeys({unwanted!r})); import sid_core.training.iteration, sid_core.method"
    subprocess.run([sys.executable, "-c", code], check=True)


def check_not_imported(by: str, unwanted: tuple[str, ...]) -> None:
    """Check that importing the modules `by` in a new process imports none of `unwanted`."""
    code = f"import sys, {by}\nprint([name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_snakemake_and_help_import_no_large_library():
    by = "sid_core.cli, sid_core.pipeline.digests, sid_core.cluster.machine, sid_core.tracking"
    check_not_imported(by, ("torch", "numpy", "mlflow", "diffusers", "matplotlib", "pandas"))


def test_bootstrap_of_every_snakemake_call_imports_no_network_library():
    check_not_imported("sid_core.pipeline.bootstrap", ("torch", "mlflow", "diffusers", "transformers", "pandas"))
