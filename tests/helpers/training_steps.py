"""One training step of the once-for-all methods on eight images, and a look at its attack."""

import dataclasses

import torch

from lib import randomness
from lib.attacks import forms
from lib.attacks.steps import Threat
from lib.training import recipes
from lib.training.objectives import OBJECTIVES, Context, at_every_width
from tests.helpers.networks import small

LABELS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


def recipe_of(method, **changes):
    """The quick recipe with an attack of two steps."""
    recipe = recipes.find(f"resnet20-digits-{method}-quick")
    threat = recipe.threat and Threat(0.15, 0.1, 2)
    return dataclasses.replace(recipe, **{"threat": threat, "clean_epochs": 0, "epsilon_warmup": 0.0, **changes})


def network_of(method, seed=0, **options):
    """The recipe's network, as small as it gets, in train mode, with statistics and alphas far from their start."""
    arguments = {**recipe_of(method).network, "width_multiplier": 0.25, "input_shape": (3, 8, 8), **options}
    return small(seed=seed, **arguments).train()


def images_for(network, count=8):
    return torch.rand(count, *network.input_shape, generator=randomness.generator(0, "training images"))


def context_of(recipe, seed=0, **fields):
    return Context(recipe, recipe.threat, **{"epoch": 0, **fields},
                   generator=lambda what: randomness.generator(seed, what))


def run(method, network, context=None, **changes):
    """(loss, metrics) of one step on eight images."""
    recipe = recipe_of(method, **changes)
    return at_every_width(OBJECTIVES[recipe.objective], network, images_for(network), LABELS,
                          context or context_of(recipe))


def spy_on_attacks(monkeypatch, before=lambda: None, after=lambda: None):
    """Arguments and result of every `forms.craft` to come, with something to do before and after each."""
    calls, craft = [], forms.craft

    def spied(form, network, images, labels, threat, **options):
        before()
        result = craft(form, network, images, labels, threat, **options)
        calls.append({"form": form, "images": images, "labels": labels, "threat": threat, "result": result, **options})
        after()
        return result

    monkeypatch.setattr(forms, "craft", spied)
    return calls
