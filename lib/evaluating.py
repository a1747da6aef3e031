"""The verb `evaluate`: a checkpoint at one operating point under the attacks asked for; what it prints and writes."""

import dataclasses
import json

import numpy as np
import pandas
import torch

from lib import DATASETS, WorkbookError, checkpoints, data
from lib.attacks import autoattack
from lib.attacks import forms as attack_forms
from lib.attacks.audit import audit
from lib.attacks.decision import fresh
from lib.attacks.steps import Threat
from lib.commands import check_output, exit_names, find_device, write_json
from lib.data import Dataset, Split
from lib.evaluation import points, recording, routing, surviving
from lib.evaluation.reading import Reading, kind, read
from lib.evaluation.record import Record
from lib.models.cost import MEBI
from lib.models.network import Network
from lib.operating_point import OperatingPoint, plain

EOT = 10  # gradients averaged at a step where the noise is fresh
AUDITED = 64  # the first images, which the audit looks at
DRAWS = 5  # of fresh noise, to judge over


def evaluate(args) -> None:
    """Accuracy of a checkpoint, clean and attacked, at one operating point, routed through its exits where it has some.
    args: the verb's."""
    check_output(args.json, args.save_record, args.robustbench_card, inputs=[args.checkpoint, args.dataset, DATASETS])
    if args.robustbench_card and args.autoattack != "standard":
        raise WorkbookError("RobustBench's card holds the verdict of --autoattack standard; ask for it")
    device = find_device(args.device)
    loaded = checkpoints.load(args.checkpoint, device)
    network = loaded.network
    dataset = data.load(args.dataset, device=device, shape=network.input_shape)
    at = find_point(args, network)
    print(f"operating point: {points.name(at)}", flush=True)
    asked = args.attack or ("clean", *attack_forms.names(network.num_exits))
    forms = {name: recording.check_forms([name], network.num_exits)[0] for name in asked}
    attacked = set(forms.values()) != {"clean"}
    refuse_idle(args, attacked or args.autoattack or args.strong, fresh(network, at))
    threat = find_threat(args, dataset) if attacked or args.autoattack or args.strong else None
    first, images = find_images(args.images, dataset)
    draws = args.draws or DRAWS
    told = dict(draws=draws, seed=args.seed, batch_size=args.batch_size)
    held_out = None
    if args.thresholds == "calibrated" or args.save_record:
        held_out = recording.hold_out(network, dataset.validation, [at], **told)
    thresholds, source = find_thresholds(args.thresholds, network, held_out)
    deployed = at.replace(thresholds=thresholds or None)
    views = recording.suite(network, threat, tuple(dict.fromkeys(forms.values())), point=at, thresholds=thresholds,
                            mode=args.mode or "eval")
    if fresh(network, at):  # where the noise is fresh, an attacker who averages over it as well
        averaging = [v for v in views if v.attacked]
        views += tuple(dataclasses.replace(v, threat=dataclasses.replace(v.threat, draws=EOT)) for v in averaging)
    record = recording.record(
        network, images, views, held_out=held_out, first=first, **told, audited=0, dataset=dataset.name,
        data_variant=dataset.variant, checkpoint=loaded.digest,
        defence=(loaded.metadata.get("recipe") or {}).get("defence"), trained_on=loaded.metadata.get("dataset"),
    )
    reading = read(record, at, thresholds, source=source)
    forms |= {name: name for name in reading.names if name not in forms.values()}
    right = torch.from_numpy(reading.right("union") == 1).to(device)
    x, labels = images.floats()[0], torch.from_numpy(record.labels).to(device)  # as the network numbers its classes
    audited = audit(network, x[:AUDITED], labels[:AUDITED], threat if attacked else None, deployed, seed=args.seed,
                    right=right[:AUDITED])
    record = dataclasses.replace(record, meta={**record.meta, "audit": {json.dumps(at.to_json()): audited}})
    reading = dataclasses.replace(reading, record=record)
    if args.save_record:
        record.save(args.save_record)
    print(report(reading))
    more = {}
    if args.strong:
        record = surviving.add(record, network, images, threat, [(at, thresholds)], seed=args.seed,
                               batch_size=args.batch_size)
        if args.save_record:
            record.save(args.save_record)
        more["strong"] = survived(dataclasses.replace(reading, record=record))
    if args.autoattack:
        more["autoattack"] = autoattacked(args, network, deployed, threat.epsilon, x, labels)
    if args.robustbench_card:
        write_json(args.robustbench_card, card(reading, threat, more["autoattack"]))
    write_json(args.json, {
        "images": record.images, "point": at.to_json(), "thresholds": [plain(t) for t in thresholds],
        "forms": {name: numbers(reading, form) for name, form in forms.items()},
        "worst_form": reading.worst_form, "union_correct": count(reading, "union"), "audit": audited, **more,
        "remarks": remarks(record),
    })


def numbers(reading: Reading, view: str) -> dict:
    """What the JSON says of a view: counts of images, at a noisy point of their mean over draws; means over images."""
    shares, macs = reading.share(view) * reading.record.images, reading.cost("cumulative_macs", view)
    return {"correct": count(reading, view), "exits": [whole(n) for n in shares],
            "per_exit": [whole(n) for n in reading.alone(view).sum(-1)],
            "paper_mflops": reading.cost("paper_mflops", view), "cumulative_macs": macs,
            "saving": 1 - macs / reading.plain("trunk"), "efficacy": efficacy(reading, view)}


def efficacy(reading: Reading, view: str) -> float:
    return reading.record.exit_costs(reading.point).efficacy(reading.thresholds, reading.share(view))


def count(reading: Reading, what: str) -> int | float:
    return whole(reading.right(what).sum())


def whole(number: float) -> int | float:
    """A count, as a whole number where it is one."""
    return round(number) if abs(number - round(number)) < 1e-9 * max(1, abs(number)) else float(number)


def survived(reading: Reading) -> dict:
    """{"suite", "correct", "left": {attack: who is right after it}} under the strong suite, printed."""
    told = {"suite": reading.record.strong.meta["suite"], "correct": count(reading, "strong"),
            "left": {attack: whole(right.sum()) for attack, right in reading.survived.items()}}
    print(f"right under these and the {len(told['left'])} attacks of {told['suite']}: {told['correct']:g} of "
          f"{reading.record.images} = {100 * reading.measured('strong').value:.2f} %, an upper bound")
    return told


def autoattacked(args, network: Network, point: OperatingPoint, epsilon: float, x: torch.Tensor,
                 y: torch.Tensor) -> dict:
    """{"version", "correct", "draws", "flags"} of AutoAttack on the deployed decision, printed."""
    draws = (args.draws or DRAWS) if args.autoattack == "standard" and fresh(network, point) else 1
    outcome = autoattack.run(network, x, y, epsilon, version=args.autoattack, point=point, draws=draws, seed=args.seed,
                             batch_size=args.batch_size)
    correct, over = int(outcome.robust.sum()), f" on the mean over {draws} draws" if draws > 1 else ""
    print(f"AutoAttack {args.autoattack}{over}, epsilon {epsilon:.4g}: {correct} of {len(y)} = "
          f"{100 * correct / len(y):.2f} %" + "".join(f"; flag: {flag}" for flag in outcome.flags))
    return {"version": args.autoattack, "correct": correct, "draws": draws, "flags": list(outcome.flags)}


def card(reading: Reading, threat: Threat, verdict: dict | None) -> dict:
    """The entry that RobustBench asks for (its model_info), with what is known here, and what it does not ask: exits,
    true cost, the per-image worst case and the attacks behind it, seed and flags. verdict: of AutoAttack, or None."""
    record, images = reading.record, reading.record.images
    flags = sorted({*reading.doubts, *(verdict or {}).get("flags", ())})
    return {"name": record.model, "architecture": record.model, "dataset": record.meta["dataset"], "images": images,
            "eps": f"{threat.epsilon * 255:g}/255", "clean_acc": f"{100 * reading.right('clean').mean():.2f}",
            "autoattack_acc": verdict and f"{100 * verdict['correct'] / images:.2f}",
            "number_forward_passes": verdict["draws"] if verdict else reading.draws, "additional_data": False,
            "unreliable": bool(flags), "flags": flags, "seed": record.meta["seed"], "exits": reading.record.num_exits,
            "leave_at_each_exit": reading.share().tolist(), "true_macs": reading.cost("cumulative_macs"),
            "worst_case_acc": f"{100 * reading.right(reading.robust).mean():.2f}",
            "attacks": [*reading.suite, *(reading.survived if reading.robust == "strong" else ())]}


def find_images(part: tuple[int, int | None] | None, dataset: Dataset) -> tuple[int, Split]:
    """(index of the first image, the images) of a half-open range of the test images."""
    first, stop = part or (0, None)
    stop = len(dataset.test) if stop is None else stop
    if not 0 <= first < stop <= len(dataset.test):
        raise WorkbookError(f"images {first}:{stop} are not among the {len(dataset.test):,} test images of "
                            f"{dataset.name}; give a range within 0:{len(dataset.test)}")
    return first, dataset.test[first:stop]


def find_point(args, network: Network) -> OperatingPoint:
    """The operating point of the flags; knobs that are left out stand where the network rests, and that is said.

    Raises WorkbookError for a knob that the network does not have, and for one that is set twice.
    """
    given = {k: getattr(args, k) for k in ("noise", "batch_norm", "code", "width") if getattr(args, k) is not None}
    point = OperatingPoint(**given)
    if args.lambda_n is not None:
        if twice := sorted(set(given) - {"width"}):
            raise WorkbookError(f"--lambda-n says what {' and '.join(twice)} is; leave one of them out")
        if not {"noise", "batch_norm", "code"} & network.knobs:
            raise WorkbookError("this network was not made for a lambda; leave --lambda-n and --lambda-th out")
        point = network.at(args.lambda_n, args.lambda_th or 0.0, args.width)
        if "code" in network.knobs:  # a lambda that it was not trained for is refused, not the nearest taken
            point = point.replace(code=args.lambda_n)
    elif args.lambda_th is not None:
        raise WorkbookError("--lambda-th is where batch norm switches on the way of --lambda-n; give that as well")
    at = network.conditions(point)
    rest = {"noise": at.noise, "batch_norm": at.batch_norm, "code": 0.0, "width": 1.0}
    return point.replace(**{k: v for k, v in rest.items() if k in network.knobs and getattr(point, k) is None})


def refuse_idle(args, attacked: bool, noisy: bool) -> None:
    """Raises WorkbookError for a flag that would change nothing: whoever gives one gets what it says."""
    one_step = "the one step of FGSM, which is epsilon long"
    every = ("algorithm", "loss", "mode", "epsilon", "step_size", "steps")
    idle = {} if attacked else dict.fromkeys(every, "clean images")
    idle |= {"fgsm": dict(step_size=one_step, steps=one_step), "cw": dict(loss="PGD on the margin, as cw is"),
             "wrm": dict(step_size="WRM, whose rates are its own")}.get(args.algorithm, {})
    idle |= {} if noisy else {"draws": "a point without fresh noise"}
    for flag, what in idle.items():
        if getattr(args, flag) is not None:
            raise WorkbookError(f"--{flag.replace('_', '-')} changes nothing about {what}; leave it out")


def find_threat(args, dataset: Dataset) -> Threat:
    """The budget: the flags, and the dataset's customary values where they are missing; its step follows epsilon."""
    given = {name: getattr(args, name) for name in ("epsilon", "step_size", "steps")}
    usual, how = dict(dataset.threat), (args.algorithm or "pgd", args.loss or "ce")
    how = ("pgd", "margin") if how[0] == "cw" else how
    if how[0] == "wrm" and given["epsilon"] is None:
        raise WorkbookError("WRM's epsilon weighs the loss against the squared distance, no radius; give --epsilon")
    if given["epsilon"] and how[0] == "pgd":
        usual["step_size"] *= given["epsilon"] / usual["epsilon"]
    return Threat(**{name: usual[name] if value is None else value for name, value in given.items()},
                  algorithm=how[0], loss=how[1])


def find_thresholds(source, network: Network, held_out: Record | None) -> tuple[tuple[float, ...], str]:
    """(thresholds, where they come from). Raises WorkbookError when they are missing or too many."""
    if network.num_exits == 1:
        if source not in (None, "paper", "calibrated"):
            raise WorkbookError("this network has one exit and takes no thresholds; leave --thresholds out")
        return (), "none"
    if source == "calibrated":
        return routing.calibrate(np.concatenate(list(held_out.entropy), axis=-1)), "calibrated"
    if source in (None, "paper"):
        if network.paper_thresholds is None:
            raise WorkbookError("the paper states no thresholds for this network; use --thresholds calibrated")
        return tuple(network.paper_thresholds), "paper"
    routing.check_thresholds(source, network.num_exits)
    return tuple(source), "given"


def remarks(record: Record) -> list[str]:
    """What has to be said beside the numbers: images of another dataset, classes that are not the network's own."""
    meta = record.meta
    elsewhere = meta["trained_on"] not in (None, meta["dataset"])
    return [f"trained on {meta['trained_on']}"] * elsewhere + [meta["remark"]] * bool(meta["remark"])


def report(reading: Reading) -> str:
    """What `evaluate` prints."""
    record, names = reading.record, exit_names(reading.record.num_exits)
    meta, view = record.meta, next((v for v in record.views if v.attacked), None)
    budget = "no attack" if view is None else (
        f"{kind(view.threat)}-{view.threat.steps}, epsilon {view.threat.epsilon:.4g}, " +
        ("" if view.threat.step_size is None else f"step {view.threat.step_size:.4g}, ") + f"{view.mode} mode")
    gates = ", ".join(f"{t:.4g}" for t in reading.thresholds) or "none"
    audit, rows = record.meta["audit"][json.dumps(reading.point.to_json())], []

    def shown(what: str, number: str = "{:.2f} % ({:.1f} - {:.1f})") -> str:
        return number.format(*reading.measured(what).times(100))

    for called in reading.names:
        saved = [1 - reading.cost(count, called) / reading.plain(whole_net) for count, whole_net in (
            ("paper_mflops", "paper_mflops"), ("cumulative_macs", "trunk"))]
        rows.append({
            "attack": called, "accuracy %": shown(called, "{:.2f}") + reading.flag(called),
            "95 %": shown(called, "{1:.1f} - {2:.1f}"),
            "last exit alone %": f"{100 * reading.alone(called)[-1].mean():.2f}",
            "paper MFlops": f"{reading.cost('paper_mflops', called):.2f}", "saved %": f"{100 * saved[0]:.1f}",
            "true Mi MACs": f"{reading.cost('cumulative_macs', called) / MEBI:.2f}",
            "truly saved %": f"{100 * saved[1]:.1f}",
            **({"efficacy": f"{efficacy(reading, called):.2f}"} if record.num_exits > 1 else {}),
            **{f"exit {n}": whole(part * record.images) for n, part in zip(names, reading.share(called), strict=True)}})
    verdict = (f"do not trust numbers with ! ({', '.join(reading.doubts)})" if reading.doubts else
               "nothing against these numbers")
    lines = [
        f"{record.model} on {meta['dataset']} ({meta['data_variant']}), test images {meta['images'][0]}:"
        f"{meta['images'][1]}, seed {meta['seed']}, {reading.draws} draw{'s' * (reading.draws > 1)}; {budget}; "
        f"thresholds {gates} ({reading.source})" + "".join(f"; {remark}" for remark in remarks(record)),
        pandas.DataFrame(rows).to_string(index=False),
        f"audit on {audit['images']} images: {verdict}",
    ]
    if view is not None:
        lines.append(f"worst form: {reading.worst_form} with {shown(reading.worst_form, '{:.2f} %')}")
    if reading.paper_worst:
        lines.append(f"the paper's worst case (lowest of its {len(attack_forms.paper_forms(record.num_exits))} forms): "
                     f"{shown('paper_worst', '{:.2f} %')} ({reading.paper_worst})")
    if len(reading.suite) > 1:
        lines.append(f"right under every one of {', '.join(reading.suite)}: {count(reading, 'union'):g} of "
                     f"{record.images} = {shown('union')}")
    return "\n".join(lines)
