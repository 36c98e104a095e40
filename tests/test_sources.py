"""Files that a configuration points at: looked at before anything runs; what is fetched is pinned by the settings instead."""

from pathlib import Path

import pytest

from sid_core.config import parse_config, read_yaml
from sid_core.errors import UserError
from sid_core.sources import data_digests

SHIPPED = read_yaml(Path(__file__).parents[1] / "config.yaml")


def digests(teacher: dict | None = None, **evaluate) -> dict[str, str]:
    return data_digests(parse_config(SHIPPED | {"teacher": teacher or {}, "evaluate": SHIPPED["evaluate"] | evaluate}))


def test_what_is_fetched_is_not_looked_for_here():
    found = digests(
        {"source": "hub", "repo": "owner/name", "revision": "a" * 40},
        feature_network="https://somewhere/x.pt",
        clip="owner/name",
        clip_revision="b" * 40,
        reference="https://somewhere/val2014.zip",
    )
    assert found["teacher"] == found["reference"] == ""


@pytest.mark.parametrize("key", ["feature_network", "clip", "reference"])
def test_a_missing_path_is_named_by_its_key(key):
    with pytest.raises(UserError, match=f"evaluate.{key}=nowhere: no such file or folder"):
        digests(**{key: "nowhere"})


def imported(**more) -> dict[str, str]:
    """Digests with two imports, one from a hub."""
    known = {"scale": 2, "train_kimg": 4812}
    hub = {"name": "hub", "file": "x.pkl", "repo": "owner/name", "revision": "a" * 40}
    return data_digests(parse_config(SHIPPED | {"imports": [known | hub, known | {"name": "mine"} | more]}))


def test_an_import_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"imports\.mine\.file=nowhere\.pkl: no such file or folder"):
        imported(file="nowhere.pkl")


def test_a_replaced_import_is_noticed_and_concerns_nothing_else(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"one")
    before = imported(file=str(path))
    path.write_bytes(b"other")
    after = imported(file=str(path))
    assert {key for key in before if before[key] != after[key]} == {"imports/mine"}


def test_a_replaced_reference_is_noticed_and_concerns_nothing_else(tmp_path):
    path = tmp_path / "val2014.zip"
    path.write_bytes(b"one")
    before = digests(reference=str(path))
    path.write_bytes(b"other")
    after = digests(reference=str(path))
    assert {key for key in before if before[key] != after[key]} == {"reference"}
