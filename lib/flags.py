"""What flags of the front door hold, by the standard library alone: each reads a text, or says what it has to be."""

import argparse
import functools
import os


def number(text, low=0.0, high=float("inf")):
    """A finite number or a fraction such as 8/255 within [low, high]."""
    over, slash, under = text.partition("/")
    try:
        value = float(over) / float(under) if slash else float(over)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number; write 0.03 or 8/255") from None
    if not low <= value < float("inf") or value > high:
        bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise argparse.ArgumentTypeError(f"'{text}' has to be {bounds}")
    return value


def count(text, high=float("inf"), low=1):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {low}")
    number(text, low, high)
    return int(text)


seed = functools.partial(count, high=2**63 - 1, low=0)
minutes = functools.partial(number, low=0.01)
unit = functools.partial(number, high=1.0)
macs = functools.partial(number, low=1.0)
port = functools.partial(count, high=65535)


def path(text):
    """A file or folder; ~ is home also where no shell has read it, as in --json=~/numbers.json."""
    if not text:
        raise argparse.ArgumentTypeError("the name of a file or folder is empty")
    return os.path.expanduser(text)


def names(text):
    """Comma-separated names, each once: clean,main,average."""
    parts = tuple(part.strip() for part in text.split(","))
    if "" in parts or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different names; write them as a,b,c")
    return parts


def widths(text):
    """Comma-separated width factors in (0, 1], each once."""
    values = tuple(unit(part) for part in names(text))
    if 0 in values:
        raise argparse.ArgumentTypeError("a width has to be above 0")
    return values


def image_range(text):
    """A:B, counted from 0, B left out; either end may be missing, and N alone means the first N. -> (start, stop)"""
    start, colon, stop = text.partition(":")
    if not colon:
        start, stop = "", start
    if not all(part == "" or part.isdecimal() for part in (start, stop)) or (not colon and not stop):
        raise argparse.ArgumentTypeError(f"'{text}' is not a range of images; write 500:1017 or 1000")
    first, last = int(start or 0), int(stop) if stop else None
    if last is not None and last <= first:
        raise argparse.ArgumentTypeError(f"'{text}' holds no image; the second number has to be the larger one")
    return first, last


def size(text):
    """CxHxW, such as 3x32x32."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shape; write channels x height x width, such as 3x32x32")
    return tuple(int(part) for part in parts)


def thresholds(text):
    """paper, calibrated, or one entropy per exit but the last; `closed` (minus infinity) closes an exit."""
    if text in ("paper", "calibrated"):
        return text
    try:
        values = tuple(float("-inf" if part == "closed" else part) for part in text.split(","))
    except ValueError:
        values = (float("nan"),)
    if any(value != value for value in values):
        raise argparse.ArgumentTypeError(f"'{text}' is neither paper nor calibrated nor a list such as 0.5,0.9,closed")
    return values
