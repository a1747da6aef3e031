"""The plain, obviously correct forms that the engine is measured against and checked with.

Written from the published descriptions with torch's own modules (helpers/plain_networks.py): every exit is computed at
every step, one attack after the other, nothing is reused.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lib.attacks.steps import Threat
from lib.models import released, zoo
from lib.randomness import generator
from tests.helpers.plain_networks import RDIResNet38


class Mean(nn.Module):
    """Average pooling of a whole map, summed in the order in which ours is, so that values agree to the last bit."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


def twins(seed: int = 0):
    """(plain RDI-ResNet38, ours) with the same random weights and non-trivial statistics, both in eval mode."""
    ours, plain = zoo.build("resnet38", exits="rdi", seed=seed), RDIResNet38()
    with torch.no_grad():  # a fresh network's statistics would make batch norm the identity
        ours.train()
        ours(torch.rand(64, 3, 32, 32, generator=generator(seed, "statistics")))
    state, table = ours.state_dict(), {}
    for theirs, mine in released.names().items():
        table |= {theirs + name[len(mine):]: tensor for name, tensor in state.items() if name.startswith(mine + ".")}
    plain.load_state_dict(table)
    for module in list(plain.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AvgPool2d):
                setattr(module, name, Mean())
    return plain.eval(), ours.eval()


def single(network, x, y, threat: Threat, source: torch.Generator, exit: int):
    """One single attack: PGD on one exit's loss, all exits computed."""
    adversarial = x + torch.empty_like(x).uniform_(-threat.epsilon, threat.epsilon, generator=source)
    for _ in range(threat.steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = F.cross_entropy(network(adversarial)[exit], y)
        gradient, = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + threat.step_size * gradient.sign()
        adversarial = torch.max(torch.min(adversarial, x + threat.epsilon), x - threat.epsilon).clamp(0, 1)
    return adversarial.detach()


def average(network, x, y, threat: Threat, source: torch.Generator):
    """PGD on the mean of all exits' losses."""
    adversarial = x + torch.empty_like(x).uniform_(-threat.epsilon, threat.epsilon, generator=source)
    for _ in range(threat.steps):
        adversarial = adversarial.detach().requires_grad_()
        loss = sum(F.cross_entropy(logits, y) for logits in network(adversarial))
        gradient, = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + threat.step_size * gradient.sign()
        adversarial = torch.max(torch.min(adversarial, x + threat.epsilon), x - threat.epsilon).clamp(0, 1)
    return adversarial.detach()


def total_loss(network, x, y):
    """(N,) sum over exits of each image's cross-entropy."""
    return sum(F.cross_entropy(logits, y, reduction="none") for logits in network(x))


def max_average(network, x, y, threat: Threat, sources: Sequence[torch.Generator]):
    """For each image the single attack with the highest sum of all exits' losses. sources: one for each exit's."""
    candidates = [single(network, x, y, threat, source, k) for k, source in enumerate(sources)]
    best = torch.stack([total_loss(network, c, y).detach() for c in candidates]).argmax(0)
    return torch.stack(candidates)[best, torch.arange(len(x))]


def suite(network, x, y, threat: Threat, stream: Callable[[str], torch.Generator], forms: Sequence[str]):
    """All K + 3 forms, {form: images}, each by itself, so that max_average attacks every exit once more."""
    singles = forms[:-2]
    return {**{form: single(network, x, y, threat, stream(form), k) for k, form in enumerate(singles)},
            "average": average(network, x, y, threat, stream("average")),
            "max_average": max_average(network, x, y, threat, [stream(form) for form in singles])}


def train_step(network, optimiser, x, y, attack: Callable, weights):
    """One training step as released: attacked in train mode, so every pass moves the statistics. attack(network)."""
    network.train()
    adversarial = attack(network)
    clean, attacked = network(x), network(adversarial)
    loss = sum(w * (0.5 * F.cross_entropy(c, y) + 0.5 * F.cross_entropy(a, y))
               for w, c, a in zip(weights, clean, attacked, strict=True))
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    return loss.item()


def augment(images, source: torch.Generator):
    """Crop with zero padding 4 and flip, one image after the other."""
    out = []
    for image in F.pad(images, (4, 4, 4, 4)):
        top, left, flip = (int(torch.randint(high, (), generator=source)) for high in (9, 9, 2))
        crop = image[:, top:top + 32, left:left + 32]
        out.append((crop.flip(-1) if flip else crop).float() / 255)
    return torch.stack(out)
