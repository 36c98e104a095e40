"""Compare the losses with real images with independently written formulas: values and gradients."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from sid_core.method import OBJECTIVES, Batch, Guidance, Networks, Steps
from sid_core.method.objectives.adversarial import adversarial_loss, discriminator_loss, logit_metrics
from sid_core.models.conditioning import Conditioning
from sid_core.models.teacher import load_backbone

ROWS, LATENT, T_INIT = 3, (4, 8, 8), 625
STRATEGIES = {"lsg": (1.5, 1.5, 1.5), "long": (1.0, 1.0, 2.0), "zero": (0.0, 0.0, 1.0), "anti": (-1.0, -1.0, 1.0)}


@pytest.fixture(params=["epsilon", "v_prediction"])
def networks(tiny_teacher, request):
    """Load three networks that differ, of one prediction type."""
    torch.manual_seed(0)
    made = []
    for _ in range(3):
        backbone = load_backbone(tiny_teacher)
        backbone.prediction_type = request.param
        with torch.no_grad():
            for p in backbone.parameters():
                p += 0.1 * torch.randn_like(p)
        made.append(backbone)
    return Networks(*made)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(3, ROWS, *LATENT, generator=g)
    texts = [Conditioning(torch.randn(rows, 12, 16, generator=g)) for rows in (ROWS, 1, ROWS)]
    t = torch.tensor([40, 400, 960])
    return Batch(texts[0], texts[1], [latents[0]], latents[1], t, 100, latents[2], texts[2])


def reference(backbone, x_t, t, cond, empty, kappa):
    """Return x0_hat and logits by two plain evaluations, and the mid block's output from a hook."""
    seen = []
    hook = backbone.network.mid_block.register_forward_hook(lambda *call: seen.append(call[-1]))
    tokens = empty.tokens.expand(len(x_t), -1, -1)
    without, given = (backbone.network(x_t, t, encoder_hidden_states=c).sample for c in (tokens, cond.tokens))
    hook.remove()
    output = without + kappa * (given - without)
    abar = backbone.schedule.alpha(t) ** 2
    if backbone.prediction_type == "epsilon":
        x0 = (x_t - (1 - abar).sqrt() * output) / abar.sqrt()
    else:
        x0 = abar.sqrt() * x_t - (1 - abar).sqrt() * output
    return x0, seen[1].mean(dim=1)


def plain_sample(networks, batch):
    t = torch.full((ROWS,), T_INIT)
    sigma = networks.generator.schedule.sigma(t)
    return reference(networks.generator, sigma * batch.noises[0], t, batch.cond, batch.empty, 1.0)[0]


def noisy(networks, x, batch):
    schedule = networks.teacher.schedule
    return schedule.alpha(batch.t) * x + schedule.sigma(batch.t) * batch.eps


def bce(logits, label):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")


def gradient(backbone, loss):
    """Return the gradient of loss() by the weights of a backbone, one vector, and the loss."""
    backbone.requires_grad_(True)
    value = loss()
    found = torch.autograd.grad(value, list(backbone.network.parameters()))
    backbone.requires_grad_(False)
    return torch.cat([part.flatten() for part in found]), value.detach()


def ours(backbone, backward):
    backbone.requires_grad_(True)
    metrics = backward()
    backbone.requires_grad_(False)
    found = torch.cat([p.grad.flatten() for p in backbone.network.parameters()])
    for p in backbone.network.parameters():
        p.grad = None
    return found, metrics


def make(name="sid", strategy="lsg", **options):
    return OBJECTIVES[name](Guidance(*STRATEGIES[strategy]), Steps(T_INIT), 1.2, **options)


def gan(start_nimg=0, weight=0.01, discriminator_weight=1.0):
    return SimpleNamespace(start_nimg=start_nimg, weight=weight, discriminator_weight=discriminator_weight)


def close(found, expected):
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_discriminator_loss_clamps_logits_and_weighs_by_elements():
    real, fake = torch.tensor([[12.0, -3.0], [0.5, 1.0]]), torch.tensor([[-11.0, 2.0], [0.0, -1.0]])
    expected = (bce(real.clamp(-10, 10), 1.0).mean() + bce(fake.clamp(-10, 10), 0.0).mean()) / 2 * 256
    torch.testing.assert_close(discriminator_loss(real, fake, 256), expected)


def test_adversarial_loss_weighs_each_sample():
    fake, weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0, 3.0])
    expected = sum(bce(fake[i], 1.0).mean() * weight[i] * 256 for i in range(3)) / 3
    torch.testing.assert_close(adversarial_loss(fake, weight.view(-1, 1, 1, 1), 256), expected)


def test_logit_metrics_count_logits_on_their_side():
    found = logit_metrics(torch.tensor([[1.0, -1.0]]), torch.tensor([[-2.0, -4.0]]))
    assert {key: value.item() for key, value in found.items()} == {"logit_gap": 3.0, "discriminator_accuracy": 0.75}


@pytest.mark.parametrize("weight", [1.0, 0.1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fake_backward_with_discriminator_equals_the_formula(networks, batch, strategy, weight):
    kappa, fake = STRATEGIES[strategy][0], networks.fake_score

    def loss():
        x_g = plain_sample(networks, batch).detach()
        x0, of_fake = reference(fake, noisy(networks, x_g, batch), batch.t, batch.cond, batch.empty, kappa)
        x_r = noisy(networks, batch.real, batch)
        of_real = reference(fake, x_r, batch.t, batch.real_cond, batch.empty, 1.0)[1]
        snr = (fake.schedule.alpha(batch.t) / fake.schedule.sigma(batch.t)) ** 2
        score = (snr * (x0 - x_g) ** 2).sum() / ROWS
        clamped = bce(of_real.clamp(-10, 10), 1.0).mean() + bce(of_fake.clamp(-10, 10), 0.0).mean()
        return score + weight * clamped / 2 * 256

    expected, value = gradient(fake, loss)
    made = make(strategy=strategy, adversarial=gan(discriminator_weight=weight))
    found, metrics = ours(fake, lambda: made.fake_backward(networks, batch, 1.0))
    close(found, expected)
    assert (metrics["fake_loss"] + weight * metrics["discriminator_loss"]).item() * 256 == pytest.approx(
        value.item(), rel=1e-5
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("objective", ["sid", "dmd"])
def test_generator_backward_with_gan_equals_the_formula(networks, batch, strategy, objective):
    _, kappa_fake, kappa_teacher = STRATEGIES[strategy]

    def loss():
        x_g = plain_sample(networks, batch)
        x_t = noisy(networks, x_g, batch)
        teacher = reference(networks.teacher, x_t, batch.t, batch.cond, batch.empty, kappa_teacher)[0]
        fake, logits = reference(networks.fake_score, x_t, batch.t, batch.cond, batch.empty, kappa_fake)
        if objective == "dmd":
            teacher, fake = teacher.detach(), fake.detach()
        w = 1 / (x_g - teacher).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        d = teacher - fake
        of_objective = {"sid": (1 - 1.2) * d**2 + d * (fake - x_g), "dmd": -d * x_g}[objective]
        of_gan = bce(logits, 1.0).mean(dim=(1, 2)) * w.flatten() * 256 * 0.01
        return 0.5 * (w * of_objective).sum() / ROWS + 0.5 * of_gan.mean()

    expected, _ = gradient(networks.generator, loss)
    backward = make(objective, strategy, adversarial=gan(start_nimg=100)).generator_backward
    close(ours(networks.generator, lambda: backward(networks, batch, 1.0))[0], expected)


def test_generator_backward_before_the_start_of_the_gan_is_unchanged(networks, batch):
    results = [
        ours(networks.generator, lambda made=made: made.generator_backward(networks, batch, 1.0))
        for made in (make(), make(adversarial=gan(start_nimg=101)))
    ]
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_logits_equal_those_with_the_estimate(networks, batch):
    x_t, fake = noisy(networks, batch.real, batch), networks.fake_score
    expected = reference(fake, x_t, batch.t, batch.cond, batch.empty, 1.0)[1]
    torch.testing.assert_close(fake.logits(x_t, batch.t, batch.cond), expected)
    for kappa in (0.0, 1.0, 1.5):
        x0, logits = fake.with_logits(x_t, batch.t, batch.cond, batch.empty, kappa)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(x0, fake(x_t, batch.t, batch.cond, batch.empty, kappa))


@pytest.mark.parametrize(
    ("objective", "strategy", "nimg", "passes"),
    [
        ("sid", "lsg", 0, 18 + 1.5),
        ("sid", "lsg", 100, 18 + 1.5),
        ("sid", "zero", 0, 11 + 3),
        ("sid", "zero", 100, 11 + 3 + 1),
        ("dmd", "long", 0, 10 + 1.5),
        ("dmd", "long", 100, 10 + 1.5 + 0.5),
    ],
)
def test_network_passes_count_the_discriminator(objective, strategy, nimg, passes):
    assert make(objective, strategy, adversarial=gan(100)).network_passes(nimg=nimg) == passes


def test_total_passes_of_a_late_start_count_both_parts():
    made = make("sid", "zero", adversarial=gan(100))
    assert made.total_passes(300) == 100 * 14 + 200 * 15
    assert made.total_passes(40) == 40 * 14
    assert make().total_passes(40) == 40 * 18


# --- RealUID -----------------------------------------------------------------------------------------------------------


def real_uid(a, b, strategy="lsg"):
    return make("real_uid", strategy, real_uid=SimpleNamespace(a=a, b=b))


@pytest.mark.parametrize("strategy", ["lsg", "long", "zero"])
@pytest.mark.parametrize(("a", "b"), [(0.9, 0.95), (0.95, 0.93), (1.0, 0.98)])
def test_fake_backward_of_real_uid_equals_the_formula(networks, batch, strategy, a, b):
    kappa, fake = STRATEGIES[strategy][0], networks.fake_score

    def loss():
        x_g = plain_sample(networks, batch).detach()
        f_g = reference(fake, noisy(networks, x_g, batch), batch.t, batch.cond, batch.empty, kappa)[0]
        x_r = noisy(networks, batch.real, batch)
        f_r = reference(fake, x_r, batch.t, batch.real_cond, batch.empty, kappa)[0]
        if a == 1:
            of_real = -2 * (1 - b) * f_r * batch.real
        else:
            of_real = (1 - a) * (f_r - (1 - b) / (1 - a) * batch.real) ** 2
        snr = (fake.schedule.alpha(batch.t) / fake.schedule.sigma(batch.t)) ** 2
        return (snr * (a * (f_g - b / a * x_g) ** 2 + of_real)).sum() / ROWS

    expected, value = gradient(fake, loss)
    found, metrics = ours(fake, lambda: real_uid(a, b, strategy).fake_backward(networks, batch, 1.0))
    close(found, expected)
    assert metrics["fake_loss"].item() * 256 == pytest.approx(value.item(), rel=1e-5)


def test_generator_backward_of_real_uid_equals_the_formula(networks, batch):
    a, b = 0.9, 0.95

    def loss():
        x_g = plain_sample(networks, batch)
        x_t = noisy(networks, x_g, batch)
        of_teacher, of_fake = (
            ((reference(net, x_t, batch.t, batch.cond, batch.empty, 1.5)[0] - b / a * x_g) ** 2).sum()
            for net in (networks.teacher, networks.fake_score)
        )
        return a * (of_teacher - of_fake) / ROWS

    expected, value = gradient(networks.generator, loss)
    found, metrics = ours(networks.generator, lambda: real_uid(a, b).generator_backward(networks, batch, 1.0))
    close(found, expected)
    assert metrics["generator_loss"].item() == pytest.approx(value.item(), rel=1e-5)


def test_generator_loss_of_real_uid_without_real_images_is_twice_sid_without_weight():
    x_g, teacher, fake = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    leaves = [x.clone().requires_grad_() for x in (x_g, teacher, fake)]
    loss = real_uid(1.0, 1.0).generator_loss(*leaves, None, None)
    again = [x.clone().requires_grad_() for x in (x_g, teacher, fake)]
    d = again[1] - again[2]
    sid = ((1 - 0.5) * d**2 + d * (again[2] - again[0])).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(loss, 2 * sid)
    for found, expected in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(2 * sid, again), strict=True):
        torch.testing.assert_close(found, expected)


def test_network_passes_of_real_uid_count_real_images():
    assert real_uid(0.9, 0.95).network_passes() == 18 + 6
    assert real_uid(0.9, 0.95, "long").network_passes() == make("sid", "long").network_passes() + 3


def test_check_discriminator_of_other_blocks_names_adversarial(networks):
    from sid_core.errors import UserError
    from sid_core.models.backbones import Backbone

    networks.fake_score.check_discriminator()
    other = copy.deepcopy(networks.fake_score)
    other.network.shared_prefix_disabled = True
    with pytest.raises(UserError, match="adversarial: expected a UNet of Stable Diffusion's blocks"):
        other.check_discriminator()
    with pytest.raises(UserError, match="adversarial: expected a teacher whose family has a discriminator, got Other"):
        type("Other", (Backbone,), {})(None, None, "epsilon").check_discriminator()
