import pytest
import torch

from sid_core.models.conditioning import Conditioning
from sid_core.models.devices import DTYPES, disable_tf32, place, set_memory_format
from sid_core.models.teacher import load_backbone


@pytest.mark.parametrize("precision", DTYPES)
def test_place_with_a_precision_casts_weights_and_not_the_schedule(precision, tiny_teacher):
    denoiser = place(load_backbone(tiny_teacher), precision)
    assert {weights.dtype for weights in denoiser.parameters()} == {DTYPES[precision]}
    assert {buffer.dtype for buffer in denoiser.schedule.buffers()} == {torch.float32}
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    with torch.no_grad():
        cond = Conditioning(torch.randn(2, 12, 16)).to_device(denoiser.network.device)
        x0_hat = denoiser(x.to(denoiser.network.device), t.to(denoiser.network.device), cond)
    assert x0_hat.dtype == torch.float32


def test_set_memory_format_changes_16_bit_weights_of_a_gpu_and_all_of_a_cpu(tiny_teacher):
    for kind, precision in (
        ("cuda", "bfloat16"),
        ("cuda", "float16"),
        ("cuda", "float32"),
        ("cuda", "tf32"),
        ("cpu", "bfloat16"),
        ("cpu", "float32"),
    ):
        unet = load_backbone(tiny_teacher).network
        set_memory_format(unet, precision, torch.device(kind))
        last = unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        assert last == (kind == "cpu" or precision in ("bfloat16", "float16"))


def test_disable_tf32_turns_tf32_off_in_both_libraries():
    torch.backends.cudnn.allow_tf32 = True
    disable_tf32()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_place_on_a_gpu_agrees_with_the_cpu(tiny_teacher):
    disable_tf32()
    x, t, cond = torch.randn(4, 4, 8, 8), torch.full((4,), 625), Conditioning(torch.randn(4, 12, 16))
    with torch.no_grad():
        expected = load_backbone(tiny_teacher)(x, t, cond)
        found = place(load_backbone(tiny_teacher), "float32")(x.cuda(), t.cuda(), cond.to_device(torch.device("cuda")))
    assert torch.allclose(found.cpu(), expected, atol=1e-4)
