"""Compare losses and gradients of all objectives with an independent implementation of the published formulas.

The reference works on eps (or v) and schedule tables, in float64, one sample at a time, as the published loop does;
the package on x_0 in float32, batched. Guidance scales, strategies, alpha and steps are varied.
"""

import pytest
import torch
from toy import ToyUNet

from sid_core.method import OBJECTIVES, Batch, Guidance, Networks, Steps, fake_score_loss, generator_loss
from sid_core.models.backbones import StableDiffusion
from sid_core.models.conditioning import Conditioning
from sid_core.models.scheduler import noise_schedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STRATEGIES = {
    "none": Guidance(1, 1, 1),
    "lsg-1.5": Guidance(1.5, 1.5, 1.5),
    "lsg-4.5": Guidance(4.5, 4.5, 4.5),
    "long-3": Guidance(1, 1, 3),
    "short-0.5": Guidance(0.5, 1, 1),
    "zero": Guidance(0, 0, 1),
    "anti": Guidance(-1, -1, 1),
    "all different": Guidance(1.25, 2, 3.5),
}
ONE, TWO = Steps(625), Steps(625, 2)
B, SHAPE, L, D = 3, (2, 4, 4), 5, 6


class Problem:
    """Networks, inputs and an independent float64 reference."""

    def __init__(self, kind: str, steps: Steps, walked: int | None = None):
        self.kind, self.steps, self.walked = kind, steps, walked or steps.count
        schedule = noise_schedule(SD)
        self.nets = {
            name: StableDiffusion(ToyUNet(seed), schedule, kind)
            for seed, name in enumerate(("teacher", "fake", "generator"))
        }
        self.exact = {name: ToyUNet(seed).double() for seed, name in enumerate(("teacher", "fake", "generator"))}
        g = torch.Generator().manual_seed(7)
        self.noises = torch.randn(steps.noises, B, *SHAPE, generator=g)
        self.eps = torch.randn(B, *SHAPE, generator=g)
        self.t = torch.tensor([20, 400, 979])
        self.cond, self.empty = (Conditioning(torch.randn(n, L, D, generator=g)) for n in (B, 1))
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, 0)

    # reference, one sample i at a time
    def raw(self, name, x, t, i, kappa):
        def once(cond):
            return self.exact[name](x[None], torch.tensor([t]), cond.tokens.double()).sample[0]

        cond = once(self.cond[i : i + 1])
        return cond if kappa == 1 else once(self.empty) + kappa * (cond - once(self.empty))

    def to_x0(self, output, x, t):
        a, s = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        return (x - s * output) / a if self.kind == "epsilon" else a * x - s * output

    def to_eps(self, output, x, t):
        a, s = self.abar[t].sqrt(), (1 - self.abar[t]).sqrt()
        return output if self.kind == "epsilon" else s * x + a * output

    def exact_sample(self, i):
        """Walk the grid of all K steps as far as the trained one; a mixture holds its input constant."""
        noises, x, noisy, before = self.noises[:, i].double(), None, None, None
        for k in range(self.walked):
            t = int(self.steps.t_init * (1 - k / self.steps.count) + 1e-9)
            if x is None:
                noise, x = noises[0], 0
            elif self.steps.noise == "ddim":
                noise = (noisy - self.abar[before].sqrt() * x) / (1 - self.abar[before]).sqrt()
            else:
                noise = noises[0 if self.steps.noise == "fixed" else k]
            noisy = self.abar[t].sqrt() * x + (1 - self.abar[t]).sqrt() * noise
            if self.steps.objective == "mixture":
                noisy = noisy.detach()
            x, before = self.to_x0(self.raw("generator", noisy, t, i, 1), noisy, t), t
        return x

    def exact_noisy(self, x, i):
        t = self.t[i]
        return self.abar[t].sqrt() * x + (1 - self.abar[t]).sqrt() * self.eps[i].double()

    def exact_fake_loss(self, guidance):
        """Return mean_i sum |eps_guided(kappa_1) - eps|^2."""
        total = 0
        for i in range(B):
            x_t = self.exact_noisy(self.exact_sample(i).detach(), i)
            output = self.raw("fake", x_t, int(self.t[i]), i, guidance.fake_train)
            total = total + ((self.to_eps(output, x_t, int(self.t[i])) - self.eps[i].double()) ** 2).sum()
        return total / B

    def exact_generator_loss(self, objective, guidance, alpha):
        """Return mean_i sum of the objective's loss.

        SiD: (f_phi - f_psi) [(f_phi - x_g) - alpha (f_phi - f_psi)] / mean |x_g - f_phi|. The others have a constant times x_g:
        DMD (f_psi - f_phi) / mean |x_g - f_phi|, Diff-Instruct alpha_t sigma_t (f_psi - f_phi).
        """
        total = 0
        for i in range(B):
            x_g, t = self.exact_sample(i), int(self.t[i])
            x_t = self.exact_noisy(x_g, i)
            phi = self.to_x0(self.raw("teacher", x_t, t, i, guidance.teacher), x_t, t)
            psi = self.to_x0(self.raw("fake", x_t, t, i, guidance.fake_eval), x_t, t)
            weight = (x_g - phi).abs().mean().detach().clip(min=1e-5)
            loss = {
                "sid": (phi - psi) * ((phi - x_g) - alpha * (phi - psi)) / weight,
                "dmd": (psi - phi).detach() / weight * x_g,
                "diff_instruct": (self.abar[t] * (1 - self.abar[t])).sqrt() * (psi - phi).detach() * x_g,
            }
            total = total + loss[objective].sum()
        return total / B

    # package
    def loss(self, phase, objective, guidance, alpha=1.0):
        """Return the loss of a phase, after adding its gradient."""
        made = OBJECTIVES[objective](guidance, self.steps, alpha)
        for name, net in self.nets.items():
            net.requires_grad_(name == phase)
        networks = Networks(self.nets["teacher"], self.nets["fake"], self.nets["generator"])
        batch = Batch(self.cond, self.empty, list(self.noises), self.eps, self.t, walked=self.walked)
        metrics = getattr(made, f"{phase}_backward")(networks, batch, 1.0)
        return metrics[f"{phase}_loss"] * (self.eps[0].numel() if phase == "fake" else 1)


def assert_same(loss, exact_loss, net, exact_net):
    exact_loss.backward()
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-5)
    for p, q in zip(net.network.parameters(), exact_net.parameters(), strict=True):
        assert (p.grad.double() - q.grad).norm() <= 1e-5 * q.grad.norm()


@pytest.mark.parametrize("steps", [ONE, TWO], ids=["1 step", "2 steps"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fake_score_loss_of_every_strategy_equals_the_reference(strategy, kind, steps):
    p, guidance = Problem(kind, steps), STRATEGIES[strategy]
    assert_same(p.loss("fake", "sid", guidance), p.exact_fake_loss(guidance), p.nets["fake"], p.exact["fake"])


@pytest.mark.parametrize(
    ("objective", "alpha"), [("sid", 0.5), ("sid", 1.0), ("sid", 1.2), ("dmd", 1.0), ("diff_instruct", 1.0)]
)
@pytest.mark.parametrize("steps", [ONE, TWO], ids=["1 step", "2 steps"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generator_loss_of_every_strategy_equals_the_reference(strategy, kind, steps, objective, alpha):
    p, guidance = Problem(kind, steps), STRATEGIES[strategy]
    assert_same(
        p.loss("generator", objective, guidance, alpha),
        p.exact_generator_loss(objective, guidance, alpha),
        p.nets["generator"],
        p.exact["generator"],
    )


@pytest.mark.parametrize("walked", [1, 2, 3])
@pytest.mark.parametrize("how", ["last", "mixture"])
@pytest.mark.parametrize("noise", ["fresh", "fixed", "ddim"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_losses_of_every_step_equal_the_reference(kind, noise, how, walked):
    p, guidance = Problem(kind, Steps(625, 3, noise, how), walked), STRATEGIES["all different"]
    exact = p.exact_generator_loss("sid", guidance, 1.2)
    assert_same(p.loss("generator", "sid", guidance, 1.2), exact, p.nets["generator"], p.exact["generator"])
    p = Problem(kind, Steps(625, 3, noise, how), walked)
    assert_same(p.loss("fake", "sid", guidance), p.exact_fake_loss(guidance), p.nets["fake"], p.exact["fake"])


def test_fake_score_loss_of_v_prediction_equals_the_weighted_v_error():
    """Check SNR |x0 error|^2 = SNR / (SNR + 1) |v error|^2."""
    schedule = noise_schedule(SD)
    t, x_g, eps, v = torch.tensor([10, 500]), *torch.randn(3, 2, 4, 3, 3)
    x_t = schedule.add_noise(x_g, eps, t)
    x0_hat = schedule.alpha(t) * x_t - schedule.sigma(t) * v
    v_error = ((v - (schedule.alpha(t) * eps - schedule.sigma(t) * x_g)) ** 2).sum((1, 2, 3))
    snr = schedule.fake_weight(t).flatten()
    torch.testing.assert_close(
        fake_score_loss(x0_hat, x_g, schedule.fake_weight(t)), (snr / (snr + 1) * v_error).mean(), rtol=1e-4, atol=0
    )


def test_generator_loss_with_x_g_at_the_teacher_clamps_a_constant_weight():
    x_g = torch.ones(1, 1, 2, 2, requires_grad=True)
    f_fake = torch.zeros(1, 1, 2, 2)
    loss = generator_loss(x_g, torch.ones(1, 1, 2, 2), f_fake, 1.0)  # x_g == f_teacher: the weight is 1e5
    assert loss.item() == pytest.approx(-4e5)
    loss.backward()
    torch.testing.assert_close(x_g.grad, torch.full_like(x_g, -1e5))
