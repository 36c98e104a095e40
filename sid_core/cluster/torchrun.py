"""Run torchrun as `launch` needs it: `python -m sid_core.cluster.torchrun ARGUMENTS OF TORCHRUN`.

Ranks print their own errors, so torchrun's traceback is dropped, and the exit code is that of the first rank that failed. Only
SIGUSR1 is forwarded, once: a cluster's SIGTERM reaches every process by itself, and a second one would make torchrun exit before
the ranks have saved a checkpoint.
"""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..storage import job_record

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SAVING_S = 3600  # until torchrun kills signalled ranks; its default of 30 s is too short to save gigabytes


def main(arguments: list[str]) -> int:
    """Run torchrun and return 0, the exit code of the first process that failed, or 128 + signal."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages of C++ frames once another node ends
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)  # SIG_IGN would be inherited
    logging.disable(logging.ERROR)  # each module of torchrun has its own logger and level
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SAVING_S)
    try:
        run.main(["--signals-to-handle", "SIGUSR1", *arguments])
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=_cause_first)
        if failure.exitcode >= 0:
            return failure.exitcode
        if failure.exitcode != -signal.SIGTERM:  # srun sends SIGTERM once another node has failed
            job_record.fail(f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}")
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except RendezvousConnectionError:
        job_record.fail("the first node's torchrun has not started, or has ended; see its own message")
        return 1
    return 0


def _cause_first(failed: tuple[int, "ProcessFailure"]) -> tuple:
    """Return a sort key: killed ranks first, those that torchrun ended last. Timestamps of whole seconds cannot decide alone."""
    _, failure = failed
    return failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0, failure.timestamp


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
