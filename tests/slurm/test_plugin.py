"""Test that the Slurm plugin has the private members that sid_core.cluster.slurm touches."""

import os
import subprocess
import sys

from pipeline import install_plugin

from sid_core.cluster import slurm


def test_plugin_has_the_touched_private_members(tmp_path):
    code = (
        "import inspect, sys; from snakemake_executor_plugin_slurm import Executor as E; text = inspect.getsource(E)\n"
        "print([name for name in sys.argv[1:] if f'self.{name}' not in text and f'def {name}(' not in text])"
    )
    environment = os.environ | {"PYTHONPATH": str(install_plugin(tmp_path))}
    command = [
        sys.executable,
        "-c",
        code,
        *slurm.TOUCHED,
        "get_partition_arg",
        "get_status_command",
        "report_job_error",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[]"
