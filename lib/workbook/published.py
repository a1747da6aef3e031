"""What the papers state in figures, as data. None: the paper draws it, or we do not have it; tables show a dash.

Hu et al., "Triple Wins" (ICLR 2020). Accuracies and savings in percent; paper_mflops in the paper's own unit
(convolution MACs / 2^20). "clean" is TA, a form's name its ATA, "paper_worst" the smallest ATA over the K + 3 forms.
"""

from dataclasses import dataclass

from lib.evaluation.record import Record

TUNED_ON = ("mnist", "cifar10")  # whose networks the published thresholds were tuned for
DEFENCES = ("standard", "main", "average", "max_average")


@dataclass(frozen=True)
class Published:
    """One table: what it shows, and its rows {row: {quantity: value or None}}."""

    title: str
    rows: dict[str, dict[str, float | None]]

    def value(self, row: str, quantity: str) -> float | None:
        return self.rows.get(row, {}).get(quantity)


def _forms(*values: float, exits: int) -> dict[str, float]:
    names = [*(f"single{k}" for k in range(1, exits)), "main", "average", "max_average"]
    return dict(zip(names, values, strict=True))


_RESNET38_MAX = _forms(69.71, 63.11, 60.72, 47.82, 45.53, 44.12, 49.82, 43.32, 43.43, exits=7)
_RESNET38_FGSM = _forms(72.76, 69.71, 65.14, 58.20, 52.96, 51.05, 54.72, 53.20, 52.40, exits=7)

TABLES = {
    1: Published("Table 1: plain networks, PGD-defended", {
        "smallcnn": dict(paper_mflops=9.25),
        "resnet38": dict(clean=83.62, paper_worst=42.29, paper_mflops=79.42),
        "mobilenet_v2": dict(clean=84.42, paper_worst=46.92, paper_mflops=86.91)}),
    2: Published("Table 2: RDI-SmallCNN on MNIST, PGD-40", {defence: {} for defence in DEFENCES}),
    3: Published("Table 3: RDI-ResNet38 on CIFAR-10, PGD-20", {
        "plain": dict(clean=83.62, paper_worst=42.29, paper_mflops=79.42),  # Table 1's
        "standard": dict(paper_mflops=29.41),
        "main": dict(clean=83.74, paper_worst=5.58, paper_mflops=48.27, paper_saving=39.2),
        "average": dict(clean=82.42, paper_worst=40.53, paper_mflops=56.90, paper_saving=28.4),
        "max_average": dict(clean=83.79, paper_worst=43.32, paper_mflops=57.81, paper_saving=27.2, **_RESNET38_MAX)}),
    4: Published("Table 4: RDI-MobileNetV2 on CIFAR-10, PGD-20", {
        "plain": dict(clean=84.42, paper_worst=46.92, paper_mflops=86.91),  # Table 1's
        **{defence: {} for defence in DEFENCES[:3]},
        "max_average": dict(clean=84.91, paper_worst=46.99, paper_mflops=60.84)}),
    5: Published("Table 5: RDI-ResNet38 beside ATMC on CIFAR-10", {
        "atmc": dict(clean=83.81, paper_worst=43.02, paper_mflops=56.82),
        "max_average": dict(clean=83.79, paper_worst=43.32, paper_mflops=57.81)}),
    6: Published("Table 6: RDI-ResNet38 under the random attack", {
        **{defence: {} for defence in DEFENCES[:3]},
        "max_average": dict(random=44.86, paper_mflops=56.54)}),
    7: Published("Table 7: RDI-ResNet38 under FGSM", {
        **{defence: {} for defence in ("plain", *DEFENCES)}, "standard": dict(paper_mflops=65.74)}),
    8: Published("Table 8: RDI-ResNet38 under WRM", {
        **{defence: {} for defence in ("plain", *DEFENCES)}, "standard": dict(clean=92.4, paper_worst=23.5)}),
    9: Published("Table 9: RDI-ResNet38 under FGSM, each form", {
        **{defence: {} for defence in DEFENCES[:3]},
        "max_average": dict(paper_mflops=59.67, **_RESNET38_FGSM)}),
    10: Published("Table 10: RDI-ResNet38 under WRM, each form", {
        **{defence: {} for defence in DEFENCES[:3]},
        "max_average": dict(paper_mflops=52.38)}),
}

# The authors' released test log of one MNIST checkpoint (iteration 13,000; the log does not name the defence), with
# thresholds that their code fits on the test images. Not a table of the paper.
RELEASED_MNIST_LOG = Published("Released test log, RDI-SmallCNN on MNIST, PGD-40", {
    "released": dict(clean=99.52, paper_worst=96.45, **_forms(98.54, 97.63, 96.45, 97.43, 96.86, exits=3))})

# FLOAT (Kundu et al. 2021): its accuracies are drawn, not printed. Only the gains that its text names are here, in
# points, each "up to" over datasets and lambdas unless said otherwise; everything else of Figs. 4, 6 to 15 is a dash.
GAINS = Published("Gains that the paper's text names, in points", {
    "λ_th 0.5 instead of 0 at λ_n = 0.2": dict(clean=4.95, robust=-12.37),  # mean of five datasets
    "FLOAT instead of OAT": dict(clean=6.5, robust=14.5),  # STL-10, at lambda 1 and 0.2
    "FLOAT instead of PGD-AT": dict(clean=6.96, robust=34.92),  # STL-10 at 1; CIFAR-10 at 0, against an undefended net
    "FLOAT-slim instead of OATS": dict(clean=3.71, robust=14.5),
    "FLOAT instead of PGD-AT, CW∞": dict(robust=28.74),  # at lambda 0
})
STEP_RATIOS = Published("Training time: how many times FLOAT's, FLOAT-slim's for OATS", {
    "oat": {"times float": 1.43}, "pgd_at": {"times float": 1.37}, "oats": {"times float_slim": 1.90}})

# Table 1: parameters in millions, "FLOPs" in G multiply-accumulates.
TABLE_1 = Published("Table 1: OAT beside FLOAT", {
    "resnet34 oat": dict(parameters=31.4, macs=1.18), "resnet34 float": dict(parameters=21.28, macs=1.165),
    "wrn40_2 oat": dict(parameters=3.22, macs=3.0), "wrn40_2 float": dict(parameters=2.25, macs=2.96),
    "wrn16_8 oat": dict(parameters=15.43, macs=2.1), "wrn16_8 float": dict(parameters=10.97, macs=2.01)})


def suited(record: Record) -> str:
    """Which thresholds a record is shown at first: "paper" on the paper's datasets, or where no images were held out to
    choose others on; else "calibrated"."""
    fits = record.meta.get("dataset") in TUNED_ON or record.held_out is None
    return "paper" if record.meta["paper_thresholds"] and fits else "calibrated"
