"""A network at one operating point as programs that run without this project: one per open exit, the gate outside.

    stages = export.stages(network, point)         # modules: images, or features of the last one -> (logits, features)
    export.write(stages, images[:2], folder)       # stage1.pt2, stage1.onnx, …
    answers = export.route(stages, thresholds, images)  # also of torch.export.load("stage1.pt2").module(), served(…), …

Widths are cut, the noise is off or one frozen draw, batch norm is folded in, closed exits have no head.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import WorkbookError
from lib.models import exits
from lib.models.network import Network
from lib.models.view import Affine, AttackView, Folded, shell
from lib.operating_point import OperatingPoint


class Fixed(nn.Module):
    """A convolution or linear layer with its batch norm, or a batch norm that stands behind none, at one point."""

    def __init__(self, live: Folded | Affine, at):
        super().__init__()
        self.layer = None if isinstance(live, Affine) else shell(live.layer)
        if self.layer is None:
            weight, bias = live.rows(at)[:, 0]
        elif live.fixed:
            i = at.width_index if len(live.weights) > 1 else 0
            weight, bias = live.weights[i], live.biases[i] if len(live.biases) else None
        else:
            weight, eta, spread, bias = live.fold(live.layer.parts(at), at)
            weight = weight if eta is None else torch.addcmul(weight, eta, at.noise * spread)
        self.weight, self.bias = (None if t is None else nn.Parameter(t.clone(), False) for t in (weight, bias))

    def forward(self, x: Tensor, at) -> Tensor:
        if self.layer is None:
            return torch.addcmul(self.bias[:, None, None], x, self.weight[:, None, None])
        return self.layer.apply_weight(x, self.weight, self.bias)


class Stage(nn.Module):
    """What lies between two open exits, and the head of the later one: x -> (logits, features)."""

    def __init__(self, parts: Sequence[nn.Module], head: nn.Module, at):
        super().__init__()
        self.parts, self.head, self.at = nn.ModuleList(parts), head, at

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for part in self.parts:
            x = part(x, self.at)
        return self.head(x, self.at), x


def opened(network: Network, point: OperatingPoint) -> dict[int, float]:
    """{open exit, 0-based: its threshold}, the last one's infinite; all exits where the point names none."""
    last = network.num_exits - 1
    gates = exits.effective_thresholds(point, last + 1) if point.thresholds else (-1.0,) * last
    return {k: gate for k, gate in enumerate((*gates, torch.inf)) if gate > -torch.inf}


@torch.no_grad()
def stages(network: Network, point: OperatingPoint) -> list[Stage]:
    """Of a network in eval mode. Raises WorkbookError for fresh noise and points of one value per image."""
    at, view, found, start = network.conditions(point), AttackView(network), [], 0
    if at.fresh or at.per_image:
        raise WorkbookError("a program holds one network for all images; give single values, and no noise or draw=0")
    for owner in list(view.modules()):
        for name, child in owner._modules.items():
            if isinstance(child, Folded | Affine):
                owner._modules[name] = Fixed(child, at)
    for k in opened(network, point):
        found.append(Stage(view.stages[start:network.taps[k] + 1], view.heads[k], network.conditions(point)).eval())
        start = network.taps[k] + 1
    return found


@torch.no_grad()
def write(modules: Sequence[Stage], images: Tensor, folder: Path, onnx: bool = True) -> list[Path]:
    """Each as a `torch.export` program and as ONNX, for any number of images; returns the former. images: (N, C, H, W),
    two or more. Raises WorkbookError where packages for ONNX are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files, x, many = [], images, ({0: torch.export.Dim("images", min=1)},)
    for number, stage in enumerate(modules, 1):
        program = torch.export.export(stage, (x,), dynamic_shapes=many, strict=False)
        files.append(folder / f"stage{number}.pt2")
        torch.export.save(program, files[-1])
        try:
            if onnx:
                torch.onnx.export(program, (x,), files[-1].with_suffix(".onnx"), dynamo=True, external_data=False,
                                  input_names=["x"], output_names=["logits", "features"], verbose=False)
        except ModuleNotFoundError as error:
            raise WorkbookError(f"ONNX needs the package {error.name}; install onnx and onnxscript, or leave it out "
                                "with --no-onnx") from None
        x = stage(x)[1]
    return files


def served(path: Path) -> Callable:
    """An ONNX program in onnxruntime, called as the others are, on as many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    run = onnxruntime.InferenceSession(path, options).run
    return lambda x: tuple(map(torch.from_numpy, run(None, {"x": x.numpy()})))


@torch.no_grad()
def route(programs: Sequence[Callable], thresholds: Sequence[float], images: Tensor) -> Tensor:
    """Answers (N,): after each program those leave whose entropy is below its threshold; the last takes the rest."""
    answers, rows, x = torch.empty(len(images), dtype=torch.long), torch.arange(len(images)), images
    for program, gate in zip(programs, thresholds, strict=True):
        logits, x = program(x)
        answers[rows], stay = logits.argmax(-1), ~(exits.entropy(logits) < gate)
        rows, x = rows[stay], x[stay]
        if not len(rows):
            break
    return answers
