"""Delay a training by a second per log entry, without using the CPU, if this folder is in PYTHONPATH."""

import sys
import time


def wait(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith("/training.jsonl") and arguments[1] == "a":
        time.sleep(1)


sys.addaudithook(wait)
