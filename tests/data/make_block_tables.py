"""Writes mx_blocks.txt: blocks of the OCP MX formats made with numpy and ml_dtypes, for test_block_formats.cpp.

"block" is followed by a line of inputs, as fp32 bits. "made NAME B X" says that block number B, counted from 0, gets the
biased scale exponent X (255: NaN) in format NAME and becomes the numbers on the next line.

One block: y = cast(clip(x / 2^(X-127), -max, max)) * 2^(X-127). Elements are cast by ml_dtypes (MXINT8, which it does not
have, by numpy's rint), the quotient is formed in fp64, where it is exact. Scale rules:
  floor  the OCP MX specification: the largest power of two <= amax, over that of the element's max, as a float8_e8m0fnu
  ceil, even, rceil  the integer formulas that torchao's MX formats publish, rceil with TransformerEngine's fp32 product
A block with Inf or NaN is NaN.

Run: python make_block_tables.py   (needs numpy and ml_dtypes)
"""

import pathlib

import ml_dtypes
import numpy as np

MANTISSA = 0x007FFFFF
# Name, ml_dtypes type, largest number, exponent of it, stored significand bits.
FORMATS = [
    ("mxfp8", ml_dtypes.float8_e4m3fn, 448.0, 8, 3),
    ("mxfp8-e5m2", ml_dtypes.float8_e5m2, 57344.0, 15, 2),
    ("mxfp6", ml_dtypes.float6_e2m3fn, 7.5, 2, 3),
    ("mxfp6-e3m2", ml_dtypes.float6_e3m2fn, 28.0, 4, 2),
    ("mxfp4", ml_dtypes.float4_e2m1fn, 6.0, 2, 1),
    ("mxint8", None, 127 / 64, 0, 6),
]


def bits(x):
    return int(np.float32(x).view(np.uint32))


def floor_rule(amax, emax):
    if amax == 0:
        return 0
    power = np.ldexp(1.0, int(np.frexp(np.float64(amax))[1]) - 1)
    scale = power / np.ldexp(1.0, emax)
    if scale < 2.0**-127:
        return 0
    return int(np.array(scale, ml_dtypes.float8_e8m0fnu).view(np.uint8))


def integer_rule(rule, amax, top, emax, stored_bits):
    a = bits(amax)
    if rule == "ceil":
        return (a >> 23) + (1 if a & MANTISSA else 0) - emax
    if rule == "even":
        return ((a + (1 << (22 - stored_bits))) >> 23) - emax
    f = bits(np.float32(amax) * (np.float32(1) / np.float32(top)))
    exponent, mantissa = f >> 23, f & MANTISSA
    up = mantissa != 0 and exponent != 254 and not (exponent == 0 and mantissa <= 0x00400000)
    return exponent + (1 if up else 0)


def make(x, dtype, top, emax, stored_bits, rule):
    """The biased scale exponent and the numbers that the block becomes."""
    if not np.all(np.isfinite(x)):
        return 255, np.full_like(x, np.nan)
    amax = np.max(np.abs(x))
    exponent = floor_rule(amax, emax) if rule == "floor" else integer_rule(rule, amax, top, emax, stored_bits)
    exponent = min(max(exponent, 0), 254)
    scale = np.ldexp(1.0, exponent - 127)
    q = np.clip(x.astype(np.float64) / scale, -top, top)
    if dtype is None:
        element = np.rint(q * 64) / 64 + 0.0  # two's complement has no -0
    else:
        element = q.astype(np.float32).astype(dtype).astype(np.float64)
    with np.errstate(over="ignore"):
        return exponent, (element * scale).astype(np.float32)


def blocks():
    rng = np.random.default_rng(31)

    def spread(n, low, high):
        return rng.choice([-1, 1], n) * np.exp2(rng.uniform(low, high, n))

    largest = np.finfo(np.float32).max
    yield rng.normal(size=32)
    yield spread(32, -20, 4)
    yield np.append(spread(31, -6, 5.9), 63.9)  # floor clips its top
    yield np.append(-largest, spread(20, 118, 127.9))
    yield np.append(spread(24, -149, -131), 2.0**-130)  # all subnormal in fp32
    yield np.append(spread(15, -140, -126), 2.0**-126 - 2.0**-149)
    yield np.append(spread(20, -128, -111), 2.0**-112)
    yield np.array([0.0, -0.0, 0.0])
    yield np.array([0.75, -2.0, 5.0, -0.0, 1.25])
    yield np.array([-448.0])
    yield np.array([1.0, np.nan, -3.0])
    yield np.array([1.0, -np.inf, -3.0])


def words(values):
    return " ".join(f"{0x7FC00000 if np.isnan(v) else bits(v):08x}" for v in values)


def main():
    data = [np.asarray(b).astype(np.float32) for b in blocks()]
    lines = ["# Written by make_block_tables.py with ml_dtypes " + ml_dtypes.__version__]
    for x in data:
        lines += ["block", words(x)]
    for name, *element in FORMATS:
        for rule in ("floor", "ceil", "even", "rceil"):
            for number, x in enumerate(data):
                exponent, y = make(x, *element, rule)
                lines += [f"made {name}-{rule} {number} {exponent}", words(y)]
    path = pathlib.Path(__file__).with_name("mx_blocks.txt")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
