"""The front door: python3 -m lib run | test | lab | doctor | train | fleet | evaluate | choose | page | export | …

A bare Python is enough to start: the standard library alone up to the moment a verb begins, so that help and wrong
flags answer at once. Written plainly enough for an old Python to read it and be told that it is too old.
"""

import sys

if sys.version_info < (3, 11):
    print("error: the workbook needs Python 3.11 or newer and this is %d.%d; repeat the command with a newer one, "
          "such as python3.12 -m lib" % sys.version_info[:2], file=sys.stderr)
    sys.exit(2)

import argparse
import importlib
import os
import re

import lib
from lib import WorkbookError, environment
from lib.flags import count, image_range, macs, minutes, names, number, path, port, seed, size, thresholds, unit, widths
from lib.packages import NEEDS

# Where the function is that a verb runs, of the verb's name.
MODULES = {"run": "workbook.runs", "test": "environment", "lab": "environment", "doctor": "doctor",
           "evaluate": "evaluating", "export": "exporting"} | dict.fromkeys(
    ("train", "fleet", "choose", "page", "cost", "bench"), "commands")


def add_run(add):
    verb = add("run", "execute the notebooks headlessly and write an index page")
    verb.add_argument("--preset", choices=("quick", "laptop", "paper"), default="quick", help="size (default quick)")
    verb.add_argument("--weights", choices=("train", "shipped"), default="train",
                      help="train networks in this run (default), or take those that came along")
    verb.add_argument("--only", type=names, metavar="10,12", help="only these notebooks, by number or name")
    verb.add_argument("--list", action="store_true", help="list the notebooks and stop")
    verb.add_argument("--dry-run", action="store_true", help="say what it would train, how long that takes, and stop")
    verb.add_argument("--name", metavar="NAME", help="folder below data/runs (default: made from the settings)")
    verb.add_argument("--seed", type=seed, default=0)
    verb.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                      help="set a notebook parameter; may be repeated")
    verb.add_argument("--dataset", type=path, metavar="NAME", help="the dataset, in notebooks that let it be chosen")
    verb.add_argument("--jobs", type=count, metavar="N", help="notebooks at a time (default 1 on a GPU, else up to 4)")
    verb.add_argument("--patience", type=minutes, default=10.0, metavar="MINUTES",
                      help="end a notebook that used no CPU and wrote nothing for so long (default 10)")
    verb.add_argument("--allow-cpu", action="store_true", help="let preset paper start without a GPU")
    add_runs(verb)


def add_test(add):
    verb = add("test", "run unit tests, notebook tests and the browser test", usage="%(prog)s [--fast] [pytest ...]",
               epilog="Everything else goes to pytest, such as tests/data/test_data.py, -k NAME or -x.")
    verb.add_argument("--fast", action="store_true", help="only unit tests, without the slow ones and the browser")


def add_lab(add):
    verb = add("lab", "open JupyterLab on the first notebook")
    verb.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help="another one, by number, name or file")
    verb.add_argument("--port", type=port, help="port to serve on (default: Jupyter's, 8888)")
    verb.add_argument("--no-browser", action="store_true", help="only print the address")
    add_runs(verb)


def add_train(add):
    verb = add("train", "train a recipe; the same command continues a stopped training")
    verb.add_argument("recipe", nargs="?", metavar="RECIPE", help="see --list; or compose one of the next four")
    verb.add_argument("--network", metavar="NAME", help="such as resnet20, rdi_resnet38, or your own as mymodule:mine")
    verb.add_argument("--dataset", type=path, metavar="NAME_OR_FOLDER", help="such as cifar10, or a folder of images")
    verb.add_argument("--method", metavar="NAME", help="such as max_average, float or pgd_at1")
    verb.add_argument("--preset", choices=("quick", "laptop", "paper"), help="size and schedule (default laptop)")
    verb.add_argument("--list", action="store_true", help="list the recipes and stop")
    verb.add_argument("--minutes", type=number, metavar="M", help="stop cleanly after M minutes")
    verb.add_argument("--seed", type=seed, help="another seed than the recipe's")
    verb.add_argument("--folder", type=path, metavar="DIR", help="where checkpoints go (default: made from the recipe)")
    add_common(verb)


def add_fleet(add):
    verb = add("fleet", "train the workbook's networks on CIFAR-10, the most wanted first; the same command goes on")
    verb.add_argument("--list", action="store_true", help="show how far each is and stop")
    verb.add_argument("--only", type=names, metavar="WORDS", help="only trainings with one of these in their name")
    verb.add_argument("--minutes", type=minutes, metavar="M", help="stop cleanly after M minutes")
    verb.add_argument("--jobs", type=count, default=1, metavar="N", help="trainings at a time (default 1)")
    verb.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")


def add_evaluate(add):
    verb = add("evaluate", "clean and attacked accuracy of a checkpoint, routed through its exits")
    verb.add_argument("checkpoint", type=path, metavar="CHECKPOINT")
    verb.add_argument("--dataset", type=path, required=True, metavar="NAME_OR_FOLDER")
    verb.add_argument("--attack", type=names, metavar="clean,main,...", help="attack forms (default: all but slow_…)")
    verb.add_argument("--epsilon", type=unit, help="L-infinity budget, such as 8/255 (default: the dataset's)")
    verb.add_argument("--step-size", type=unit, help="such as 2/255 (default: the dataset's)")
    verb.add_argument("--steps", type=count, help="attack steps (default: the dataset's)")
    verb.add_argument("--images", type=image_range, metavar="A:B", help="part of the test set (default: all of it)")
    verb.add_argument("--batch-size", type=count, default=250)
    verb.add_argument("--thresholds", type=thresholds, default="paper", metavar="paper|calibrated|t1,t2,...",
                      help="when an image leaves: entropy below the exit's threshold (default paper)")
    verb.add_argument("--algorithm", choices=("pgd", "fgsm", "wrm", "cw"),
                      help="what steps (default pgd); cw is PGD on the margin")
    verb.add_argument("--loss", choices=("ce", "margin"), help="what is climbed (default ce)")
    verb.add_argument("--mode", choices=("eval", "batch", "authors"),
                      help="state of batch norm and dropout while attacking (default eval)")
    for knob, meaning in (("lambda-n", "FLOAT's one knob, 0 (accurate) to 1 (robust)"),
                          ("lambda-th", "where it switches batch norm (default 0)"),
                          ("noise", "scale of the weight noise"),
                          ("batch-norm", "0 (clean statistics) to 1 (adversarial)"), ("code", "OAT's lambda"),
                          ("width", "one of the trained widths")):
        verb.add_argument(f"--{knob}", type=unit, metavar="X", help=meaning)
    verb.add_argument("--draws", type=count, metavar="N", help="of fresh noise, to judge over (default 5)")
    verb.add_argument("--strong", action="store_true", help="attack what is left by the strong suite as well")
    verb.add_argument("--autoattack", choices=("standard", "rand"), help="AutoAttack on the deployed decision as well")
    verb.add_argument("--robustbench-card", type=path, metavar="FILE", help="AutoAttack's entry in RobustBench")
    verb.add_argument("--seed", type=seed, default=0)
    verb.add_argument("--save-record", type=path, metavar="FILE", help="keep the record of every image")
    add_common(verb)


def add_choose(add):
    verb = add("choose", "the most accurate setting of a recorded network within a budget")
    verb.add_argument("source", type=path, metavar="CHECKPOINT_OR_RECORD",
                      help="a record, see evaluate --save-record, or a network that came with one")
    verb.add_argument("--max-macs", type=macs, default=float("inf"), metavar="X",
                      help="at most so many multiply-accumulates an image, such as 30e6")
    verb.add_argument("--max-ms", type=number, default=float("inf"), metavar="T",
                      help="at most so many milliseconds an image, measured here in batches of 32")
    verb.add_argument("--min-robust", type=unit, default=0.0, metavar="Y",
                      help="at least this share right in the per-image worst case, 0 to 1")
    verb.add_argument("--json", type=path, metavar="FILE", help="write the numbers there as well")


def add_page(add):
    verb = add("page", "write a record as one HTML file with sliders, which needs neither kernel nor network")
    verb.add_argument("source", type=path, metavar="CHECKPOINT_OR_RECORD", help="as for choose")
    verb.add_argument("file", type=path, metavar="FILE", help="the page, such as page.html")


def add_export(add):
    verb = add("export", "write a network at one operating point as torch.export programs and ONNX, an exit each")
    verb.add_argument("checkpoint", type=path, metavar="CHECKPOINT")
    verb.add_argument("folder", type=path, metavar="DIR", help="where the programs and their card go")
    verb.add_argument("--at", required=True, metavar="FILE_OR_JSON",
                      help="what choose --json wrote, or a point such as '{\"noise\": 0, \"width\": 0.5}'")
    verb.add_argument("--no-onnx", action="store_true", help="torch.export alone, without the packages that ONNX needs")


def add_cost(add):
    verb = add("cost", "parameters and multiply-accumulates, per exit and width")
    verb.add_argument("model", metavar="MODEL", help="such as smallcnn, resnet38 or wrn40_2")
    verb.add_argument("--exits", default="none", metavar="NAME", help="such as rdi or cheap (default none)")
    verb.add_argument("--conditioning", default="none", metavar="NAME", help="such as float or oat (default none)")
    verb.add_argument("--widths", type=widths, default=(1.0,), metavar="0.5,1.0")
    verb.add_argument("--classes", type=count, default=10)
    verb.add_argument("--input", type=size, default=None, metavar="3x32x32",
                      help="image shape (default: what the model was published for)")
    verb.add_argument("--json", type=path, metavar="FILE", help="write the numbers there as well")


def add_bench(add):
    verb = add("bench", "measure how fast this machine trains and attacks")
    verb.add_argument("--only", type=names, metavar="NAMES", help="only these measurements")
    verb.add_argument("--rounds", type=count, default=None, metavar="N", help="repetitions of each measurement")
    verb.add_argument("--record", action="store_true", help="add the result to the recorded ones")
    add_common(verb)


def add_doctor(add):
    add("doctor", "say what this machine can do")


def add_common(verb):
    verb.add_argument("--device", help="cpu, cuda, cuda:1 (default: the GPU if there is one)")
    verb.add_argument("--json", type=path, metavar="FILE", help="write the numbers there as well")


def add_runs(verb):
    verb.add_argument("--runs", type=path, metavar="DIR", help="where runs are kept (default WORKBOOK_RUNS, data/runs)")


def build_parser():
    parser = argparse.ArgumentParser(
        prog="python3 -m lib", allow_abbrev=False,
        description="The trade-off workbook: accuracy, adversarial robustness and computation in one trained network. "
                    "The first verb that needs packages sets them up in .venv, unless this Python has them already.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def add(name, summary, **more):
        return verbs.add_parser(name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False, **more)

    for one in (add_run, add_test, add_lab, add_doctor, add_train, add_fleet, add_evaluate, add_choose, add_page,
                add_export, add_cost, add_bench):
        one(add)
    return parser


def parse(argv):
    """The arguments, checked; whatever `test` does not know itself is left for pytest, in the order given."""
    parser = build_parser()
    args, args.arguments = parser.parse_known_args(argv)
    if args.arguments and args.verb != "test":
        parser.error(f"unrecognized arguments: {' '.join(args.arguments)}")
    if args.verb == "train" and not args.list:
        parts = (args.network, args.dataset, args.method)
        if not all(parts) if args.recipe is None else any((*parts, args.preset)):
            parser.error("train needs the name of a recipe (see train --list), or --network, --dataset and --method")
    return args


def start(args):
    """Run the verb in this process, which has the packages; returns its exit code."""
    return getattr(importlib.import_module(f"lib.{MODULES[args.verb]}"), args.verb)(args) or 0


def main(argv):
    args = parse(argv)
    if getattr(args, "runs", None):  # for this process and for the kernels that it starts
        os.environ["WORKBOOK_RUNS"] = os.path.abspath(args.runs)
        lib.RUNS = lib.place(os.environ["WORKBOOK_RUNS"], None)
    try:
        environment.ensure(NEEDS[args.verb], argv)
        return start(args)
    except Exception as error:
        lacking = isinstance(error, MemoryError) or re.search("out of memory|can't allocate memory", str(error))
        if not lacking and not isinstance(error, WorkbookError):
            raise
        said = "there is not enough memory; ask for a smaller network, images or batch" if lacking else error
        print(f"error: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def piped(argv):
    """`main`, ending quietly when whoever reads the output has seen enough, as `head` does."""
    sys.stdout.reconfigure(errors="replace")  # a λ is no reason to stop where only ASCII can be shown
    try:
        try:
            return main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python itself still flushes at exit
        return 141  # as a shell calls the end by SIGPIPE


if __name__ == "__main__":
    sys.exit(piped(sys.argv[1:]))
