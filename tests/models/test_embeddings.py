"""Compare embeddings on disk with the encoder's; kills, damage, other captions and teachers."""

import pytest
import torch
from small_run import PROMPTS, make_settings

from sid_core.config import Teacher
from sid_core.errors import UserError
from sid_core.models import conditioning, embeddings
from sid_core.models.conditioning import PromptSet
from sid_core.models.embeddings import INDEX, StoredPrompts, embed_prompts
from sid_core.models.teacher import load_text_encoder, prepare_teacher
from sid_core.storage.files import sidecar
from sid_core.training import run as training_run

CAPTIONS = [*(f"a dot {i}" for i in range(7)), "a dot 2", "a dot 7"]


@pytest.fixture(scope="module")
def tiny_sdxl(tiny_sdxl_source, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdxl") / "teacher"
    prepare_teacher(Teacher(source="local", path=str(tiny_sdxl_source)), out)
    return out


@pytest.fixture
def small_chunks(monkeypatch):
    """Encode two prompts at once and store four in a shard."""
    for module in (conditioning, embeddings):
        monkeypatch.setattr(module, "CHUNK", 2)
    monkeypatch.setattr(embeddings, "SHARD_BYTES", 4 * 12 * 16 * 4)


def write(folder, captions=CAPTIONS):
    path = folder / "train.txt"
    path.write_text("".join(f"{caption}\n" for caption in captions))
    return path


def equal(a, b):
    assert a.parts().keys() == b.parts().keys()
    return all(torch.equal(part, b.parts()[name]) for name, part in a.parts().items())


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("family", ["tiny_teacher", "tiny_sdxl"])
def test_stored_prompts_equal_those_of_the_encoder(request, tmp_path, family):
    teacher = request.getfixturevalue(family)
    embed_prompts(write(tmp_path), teacher, tmp_path / "e")
    assert len(list((tmp_path / "e").glob("0*.safetensors"))) == {"tiny_teacher": 2, "tiny_sdxl": 4}[family]
    stored = StoredPrompts(tmp_path / "e", CAPTIONS, teacher)
    encoded = PromptSet(load_text_encoder(teacher), CAPTIONS)
    indices, dropped = torch.tensor([8, 0, 7, 2, 5]), torch.tensor([False, True, False, False, False])
    assert len(stored) == len(CAPTIONS)
    assert equal(stored.empty, encoded.empty)
    assert equal(stored(indices), encoded(indices))
    assert equal(stored(indices, dropped), encoded(indices, dropped))


@pytest.mark.usefixtures("small_chunks")
def test_embed_prompts_killed_resumes_at_its_shard(tiny_teacher, tmp_path, monkeypatch):
    captions, encoded = write(tmp_path), []
    save = embeddings.save_file

    def killed(tensors, path):
        if "00001" in path.name:
            raise KeyboardInterrupt
        save(tensors, path)

    monkeypatch.setattr(embeddings, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        embed_prompts(captions, tiny_teacher, tmp_path / "e")
    with pytest.raises(UserError, match=r"index\.safetensors: missing"):
        StoredPrompts(tmp_path / "e", CAPTIONS, tiny_teacher)
    encoder = load_text_encoder(tiny_teacher)
    monkeypatch.setattr(embeddings, "save_file", save)
    monkeypatch.setattr(embeddings, "load_text_encoder", lambda _: encoder)
    inner = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda prompts: encoded.extend(prompts) or inner(prompts))
    embed_prompts(captions, tiny_teacher, tmp_path / "e")
    assert [text for text in encoded if text] == ["a dot 4", "a dot 5", "a dot 6", "a dot 7"]
    embed_prompts(captions, tiny_teacher, tmp_path / "fresh")
    for path in (tmp_path / "fresh").iterdir():
        assert path.read_bytes() == (tmp_path / "e" / path.name).read_bytes()


@pytest.mark.usefixtures("small_chunks")
def test_stored_prompts_of_other_captions_or_teacher_names_the_remedy(tiny_teacher, tiny_sdxl, tmp_path):
    embed_prompts(write(tmp_path), tiny_teacher, tmp_path / "e")
    for captions, teacher, what in (
        (CAPTIONS[:-1], tiny_teacher, "other captions"),
        (CAPTIONS, tiny_sdxl, "another teacher"),
    ):
        with pytest.raises(UserError, match=f"e: embeddings of {what}. Fix: rerun embed-prompts"):
            StoredPrompts(tmp_path / "e", captions, teacher)
    embed_prompts(write(tmp_path, CAPTIONS[:2]), tiny_teacher, tmp_path / "e")  # replaces them
    assert {path.name for path in (tmp_path / "e").iterdir()} == {
        "00000.safetensors", "00000.json", INDEX, sidecar(tmp_path / "e" / INDEX).name,
    }  # fmt: skip
    shard = tmp_path / "e" / "00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"00000\.safetensors"):
        StoredPrompts(tmp_path / "e", CAPTIONS[:2], tiny_teacher)(torch.tensor([0]))


def test_trainer_on_stored_prompts_gives_equal_bits_without_a_text_encoder(tiny_teacher, tmp_path, monkeypatch):
    embed_prompts(write(tmp_path, PROMPTS), tiny_teacher, tmp_path / "embeddings" / "train")
    plain = training_run.make_trainer(make_settings(), tiny_teacher, PROMPTS)
    monkeypatch.setattr(training_run, "load_text_encoder", None)
    stored = training_run.make_trainer(make_settings(), tiny_teacher, PROMPTS, embeddings=tmp_path / "embeddings")
    plain.prompt_dropout = stored.prompt_dropout = 0.5
    for _ in range(2):
        metrics, expected = stored.step(), plain.step()
        assert all(torch.equal(metrics[key], expected[key]) for key in expected)
    assert torch.equal(stored.ema_weights, plain.ema_weights)
