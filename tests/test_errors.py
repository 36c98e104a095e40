"""Test that no setting accepts a password in a URL and no message, log or record shows one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sid_core import config as c
from sid_core.errors import UserError, redact

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x.zip", "https://***@host/x.zip"),
        ("no https://me:p%40ss@host:80/x, nor sqlite:///a", "no https://***@host:80/x, nor sqlite:///a"),
        ("https://me:p@ss@host/x@y.zip", "https://***@host/x@y.zip"),
        ("postgresql://me:pa/s#s?@db:5432/mlflow", "postgresql://***@db:5432/mlflow"),
        ("mysql+pymysql://pass@db/mlflow", "mysql+pymysql://***@db/mlflow"),
        ("https://***@host/", "https://***@host/"),
        ("https://host/x?a=1&token=pass&b=2", "https://host/x?a=1&token=***&b=2"),
        ("https://host/x?sig=pass#top", "https://host/x?sig=***#top"),
        (
            "https://s3/x?X-Amz-Credential=pass&X-Amz-Signature=pass",
            "https://s3/x?X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("postgresql://db/mlflow?user=me&password=pass", "postgresql://db/mlflow?user=me&password=***"),
    ],
)
def test_redact_of_a_url_with_a_password_shows_the_rest(text, shown):
    assert redact(text) == redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://images.cocodataset.org/zips/val2014.zip",
        "http://host:8080/x@y.zip",
        "http://host:8080 answers me@home",
        "https://host/record?download=1&key2=b",
        "sqlite:////data/me@home/mlflow.db",
        "user@host:path",
    ],
)
def test_redact_of_a_text_without_passwords_is_the_text(text):
    assert redact(text) == text


# --- settings ------------------------------------------------------------------------------------------------------------

PLACES = {
    "tracking.uri": "Fix: set MLFLOW_TRACKING_URI to it",
    "evaluate.reference": "Fix: put user and password into ~/.netrc",
    "evaluate.feature_network": "Fix: put user and password into ~/.netrc",
    "prompts.train": "Fix: put user and password into ~/.netrc",
}


@pytest.mark.parametrize("key", PLACES)
def test_settings_with_a_password_raise_without_showing_it(key):
    values = c.load_config(ROOT / "config.yaml").model_dump(mode="json")
    block, name = key.split(".")
    values[block][name] = "https://me:hidden@host/x?token=hidden"
    values["distill"]["lr"] = "fast"  # another mistake, which is explained later
    with pytest.raises(UserError) as caught:
        c.parse_config(values)
    said = str(caught.value)
    assert f"config: {key}=https://***@host/x?token=***: expected a URL without user, password or token" in said
    assert PLACES[key] in said
    assert "hidden" not in said


def test_stage_settings_with_a_password_raise(tmp_path):
    (tmp_path / "x.yaml").write_text("imported: [{file: 'https://me:hidden@host/x'}]\n")
    with pytest.raises(UserError, match=r"imported\.0\.file=https://\*\*\*@host/x: ") as caught:
        c.load_settings(c.ImportSettings, tmp_path / "x.yaml")
    assert "hidden" not in str(caught.value)


def test_read_yaml_of_malformed_text_hides_its_password(tmp_path):
    (tmp_path / "x.yaml").write_text("uri: [https://me:hidden@host/x\n")
    with pytest.raises(UserError) as caught:
        c.read_yaml(tmp_path / "x.yaml")
    assert "hidden" not in str(caught.value)


# --- what is printed -----------------------------------------------------------------------------------------------------


def test_errors_and_logs_of_a_command_show_no_password():
    program = """
import logging
from sid_core.errors import UserError, log_to_stderr
log_to_stderr()
logging.getLogger("httpx").info("HTTP Request: GET %s", "https://me:hidden@mirror/api")
print(UserError("https://me:hidden@mirror/api answers 500"))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stderr == "HTTP Request: GET https://***@mirror/api\n"
    assert done.stdout == "https://***@mirror/api answers 500\n"
