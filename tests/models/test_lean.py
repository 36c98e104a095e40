"""Import open_clip without libraries that no stage uses, in processes of their own."""

import subprocess
import sys

HEAVY = (
    *("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp"),
    *("scipy", "torchvision", "timm"),
)


def loaded(code: str) -> set[str]:
    """Run code in a process of its own, and return which modules of HEAVY it has loaded."""
    code += f"\nimport sys; print('loaded', *(name for name in {HEAVY!r} if sys.modules.get(name)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_clip_of_embedded_experiment_loads_torchvision_alone():
    code = (
        "from types import SimpleNamespace as S\n"
        "from sid_core.evaluation.networks.required import Clip\n"
        "network = S(source='embedded', revision=None, sha256=None)\n"
        "clip = Clip(S(networks=lambda: {'clip': network}, clip=network))\n"
        "assert clip.texts(['a red circle']).shape[0] == 1"
    )
    assert loaded(code) == {"torchvision"}


def test_without_restores_modules_and_torch_distributed():
    code = (
        "import sys, torch\n"
        "from sid_core.models.lean import without\n"
        "with without('timm', 'transformers'): import open_clip\n"
        "assert torch.distributed.is_available()\n"
        "import scipy.special, torch._dynamo, torch.distributed.fsdp\n"
        "assert torch._dynamo.disable is not None and 'NoCompiler' not in type(torch._dynamo).__name__\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2, 2]"
    )
    assert "torch._dynamo" in loaded(code)


def test_without_of_process_that_compiles_keeps_the_compiler():
    code = (
        "import torch._dynamo as real, sys\n"
        "from sid_core.models.lean import without\n"
        "with without(): assert sys.modules['torch._dynamo'] is real"
    )
    assert "torch._dynamo" in loaded(code)
