"""Test digests of the files a configuration names; downloads are pinned by the settings instead."""

from pathlib import Path

import pytest

from sid_core.config import load_config, parse_config
from sid_core.errors import UserError
from sid_core.pipeline import digests

SHIPPED = load_config(Path(__file__).parents[2] / "config.yaml").model_dump(mode="json")


def data_digests(teacher: dict | None = None, **evaluate) -> dict[str, str]:
    return digests.data_digests(
        parse_config(SHIPPED | {"preset": None, "teacher": teacher or {}, "evaluate": SHIPPED["evaluate"] | evaluate})
    )


def test_data_digests_of_downloads_need_no_file():
    found = data_digests(
        {"source": "hub", "repo": "owner/name", "revision": "a" * 40},
        feature_network="https://somewhere/x.pt",
        clip={"source": "owner/name", "revision": "b" * 40},
        reference="https://somewhere/val2014.zip",
    )
    assert found["teacher"] == found["reference"] == ""


@pytest.mark.parametrize("key", ["feature_network.source", "clip.source", "dinov2.source", "reference"])
def test_data_digests_of_a_missing_path_name_its_key(key):
    with pytest.raises(UserError, match=f"evaluate.{key}=nowhere: no such file or folder"):
        data_digests(**{key.removesuffix(".source"): "nowhere"})


def imported(**more) -> dict[str, str]:
    """Return the digests of two imports, one from a hub."""
    known = {"scale": 2, "train_kimg": 4812}
    hub = {"name": "hub", "file": "x.pkl", "repo": "owner/name", "revision": "a" * 40}
    return digests.data_digests(parse_config(SHIPPED | {"imports": [known | hub, known | {"name": "mine"} | more]}))


def test_data_digests_of_a_missing_import_name_it():
    with pytest.raises(UserError, match=r"imports\.mine\.file=nowhere\.pkl: no such file or folder"):
        imported(file="nowhere.pkl")


def test_data_digests_of_a_replaced_import_change_its_stage_only(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"one")
    before = imported(file=str(path))
    path.write_bytes(b"other")
    after = imported(file=str(path))
    assert {key for key in before if before[key] != after[key]} == {"imports/mine"}


def test_data_digests_of_real_images_follow_their_files(tmp_path):
    def found(**real):
        return digests.data_digests(parse_config(SHIPPED | {"distill": SHIPPED["distill"] | {"real": real}}))

    (tmp_path / "a.txt").write_text("one")
    before, embedded = found(source=str(tmp_path)), found()
    (tmp_path / "a.txt").write_text("other")
    after = found(source=str(tmp_path))
    assert {key for key in before if before[key] != after[key]} == {"real_pairs"}
    assert embedded == data_digests()
    with pytest.raises(UserError, match=r"distill\.real\.source=nowhere: no such file or folder"):
        found(source="nowhere")


def test_data_digests_of_a_replaced_reference_change_its_stage_only(tmp_path):
    path = tmp_path / "val2014.zip"
    path.write_bytes(b"one")
    before = data_digests(reference=str(path))
    path.write_bytes(b"other")
    after = data_digests(reference=str(path))
    assert {key for key in before if before[key] != after[key]} == {"reference"}


# --- what a stage's digest covers ----------------------------------------------------------------------------------------


def covered(module: str) -> set[str]:
    path = digests._file(digests.ROOT.joinpath(*module.split(".")))
    return {str(p.relative_to(digests.ROOT)) for p in digests.reachable(path) - digests.PLUMBING}


def test_stage_digest_covers_imports_and_no_later_stage():
    assert {"training/run.py", "training/iteration.py", "method/objectives/sid.py", "models/text.py"} <= covered(
        "training.run"
    )
    assert not any(name.startswith(("evaluation", "report")) for name in covered("training.run"))
    assert "data/images.py" in covered("sampling.generation")
    assert {"training/run.py", "evaluation/scoring.py", "evaluation/features.py"}.isdisjoint(
        covered("sampling.generation")
    )
    assert "data/shapes/scenes.py" in covered("data.prompts")
    assert "cli.py" not in covered("report")


def test_stage_digest_follows_imports(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "part").mkdir(parents=True)
    for name, text in {
        "__init__.py": "",
        "part/__init__.py": "",
        "part/a.py": "def f():\n    from . import b\n",
        "part/b.py": "from ..other import x\n",
        "other.py": "x = 1\n",
        "unrelated.py": "x = 1\n",
    }.items():
        (package / name).write_text(text)
    monkeypatch.setattr(digests, "ROOT", package)
    monkeypatch.setattr(digests, "PLUMBING", set())

    def digest(name: str = "", text: str = "") -> str:
        if name:
            (package / name).write_text(text)
        digests.imports.cache_clear()
        return digests.stage_digest("part.a")

    before = digest()
    assert digest("unrelated.py", "x = 2\n") == before
    assert digest("other.py", "x = 1  # the same\n") == before
    assert digest("other.py", "x = 2\n") != before
    before = digest("part/page.css", "a { }")
    assert digest("part/page.css", "b { }") != before
    digests.imports.cache_clear()


def test_code_digest_sees_code_and_not_comments(tmp_path):
    def digest(text: str) -> str:
        (tmp_path / "module.py").write_text(text)
        return digests.code_digest(tmp_path / "module.py")

    first = digest('"""Doc."""\n\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert digest('"""Other."""\ndef f(x):  # comment\n    return (x + 1)\n') == first
    assert digest("def f(x):\n    return x + 2\n") != first
