"""Writes scaled_blocks.txt: tensors under scales that are no powers of two and under Hadamard transforms, for
test_scaled.cpp.

Every operation is one of numpy's on float32, nearest even, and elements and scales are cast by ml_dtypes; fixed point is
numpy's rint, a table's nearest number is found in float64, and a posit is rounded at the numbers of posits one bit longer.
The signs of the Hadamard transform are drawn by a Philox4x32-10 that must first give Random123's known answers.

With M the element's largest number and a the largest magnitude of a scale's area (at: of the tensor):
  f32      S = min(M/a, FLT_MAX), 1 if a = 0 or S = 0;  v = Q(x*S);  F = min(1/S, FLT_MAX)
  e4m3     d = e4m3(min(a*(S*(1/M)), FLT_MAX)), saturating;  v = Q(x*min(S/d, FLT_MAX))*d;  nvfp4 has
           S = min(448*M/at, FLT_MAX), 1 if at = 0 or S = 0, and F = min(1/S, FLT_MAX); -scalee4m3 has S = 1 and no factor
  q34      v = Q(0.75*x) under the scale that x has;  F = 4/3
  rht      x is first multiplied by signs and transformed in full groups of n along the axis, then times 2^-2
An area with Inf or NaN is NaN, and so is its factor. y = v*F, turned back by the same transform, times 2^-2 (n = 16) or
2^-3 (n = 32).

Run: python make_scaled_tables.py   (needs numpy and ml_dtypes)
"""

import dataclasses
import pathlib

import ml_dtypes
import numpy as np

from make_block_tables import floor_rule, integer_rule

F32 = np.float32
LARGEST = np.finfo(np.float32).max
NF4 = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                0.7229568362236023, 1.0])


# ---- elements: the largest number, and nearest even within the bounds ------------------------------------------------
def cast_to(dtype, top):
    return lambda x: np.clip(x, F32(-top), F32(top)).astype(dtype).astype(np.float32)


def round_to_integers(least, most):
    return lambda x: np.clip(np.rint(x), F32(least), F32(most)) + F32(0)  # two's complement has no -0


def posit_number(code, n, es):
    """Of a positive code: regime, exponent and fraction as they stand in its n - 1 bits."""
    bits = f"{code:0{n - 1}b}"
    run = len(bits) - len(bits.lstrip(bits[0]))
    k = run - 1 if bits[0] == "1" else -run
    rest = bits[run + 1:].ljust(es, "0")
    exponent, fraction = int("0" + rest[:es], 2), rest[es:]
    return 2.0 ** (k * 2**es + exponent) * (1 + int("0" + fraction, 2) / 2 ** len(fraction))


def round_to_posit(n, es):
    codes = range(1, 2 ** (n - 1))
    numbers = np.array([posit_number(c, n, es) for c in codes])
    between = np.array([posit_number(2 * c + 1, n + 1, es) for c in codes[:-1]])  # of codes c and c + 1

    def cast(x):
        a = np.abs(x.astype(np.float64))
        index = np.searchsorted(between, a)
        tie = (index < len(between)) & (between[np.minimum(index, len(between) - 1)] == a)
        index += tie & (index % 2 == 0)  # index 0 is code 1: the even code of two is the upper one
        return np.where(a == 0, 0.0, np.copysign(numbers[index], x)).astype(np.float32)

    return cast


def round_to_table(numbers):
    middles = (numbers[1:] + numbers[:-1]) / 2  # exact

    def cast(x):
        index = np.searchsorted(middles, x.astype(np.float64))
        tie = (index < len(middles)) & (middles[np.minimum(index, len(middles) - 1)] == x)
        return numbers[index + (tie & (index % 2 == 1))].astype(np.float32)

    return cast


@dataclasses.dataclass
class Element:
    most: float  # largest number
    cast: callable
    exponent: int = 0  # of the largest number; for power-of-two scales, as the next
    stored_bits: int = 0


E2M1 = Element(6.0, cast_to(ml_dtypes.float4_e2m1fn, 6.0), 2, 1)
E4M3 = Element(448.0, cast_to(ml_dtypes.float8_e4m3fn, 448.0), 8, 3)
E5M2 = Element(57344.0, cast_to(ml_dtypes.float8_e5m2, 57344.0), 15, 2)
E2M3 = Element(7.5, cast_to(ml_dtypes.float6_e2m3fn, 7.5), 2, 3)
BYTE = Element(127.0, round_to_integers(-128, 127))
SYMMETRIC_BYTE = Element(127.0, round_to_integers(-127, 127))
POSIT = Element(posit_number(127, 8, 1), round_to_posit(8, 1))
TABLE = Element(1.0, round_to_table(NF4))


# ---- random signs and the transform ----------------------------------------------------------------------------------
def philox(counter, key):
    """Philox4x32-10 of one counter of four words and a key of two."""
    c, k = [int(w) for w in counter], [int(w) for w in key]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def check_philox():
    ones = 0xFFFFFFFF
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    assert philox([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]) == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def fnv1a32(text):
    value = 2166136261
    for byte in text.encode():
        value = (value ^ byte) * 16777619 & 0xFFFFFFFF
    return value


def signs(count, seed):
    words = [philox([k // 4, 0, fnv1a32("rht"), 0], [seed & 0xFFFFFFFF, seed >> 32])[k % 4] for k in range(count)]
    return np.array([-1 if w >> 31 else 1 for w in words], np.float32)


def transform(x):
    """Fast Walsh-Hadamard transform along the last axis."""
    n = x.shape[-1]
    h = 1
    while h < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * h), 2, h)
        a, b = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([a + b, a - b], axis=-2).reshape(x.shape)
        h *= 2
    return x


def turn(x, axis, n, seed, back):
    """In full groups of n along the axis: signs, transform and scale; or, back, transform, signs and scale."""
    x = np.moveaxis(x, axis, -1).copy()
    full = x.shape[-1] // n * n
    s = signs(full, seed)
    groups = (*x.shape[:-1], full // n, n)
    if back:
        scale = F32(2**-2 if n == 16 else 2**-3)
        x[..., :full] = s * transform(x[..., :full].reshape(groups)).reshape(*x.shape[:-1], full) * scale
    else:
        x[..., :full] = transform((s * x[..., :full]).reshape(groups)).reshape(*x.shape[:-1], full) * F32(2**-2)
    return np.moveaxis(x, -1, axis)


# ---- scales ----------------------------------------------------------------------------------------------------------
def areas(shape, axis, kind):
    """The number of each element's area, areas being counted in row-major order. Kinds: an int N for groups of N along
    the axis, a pair for tiles of the last two axes, "axisK", "row" for a line along the axis, "tensor"."""
    at = list(np.indices(shape))
    if isinstance(kind, int):
        at[axis] //= kind
    elif isinstance(kind, tuple):
        at[-1] //= kind[1]
        if len(shape) > 1:
            at[-2] //= kind[0]
    elif kind == "row":
        at[axis][...] = 0
    elif kind == "tensor":
        at = [np.zeros_like(a) for a in at]
    else:
        at = [a if i == int(kind.removeprefix("axis")) else np.zeros_like(a) for i, a in enumerate(at)]
    extents = [int(a.max()) + 1 for a in at]
    return np.ravel_multi_index(at, extents)


def amax_of(x):
    return np.max(np.abs(x)) if np.all(np.isfinite(x)) else F32(np.nan)


def reciprocal_scale(numerator, amax):
    scale = min(F32(numerator) / amax, LARGEST) if amax != 0 else F32(1)
    return F32(1) if scale == 0 else scale


def scale_by_f32(x, element, area):
    v, factors = np.empty_like(x), []
    for number in range(area.max() + 1):
        inside = area == number
        a = amax_of(x[inside])
        s = F32(np.nan) if np.isnan(a) else reciprocal_scale(element.most, a)
        v[inside] = np.nan if np.isnan(a) else element.cast(x[inside] * s)
        factors.append(s if np.isnan(a) else min(F32(1) / s, LARGEST))
    return v, factors


def scale_by_e4m3(x, element, area, s):
    v = np.empty_like(x)
    to_element = s * (F32(1) / F32(element.most))
    for number in range(area.max() + 1):
        inside = area == number
        a = amax_of(x[inside])
        if np.isnan(a):
            v[inside] = np.nan
            continue
        d = E4M3.cast(min(a * to_element, LARGEST))
        v[inside] = element.cast(x[inside] * min(s / d, LARGEST)) * d
    return v


def scale_nvfp4(x, element, area):
    at = amax_of(x)
    if np.isnan(at):
        return np.full_like(x, np.nan), [at]
    s = reciprocal_scale(448.0 * element.most, at)
    return scale_by_e4m3(x, element, area, s), [min(F32(1) / s, LARGEST)]


def scale_by_power_of_two(x, element, area, rule, q34):
    v = np.empty_like(x)
    for number in range(area.max() + 1):
        inside = area == number
        a = amax_of(x[inside])
        if np.isnan(a):
            v[inside] = np.nan
            continue
        exponent = (floor_rule(a, element.exponent) if rule == "floor" else
                    integer_rule(rule, a, element.most, element.exponent, element.stored_bits))
        scale = np.ldexp(1.0, min(max(exponent, 0), 254) - 127)
        block = x[inside] * F32(0.75) if q34 else x[inside]
        quotient = np.clip(block.astype(np.float64) / scale, -element.most, element.most)
        v[inside] = element.cast(quotient.astype(np.float32)) * scale
    return v, [F32(4) / F32(3)] if q34 else []


@dataclasses.dataclass
class Quantizer:
    element: Element
    scale: str  # f32, e4m3, nvfp4, or a rule of power-of-two scales
    kind: object  # of areas
    rht: int = 0
    q34: bool = False

    def __call__(self, x, axis, seed):
        """v, factors and y."""
        if self.rht:
            x = turn(x, axis, self.rht, seed, back=False)
        area = areas(x.shape, axis, self.kind)
        if self.scale == "f32":
            v, factors = scale_by_f32(x, self.element, area)
        elif self.scale == "e4m3":
            v, factors = scale_by_e4m3(x, self.element, area, F32(1)), []
        elif self.scale == "nvfp4":
            v, factors = scale_nvfp4(x, self.element, area)
        else:
            v, factors = scale_by_power_of_two(x, self.element, area, self.scale, self.q34)
        y = v
        if factors:
            y = v * (F32(factors[0]) if len(factors) == 1 else np.array(factors, np.float32)[area])
        if self.rht:
            y = turn(y, axis, self.rht, seed, back=True)
        return v, np.array(factors, np.float32), y


QUANTIZERS = {
    "nvfp4": Quantizer(E2M1, "nvfp4", 16),
    "nvfp4-g8": Quantizer(E2M1, "nvfp4", 8),
    "nvfp4-t16x16": Quantizer(E2M1, "nvfp4", (16, 16)),
    "nvfp4+rht16": Quantizer(E2M1, "nvfp4", 16, rht=16),
    "e2m1-g16-scalee4m3": Quantizer(E2M1, "e4m3", 16),
    "e2m3-t2x8-scalee4m3": Quantizer(E2M3, "e4m3", (2, 8)),
    "fixed8.0-sym-g16-scalee4m3": Quantizer(SYMMETRIC_BYTE, "e4m3", 16),
    "fixed8.0-sym-g32-scalef32": Quantizer(SYMMETRIC_BYTE, "f32", 32),
    "e4m3-t2x16-scalef32": Quantizer(E4M3, "f32", (2, 16)),
    "e5m2-axis0-scalef32": Quantizer(E5M2, "f32", "axis0"),
    "posit8.1-g16-scalef32": Quantizer(POSIT, "f32", 16),
    "nf4-g16-scalef32": Quantizer(TABLE, "f32", 16),
    "e4m3-g8-scalef32+rht32": Quantizer(E4M3, "f32", 8, rht=32),
    "e4m3+scale=current": Quantizer(E4M3, "f32", "tensor"),
    "e5m2+scale=row": Quantizer(E5M2, "f32", "row"),
    "fixed8.0+scale=row": Quantizer(BYTE, "f32", "row"),
    "e5m2+rht16+scale=row": Quantizer(E5M2, "f32", "row", rht=16),
    "mxfp4+q34": Quantizer(E2M1, "floor", 32, q34=True),
    "mxfp8-rceil+q34": Quantizer(E4M3, "rceil", 32, q34=True),
    "mxfp4+rht16": Quantizer(E2M1, "floor", 32, rht=16),
    "mxfp6-even+rht32": Quantizer(E2M3, "even", 32, rht=32),
    "mxfp4+rht32+q34": Quantizer(E2M1, "floor", 32, rht=32, q34=True),
}
LONG = {
    "nf4-g64-scalef32": Quantizer(TABLE, "f32", 64),
    "e4m3-g128-scalef32": Quantizer(E4M3, "f32", 128),
    "e4m3-t128x128-scalef32": Quantizer(E4M3, "f32", (128, 128)),
    "nvfp4+rht16": QUANTIZERS["nvfp4+rht16"],
}
SHAPE = (2, 38)  # groups of 16 and of 32 with a tail


def spread(rng, shape, low, high):
    return rng.choice([-1, 1], shape) * np.exp2(rng.uniform(low, high, shape))


def short_inputs(rng):
    """Name, tensor and axis."""
    yield "ordinary", rng.normal(size=SHAPE), 1
    yield "wide", spread(rng, SHAPE, -20, 4), 1
    zero_groups = rng.normal(size=SHAPE)
    zero_groups[0, :16], zero_groups[1, 16:] = 0.0, -0.0
    yield "zero-groups", zero_groups, 1
    yield "zeros", np.where(np.arange(76).reshape(SHAPE) % 3 == 0, -0.0, 0.0), 1
    huge = spread(rng, SHAPE, 118, 127.9)
    huge[0, 3], huge[1, 20] = LARGEST, -LARGEST
    yield "huge", huge, 1
    yield "subnormal", spread(rng, SHAPE, -149, -130), 1
    least = np.zeros(SHAPE)
    least[0, 0], least[1, 37] = 2.0**-149, -(2.0**-126)
    yield "least", least, 1
    yield "uneven-groups", spread(rng, SHAPE, -3, 3) * np.exp2(np.repeat(rng.integers(-60, 60, (2, 5)), 8, 1)[:, :38]), 1
    for name, special in (("nan", np.nan), ("inf", -np.inf)):
        x = rng.normal(size=SHAPE)
        x[0, 17] = special
        yield name, x, 1
    yield "solid", rng.normal(size=(2, 19, 2)), 1
    yield "columns", rng.normal(size=(35, 2)), 0
    yield "vector", rng.normal(size=(37,)), 0


def long_inputs(rng):
    yield "long", spread(rng, (2, 150), -6, 2), 1
    yield "tall", rng.normal(size=(130, 2)), 0
    yield "broad", rng.normal(size=(2, 130)), 1


def words(values):
    """fp32 bits; four digits are the upper half, the lower being 0."""
    for value in np.ravel(values):
        bits = 0x7FC00000 if np.isnan(value) else int(F32(value).view(np.uint32))
        yield f"{bits:08x}" if bits & 0xFFFF else f"{bits >> 16:04x}"


def line(name, values):
    return " ".join([name, *words(values)])


def main():
    check_philox()
    rng = np.random.default_rng(2502)
    text = [
        f"# Written by make_scaled_tables.py with ml_dtypes {ml_dtypes.__version__} and numpy {np.__version__}.",
        "# input NAME AXIS SHAPE…, its numbers x;  case QUANTIZER SEED of the input before it, its v, factors and y.",
        "# Numbers are fp32 bits in hex; four digits are the upper half, the lower half being 0.",
    ]
    seed = 0x123456789
    with np.errstate(all="ignore"):
        for inputs, quantizers in ((short_inputs, QUANTIZERS), (long_inputs, LONG)):
            for name, x, axis in inputs(rng):
                x = x.astype(np.float32)
                text += [f"input {name} {axis} {' '.join(map(str, x.shape))}", line("x", x)]
                for quantizer, make in quantizers.items():
                    seed += 0x9E3779B97F4A7C15 // 5 if make.rht else 0
                    seed &= 0xFFFFFFFFFFFFFFFF
                    v, factors, y = make(x, axis, seed)
                    assert v.dtype == y.dtype == np.float32
                    text += [f"case {quantizer} {seed}", line("v", v), line("factors", factors), line("y", y)]
    path = pathlib.Path(__file__).with_name("scaled_blocks.txt")
    path.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
