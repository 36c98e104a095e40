"""The arithmetic that settings name: in which type a network's weights are."""

import torch

# tf32 is float32 in memory, multiplied with fewer digits
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
