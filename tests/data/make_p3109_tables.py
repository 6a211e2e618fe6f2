"""Writes p3109_values.txt: the numbers of IEEE P3109's 8-bit formats and how gfloat rounds to them, for test_formats.cpp
and test_quantise_value.cpp.

"values NAME" is followed by the 256 numbers in the order of their codes. "round NAME" is followed by lines: an input as
fp32 bits, then its result nearest-even, nearest-away, toward zero, up and down. Numbers are written as the upper half of
their fp32 bits, which holds them exactly; NaN is 7fc0. Inputs: a sample of the numbers, the midpoints between neighbours,
one fp32 ulp either side of both, what lies beyond the largest, 0 and Inf; for signed formats some of them negated. Unsigned
formats get no negative inputs: gfloat gives no meaning to them.

gfloat saturates (-sat) or not, without a clamp that keeps Inf apart: extended formats are rounded without saturation,
finite ones with.

Run: python make_p3109_tables.py   (needs numpy and gfloat)
"""

import importlib.metadata
import math
import pathlib

import numpy as np
from gfloat import RoundMode, decode_float, round_float
from gfloat.formats import format_info_p3109
from gfloat.types import Domain, Signedness

MODES = [RoundMode.TiesToEven, RoundMode.TiesToAway, RoundMode.TowardZero, RoundMode.TowardPositive,
         RoundMode.TowardNegative]
PICKED = 3


def half_word(value):
    if math.isnan(value):
        return "7fc0"
    bits = int(np.float32(value).view(np.uint32))
    assert bits & 0xFFFF == 0 and float(np.float32(value)) == value
    return f"{bits >> 16:04x}"


def inputs(info, values):
    finite = [v for v in values if math.isfinite(v)]
    positive = sorted(v for v in finite if v >= 0)
    top = positive[-1]
    positive.append(2 * top - positive[-2])
    picked = {len(positive) - 3, len(positive) - 2, len(positive) - 1}
    if info.domain == Domain.Extended:  # finite ones differ at the top only
        picked |= {0, 1, 2} | set(np.linspace(3, len(positive) - 4, PICKED).astype(int).tolist())
    picked = sorted(picked)
    points = [positive[i] for i in picked]
    points += [(positive[i] + positive[i + 1]) / 2 for i in picked if i + 1 < len(positive)]
    with np.errstate(over="ignore"):
        points = np.array(points + [4 * top], np.float32)
    around = np.concatenate([points, np.nextafter(points, np.float32(np.inf)),
                             np.nextafter(points, np.float32(0)), np.array([0, np.inf], np.float32)])
    magnitudes = np.unique(around)
    return np.concatenate([magnitudes, -magnitudes[::3]]) if info.is_signed else magnitudes


def main():
    lines = ["# Written by make_p3109_tables.py with gfloat " + importlib.metadata.version("gfloat")]
    for precision in range(1, 8):
        for signedness in (Signedness.Signed, Signedness.Unsigned):
            for domain in (Domain.Extended, Domain.Finite):
                info = format_info_p3109(8, precision, signedness, domain)
                finite = domain == Domain.Finite
                name = f"binary8p{precision}" + ("-finite" if finite else "")
                name += "-unsigned" if signedness == Signedness.Unsigned else ""
                values = [decode_float(info, code).fval for code in range(256)]
                words = [half_word(v) for v in values]
                lines.append("values " + name)
                lines += [" ".join(words[i:i + 32]) for i in range(0, 256, 32)]
                lines.append("round " + name + ("-sat" if finite else ""))
                for x in inputs(info, values):
                    results = [half_word(round_float(info, float(x), mode, sat=finite)) for mode in MODES]
                    lines.append(f"{int(x.view(np.uint32)):08x} " + " ".join(results))
    path = pathlib.Path(__file__).with_name("p3109_values.txt")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
