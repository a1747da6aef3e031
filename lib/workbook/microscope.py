"""Single images: strips of them, framed where the answer is wrong; and one under the microscope, as an SVG: what the
attack did to it, and what every exit then says."""

import base64
import io
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from lib import randomness
from lib.attacks import forms, strong
from lib.attacks.steps import Threat
from lib.data import Split
from lib.evaluation import routing
from lib.evaluation.reading import Reading
from lib.models.exits import decide, entropy
from lib.models.network import Network
from lib.operating_point import OperatingPoint
from lib.workbook import style

MARGIN, FRAME, ENLARGE = 6, 2, 2  # pixels around a picture of a strip


class Cell(NamedTuple):
    """Where a picture stands, which image of the record it is, and what the network says to it."""

    row: int
    column: int
    index: int
    answer: int
    right: bool


def png_uri(pixels: np.ndarray, enlarge: int = 1) -> str:
    """A data URI of uint8 pixels (H, W, 3 or 4), each drawn as `enlarge` x `enlarge`."""
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if enlarge > 1:
        picture = picture.resize((picture.width * enlarge, picture.height * enlarge), Image.Resampling.NEAREST)
    picture.quantize(64, Image.Quantize.FASTOCTREE).save(file, "png", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def as_pixels(images) -> np.ndarray:
    """Images (N, C, H, W), uint8 or floats in [0, 1], as uint8 (N, H, W, 3)."""
    array = np.asarray(images)
    if array.dtype != np.uint8:
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (*array.shape[:1], *array.shape[2:], 3))


def in_a_row(reading: Reading, view: str, sample: np.ndarray, row: int = 0) -> list[Cell]:
    """The sampled images side by side, with the answers to a view's first draw."""
    sample = sample[sample < reading.record.images]
    leaving = reading.leaving[view][0][sample]
    answer = routing.at_exit(reading.record.prediction[reading.first(view)][:, sample], leaving)
    return [Cell(row, place, int(i), int(a), bool(a == reading.record.labels[i]))
            for place, (i, a) in enumerate(zip(sample, answer, strict=True))]


def by_exit(reading: Reading, view: str, sample: np.ndarray, left: int, columns: int) -> list[Cell]:
    """A row per exit with the images that leave there, surest first, in `columns` columns from `left` on."""
    cells, leaving = in_a_row(reading, view, sample), reading.leaving[view][0]
    placed: list[Cell] = []
    for row, doubt in enumerate(reading.record.entropy[reading.first(view)]):
        here = sorted((doubt[cell.index], cell) for cell in cells if leaving[cell.index] == row)
        placed += [cell._replace(row=row, column=left + place) for place, (_, cell) in enumerate(here[:columns])]
    return placed


def picture(cells: list[Cell], rows: int, columns: int, pixels: dict[int, np.ndarray]) -> str:
    """The whole strip as a data URI; pixels: uint8 (H, W, 3) by image."""
    height, width = (side + 2 * FRAME for side in next(iter(pixels.values())).shape[:2])
    canvas = np.zeros((rows * (height + MARGIN), columns * (width + MARGIN), 4), np.uint8)
    for cell in cells:
        top, left = cell.row * (height + MARGIN) + MARGIN // 2, cell.column * (width + MARGIN) + MARGIN // 2
        canvas[top:top + height, left:left + width] = [*style.rgb(style.RULE if cell.right else style.ATTACKED), 255]
        canvas[top + FRAME:top + height - FRAME, left + FRAME:left + width - FRAME, :3] = pixels[cell.index]
    return png_uri(canvas, ENLARGE)


@dataclass(frozen=True)
class Look:
    """index: of the image. label: its class.  clean, attacked: (C, H, W) floats in [0, 1].

    probabilities: (2, exits, classes) and entropies: (2, exits), of the clean and of the attacked image.
    """

    index: int
    label: int
    form: str
    epsilon: float
    clean: np.ndarray
    attacked: np.ndarray
    probabilities: np.ndarray
    entropies: np.ndarray

    def leaves(self, thresholds) -> list[int]:
        """Exit (0-based) of the clean and of the attacked image."""
        return decide(torch.from_numpy(self.entropies.T.copy()), thresholds).tolist()


def look(network: Network, image: Split, index: int, form: str, threat: Threat, *, thresholds=None,
         point: OperatingPoint | None = None) -> Look:
    """Attack one image, number `index` of its dataset, in `form` ("clean": not at all; or one of the strong suite, at
    these thresholds) and ask every exit about both.

    The random start is drawn for this image alone, so it differs from the one in a record.
    """
    images, labels = image.floats()
    attacked = images
    if form != "clean":
        source = randomness.generator(0, "microscope", form, index, device=images.device)
        gated = (point or OperatingPoint()).replace(thresholds=thresholds)
        if form != "gate_aware" and form in strong.names(network, gated):
            attacked = strong.craft(form, network, images, labels, threat.epsilon, gated, source, 0)
        else:
            attacked = forms.craft(form, network, images, labels, threat, generator=source, point=point,
                                   thresholds=thresholds)
    with torch.inference_mode():
        source = randomness.generator(0, "microscope", "look", index, device=images.device)
        logits = network(torch.cat([images, attacked]), point, source).float().transpose(0, 1)
    return Look(index, int(labels), form, threat.epsilon, images[0].cpu().numpy(), attacked[0].cpu().numpy(),
                logits.softmax(-1).cpu().numpy(), entropy(logits).cpu().numpy())


def svg(seen: Look, thresholds, classes) -> str:
    """Three pictures (image, perturbation, attacked image), and for every exit its probabilities and entropy."""
    exits, count = seen.probabilities.shape[1:]
    leaves, names = seen.leaves(thresholds), style.exit_names(exits)
    gates = ["entropy, closed" if t < 0 else f"entropy, gate {t:.3g}" for t in thresholds] + ["entropy"]
    pictures = [(name, png_uri(as_pixels(image[None])[0], 5)) for name, image in (
        ("image", seen.clean), ("change", _change(seen)), ("attacked", seen.attacked))]
    return style.render(
        "look.svg", seen=seen, title=f"Image {seen.index}: {classes[seen.label]}", classes=classes, names=names,
        story=_story(seen, leaves, names, classes), pictures=pictures, leaves=leaves, gates=gates, style=style,
        shown=np.argsort(-seen.probabilities.max((0, 1)), kind="stable")[:10] if count > 10 else range(count),
        panel=160 if exits <= 3 else 104, colours=(style.CLEAN, style.ATTACKED)[:1 if seen.form == "clean" else 2])


def still(drawing: str) -> go.Figure:
    """What `svg` drew as a figure, which becomes a picture where only pictures are shown."""
    width, height = map(float, re.search(r'width="([\d.]+)" height="([\d.]+)"', drawing).groups())
    address = "data:image/svg+xml;base64," + base64.b64encode(drawing.encode()).decode()
    picture = dict(source=address, xref="paper", yref="paper", x=0, y=1, sizex=1, sizey=1, sizing="stretch")
    hidden = dict(visible=False)
    return go.Figure(layout=dict(width=width, height=height, margin=dict(l=0, r=0, t=0, b=0), images=[picture],
                                 xaxis=hidden, yaxis=hidden, paper_bgcolor=style.PAPER, plot_bgcolor=style.PAPER))


def _story(seen: Look, leaves, names, classes) -> str:
    answers = [classes[seen.probabilities[i, k].argmax()] for i, k in enumerate(leaves)]
    clean = f"leaves at {names[leaves[0]]} as {answers[0]}"
    if seen.form == "clean":
        return clean
    largest = np.abs(seen.attacked - seen.clean).max()
    return (f"clean it {clean}; attacked ({style.spoken(seen.form)}, largest change {largest:.3f} of "
            f"{seen.epsilon:.3f} allowed) it leaves at {names[leaves[1]]} as {answers[1]}")


def _change(seen: Look) -> np.ndarray:
    """The perturbation as a picture (3, H, W): white is no change; grey images go from blue (darker) to vermilion."""
    change = (seen.attacked - seen.clean) / max(seen.epsilon, 1e-9)
    if len(change) == 3:
        return change.clip(-1, 1) / 2 + 0.5
    ends = np.array([style.rgb(style.CLEAN), style.rgb(style.ATTACKED)])[:, :, None, None] / 255
    strength = np.abs(change).clip(0, 1)
    return 1 - strength + strength * np.where(change < 0, ends[0], ends[1])
