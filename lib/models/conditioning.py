"""What a network's weights and features are conditioned on: one row per conditioning, from which all else follows.

A conditioning joins by a row in CONDITIONINGS: `CONDITIONINGS["noise_only"] = Conditioning(noisy=True)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lib import WorkbookError, unknown
from lib.operating_point import OperatingPoint


@dataclass(frozen=True)
class Conditioning:
    """noisy: weights carry scaled noise.  banks: batch norms behind each convolution, 1 or 2 (BN_C and BN_A).

    shared: what both banks have in common, "statistics" or "affine", None = nothing.
    film: features are modulated by the code of one of the trained lambdas, which also chooses the bank (so takes two).
    rest: scale of the noise where a point leaves it out; where it is not 0, training shows no other.
    Raises WorkbookError for banks that cannot be, or share what they have not.
    """

    noisy: bool = False
    banks: int = 1
    shared: str | None = None
    film: bool = False
    rest: float = 0.0

    def __post_init__(self):
        if self.banks not in ((2,) if self.film else (1, 2)):
            raise WorkbookError(f"a conditioning has 1 or 2 banks of batch norm, with FiLM 2, not {self.banks}")
        if self.shared and (self.banks == 1 or self.shared not in ("statistics", "affine")):
            raise WorkbookError(f"two banks share statistics or affine, one shares nothing; not {self.shared}")

    @staticmethod
    def named(name: str) -> "Conditioning":
        """The row of that name. Raises WorkbookError where there is none."""
        if name not in CONDITIONINGS:
            raise unknown("conditioning", name, CONDITIONINGS)
        return CONDITIONINGS[name]

    @property
    def knobs(self) -> frozenset[str]:
        """The fields of `OperatingPoint` that turn it."""
        mix = ("batch_norm",) if self.banks == 2 and not self.film else ()
        return frozenset((*(("noise", "draw") if self.noisy else ()), *mix, *(("code",) if self.film else ())))

    def at(self, lambda_n: float, lambda_th: float = 0.0, codes: Sequence[float] = ()) -> OperatingPoint:
        """Where one knob puts it: the nearest of FiLM's trained `codes`; noise and bank by FLOAT's mapping, those of
        them that it has; with a single bank the noise is lambda_n itself; without any knob the point is empty."""
        full = OperatingPoint.from_lambda(lambda_n, lambda_th if self.banks == 2 else 0.0)
        knobs = {name: round(getattr(full, name), 9) for name in ("noise", "batch_norm") if name in self.knobs}
        return OperatingPoint(**knobs, code=min(codes, key=lambda c: abs(c - lambda_n)) if self.film else None)

    def ends(self, codes: Sequence[float] = ()) -> tuple[OperatingPoint, OperatingPoint]:
        """The most accurate and the most robust of the points that training shows, equal where it shows only one."""
        return (OperatingPoint(), OperatingPoint()) if self.rest else (self.at(0.0, codes=codes),
                                                                       self.at(1.0, codes=codes))


CONDITIONINGS = {
    "none": Conditioning(),
    "float": Conditioning(noisy=True, banks=2),
    "dual_bn": Conditioning(banks=2),  # FLOAT's control, the same without noise
    "share_stats": Conditioning(banks=2, shared="statistics"),  # and the control's two halves, each by itself
    "share_affine": Conditioning(banks=2, shared="affine"),
    "oat": Conditioning(film=True, banks=2),
    "pni": Conditioning(noisy=True, rest=1.0),
}
