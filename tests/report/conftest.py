import functools

import pytest
from made_up import write_experiment


@pytest.fixture
def make_experiment(tmp_path):
    """Return make_experiment(config) -> the folder of a finished experiment."""
    return functools.partial(write_experiment, tmp_path)
