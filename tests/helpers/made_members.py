"""Members of a study whose records are made by hand, so that every accuracy is known."""

from dataclasses import replace

from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.operating_point import OperatingPoint
from lib.workbook.once_for_all import Member, Trained
from tests.helpers.made_record import hit
from tests.helpers.networks import small

THREAT, IMAGES, DRAWS = Threat(0.1, 0.05, 2), 40, 2


def accuracy(point: OperatingPoint, attacked: bool) -> float:
    """Bilinear in noise and batch norm, so that interpolation has to give it exactly."""
    noise, bank = point.noise or 0.0, point.batch_norm or 0.0
    return 0.9 - 0.2 * noise - 0.1 * bank if not attacked else 0.1 + 0.3 * bank + 0.2 * noise * bank


def recorded(method: str, network, views, share, images: int = IMAGES) -> Member:
    """A member whose first images of each view are right, as many as share(view) says."""
    views = [replace(v, draws=DRAWS if network.conditions(v.point).noisy and v.evaluated_at.draw is None else 1)
             for v in views]
    return Member(method, Trained(f"resnet20-made-{method}-quick", network, "0" * 8),
                  hit(network, views, [share(v) for v in views], images, defence=method))


def member(method: str, conditioning: str = "none", **options) -> Member:
    """Attacked as `points.views` says."""
    network = small("resnet20", conditioning=conditioning, input_shape=(3, 8, 8), **options)
    return recorded(method, network, points.views(network, THREAT, draws=3),
                    lambda v: accuracy(v.evaluated_at, v.attacked))


def study() -> dict[str, Member]:
    return {"float": member("float", "float"), "dual_bn": member("dual_bn", "dual_bn"),
            "oat": member("oat", "oat", code_size=8), "pgd_at0": member("pgd_at0"), "pgd_at1": member("pgd_at1")}


def training(method: str, lift: float, images: int = 60) -> Member:
    """Right on 0.6 + lift of the clean images; attacked on 0.2 + lift in BN_A, on none in BN_C."""
    network = small("resnet20", conditioning=method, input_shape=(3, 8, 8))
    at = (*points.published(network), points.halfway(network))
    return recorded(method, network, points.suite(network, THREAT, at, 3), lambda v: 0.6 + lift if not v.attacked else (
        0.2 + lift) * (v.point.batch_norm or 0), images)


def repeated(method: str, *lifts: float) -> Member:
    first, *others = (training(method, lift) for lift in lifts)
    return replace(first, others=tuple(others))
