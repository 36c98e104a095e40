"""Every network as x0_hat = f(x_t, t, c): teacher, fake score and generator are one class with three sets of weights.

What the UNet predicts (epsilon or v) is resolved here and known nowhere else. Guiding x_0, epsilon or v gives the same result,
since x_0 is affine in either and the coefficients of the guided sum add to one.
"""

from torch import Tensor, nn

from .guided_pair import guided_pair
from .schedule import NoiseSchedule


class Denoiser(nn.Module):
    """A conditional UNet seen as an estimate of x_0.

    Args:
        unet: called as unet(x_t, t, encoder_hidden_states=cond).sample, diffusers' convention.
        schedule: the teacher's noise schedule.
        prediction_type: 'epsilon' or 'v_prediction'.
    """

    def __init__(self, unet: nn.Module, schedule: NoiseSchedule, prediction_type: str):
        super().__init__()
        self.unet, self.schedule, self.prediction_type = unet, schedule, prediction_type

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Tensor, uncond: Tensor | None = None, guidance_scale: float = 1.0
    ) -> Tensor:
        """x0_hat (B, C, H, W) float32 = f(empty) + kappa (f(c) - f(empty)).

        Args:
            x_t: noisy latents (B, C, H, W) float32.
            t: noise levels (B,) int64.
            cond: prompt embeddings (B, L, D).
            uncond: embedding of the empty prompt (1, L, D) or (B, L, D); needed where guidance_scale is not 1.
            guidance_scale: kappa. At 1 only the conditional branch is evaluated.
        """
        if guidance_scale == 1:
            output = self._network(x_t, t, cond)
        else:
            assert uncond is not None, f"guidance_scale={guidance_scale} needs the embedding of the empty prompt"
            dtype = self.unet.dtype
            both = guided_pair(self.unet, x_t.to(dtype), t, uncond.expand_as(cond).to(dtype), cond.to(dtype))
            output_uncond, output_cond = both.float().chunk(2)
            output = output_uncond + guidance_scale * (output_cond - output_uncond)
        return self._x0(output, x_t, t)

    def eps(self, x0_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that an estimate of x_0 implies: (x_t - alpha x0_hat) / sigma."""
        return (x_t - self.schedule.alpha(t) * x0_hat) / self.schedule.sigma(t)

    def _network(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(x_t.to(dtype), t, encoder_hidden_states=cond.to(dtype)).sample.float()

    def _x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction_type == "epsilon":
            return (x_t - sigma * output) / alpha
        return alpha * x_t - sigma * output
