// Batched products and the softmax of masked scores.

#include "kernels/attention.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

void check_batched_matmul_case(Comparison& compare) {
  struct Size {
    int64_t count, m, k, n;
  };
  const Pair state = step_state(compare, some_step());
  for (const Size& s : {Size{0, 2, 3, 4}, Size{1, 1, 1, 1}, Size{3, 5, 0, 4}, Size{3, 5, 7, 4},
                        Size{6, 16, 64, 16}, Size{5, 33, 17, 65}, Size{2, 130, 64, 140}})
    for (const auto& [a_type, b_type] : {std::pair{DType::F32, DType::F32},
                                         {DType::BF16, DType::BF16},
                                         {DType::F8E4M3, DType::F16},
                                         {DType::F32, DType::F8E5M2}})
      for (const Domain domain : {Domain::Modest, Domain::Hard})
        for (const bool turn_a : {false, true})
          for (const bool turn_b : {false, true}) {
            const std::string kind = text(a_type) + (turn_a ? " turned" : "");
            if (!compare.takes(s.count * s.m * s.n * std::max<int64_t>(1, s.k),
                               s.count * s.k == 0 ? "" : kind))
              continue;
            const Pair a = compare.input(
                           turn_a ? Shape{s.count, s.k, s.m} : Shape{s.count, s.m, s.k}, a_type,
                           domain, 3),
                       b = compare.input(
                           turn_b ? Shape{s.count, s.n, s.k} : Shape{s.count, s.k, s.n}, b_type,
                           domain, 4),
                       out = compare.output({s.count, s.m, s.n}, turn_b ? DType::BF16 : DType::F32);
            const auto once = [&](const char* sums) {
              compare.run(kernels::batched_matmul, [&](Side d) {
                BatchedMatmulArgs args;
                if (turn_b)
                  args.output = "bf16";
                else if (turn_a)
                  args.output = "e5m2";
                args.a = a.on(d);
                args.b = b.on(d);
                args.out = out.on(d);
                args.turn_a = turn_a;
                args.turn_b = turn_b;
                args.sums = {Accumulator(sums), key_on(state, d), 0, 2, s.count + 3};
                return args;
              });
              compare.same(out, s.count, " times ", s.m, " x ", s.n, " x ", s.k, " ", kind,
                           turn_b ? ", b turned" : "", ", sums ", std::string(sums));
            };
            once("fp32");
            if (turn_a != turn_b) once(turn_a ? "chunk8/e6m9:sr/bf16" : "e5m2/e6m9:sr");
          }
}

/// What a row is made with.
struct RowKind {
  const char *score, *interior, *result;
  bool causal, lengths;
};
constexpr RowKind kRowKinds[] = {
    {"fp32", "fp32", "fp32", false, false},         {"fp32", "fp32", "e4m3", true, false},
    {"bf16", "fp32", "e4m3:sr", true, true},        {"fp16", "bf16", "e5m2:sr", false, true},
    {"e4m3:sr", "bf16:sr", "bf16:sr", true, false}, {"posit8.1", "e6m9", "nf4", false, false}};

struct RowSize {
  int64_t count, rows, keys;
};
constexpr RowSize kRowSizes[] = {{0, 2, 4},    {1, 1, 1},    {2, 0, 8},    {4, 3, 4},
                                 {6, 5, 12},   {4, 7, 31},   {2, 9, 256},  {3, 4, 260},
                                 {2, 3, 1000}, {2, 2, 1024}, {1, 2, 1030}, {1, 2, 5000}};

Pair lengths_of(const Comparison& compare, int64_t sequences, int64_t keys) {
  Words words(static_cast<uint64_t>(keys));
  std::vector<int32_t> lengths;
  for (int64_t n = 0; n < sequences; ++n)
    lengths.push_back(static_cast<int32_t>(words.below(static_cast<uint32_t>(keys) + 3)) - 1);
  return compare.both(Tensor::from(lengths, {sequences}));
}

DType stored(const char* format) {
  return fits(Quantizer::parse(format), DType::BF16) ? DType::BF16 : DType::F32;
}

/// What scores and their gradients come in: narrow where the format that rounds them changes nothing then.
DType stored_scores(const RowKind& k) {
  return std::string_view(k.score) == "bf16" ? DType::BF16 : DType::F32;
}

/// body(size, kind, scores, rows of a side) for all that is compared.
template <class Body>
void for_masked(Comparison& compare, const Pair& state, const Body& body) {
  constexpr int64_t kHeads = 2, kFirst = 1;
  for (const RowSize& s : kRowSizes)
    for (const RowKind& k : kRowKinds)
      for (const Domain domain : {Domain::Modest, Domain::Hard, Domain::Few}) {
        if (k.causal && s.rows > s.keys) continue;
        const std::string kind = std::string(k.result) + (s.keys > 1024 ? " long" : "") +
                                 (s.keys % 4 != 0 ? " odd" : "");
        if (!compare.takes(s.count * s.rows * s.keys, s.count * s.rows == 0 ? "" : kind)) continue;
        const DType type = stored_scores(k);
        const Pair scores = compare.input({s.count, s.rows, s.keys}, type, domain, 5),
                   lengths = lengths_of(compare, (kFirst + s.count + kHeads) / kHeads, s.keys);
        body(s, k, domain, [&](Side d) {
          MaskedRows r;
          r.scores = scores.on(d);
          if (k.lengths) r.lengths = lengths.on(d);
          r.first = kFirst;
          r.heads = kHeads;
          r.causal = k.causal;
          r.scale = 0.3;
          r.score = Quantizer::parse(k.score);
          r.score_key = key_on(state, d, 11);
          r.interior = Quantizer::parse(k.interior);
          r.interior_key = key_on(state, d, 12);
          return r;
        });
      }
}

void check_mask_scores_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  for_masked(compare, state, [&](const RowSize& s, const RowKind& k, Domain domain, auto rows) {
    const Pair scores =
        compare.both(values({s.count, s.rows, s.keys}, stored_scores(k), domain, 7));
    compare.run(kernels::mask_scores, [&](Side d) {
      MaskScoresArgs args;
      args.rows = rows(d);
      args.rows.scores = scores.on(d);
      return args;
    });
    compare.same(scores, "(", s.count, ", ", s.rows, ", ", s.keys, ") ", k.causal ? "causal" : "",
                 k.lengths ? " lengths" : "");
  });
}

void check_masked_softmax_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  for_masked(compare, state, [&](const RowSize& s, const RowKind& k, Domain domain, auto rows) {
    const Pair out = compare.output({s.count, s.rows, s.keys}, stored(k.result));
    compare.run(kernels::masked_softmax, [&](Side d) {
      MaskedSoftmaxArgs args;
      args.rows = rows(d);
      args.out = out.on(d);
      args.output = Quantizer::parse(k.result);
      args.key = key_on(state, d, 13);
      return args;
    });
    compare.same(out, "(", s.count, ", ", s.rows, ", ", s.keys, ") ", std::string(k.result),
                 " domain ", static_cast<int>(domain));
  });
}

void check_masked_softmax_backward_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  for_masked(compare, state, [&](const RowSize& s, const RowKind& k, Domain domain, auto rows) {
    const Shape shape{s.count, s.rows, s.keys};
    const Pair grad = compare.input(shape, stored_scores(k), domain, 6),
               out = compare.output(shape, stored(k.result)),
               p = compare.output(shape, stored(k.interior));
    const bool keeps = k.causal;
    compare.run(kernels::masked_softmax_backward, [&](Side d) {
      MaskedSoftmaxBackwardArgs args;
      args.rows = rows(d);
      args.grad = grad.on(d);
      args.out = out.on(d);
      args.gradient = Quantizer::parse(k.score);
      args.gradient_key = key_on(state, d, 14);
      args.output = Quantizer::parse(k.result);
      args.key = key_on(state, d, 13);
      if (keeps) {
        args.p = p.on(d);
        args.p_output = Quantizer::parse(k.interior);
        args.p_key = key_on(state, d, 15);
      }
      return args;
    });
    compare.same(out, "(", s.count, ", ", s.rows, ", ", s.keys, ") ", std::string(k.result),
                 " domain ", static_cast<int>(domain));
    if (keeps) compare.same(p, "p of ", s.count, " ", s.rows, " ", s.keys, " ", k.interior);
  });
}

}  // namespace

std::span<const KernelCase> attention_kernel_cases() {
  static constexpr KernelCase kAll[] = {
      {"batched_matmul", check_batched_matmul_case},
      {"mask_scores", check_mask_scores_case},
      {"masked_softmax", check_masked_softmax_case},
      {"masked_softmax_backward", check_masked_softmax_backward_case},
  };
  return kAll;
}

}  // namespace ulp::cases
