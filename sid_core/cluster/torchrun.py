"""Run torchrun as `launch` needs it: `python -m sid_core.cluster.torchrun ARGUMENTS OF TORCHRUN`.

The processes have said themselves what ended them; torchrun's page of traceback after it is left out, and the exit code is
that of the first one that failed. SIGUSR1 alone is passed on to them, once: a cluster's SIGTERM reaches every process by itself,
and a second one would make torchrun leave before they have saved.
"""

import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from ..storage import job_record

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SAVING_S = 3600  # torchrun kills what has not ended this long after a signal; its own 30 s may not do for gigabytes


def main(arguments: list[str]) -> int:
    """Run torchrun and return 0, the exit code of the first process that failed, or 128 + signal."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else pages of C++ frames where another node has ended
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousConnectionError

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: None)  # SIG_IGN would be inherited
    logging.disable(logging.ERROR)  # each of its modules has a logger with a level of its own
    os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SAVING_S)
    try:
        run.main(["--signals-to-handle", "SIGUSR1", *arguments])
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=_cause_first)
        if failure.exitcode >= 0:
            return failure.exitcode
        if failure.exitcode != -signal.SIGTERM:  # which srun sends once another node has failed
            job_record.fail(f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}")
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    except RendezvousConnectionError:
        job_record.fail("the first node's torchrun is not there, or has ended; its own message tells why")
        return 1
    return 0


def _cause_first(failed: tuple[int, "ProcessFailure"]) -> tuple:
    """Return a sort key that puts killed processes first and those that torchrun ended by SIGTERM last.

    Timestamps are whole seconds, so that they cannot decide alone.
    """
    _, failure = failed
    return failure.exitcode == -signal.SIGTERM, failure.exitcode >= 0, failure.timestamp


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
