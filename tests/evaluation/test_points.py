"""Which points a once-for-all network is looked at, and which attacks meet it there."""

from lib.attacks.steps import Threat
from lib.evaluation import points
from lib.evaluation.reading import SUITE, relation
from lib.operating_point import OperatingPoint
from tests.helpers.networks import small

THREAT = Threat(0.1, 0.05, 3)


def test_published_points_of_every_kind():
    float_ = small("resnet20", conditioning="float", input_shape=(3, 8, 8))
    at = [(p.noise, p.batch_norm) for p in points.published(float_)]
    assert at == [(0, 0), (0.2, 1), (0.7, 1), (1, 1), (0.4, 0), (0.4, 1), (0, 1)]
    control = small("resnet20", conditioning="dual_bn", input_shape=(3, 8, 8))
    assert [p.batch_norm for p in points.published(control)] == [0, 1]
    oat = small("resnet20", conditioning="oat", input_shape=(3, 8, 8))
    assert [p.code for p in points.published(oat)] == [0.0, 0.2, 0.7, 1.0]
    plain = small("resnet20", input_shape=(3, 8, 8))
    assert points.published(plain) == (OperatingPoint(),)
    slim = small("resnet20", conditioning="float", widths=(1.0, 0.5), input_shape=(3, 8, 8))
    assert len(points.published(slim, widths=(1.0, 0.5))) == 14


def test_every_point_meets_a_suite_of_three_of_each_form():
    network = small("resnet38", exits="cheap", conditioning="float", input_shape=(3, 8, 8))
    views = points.views(network, THREAT, forms=("main", "average"))
    assert len(set(views)) == len(views)
    for point in points.nodes(network, (0.0, 0.2, 0.4, 0.7, 1.0), (0.0, 0.5, 1.0)):
        met = [view for view in views if view.point == point]
        for form in ("main", "average"):
            assert sum(relation(view) in SUITE and view.form == form for view in met) == 3
        assert sum(relation(view) == "clean" for view in met) == 1


def test_threats_meet_each_point_where_it_is():
    at = [OperatingPoint(noise=s, batch_norm=1.0) for s in (0.0, 1.0)]
    views = points.under([THREAT, Threat(0.1, algorithm="fgsm")], at)
    assert len(views) == 6 and all(v.crafted_at == v.evaluated_at for v in views if v.attacked)
