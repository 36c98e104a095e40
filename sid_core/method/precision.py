"""Map the setting `precision` to the dtype of a network's weights."""

import torch

# tf32: float32 in memory, products with fewer digits
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
