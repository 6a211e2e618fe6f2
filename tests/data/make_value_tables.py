"""Writes ml_dtypes_values.txt: what ml_dtypes makes of hard inputs, for test_quantise_value.cpp.

Each line: input and result as fp32 bits, in hex; a line "format NAME" starts a table. NAME is the format as ulp spells
it, with ml_dtypes's own overflow policy. Inputs: a sample of the type's numbers, the midpoints between neighbours, one
fp32 ulp either side of both, the edges of overflow and underflow, +-0, +-Inf, and random bits from a fixed seed. NaN
inputs are left out where the type has no NaN (ml_dtypes writes +-0, ulp keeps NaN).

Run: python make_value_tables.py   (needs numpy and ml_dtypes)
"""

import pathlib

import ml_dtypes
import numpy as np

TYPES = [
    ("e4m3-nan", ml_dtypes.float8_e4m3fn),
    ("e4m3-ieee", ml_dtypes.float8_e4m3),
    ("e4m3-fnuz-nan", ml_dtypes.float8_e4m3fnuz),
    ("e4m3-fnuz-nan-bias11", ml_dtypes.float8_e4m3b11fnuz),
    ("e5m2", ml_dtypes.float8_e5m2),
    ("e5m2-fnuz-nan", ml_dtypes.float8_e5m2fnuz),
    ("e3m4", ml_dtypes.float8_e3m4),
    ("e2m3-sat", ml_dtypes.float6_e2m3fn),
    ("e3m2-sat", ml_dtypes.float6_e3m2fn),
    ("e2m1-sat", ml_dtypes.float4_e2m1fn),
    ("bf16", ml_dtypes.bfloat16),
]
NUMBERS, RANDOM = 28, 60


def numbers(dtype):
    """All finite numbers >= 0 of the type, ascending, in fp64."""
    bits = ml_dtypes.finfo(dtype).bits
    storage = np.uint16 if bits > 8 else np.uint8
    codes = np.arange(1 << bits, dtype=storage)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the codes
        values = codes.view(dtype).astype(np.float64)
    return np.unique(np.abs(values[np.isfinite(values)]))


def hard_inputs(dtype, rng):
    values = numbers(dtype)
    step = values[-1] - values[-2]
    values = np.append(values, values[-1] + step)
    picked = np.unique(np.concatenate([
        np.arange(min(10, len(values))),
        np.linspace(0, len(values) - 1, NUMBERS).astype(int),
        np.arange(max(0, len(values) - 6), len(values)),
    ]))
    upper = picked[picked < len(values) - 1]
    points = np.concatenate([values[picked], (values[upper] + values[upper + 1]) / 2])
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    around = np.concatenate([points, np.nextafter(points, np.float32(np.inf)),
                             np.nextafter(points, np.float32(0))])
    edges = np.array([0, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000],
                     np.uint32).view(np.float32)
    low = np.log2(values[1]) - 2
    high = min(np.log2(values[-2]) + 1, 127.9)
    spread = np.exp2(rng.uniform(low, high, RANDOM)).astype(np.float32)
    magnitudes = np.unique(np.concatenate([around, edges, spread]))
    return np.concatenate([magnitudes, -magnitudes[::5], -edges])


def main():
    rng = np.random.default_rng(20240607)
    lines = ["# Written by make_value_tables.py with ml_dtypes " + ml_dtypes.__version__]
    for name, dtype in TYPES:
        inputs = hard_inputs(dtype, rng).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            results = inputs.astype(dtype).astype(np.float32)
        results[np.isnan(results)] = np.uint32(0x7FC00000).view(np.float32)
        lines.append(f"format {name}")
        for x, y in zip(inputs.view(np.uint32), results.view(np.uint32)):
            lines.append(f"{x:08x} {y:08x}")
    path = pathlib.Path(__file__).with_name("ml_dtypes_values.txt")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
