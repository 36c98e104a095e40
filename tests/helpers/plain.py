"""Run one iteration without the trainer's optimisations, as a reference for it.

The whole batch, one graph from the losses to the weights, both branches of a guided pair evaluated apart, torch's optimizer.
"""

import copy

import torch

from sid_core.training.iteration import Trainer


class Plain:
    """Copies of a trainer's networks, before its first iteration."""

    def __init__(self, trainer: Trainer):
        self.trainer, self.s = trainer, trainer.settings
        self.teacher, self.fake, self.generator = (
            copy.deepcopy(n) for n in (trainer.teacher, trainer.fake_score, trainer.generator)
        )
        make = lambda net: torch.optim.Adam(net.parameters(), lr=self.s.lr, betas=(0.0, 0.999), fused=False)  # noqa: E731
        self.optimizers = {"fake": make(self.fake), "generator": make(self.generator)}

    def step(self) -> dict[str, torch.Tensor]:
        """Run both phases; return their gradients, concatenated."""
        return {"fake": self._fake_phase(), "generator": self._generator_phase()}

    def _guided(self, net, x_t, t, cond, scale):
        empty = self.trainer.prompts.empty.expand(len(cond))
        without, given = net(x_t, t, empty), net(x_t, t, cond)
        return without + scale * (given - without)

    def _sample(self, draw, cond):
        t = torch.full((len(cond),), self.s.t_init)
        schedule = self.generator.schedule
        return self.generator(schedule.sigma(t) * draw.noises[0], t, cond)

    def _fake_phase(self):
        run = self.trainer.run
        guided = (run.fake_train, run.fake_eval) != (1, 1)
        draw = self.trainer._draw(
            "fake", self.trainer.iteration, self.s.batch, self.trainer.prompt_dropout if guided else 0.0
        )
        cond = self.trainer.prompts(draw.prompts, draw.dropped)
        schedule = self.fake.schedule
        x_g = self._sample(draw, cond).detach()
        x_t = schedule.add_noise(x_g, draw.eps, draw.t)
        self.fake.requires_grad_(True)
        x0_hat = self._guided(self.fake, x_t, draw.t, cond, run.fake_train)
        loss = (schedule.fake_weight(draw.t) * (x0_hat - x_g) ** 2).sum() / self.s.batch
        return self._update("fake", self.fake, loss)

    def _generator_phase(self):
        draw = self.trainer._draw("generator", self.trainer.iteration, self.s.batch, 0.0)
        cond = self.trainer.prompts(draw.prompts)
        self.generator.requires_grad_(True)
        x_g = self._sample(draw, cond)
        x_t = self.fake.schedule.add_noise(x_g, draw.eps, draw.t)
        f_teacher = self._guided(self.teacher, x_t, draw.t, cond, self.trainer.run.teacher)
        f_fake = self._guided(self.fake, x_t, draw.t, cond, self.trainer.run.fake_eval)
        d, a = f_teacher - f_fake, self.trainer.run.alpha
        w = 1 / (x_g - f_teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        loss = (w * ((1 - a) * d**2 + d * (f_fake - x_g))).sum() / self.s.batch
        return self._update("generator", self.generator, loss)

    def _update(self, phase, net, loss):
        loss.backward()
        net.requires_grad_(False)
        gradient = torch.cat([p.grad.flatten() for p in net.network.parameters()])
        self.optimizers[phase].step()
        self.optimizers[phase].zero_grad()
        return gradient
