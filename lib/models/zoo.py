"""Names -> networks. A network of your own joins by `register`-ing a function that lists its stages and exits."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lib import ROOT, WorkbookError, check_counts, unknown
from lib.models import mobilenet_v2, resnet, smallcnn
from lib.models.factors import factorise
from lib.models.network import Network
from lib.models.parts import Backbone, Parts

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "smallcnn": smallcnn.smallcnn,
    "resnet20": resnet.resnet20,
    "resnet34": resnet.resnet34,
    "resnet38": resnet.resnet38,
    "mobilenet_v2": mobilenet_v2.mobilenet_v2,
    "wrn16_8": functools.partial(resnet.wide_resnet, layers=16, widening=8),  # OAT and FLOAT: SVHN
    "wrn40_2": functools.partial(resnet.wide_resnet, layers=40, widening=2),  # and STL-10
}


class Missing(WorkbookError):
    """The module that registers a network is not there, or cannot be imported."""


ARGUMENTS = ("exits", "classes", "input_shape", "depth")  # of a backbone, besides its parts


def register(name: str, backbone: Callable[..., Backbone]):
    """Make `backbone(parts, *, exits, classes, input_shape, depth, **options) -> Backbone` buildable by name.

    Its full name, which checkpoints remember, is "module:name" with the module that calls this; in a notebook's cell,
    which no later process can import, the name alone. Raises WorkbookError for a function of other arguments.
    """
    try:
        inspect.signature(backbone).bind(None, **dict.fromkeys(ARGUMENTS))
    except TypeError as error:
        raise WorkbookError(f"network {name} has to be a function (parts, *, {', '.join(ARGUMENTS)}) -> Backbone; "
                            f"{error}") from None
    module = sys._getframe(1).f_globals["__name__"]
    BACKBONES[name if module == "__main__" else f"{module}:{name}"] = backbone


def find(name: str) -> str:
    """The full name of a registered network, given that or what follows its colon; its module is imported if need be.

    Only from the checkout or the current folder, since a checkpoint may say what is imported. Raises WorkbookError for
    an unknown name, and for a module that is not there or registers no such network.
    """
    module, _, own = name.rpartition(":")
    if module and module not in sys.modules:
        file = f"{module.replace('.', '/')}.py"
        places = [place for place in (Path.cwd(), ROOT) if (place / file).is_file()]
        if not places:
            raise Missing(f"there is no module {module}, which registers the network '{own}', in the current folder or "
                          f"the checkout; put {file} there")
        sys.path.extend(str(place) for place in places if str(place) not in sys.path)
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever somebody's own file raises
            raise Missing(f"importing {module} failed ({type(error).__name__}: {error}); mend it") from error
    full = [known for known in BACKBONES if name in (known, known.rpartition(":")[2])]
    if not full:
        raise unknown("model", name, sorted(BACKBONES), "the models are")
    return full[-1]


@torch.inference_mode(False)  # weights made inside inference_mode could never be attacked
def build(name: str, *, exits: str = "none", conditioning: str = "none", widths=(1.0,), classes: int = 10,
          input_shape=(3, 32, 32), width_multiplier: float = 1.0, depth_multiplier: float = 1.0, code_size: int = 128,
          codes=(0.0, 0.2, 0.7, 1.0), film_identity: bool = False, noise_granularity: str = "layer",
          width_heads: bool = False, factorised: bool = False, seed: int | None = 0, **options) -> Network:
    """A freshly initialised network in train mode.

    name: see BACKBONES.  exits: none | rdi | cheap | released.  conditioning: a name of `conditioning.CONDITIONINGS`.
    widths: trained widths, 1.0 among them.  width_heads: each with its own classifier (SOLAR), not a slice of one.
    width_multiplier, depth_multiplier: the same network, smaller.  code_size, codes: OAT's code length d, its lambdas.
    film_identity: OAT's modulation starts near 1 and 0, not near 0 and 0 as in its code.
    noise_granularity: layer | channel | element, what has an alpha of its own.
    factorised: weights as low rank plus sparse (see `factors`).  seed: None leaves weights to whoever fills them in.
    options: what the backbone alone understands.
    `network.config` holds every argument but the seed. Raises WorkbookError for what cannot be built.
    """
    name = find(name)
    known = inspect.signature(BACKBONES[name]).parameters
    if strange := [o for o in options if o not in known]:
        raise WorkbookError(f"{name} has no option {', '.join(strange)}")
    if not (width_multiplier > 0 and depth_multiplier > 0):
        raise WorkbookError(f"multipliers {width_multiplier} and {depth_multiplier} leave no {name}; make them larger")
    check_counts(classes=classes)
    if classes < 2:
        raise WorkbookError(f"{name} cannot tell {classes} class{'es' * (classes != 1)} apart; give at least 2")
    if len(input_shape) != 3:
        raise WorkbookError(f"{input_shape} is no shape of an image; give (channels, height, width)")
    if min(input_shape[1:]) < 8:
        raise WorkbookError(f"images of {input_shape[1]}x{input_shape[2]} are too small for {name}; give at least 8x8")
    parts = Parts(conditioning, tuple(sorted(widths, reverse=True)), width_multiplier, code_size, noise_granularity,
                  width_heads)
    if parts.traits.film and (0.0 not in codes or code_size != 1 and code_size < len(codes)):
        raise WorkbookError(f"OAT needs lambda 0 among its codes {tuple(codes)} and a code_size of 1 or at least "
                            f"{len(codes)}, not {code_size}")
    config = dict(name=name, exits=exits, conditioning=conditioning, widths=list(widths), classes=classes,
                  input_shape=list(input_shape), width_multiplier=width_multiplier, depth_multiplier=depth_multiplier,
                  code_size=code_size, codes=list(codes), film_identity=film_identity,
                  noise_granularity=noise_granularity, width_heads=width_heads, factorised=False, **options)
    backbone = BACKBONES[name](parts, exits=exits, classes=classes, input_shape=tuple(input_shape),
                               depth=depth_multiplier, **options)
    network = Network(backbone, parts, config)
    if seed is not None:
        network.initialise(seed)
    return factorise(network) if factorised else network
