"""What every method trains, and how long: RDI-Nets (Hu et al. 2020), and FLOAT, its control, OAT, PGD-AT and PNI, with
one width or several (Kundu et al. 2021).

Published: the three BACKBONES of RDI-Nets; FLOAT's ResNet-34 on CIFAR-10, CIFAR-100 and Tiny-ImageNet, WRN-16-8 on
SVHN, WRN-40-2 on STL-10, and PNI's ResNet-20 on CIFAR-10; the other pairs follow the same rules. All hold images out
for validation, which PNI's authors did not.

SVHN at the published rate of 0.1 may fail to start: the loss stays at ln 10 = 2.303. Then train
`dataclasses.replace(recipe, warmup=0.025)`, whose rate rises over the first 5 of 200 epochs, or with
learning_rate=0.01; every network's file holds its recipe, so which one was used is on record.

OAT's FiLM multiplies by nearly 0 at first; in 100 steps its network learns nothing, with FiLM started at the identity
as much as FLOAT. So the short presets start it there; `paper` starts it as the authors' code.
"""

from typing import NamedTuple

from lib.attacks.steps import Threat
from lib.models.resnet import PNI_NORMALISATION

LAMBDAS = [0.0, 0.2, 0.7, 1.0]  # the set S on which FLOAT's paper compares the methods
FLOAT, CONTROL, OAT = {"conditioning": "float"}, {"conditioning": "dual_bn"}, {"conditioning": "oat", "codes": LAMBDAS}
SLIM = {"widths": [1.0, 0.5]}
METHODS = {  # name: (arguments of the network, fields of the recipe)
    "float": (FLOAT, {"objective": "float"}),
    "dual_bn": (CONTROL, {"objective": "float"}),  # FLOAT's steps without noise
    "share_stats": ({"conditioning": "share_stats"}, {"objective": "float"}),  # … with two affines alone
    "share_affine": ({"conditioning": "share_affine"}, {"objective": "float"}),  # … with two sets of statistics alone
    "oat": (OAT, {"objective": "oat"}),
    "float_slim": (FLOAT | SLIM, {"objective": "float"}),
    "dual_bn_slim": (CONTROL | SLIM, {"objective": "float"}),
    "oats": (OAT | SLIM, {"objective": "oat"}),
    "float_slim_heads": (FLOAT | SLIM | {"width_heads": True}, {"objective": "float"}),  # a classifier per width
    "oats_heads": (OAT | SLIM | {"width_heads": True}, {"objective": "oat"}),  # SOLAR
    "pni": ({"conditioning": "pni"}, {"objective": "pni"}),
    **{f"pgd_at{share:g}": ({}, {"objective": "pgd_at", "adversarial_weight": share}) for share in LAMBDAS},
    **{f"pgd_at_half{share:g}": ({}, {"objective": "pgd_at", "adversarial_weight": share, "split": "half"})
       for share in LAMBDAS[1:]},
}
BACKBONES = {  # of RDI-Nets, and their published schedules; any other network takes that of ResNet-38
    "smallcnn": dict(iterations=13_100, milestones=(12_000, 12_900), batch_size=256, learning_rate=0.033,
                     weight_decay=5e-4),
    "resnet38": dict(iterations=55_000, milestones=(32_000, 48_000), learning_rate=0.1, weight_decay=1e-4),
    "mobilenet_v2": dict(iterations=76_000, milestones=(62_000, 70_000), learning_rate=0.05, weight_decay=1e-4),
}
TRAINED_ON = {  # of each network; CIFAR-10's image folders come on top
    "resnet20": ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "svhn"),
    "resnet34": ("digits", "cifar10", "cifar100", "svhn", "tiny_imagenet"),
    "wrn16_8": ("digits", "cifar10", "svhn"),
    "wrn40_2": ("digits", "cifar10", "stl10"),
}
GREY = ("mnist", "fashion_mnist")
SMALLER = {"resnet20": {}, "resnet38": {}, "mobilenet_v2": {}, "resnet34": {"width_multiplier": 0.25},
           "wrn16_8": {"width_multiplier": 0.25}, "wrn40_2": {"width_multiplier": 0.5, "depth_multiplier": 0.5}}
STUDIED = {*BACKBONES, *TRAINED_ON}  # networks that the short presets make smaller; others stay as they are


class Images(NamedTuple):
    """What a recipe has to know of a dataset. like: the named one whose schedules it takes.  dataset: for `data.load`.

    name: in the recipe's name.  count: training images of an image folder, which may be few; None = a named dataset's.
    """

    name: str
    dataset: str
    like: str
    shape: tuple[int, int, int]
    classes: int
    threat: dict
    count: int | None = None


def methods(network: str) -> tuple[str, ...]:
    """The methods for a network of `recipes.NETWORKS`; FLOAT and its control also with the exits of ResNet-38."""
    if network in ("rdi_resnet38", "cheap_resnet38"):
        return tuple(name for name, (_, recipe) in METHODS.items() if recipe["objective"] == "float")
    return tuple(METHODS) if network in TRAINED_ON else ()


def fields(backbone: str, images: Images, method: str, preset: str) -> dict:
    """What `method` adds to a recipe: its fields, with `network` holding only the arguments that it sets.

    backbone: a name of `zoo.BACKBONES`.
    """
    conditioning, objective = METHODS[method]
    network = {"input_shape": shape(images, preset), **conditioning}
    if (backbone, method) == ("resnet20", "pni"):
        network["normalise"] = images.like if images.like in PNI_NORMALISATION else "half"
    epsilon = images.threat["epsilon"]
    found = published(images.like, method, epsilon)
    if preset != "paper":  # FiLM's input shrinks along, so that FiLM keeps its share of the weights
        network |= smaller(backbone, images.like, preset)
        network |= {"code_size": 16, "film_identity": True} if method.startswith("oat") else {}
        found |= short(images.like, preset, epsilon) | ({"clean_epochs": 1} if method == "pni" else {})
    found |= dict(network=network, form="main", **objective)
    if found.get("adversarial_weight") == 0:
        found |= dict(threat=None, validation=None, epsilon_warmup=0.0, attack_view=None)
    return found


def shape(images: Images, preset: str) -> list[int]:
    """Images as they are; digits, which can be made in any size, as large as CIFAR's or, to be quick, half as large."""
    return [3, 32, 32] if images.name == "digits" and preset == "paper" else list(images.shape)


def attack(epsilon: float, steps: int) -> Threat:
    """PGD as OAT's code sets its step: all steps together reach 1.25 epsilon, or epsilon + 4/255 where that is less."""
    return Threat(epsilon, min(1.25 * epsilon, epsilon + 4 / 255) / steps, steps)


def published(dataset: str, method: str, epsilon: float) -> dict:
    """FLOAT's schedule (section 4.1, appendix; OAT's code where they are silent), or that of PNI's code."""
    if method == "pni":
        share = epsilon / (8 / 255)  # PNI rounds 8/255 to 0.031
        threat = Threat(0.031 * share, 0.01 * share, 7)
        return dict(threat=threat, validation=threat, epochs=160, schedule="multistep", milestones=(80, 120),
                    nesterov=True, weight_decay=3e-4, clean_epochs=5)
    threat = attack(epsilon, 7)
    return dict(threat=threat, validation=threat, epochs=120 if dataset == "tiny_imagenet" else 200, schedule="cosine",
                batch_size=64 if dataset == "stl10" else 128, weight_decay=5e-4)


def smaller(backbone: str, dataset: str, preset: str) -> dict:
    """Arguments that make a network smaller; on colour images only those that are too large for any CPU."""
    if backbone not in SMALLER:
        return {}
    network = dict(SMALLER[backbone])
    if preset == "quick" or dataset == "digits":
        network["width_multiplier"] = network.get("width_multiplier", 0.5 if backbone == "resnet38" else 1.0) / 2
    elif dataset in GREY:
        network["width_multiplier"] = 0.25
    if preset == "quick":
        network["depth_multiplier"] = 0.34
    return network


def short(dataset: str, preset: str, epsilon: float) -> dict:
    """A schedule of minutes or seconds, see `rising`."""
    if preset == "laptop" and dataset not in ("digits", *GREY):
        return one_cycle(epsilon)
    steps = {"laptop": 5 if dataset == "digits" else 3, "quick": 2}[preset]
    found = rising(epsilon, steps, validation=Threat(epsilon, epsilon / 4, 10))
    if preset == "quick":
        return found | dict(epochs=None, iterations=100, batch_size=32, learning_rate=0.1, validation_images=100)
    if dataset == "digits":
        return found | dict(epochs=20, batch_size=32, validation_images=200, validate_every=200)
    return found | dict(epochs=2, batch_size=64, validation_images=256, validate_every=500)  # of narrow networks


def one_cycle(epsilon: float) -> dict:
    """The schedule of every full-size network on colour images at `laptop` size, whatever its method: about an hour on
    a CPU core, minutes on a GPU. One attack step a batch (N-FGSM), attack and training passes in bf16."""
    return dict(threat=Threat(epsilon, algorithm="n_fgsm"), attack_mode="eval", attack_view="bf16", precision="bf16",
                epochs=12, iterations=None, batch_size=128, learning_rate=0.1, weight_decay=5e-4, schedule="linear",
                milestones=(), warmup=0.2, epsilon_warmup=0.2, sampler="epoch", nesterov=True, validate_every=351,
                validation=Threat(epsilon, epsilon / 4, 10), validation_images=256)


def rdi_fields(backbone: str, images: Images, defence: str, preset: str) -> dict:
    """Fields of an RDI recipe; `network` holds only the arguments that depend on dataset and preset."""
    attack = Threat(*(images.threat[name] for name in ("epsilon", "step_size", "train_steps")))
    grey = backbone == "smallcnn" and images.name == "digits"
    fields = dict(threat=attack, objective="rdi", sampler="iid", attack_mode="authors", schedule="multistep",
                  **BACKBONES.get(backbone, BACKBONES["resnet38"]))
    if preset != "paper":
        fields |= rdi_short(backbone, images.like, preset, attack.epsilon)
    made = fields.pop("smaller", {})
    fields["network"] = {"input_shape": [1, 28, 28] if grey else shape(images, preset)}
    fields["network"] |= made if backbone in STUDIED else {}
    if defence == "standard":
        fields |= dict(objective="standard", threat=None, validation=None, attack_mode="eval", attack_view=None,
                       epsilon_warmup=0.0)
        if preset != "paper":  # without the rise of epsilon the high rate of the defended trainings diverges
            fields["learning_rate"] = min(fields["learning_rate"], 0.05)
    else:
        fields["validation"] = Threat(attack.epsilon, attack.epsilon / 4, 10)
    return fields


def rising(epsilon: float, steps: int, **fields) -> dict:
    """A short training: the rate rises and falls linearly, epsilon rises, few large attack steps in eval mode."""
    return dict(threat=Threat(epsilon, 1.7 * epsilon / steps, steps), attack_mode="eval", iterations=None,
                milestones=(), schedule="linear", warmup=0.2, epsilon_warmup=0.3, sampler="epoch",
                batch_size=128) | fields


def rdi_short(backbone: str, dataset: str, preset: str, epsilon: float) -> dict:
    """A schedule of minutes or seconds, see `rising`; `smaller`: arguments that make the network smaller."""
    if preset == "quick":
        smaller = dict(width_multiplier=0.25) | ({} if backbone == "smallcnn" else dict(depth_multiplier=0.34))
        return rising(epsilon, 2, smaller=smaller, iterations=100, batch_size=32, learning_rate=0.05, warmup=0.1,
                      epsilon_warmup=0.2, validation_images=100)
    if backbone != "smallcnn" and dataset != "digits":
        return one_cycle(epsilon)
    if backbone != "smallcnn":
        return rising(epsilon, 3, smaller=dict(width_multiplier=0.5), validate_every=500, validation_images=200,
                      attack_view="folded", epochs=12, batch_size=32, learning_rate=0.05)
    if dataset == "digits":
        return rising(epsilon, 4, epochs=18, batch_size=32, learning_rate=0.02, epsilon_warmup=0.4,
                      validate_every=100, validation_images=200)  # at 0.05 max-average does not start
    return rising(epsilon, 5, epochs=7, learning_rate=0.1, validate_every=120, validation_images=256)
