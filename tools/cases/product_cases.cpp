// Products and what belongs to them.

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/matmul_unit.h"
#include "tools/cases/core_cases.h"

namespace ulp::cases {

void check_scaled_add(Comparison& compare) {
  struct Each {
    int64_t rows, columns;
  };
  const int64_t depth = 96;
  for (const Shape& shape : {Shape{1, 1}, Shape{37, 70}, Shape{0, 3}, Shape{128, 64}})
    for (const Each& a : {Each{0, 0}, Each{1, 96}, Each{1, 32}, Each{16, 16}})
      for (const Each& b : {Each{0, 0}, Each{128, 96}, Each{1, 32}})
        for (const char* rounding : {"fp32", "e4m3:sr"}) {
          if (!compare.takes(3 * shape.numel())) continue;
          const auto factors = [&](const Each& e, int64_t rows, uint64_t seed) {
            if (e.rows == 0) return Pair{};
            const int64_t count = ((rows + e.rows - 1) / e.rows) * (depth / e.columns);
            return compare.input({count}, DType::F32, Domain::Modest, seed);
          };
          const Pair fa = factors(a, shape[0], 9), fb = factors(b, shape[1], 10);
          const Pair state = step_state(compare, some_step());
          const Pair sums = compare.input(shape, DType::F32, Domain::Hard, 11),
                     bias = compare.input({shape[1]}, DType::BF16, Domain::Modest, 12),
                     out = compare.output(shape);
          for (const int64_t k : {0, 32, 64}) {
            compare.run(kernels::scaled_add, [&](Side d) {
              ScaledAddArgs args;
              args.sums = sums.on(d);
              args.out = out.on(d);
              args.a_factors = {fa.on(d), std::max<int64_t>(1, a.rows),
                                std::max<int64_t>(1, a.columns)};
              args.b_factors = {fb.on(d), std::max<int64_t>(1, b.rows),
                                std::max<int64_t>(1, b.columns)};
              args.k = k;
              args.depth = depth;
              args.first = k == 0;
              args.last = k == 64;
              args.bias = bias.on(d);
              args.output = rounding;
              args.key = key_on(state, d);
              return args;
            });
            compare.same(out, "scaled_add ", to_string(shape), " at ", k, " into ",
                         std::string(rounding));
          }
        }
}

namespace {

struct MatmulCase {
  int64_t m, k, n;
  DType a = DType::F32, b = DType::F32;
  Domain domain = Domain::Modest;
  int layout = 0;  // bits: 1 a transposed, 2 b transposed, 4 both sliced
  const char* output = "fp32";
  bool bias = false;
  bool factors = false;
  std::string kind{};        // of Comparison::takes
  Math math = Math::Strict;  // of the other side; numbers whose sums are exact then
  bool fits_tf32 = false;
  const char* sums = "fp32";
};

/// A matrix that lies in memory as the case's layout says.
Pair operand(const Comparison& compare, int64_t rows, int64_t columns, DType dtype,
             const MatmulCase& c, bool transposed, uint64_t seed) {
  const int64_t margin = (c.layout & 4) != 0 ? 3 : 0;
  Shape shape = {rows + margin, columns + 2 * margin};
  if (transposed) std::swap(shape[0], shape[1]);
  return view(compare.input(shape, dtype, c.domain, seed), [&](Tensor t) {
    if (transposed) t = t.transpose(0, 1);
    return t.slice(0, margin, margin + rows).slice(1, margin, margin + columns);
  });
}

void matmul_once(Comparison& compare, const MatmulCase& c) {
  if (!compare.takes(c.m * c.k * c.n, c.kind)) return;
  const Pair a = operand(compare, c.m, c.k, c.a, c, (c.layout & 1) != 0, 11);
  const Pair b = operand(compare, c.k, c.n, c.b, c, (c.layout & 2) != 0, 12);
  const Pair bias = compare.input({c.n}, DType::F32, c.domain, 13);
  const bool strict = c.math == Math::Strict;
  const auto factor = [&](float x) {
    return compare.both(Tensor::from(std::vector<float>{x}, {1}));
  };
  const Pair factors[] = {factor(strict ? 0.3f : 0.5f), factor(strict ? -1.7f : 4.0f)};
  const Pair out = compare.output({c.m, c.n}), state = step_state(compare, some_step());
  const Quantizer q = Quantizer::parse(c.output);
  const auto args_on = [&](Side d) {
    MatmulArgs args;
    args.a = a.on(d);
    args.b = b.on(d);
    args.out = out.on(d);
    if (c.bias) args.bias = bias.on(d);
    if (c.factors) args.a_factor = factors[0].on(d);
    if (c.factors && !c.bias) args.b_factor = factors[1].on(d);
    args.output = q;
    args.key = key_on(state, d);
    if (d == Side::Other) args.math = c.math;
    args.fits_tf32 = c.fits_tf32;
    args.sums = {Accumulator(c.sums), key_on(state, d), 5, 1, 2};
    return args;
  };
  compare.run(kernels::matmul, args_on);
  compare.same(out, "(", c.m, ", ", c.k, ") · (", c.k, ", ", c.n, "), ", text(c.a), " · ",
               text(c.b), ", layout ", c.layout, ", domain ", static_cast<int>(c.domain), ", bias ",
               c.bias, ", factors ", c.factors, ", output ", std::string(c.output), ", math ",
               to_string(c.math), ", sums ", std::string(c.sums));
  const DType store = storage_type(q);
  const Device other = compare.place(Side::Other).device;
  if (store == DType::F32 || other.type == DeviceType::Cpu) return;
  MatmulArgs narrow = args_on(Side::Other);  // the same values in the format's own type
  narrow.out = Tensor::empty({c.m, c.n}, store, other);
  kernels::matmul(stream_of(other), narrow);
  Tensor widened = Tensor::empty({c.m, c.n}, DType::F32, other);
  kernels::copy(stream_of(other), {narrow.out, widened});
  compare.same({out.reference, widened}, "(", c.m, ", ", c.k, ") · (", c.k, ", ", c.n, "), output ",
               std::string(c.output), " into ", text(store));
}

/// Every unit of the other side's GPU, its operands as they are and copied, alone and with all that comes after the sums.
/// The numbers are small multiples of 1/2, so that no unit rounds: the bits are those of strict math.
void check_units(Comparison& compare) {
  struct Use {
    Math math;
    DType a, b;
    bool fits_tf32 = false;
  };
  const Use uses[] = {
      {Math::Fast, DType::BF16, DType::BF16},     {Math::Fast, DType::F8E4M3, DType::F8E5M2},
      {Math::Fast, DType::F16, DType::F16},       {Math::Fast, DType::BF16, DType::F16},
      {Math::Fast, DType::F32, DType::F32, true}, {Math::Fast, DType::F32, DType::F32},
      {Math::Tf32, DType::F32, DType::F32},       {Math::Fp8, DType::F8E4M3, DType::F8E4M3},
      {Math::Fp8, DType::F8E5M2, DType::F8E4M3}};
  for (const Use& use : uses)
    for (const auto& [m, k, n] :
         std::vector<std::array<int64_t, 3>>{{64, 96, 48}, {37, 65, 51}, {1, 16, 128}})
      for (const int layout : {0, 1, 2, 3, 7})
        for (const char* output : {"fp32", "e4m3"})
          for (const bool bias : {false, true})
            for (const bool factors : {false, true}) {
              MatmulCase c{m, k, n, use.a, use.b, Domain::Few, layout, output, bias, factors};
              c.math = use.math;
              c.fits_tf32 = use.fits_tf32;
              c.kind = std::string(to_string(use.math)) + text(use.a) + text(use.b) +
                       std::to_string(layout) + (bias == factors ? "" : output);
              matmul_once(compare, c);
            }
}

}  // namespace

void check_matmul(Comparison& compare) {
  for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                   {5, 0, 7},
                                                                   {0, 5, 3},
                                                                   {3, 5, 0},
                                                                   {3, 1, 2},
                                                                   {17, 31, 33},
                                                                   {64, 64, 64},
                                                                   {65, 129, 130},
                                                                   {8, 4095, 11},
                                                                   {8, 4096, 11},
                                                                   {8, 4097, 11},
                                                                   {33, 10000, 65},
                                                                   {259, 515, 1031}})
    for (const bool bias : {false, true}) {
      MatmulCase c{m, k, n};
      c.bias = bias;
      matmul_once(compare, c);
    }
  matmul_once(compare, {1600, 70, 1500});    // the large tile
  matmul_once(compare, {1536, 4200, 1536});  // the large tile carrying its sums from chunk to chunk
  // Every tile on a GPU of about 132 multiprocessors, and four neighbours at a time: rows and columns that end inside a
  // tile, k that ends inside a slice.
  for (const int layout : {0, 1, 2, 3})
    for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1500, 76, 1612},
                                                                     {828, 52, 788},
                                                                     {332, 76, 420},
                                                                     {92, 4, 44},
                                                                     {68, 4124, 36},
                                                                     {28, 20004, 16}})
      for (const auto& [a, b] : {std::pair{DType::F32, DType::F32},
                                 {DType::BF16, DType::F8E4M3},
                                 {DType::F8E5M2, DType::F32},
                                 {DType::F16, DType::F16}}) {
        MatmulCase c{m, k, n, a, b};
        c.layout = layout;
        matmul_once(compare, c);
      }
  // The same with few steps of k, read four at a time or one by one.
  for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{
           {1500, 12, 1612}, {828, 20, 788}, {332, 36, 420}, {92, 4, 44}, {28, 4100, 16}})
    for (const auto& [a, b] : {std::pair{DType::F32, DType::F32}, {DType::BF16, DType::F8E4M3}})
      for (const int layout : {0, 7}) {
        MatmulCase c{m, k, n, a, b};
        c.layout = layout;
        c.kind = std::to_string(m) + text(a) + std::to_string(layout);
        matmul_once(compare, c);
      }
  for (const Domain domain : {Domain::Hard, Domain::Tiny, Domain::Wide})
    for (const int64_t k : {1, 3, 15, 16, 17, 100}) {
      MatmulCase c{37, k, 70};
      c.domain = domain;
      matmul_once(compare, c);
      c.bias = true;
      matmul_once(compare, c);
    }
  for (const int layout : {1, 2, 3, 4, 5, 6, 7})
    for (const int64_t k : {40, 4100}) {
      MatmulCase c{67, k, 41};
      c.layout = layout;
      matmul_once(compare, c);
    }
  for (const DType a : kFloats)
    for (const DType b : kFloats)
      for (const int layout : {0, 3, 7}) {
        MatmulCase c{35, 77, 66};
        c.a = a;
        c.b = b;
        c.layout = layout;
        matmul_once(compare, c);
        c.domain = Domain::Hard;
        matmul_once(compare, c);
      }
  for (const char* format :
       {"e4m3", "e5m2:sr", "bf16:sr4f", "fixed8.4:rnu", "fixed16.8-wrap", "e6m9:sr"})
    for (const bool bias : {false, true})
      for (const int64_t k : {50, 9000}) {
        MatmulCase c{45, k, 67};
        c.output = format;
        c.bias = bias;
        matmul_once(compare, c);
        c.factors = true;
        matmul_once(compare, c);
      }
  for (const char* sums : kSimulatedSums)
    for (const auto& [m, k, n] : std::vector<std::array<int64_t, 3>>{{1, 1, 1},
                                                                     {5, 0, 7},
                                                                     {33, 17, 31},
                                                                     {32, 64, 32},
                                                                     {70, 130, 67},
                                                                     {3, 700, 1030},
                                                                     {1030, 21, 1100}})
      for (const Domain domain : {Domain::Modest, Domain::Hard}) {
        MatmulCase c{m, k, n};
        c.sums = sums;
        c.domain = domain;
        c.kind = sums;
        matmul_once(compare, c);
        c.a = DType::F8E4M3;
        c.b = DType::BF16;
        c.layout = 7;
        c.bias = c.factors = true;
        c.output = "e5m2:sr";
        matmul_once(compare, c);
      }
  // For tools that do not see what a library's kernels write.
  const bool without_library = std::getenv("ULP_WITHOUT_LIBRARY") != nullptr;
  if (compare.place(Side::Other).device.type == DeviceType::Cuda && !without_library)
    check_units(compare);
}

}  // namespace ulp::cases
