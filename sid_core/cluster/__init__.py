"""Run a job on the machine at hand or on a Slurm cluster: processes, GPUs, time limits."""
