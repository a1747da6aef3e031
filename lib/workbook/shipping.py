"""Makes the networks and records that come with the repository, from finished trainings:

    python3 -m lib train RECIPE                        the training, in data/runs/train
    python -m lib.workbook.shipping RECIPE [--images N] [--folder DIR]
    python -m lib.workbook.shipping mixtures:DATASET [--images N]     records of PGD-AT's shipped ends, mixed
    python -m lib.workbook.shipping released           records of the RDI authors' released weights on lossless images
    python -m lib.workbook.shipping images [--images N]     the first lossless CIFAR-10 test images
    python -m lib.workbook.shipping RECIPE --strong N  adds the strong suite on the first N images to its shipped record
    python -m lib.workbook.shipping made:WHICH --folder RUN     records that a page made and calls WHICH (24: attackers)

The weights are stored in half precision and every number is computed from the stored file. A killed recording goes on.
"""

import argparse
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from lib import ATLASES, CHECKPOINTS, DATASETS, IMAGES, RUNS, WorkbookError, checkpoints, data
from lib.attacks import forms as attack_forms
from lib.evaluation import points, recording, surviving, tuning
from lib.evaluation.record import Record
from lib.models import released
from lib.models.network import Network
from lib.training import methods, recipes
from lib.workbook import once_for_all, released_record
from lib.workbook.once_for_all import Trained
from lib.workbook.published import suited
from lib.workbook.session import JUDGED, customary

AUDITED, LOGITS = 64, 2**18  # images of the audit; bytes of logits that a shipped file may hold
HELD_OUT = 1000  # images on which an exit network with many points chooses its thresholds
DRAWS = once_for_all.SIZES["laptop"]["draws"]
BATCH = 125  # the fastest on one core; part of the record, since random starts are drawn per batch


def judged(dataset: str, network: Network, device: str = "cpu") -> data.Dataset:
    """The dataset whose test images judge a network that was trained on `dataset`."""
    return data.load(JUDGED.get(dataset, dataset), device=device, shape=network.input_shape)


def halved(trained: Path, path: Path, device: str = "cpu") -> Trained:
    """The network of the file `trained` as it is shipped: stored at `path` in half precision, and loaded again."""
    found = checkpoints.load(trained)
    told = {key: value for key, value in found.metadata.items() if key not in ("config", "format", "kind", "sha256")}
    checkpoints.save(path, found.network, dtype=torch.float16, **told)
    return Trained.load(path, device=device)


def ship(name: str, images: int | None = None, folder: Path | None = None, device: str = "cpu") -> Path:
    """Store the trained network `name`, what its training told, and the record of its test images (all, or the first
    `images`).

    A once-for-all network is recorded at the points that its study asks for, and apart under FLOAT's own attack; others
    clean and under the paper's forms, random and gate-aware, against calibrated gates and, where there are, published
    ones. Returns the record's path.
    """
    folder = folder or RUNS / "train" / recipes.find(name).label
    trained = halved(folder / "last.safetensors", CHECKPOINTS / f"{name}.safetensors", device)
    if (history := folder / "history.csv").is_file():
        checkpoints.replace(CHECKPOINTS / f"{name}.csv", history.read_bytes())
    network, place = trained.network, folder / "record"
    trained_on = data.load(trained.dataset, device=device, shape=network.input_shape)
    source = judged(trained.dataset, network, device)
    if trained.defence in methods.METHODS and network.num_exits > 1:
        return save_every_knob(trained, source, images, trained_on.validation[:HELD_OUT], place,
                               held_out_variant=f"{trained_on.variant}, held out of its training images")
    if trained.defence in methods.METHODS:
        save(bare(trained.attack(source, source.test[:images], once_for_all.seven(network, customary(source)),
                                 draws=DRAWS)), ATLASES / f"repeats/{name}-pgd7.safetensors")
        return save_points(trained, source, images, folder=place)
    network.to(memory_format=torch.channels_last)
    threat, held_out = customary(source), trained_on.validation
    known = [form for form in attack_forms.names(network.num_exits) if form != "gate_aware" or network.paper_thresholds]
    views = recording.suite(network, threat, ("clean", *known))
    if network.num_exits > 1:
        held_out = recording.hold_out(network, held_out, batch_size=BATCH, folder=place / "gates").lightened()
        views += recording.suite(network, threat, ("gate_aware",), thresholds=calibrated(held_out))
    return save(trained.attack(source, source.test[:images], views, batch_size=BATCH, held_out=held_out,
                               audited=AUDITED, folder=place), ATLASES / f"{name}.safetensors")


def calibrated(held_out: Record) -> tuple[float, ...]:
    """Thresholds by which equal shares of these held-out images leave at each exit."""
    return replace(held_out, held_out=held_out).thresholds_of("calibrated")


def bring_images(name: str, count: int) -> Path:
    """Store the first test images of a dataset that a reader may lack, for explorers of records made of them."""
    dataset, path = data.load(name), IMAGES / f"{name}.safetensors"
    tensors = {"images": dataset.test.images[:count], "labels": dataset.test.labels[:count]}
    checkpoints.write(path, "images", tensors, {"data_variant": dataset.variant, "classes": list(dataset.classes)})
    return path


def save(found: Record, target: Path) -> Path:
    """The record at `target`; without its logits where they would make the file too large for the repository."""
    (found if found.logits is None or found.logits.nbytes < LOGITS else found.lightened()).save(target)
    return target


def save_points(trained: Trained, source: data.Dataset, images: int | None = None, **how) -> Path:
    """Record and store what the study of this network asks for."""
    views = once_for_all.views(trained.network, customary(source), "laptop")
    return save(trained.attack(source, source.test[:images], views, draws=DRAWS, audited=AUDITED, **how),
                ATLASES / f"{trained.name}.safetensors")


def save_every_knob(trained: Trained, source: data.Dataset, images: int | None, held_out: data.Split, folder: Path,
                    **told) -> Path:
    """Record and store a network with exits and a knob lambda: at both ends and between, at each width, under attacks
    on the main exit, on the average of all, and on the exit that fires at equal shares. The logits of the first draw at
    lambda 1, full width, stay beside it: other decisions than by entropy need them."""
    network, name = trained.network, trained.name
    how = dict(lambdas=(0.0, 0.5, 1.0), switches=(0.0,))
    at = points.published(network, *how.values(), network.widths if "width" in network.knobs else (None,))
    gates = recording.hold_out(network, held_out, at, draws=1, folder=folder / "held_out")
    views = points.every_knob(network, customary(source), gates, draws=0,
                              forms=("main", "average", "gate_aware"), **how)
    found = trained.attack(source, source.test[:images], views, held_out=gates.lightened(), draws=3, batch_size=BATCH,
                           audited=AUDITED, folder=folder / "attacked", **told)
    _, last = once_for_all.ends(network)
    first = [v for v, view in enumerate(found.views) if view.point == last and not view.evaluated_at.draw]
    kept = replace(found.take(first), held_out=gates.select(point=last, images=slice(HELD_OUT // 2)))
    kept.save(ATLASES / "repeats" / f"{name}-logits.safetensors")
    return save(found, ATLASES / f"{name}.safetensors")


def ship_mixtures(dataset: str, images: int | None = None) -> list[Path]:
    """Records of two shipped networks of PGD-AT, its ends, mixed: nothing new is stored but these."""
    ends = {method: Trained.load(CHECKPOINTS / f"resnet20-{dataset}-{method}-laptop.safetensors", "train")
            for method in ("pgd_at0", "pgd_at1")}
    return [save_points(mixed, judged(dataset, mixed.network), images) for mixed in once_for_all.mixed(ends).values()]


def ship_made(which: str, run: Path) -> list[Path]:
    """The records that a page asks for by the name `which`, as it left them when it ran in the folder `run`."""
    files = sorted((run.parent / "records").glob(f"*-{which}-*.safetensors"))
    names = [f"{path.stem.partition(f'-{which}-')[0]}-{which}.safetensors" for path in files]
    return [save(bare(Record.load(path)), ATLASES / "repeats" / name) for path, name in zip(files, names, strict=True)]


def bare(found: Record) -> Record:
    """What pages read of it: with one exit who is right, and nothing else; with more what each exit said, and fewer
    held-out images."""
    if found.num_exits > 1:
        held = found.held_out
        return replace(found.lightened(), held_out=held and held.select(images=slice(HELD_OUT // 2)).lightened())
    return replace(found, prediction=None, entropy=None, logits=None, held_out=None,
                   meta=found.meta | {"missing": "logits, answers and entropies"})


def ship_released(folder: Path | None = None) -> Path:
    """Record the released RDI-ResNet38 on the lossless CIFAR-10 test images that are at hand: every form, and as
    control nine restarts of the average attack on the first 256 (as many tries as there are forms). On the images that
    judge tuned exits, also the attack that follows the gates of those tuned by multiplications.

    The weights have seen all training images, so that what is held out are the other test images, of the JPEG copy.
    """
    folder = folder or RUNS / released.NAME
    weights = checkpoints.load(DATASETS / f"{released.NAME}.pth.tar")
    network, images = weights.network.to(memory_format=torch.channels_last), data.load(DATASETS / "cifar10_png")
    found, restarts = released_record.attack(weights, images.test, customary(images), folder, range(1, 10),
                                             audited=AUDITED)
    target = save(with_held_out(found, network), ATLASES / f"{released.NAME}.safetensors")
    chosen = tuning.tuned_on(tuning.of_paper_forms(Record.load(target)), found.exit_costs())
    gates = recording.suite(network, customary(images), ("gate_aware",), thresholds=chosen)
    told = {key: found.meta[key] for key in ("checkpoint", "dataset", "data_variant", "defence")}
    save(recording.record(network, images.test[1::2], gates, batch_size=50, folder=folder / "gates", **told),
         ATLASES / "repeats" / f"{released.NAME}-gates.safetensors")
    save(restarts, ATLASES / "repeats" / f"{released.NAME}.safetensors")
    return target


def add_strong(name: str, images: int, folder: Path | None = None, device: str = "cpu") -> Path:
    """Add the strong suite on the first `images` to a shipped record ("…-laptop", "repeats/…-laptop-seed0-pgd"), at
    the settings of README: its point or `once_for_all.ends`, at suited thresholds and, with a λ, the last exit alone.
    Nothing else changes. Raises WorkbookError where weights or images are not its own."""
    target = ATLASES / f"{name}.safetensors"
    found, ours = Record.load(target), name != released.NAME
    loaded = checkpoints.load(CHECKPOINTS / f"{name.removesuffix('-suite').removesuffix('-pgd')}.safetensors" if ours
                              else DATASETS / f"{name}.pth.tar", device)
    network = loaded.network.to(memory_format=torch.channels_last)
    dataset = data.load(found.meta["dataset"] if ours else DATASETS / "cifar10_png", device=device,
                        shape=network.input_shape)
    variant = dataset.variant if ours else f"lossless, first {len(dataset.test):,}"
    if (loaded.digest, variant) != (found.meta["checkpoint"], found.meta["data_variant"]):
        raise WorkbookError(f"{target.name} was recorded from weights {found.meta['checkpoint'][:8]} on "
                            f"{found.meta['data_variant']}, not from {loaded.digest[:8]} on {variant}; ship it anew")
    at, gates = found.points, [suited(found) if network.num_exits > 1 else None]
    if len(at) > 1:
        at = once_for_all.ends(network)
        gates += [(-math.inf,) * (network.num_exits - 1)] * (network.num_exits > 1)
    threat = next(view.threat for view in found.views if view.attacked)
    if found.strong is not None and found.strong.meta["images"] != [found.meta["images"][0], images]:
        found = replace(found, strong=None)
    surviving.add(found, network, dataset.test[:images], threat, list(product(at, gates)),
                  batch_size=BATCH, folder=folder or RUNS / "strong" / f"{name}-{images}").save(target)
    return target


def with_held_out(found: Record, network: Network) -> Record:
    """The record with the test images behind its own, of the JPEG copy of CIFAR-10, as held-out ones."""
    first, copy = found.meta["images"][1], data.load(DATASETS / "cifar10_jpeg")
    told = f"JPEG copy, test images {first + 1:,} to {len(copy.test):,}"
    held = recording.hold_out(network, copy.test[first:], first=first, split="test", data_variant=told).lightened()
    return replace(found, held_out=held, meta={**found.meta, "held_out_variant": told})


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(prog="python -m lib.workbook.shipping", description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--images", type=int, help="only the first so many test images")
    parser.add_argument("--strong", type=int, metavar="N", help="add the strong suite on N images to shipped records")
    parser.add_argument("--device", default="cpu", help="where a network is recorded")
    parser.add_argument("--folder", type=Path, help="where a training or recording is (default: below data/runs)")
    args = parser.parse_args(argv)
    for name in args.recipes:
        folder = args.folder and args.folder / name
        if args.strong:
            print(add_strong(name, args.strong, folder, args.device))
        elif name == "images":
            print(*(bring_images(dataset, args.images or 250) for dataset in JUDGED.values()), sep="\n")
        elif name.startswith("mixtures:"):
            print(*ship_mixtures(name.removeprefix("mixtures:"), args.images), sep="\n")
        elif name.startswith("made:"):
            print(*ship_made(name.removeprefix("made:"), args.folder), sep="\n")
        else:
            print(ship_released(folder) if name == "released" else ship(name, args.images, folder, args.device))


if __name__ == "__main__":
    main()
