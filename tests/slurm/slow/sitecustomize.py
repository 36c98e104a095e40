"""With this folder in PYTHONPATH a training takes a second for each point that it logs, without using the CPU."""

import sys
import time


def wait(event: str, arguments: tuple) -> None:
    if event == "open" and str(arguments[0]).endswith("/training.jsonl") and arguments[1] == "a":
        time.sleep(1)


sys.addaudithook(wait)
