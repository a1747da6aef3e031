"""What FLOAT's paper (Kundu et al. 2021) states in figures. Its accuracies are drawn, not printed: only the gains that
its text names are here, in points, each "up to" over datasets and lambdas unless said otherwise; everything else of
Figs. 4, 6 to 15 is a dash."""

from lib.workbook.published import Published

GAINS = Published("Gains that the paper's text names, in points", {
    "λ_th 0.5 instead of 0 at λ_n = 0.2": dict(clean=4.95, robust=-12.37),  # mean of five datasets
    "FLOAT instead of OAT": dict(clean=6.5, robust=14.5),  # STL-10, at lambda 1 and 0.2
    "FLOAT instead of PGD-AT": dict(clean=6.96, robust=34.92),  # STL-10 at 1; CIFAR-10 at 0, against an undefended net
    "FLOAT-slim instead of OATS": dict(clean=3.71, robust=14.5),
    "FLOAT instead of PGD-AT, CW∞": dict(robust=28.74),  # at lambda 0
    "noise, at the same batch norm": {},
    "batch norms, without noise": {},
})

STEP_RATIOS = Published("Training time: how many times FLOAT's, FLOAT-slim's for OATS", {
    "oat": {"times float": 1.43}, "pgd_at": {"times float": 1.37}, "oats": {"times float_slim": 1.90}})

# Table 1: parameters in millions, "FLOPs" in G multiply-accumulates.
TABLE_1 = Published("Table 1: OAT beside FLOAT", {
    "resnet34 oat": dict(parameters=31.4, macs=1.18), "resnet34 float": dict(parameters=21.28, macs=1.165),
    "wrn40_2 oat": dict(parameters=3.22, macs=3.0), "wrn40_2 float": dict(parameters=2.25, macs=2.96),
    "wrn16_8 oat": dict(parameters=15.43, macs=2.1), "wrn16_8 float": dict(parameters=10.97, macs=2.01)})
