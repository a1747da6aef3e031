"""What the papers print, as data: every number is a line of `published.csv`; what they only draw is not there.

Hu et al., "Triple Wins" (ICLR 2020): accuracies and savings in percent; paper_mflops in the paper's own unit
(convolution MACs / 2^20). "clean" is TA, a form's name its ATA, "paper_worst" the smallest ATA over the K + 3 forms.
"""

from pathlib import Path

import pandas as pd

from lib.evaluation.record import Record

TUNED_ON = ("mnist", "cifar10")  # whose networks the published thresholds were tuned for
VALUES = pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=False)


class Published(dict):
    """One table: {row: {quantity: value}}."""

    def value(self, row: str, quantity: str) -> float | None:
        return self.get(row, {}).get(quantity)


def _table(paper: str, table: str, *row: str) -> Published:
    """row: the columns of the file that name a row, such as "defence"."""
    found = Published()
    for line in VALUES[(VALUES.paper == paper) & (VALUES.table == table)].to_dict("records"):
        found.setdefault(" ".join(line[name] for name in row), {})[line["metric"]] = line["value"]
    return found


TABLES = {n: _table("triple_wins", str(n), "network" if n == 1 else "defence") for n in range(1, 11)}
for _number, _network in {2: "smallcnn", 4: "mobilenet_v2", **dict.fromkeys((3, 6, 7, 8, 9, 10), "resnet38")}.items():
    _plain = TABLES[1][_network]  # the row "plain": the same network, against PGD in these tables alone
    TABLES[_number]["plain"] = {what: value for what, value in _plain.items() if what != "paper_worst" or _number < 5
                                } | TABLES[_number].get("plain", {})

# The authors' released test log of one MNIST checkpoint (iteration 13,000; the log does not name the defence), with
# thresholds that their code fits on the test images. Not a table of the paper.
RELEASED_MNIST_LOG = _table("released_log", "log", "defence")

# FLOAT (Kundu et al. 2021): its accuracies are drawn, not printed. Its text names gains in points, each "up to" over
# datasets and lambdas, but for the mean of five datasets at lambda_n = 0.2; and how many times FLOAT's a training
# takes. Table 1: parameters in millions, "FLOPs" in G multiply-accumulates.
GAINS, STEP_RATIOS = _table("float", "gains", "row"), _table("float", "training time", "defence")
TABLE_1 = _table("float", "1", "network", "defence")


def suited(record: Record) -> str:
    """Which thresholds a record is shown at first: "paper" on the paper's datasets, or where no images were held out to
    choose others on; else "calibrated"."""
    fits = record.meta.get("dataset") in TUNED_ON or record.held_out is None
    return "paper" if record.meta["paper_thresholds"] and fits else "calibrated"
