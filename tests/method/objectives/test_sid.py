"""Compare losses and gradients with an independent implementation of the published formulas.

The reference works on eps (or v) and schedule tables, in float64, one sample at a time, as the published loop does;
the package on x_0 in float32, batched. Guidance scales, strategies, alpha and steps are varied.
"""

import pytest
import torch
from toy import ToyUNet

from sid_core.method import Guidance, fake_score_loss, generator_loss, n_step
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
    "all different": Guidance(1.25, 2, 3.5),
}
B, SHAPE, L, D = 3, (2, 4, 4), 5, 6


class Problem:
    """Networks, inputs and an independent float64 reference."""

    def __init__(self, kind: str, num_steps: int):
        self.kind = kind
        schedule = noise_schedule(SD)
        self.nets = {
            name: StableDiffusion(ToyUNet(seed), schedule, kind)
            for seed, name in enumerate(("teacher", "fake", "generator"))
        }
        self.exact = {name: ToyUNet(seed).double() for seed, name in enumerate(("teacher", "fake", "generator"))}
        g = torch.Generator().manual_seed(7)
        self.noises = torch.randn(num_steps, B, *SHAPE, generator=g)
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

    def exact_sample(self, i, t_init):
        n = len(self.noises)
        x = None
        for k in range(n):
            t = int(t_init * (1 - k / n) + 1e-9)
            z = self.noises[k, i].double()
            noisy = (1 - self.abar[t]).sqrt() * z + (0 if x is None else self.abar[t].sqrt() * x)
            x = self.to_x0(self.raw("generator", noisy, t, i, 1), noisy, t)
        return x

    def exact_noisy(self, x, i):
        t = self.t[i]
        return self.abar[t].sqrt() * x + (1 - self.abar[t]).sqrt() * self.eps[i].double()

    def exact_fake_loss(self, guidance, t_init):
        """Return mean_i sum |eps_guided(kappa_1) - eps|^2."""
        total = 0
        for i in range(B):
            x_t = self.exact_noisy(self.exact_sample(i, t_init).detach(), i)
            output = self.raw("fake", x_t, int(self.t[i]), i, guidance.fake_train)
            total = total + ((self.to_eps(output, x_t, int(self.t[i])) - self.eps[i].double()) ** 2).sum()
        return total / B

    def exact_generator_loss(self, guidance, alpha, t_init):
        """Return mean_i sum (f_phi - f_psi) [(f_phi - x_g) - alpha (f_phi - f_psi)] / mean |x_g - f_phi|."""
        total = 0
        for i in range(B):
            x_g, t = self.exact_sample(i, t_init), int(self.t[i])
            x_t = self.exact_noisy(x_g, i)
            phi = self.to_x0(self.raw("teacher", x_t, t, i, guidance.teacher), x_t, t)
            psi = self.to_x0(self.raw("fake", x_t, t, i, guidance.fake_eval), x_t, t)
            weight = (x_g - phi).abs().mean().detach().clip(min=1e-5)
            total = total + ((phi - psi) * ((phi - x_g) - alpha * (phi - psi)) / weight).sum()
        return total / B

    # package
    def x_t(self, x_g):
        return self.nets["teacher"].schedule.add_noise(x_g, self.eps, self.t)

    def fake_loss(self, guidance, t_init):
        x_g = n_step(self.nets["generator"], list(self.noises), t_init, self.cond).detach()
        fake = self.nets["fake"]
        return fake_score_loss(
            fake(self.x_t(x_g), self.t, self.cond, self.empty, guidance.fake_train),
            x_g,
            fake.schedule.fake_weight(self.t),
        )

    def generator_loss(self, guidance, alpha, t_init):
        x_g = n_step(self.nets["generator"], list(self.noises), t_init, self.cond)
        f = {
            name: self.nets[name](self.x_t(x_g), self.t, self.cond, self.empty, kappa)
            for name, kappa in (("teacher", guidance.teacher), ("fake", guidance.fake_eval))
        }
        return generator_loss(x_g, f["teacher"], f["fake"], alpha)


def assert_same(loss, exact_loss, net, exact_net):
    loss.backward()
    exact_loss.backward()
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-5)
    for p, q in zip(net.network.parameters(), exact_net.parameters(), strict=True):
        assert (p.grad.double() - q.grad).norm() <= 1e-5 * q.grad.norm()


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fake_score_loss_of_every_strategy_equals_the_reference(strategy, kind, num_steps):
    p, guidance = Problem(kind, num_steps), STRATEGIES[strategy]
    assert_same(p.fake_loss(guidance, 625), p.exact_fake_loss(guidance, 625), p.nets["fake"], p.exact["fake"])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generator_loss_of_every_strategy_equals_the_reference(strategy, kind, num_steps, alpha):
    p, guidance = Problem(kind, num_steps), STRATEGIES[strategy]
    assert_same(
        p.generator_loss(guidance, alpha, 625),
        p.exact_generator_loss(guidance, alpha, 625),
        p.nets["generator"],
        p.exact["generator"],
    )


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
