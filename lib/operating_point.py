"""One frozen value for every knob that can be turned after training."""

import dataclasses
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from lib import WorkbookError


def plain(value: float) -> float | str:
    """A number as JSON can hold it: a closed exit is the text "-inf"."""
    return value if abs(value) != math.inf else str(value)


@dataclass(frozen=True)
class OperatingPoint:
    """Where on its trade-off a trained network is run. `None` means "this knob is not used".

    noise: scale s of the weight noise s * alpha * eta, 0 ... 1 (above 1 warns); a float or one value per image.
    batch_norm: 0 = clean statistics BN_C, 1 = adversarial statistics BN_A, between = the two outputs interpolated.
    draw: None = fresh noise at each forward pass, an int = that frozen draw.
    code: OAT's lambda, one of the trained set; a float or a tensor with one value per image.
    width: one of the trained widths.
    exits: which exits (numbered from 1, the last always counts) may be taken; None = all.
    thresholds: entropy threshold per exit but the last; an image leaves where its entropy is strictly below; a closed
        exit has threshold -inf, not 0.

    Raises WorkbookError for a value outside its range. Whether a network has the knob is checked by the network.
    """

    noise: float | Tensor | None = None
    batch_norm: float | None = None
    draw: int | None = None
    code: float | Tensor | None = None
    width: float | None = None
    exits: tuple[int, ...] | None = None
    thresholds: tuple[float, ...] | None = None

    def __post_init__(self):
        for name in ("exits", "thresholds"):
            if isinstance(given := getattr(self, name), Iterable) and not isinstance(given, str):
                object.__setattr__(self, name, tuple(given))
        for name in self.used():
            given, several = getattr(self, name), name in ("exits", "thresholds")
            kind = Integral if name in ("draw", "exits") else (Real, Tensor)
            if isinstance(given, tuple) != several or any(
                    not isinstance(one, kind) or isinstance(one, bool) for one in (given if several else (given,))):
                kinds = f"{'whole ' * (kind is Integral)}number{'s' * several}"
                raise WorkbookError(f"{name} {given!r} has to be a {'list of ' * several}{kinds}")
        if self.draw is not None and self.draw < 0:
            raise WorkbookError(f"draw {self.draw} is below 0; frozen draws are numbered from 0")
        if self.noise is not None and not (isinstance(self.noise, Tensor) and self.noise.is_cuda):  # no wait for a GPU
            low, high = float(torch.as_tensor(self.noise).min()), float(torch.as_tensor(self.noise).max())
            if not 0 <= low <= high < math.inf:
                raise WorkbookError(f"noise scale {self.noise} is outside its range; use 0 (off) to 1 (as trained)")
            if high > 1:
                warnings.warn(f"noise scale {high:g} is above 1, the strength used in training", stacklevel=3)
        if self.batch_norm is not None and not 0 <= self.batch_norm <= 1:
            raise WorkbookError(f"batch_norm {self.batch_norm} is outside 0 (clean) to 1 (adversarial)")
        if self.thresholds is not None and any(math.isnan(t) for t in self.thresholds):
            raise WorkbookError("a threshold is not a number; a closed exit has threshold -inf")

    @classmethod
    def from_lambda(cls, lambda_n: float, lambda_th: float = 0.0, **others) -> "OperatingPoint":
        """FLOAT's one knob (section 3.2 and Eq. 5, for any switch lambda_th in [0, 1)).

        lambda_n <= lambda_th: noise lambda_n / lambda_th with BN_C; above it: (lambda_n - lambda_th) / (1 - lambda_th)
        with BN_A. The published cases are lambda_th = 0 and 0.5. Raises WorkbookError for values out of range.
        """
        if not 0 <= lambda_th < 1:
            raise WorkbookError(f"lambda_th {lambda_th} is outside [0, 1); the published values are 0 and 0.5")
        if not lambda_n >= 0:
            raise WorkbookError(f"lambda_n {lambda_n} is below 0; use 0 (most accurate) to 1 (most robust)")
        if lambda_n <= lambda_th:
            return cls(noise=lambda_n / lambda_th if lambda_th else 0.0, batch_norm=0.0, **others)
        return cls(noise=(lambda_n - lambda_th) / (1 - lambda_th), batch_norm=1.0, **others)

    def replace(self, **changes) -> "OperatingPoint":
        return dataclasses.replace(self, **changes)

    def used(self) -> frozenset[str]:
        """The names of the knobs that are set."""
        return frozenset(f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None)

    def to_json(self) -> dict:
        """Only the knobs that are set, as JSON can hold them (-inf becomes the text "-inf")."""
        values = {name: getattr(self, name) for name in sorted(self.used())}
        return {name: value.tolist() if isinstance(value, Tensor) else list(map(plain, value))
                if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: dict) -> "OperatingPoint":
        """The inverse of `to_json`; raises WorkbookError on an unknown knob."""
        names = {f.name for f in dataclasses.fields(cls)}
        if unknown := set(values) - names:
            raise WorkbookError(f"unknown knob {', '.join(sorted(unknown))}; the knobs are {', '.join(sorted(names))}")
        values = dict(values)
        if values.get("thresholds") is not None:
            values["thresholds"] = tuple(float(t) for t in values["thresholds"])
        for name in ("noise", "code"):
            if isinstance(values.get(name), list):
                values[name] = torch.tensor(values[name])
        return cls(**values)
