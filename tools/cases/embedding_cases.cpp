// The kernels of kernels/embedding.h.

#include <array>
#include <string>
#include <vector>

#include "core/sum.h"
#include "kernels/embedding.h"
#include "tools/cases/case_tools.h"

namespace ulp::cases {
namespace {

constexpr Domain kDomains[] = {Domain::Modest, Domain::Hard, Domain::Few, Domain::Wide};
constexpr const char* kRounding[] = {"fp32",     "e4m3",     "e5m2:sr", "fixed8.4:rtz",
                                     "posit8.1", "e6m9:sr4", "bf16:odd"};

/// Tokens of which some are frequent, some absent and some none at all.
Pair tokens_of(const Comparison& compare, int64_t n, int64_t count, uint64_t seed) {
  Words words(seed);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t kind = words.below(16);
    int32_t token = static_cast<int32_t>(words.next() % static_cast<uint32_t>(count));
    if (kind < 6) token /= 7;
    if (kind == 14) token = 0;
    if (kind == 15 && words.below(4) == 0) token = i % 2 == 0 ? -1 : static_cast<int32_t>(count);
    tokens.push_back(token);
  }
  return compare.both(Tensor::from(tokens, {n}));
}

/// What an instance is made of, in turn.
struct Turn {
  DType in = DType::F32;
  Domain domain = Domain::Modest;
  const char* output = "fp32";
  bool askew = false;
  explicit Turn(uint32_t turn)
      : in(kFloats[turn % std::size(kFloats)]),
        domain(kDomains[turn / 2 % std::size(kDomains)]),
        output(kRounding[turn % std::size(kRounding)]),
        askew(turn % 7 == 5) {}
  std::string text() const {
    return cases::text(in) + ", domain " + std::to_string(static_cast<int>(domain)) + ", output " +
           output + (askew ? ", askew" : "");
  }
};

Pair placed(const Comparison& compare, const Shape& shape, const Turn& turn, uint64_t seed) {
  if (!turn.askew) return compare.input(shape, turn.in, turn.domain, seed);
  const Pair flat = unaligned(compare.input({shape.numel() + 1}, turn.in, turn.domain, seed));
  return view(flat, [&](const Tensor& t) { return t.reshape(shape); });
}

Pair placed_output(const Comparison& compare, const Shape& shape, const Turn& turn) {
  const DType dtype = storage_type(Quantizer::parse(turn.output));
  if (!turn.askew) return compare.output(shape, dtype);
  const Pair flat = unaligned(compare.output({shape.numel() + 1}, dtype));
  return view(flat, [&](const Tensor& t) { return t.reshape(shape); });
}

struct Tables {
  int64_t tokens, count, columns;
};
const std::vector<Tables> kTables = {{0, 3, 5},      {1, 1, 1},       {7, 5, 3},
                                     {64, 100, 16},  {1000, 256, 31}, {1025, 255, 32},
                                     {4096, 257, 8}, {5000, 2, 36},   {2049, 70000, 4},
                                     {9000, 3, 65},  {300, 40, 1030}};

void check_embedding_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  uint32_t number = 0;
  for (const Tables& t : kTables)
    for (int k = 0; k < 7; ++k, ++number) {
      const Turn turn(number);
      if (!compare.takes(t.tokens * t.columns)) continue;
      const Pair table = placed(compare, {t.count, t.columns}, turn, 301);
      const Pair tokens = tokens_of(compare, t.tokens, t.count, 302);
      const Pair out = placed_output(compare, {t.tokens, t.columns}, turn);
      compare.run(kernels::embedding, [&](Side d) {
        return EmbeddingArgs{table.on(d), tokens.on(d), out.on(d), Quantizer::parse(turn.output),
                             key_on(state, d)};
      });
      compare.same(out, t.tokens, " of ", t.count, " tokens × ", t.columns, ", ", turn.text());
    }
}

void check_group_tokens_case(Comparison& compare) {
  for (const Tables& t : kTables) {
    if (!compare.takes(t.tokens)) continue;
    const Pair tokens = tokens_of(compare, t.tokens, t.count, 303);
    const Pair order = compare.output({t.tokens}, DType::I32),
               starts = compare.output({t.count + 1}, DType::I32);
    compare.run(kernels::group_tokens, [&](Side d) {
      return GroupTokensArgs{tokens.on(d), order.on(d), starts.on(d)};
    });
    compare.same(order, "order of ", t.tokens, " of ", t.count);
    compare.same(starts, "starts of ", t.tokens, " of ", t.count);
  }
}

/// order and starts for tokens as the row says, made on the CPU.
struct Groups {
  Pair order, starts;
};
Groups groups_of(const Comparison& compare, const Pair& tokens, int64_t count) {
  const int64_t n = tokens.reference.numel();
  const Tensor plain = tokens.reference.to_cpu_contiguous();
  std::vector<int32_t> order, starts;
  for (int64_t v = 0; v <= count; ++v) {
    starts.push_back(static_cast<int32_t>(order.size()));
    for (int64_t i = 0; i < n; ++i) {
      const int32_t token = plain.data<int32_t>()[i];
      if (v < count ? token == v : token < 0 || token >= count)
        order.push_back(static_cast<int32_t>(i));
    }
  }
  return {compare.both(Tensor::from(order, {n})), compare.both(Tensor::from(starts, {count + 1}))};
}

void check_embedding_backward_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  uint32_t number = 0;
  for (const Tables& t : kTables) {
    if (t.count > 1000) continue;  // groups_of
    for (int k = 0; k < 7; ++k, ++number) {
      const Turn turn(number);
      if (!compare.takes(t.tokens * t.columns, t.tokens > 2 * kSumChunk ? "chunks" : "")) continue;
      const Pair grad = placed(compare, {t.tokens, t.columns}, turn, 304);
      const Groups groups = groups_of(compare, tokens_of(compare, t.tokens, t.count, 305), t.count);
      const Pair out = placed_output(compare, {t.count, t.columns}, turn);
      compare.run(kernels::embedding_backward, [&](Side d) {
        return EmbeddingBackwardArgs{grad.on(d),
                                     groups.order.on(d),
                                     groups.starts.on(d),
                                     out.on(d),
                                     Quantizer::parse(turn.output),
                                     key_on(state, d)};
      });
      compare.same(out, t.tokens, " of ", t.count, " tokens × ", t.columns, ", ", turn.text());
    }
  }
}

void check_rotary_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  const std::vector<Shape> shapes = {{0, 3, 2, 4},   {1, 1, 1, 2},    {2, 5, 3, 6},   {2, 9, 4, 64},
                                     {3, 17, 2, 40}, {1, 2, 1, 2100}, {4, 33, 3, 10}, {2, 3, 5, 0}};
  uint32_t number = 0;
  for (const Shape& shape : shapes)
    for (int k = 0; k < 7; ++k, ++number) {
      const Turn turn(number);
      if (!compare.takes(shape.numel())) continue;
      const Pair in = placed(compare, shape, turn, 306);
      const Pair turns =
          compare.input({shape[1], shape[3] / 2, 2}, DType::F32, Domain::Modest, 307);
      const Pair out = placed_output(compare, shape, turn);
      compare.run(kernels::rotary, [&](Side d) {
        return RotaryArgs{
            in.on(d),        turns.on(d), out.on(d), number % 2 == 1, Quantizer::parse(turn.output),
            key_on(state, d)};
      });
      compare.same(out, to_string(shape), ", ", turn.text());
    }
}

constexpr std::array<std::array<int64_t, 2>, 9> kGated = {
    {{0, 4}, {1, 1}, {3, 5}, {7, 8}, {64, 33}, {65, 128}, {2, 1025}, {300, 12}, {5, 4100}}};

void check_swiglu_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  uint32_t number = 0;
  for (const auto& [rows, columns] : kGated)
    for (int k = 0; k < 7; ++k, ++number) {
      const Turn turn(number);
      if (!compare.takes(rows * columns)) continue;
      const Pair in = placed(compare, {rows, 2 * columns}, turn, 308);
      const Pair out = placed_output(compare, {rows, columns}, turn);
      compare.run(kernels::swiglu, [&](Side d) {
        return SwigluArgs{in.on(d), out.on(d), Quantizer::parse(turn.output), key_on(state, d)};
      });
      compare.same(out, rows, " × ", columns, ", ", turn.text());
    }
}

void check_swiglu_backward_case(Comparison& compare) {
  const Pair state = step_state(compare, some_step());
  uint32_t number = 0;
  for (const auto& [rows, columns] : kGated)
    for (int k = 0; k < 7; ++k, ++number) {
      const Turn turn(number), other(number / 3 * 7);
      if (!compare.takes(rows * columns)) continue;
      const Pair in = placed(compare, {rows, 2 * columns}, turn, 309);
      const Pair grad = placed(compare, {rows, columns}, other, 310);
      const Pair out = placed_output(compare, {rows, 2 * columns}, turn);
      compare.run(kernels::swiglu_backward, [&](Side d) {
        return SwigluBackwardArgs{in.on(d), grad.on(d), out.on(d), Quantizer::parse(turn.output),
                                  key_on(state, d)};
      });
      compare.same(out, rows, " × ", columns, ", ", turn.text(), ", grad ", text(other.in));
    }
}

void check_gather_windows_case(Comparison& compare) {
  StepState before = some_step(), first = some_step();
  before.batch_offset = 9;
  first.batch_offset = int64_t{1} << 33;
  for (const auto& [tokens, length, windows] : std::vector<std::array<int64_t, 3>>{
           {2, 1, 1}, {3, 2, 0}, {50, 7, 5}, {3000, 256, 9}, {700000, 300, 65}, {20000, 1, 9000}})
    for (const bool bytes : {true, false})
      for (const bool random : {true, false})
        for (const bool with_state : {true, false}) {
          if (with_state && !random) continue;
          if (!compare.takes(windows * length)) continue;
          const Pair state = step_state(compare, before), epoch = step_state(compare, first);
          const Pair text = compare.both([&]() -> Tensor {
            Words words(311);
            std::vector<int32_t> wide;
            std::vector<uint8_t> narrow;
            for (int64_t i = 0; i < tokens; ++i) {
              wide.push_back(static_cast<int32_t>(words.below(70000)));
              narrow.push_back(static_cast<uint8_t>(wide.back()));
            }
            return bytes ? Tensor::from(narrow, {tokens}) : Tensor::from(wide, {tokens});
          }());
          const Pair out = compare.output({windows, length}, DType::I32),
                     labels = compare.output({windows * length}, DType::I32);
          compare.run(kernels::gather_windows, [&](Side d) {
            GatherWindowsArgs args;
            args.text = text.on(d);
            args.out = out.on(d);
            args.labels = labels.on(d);
            args.random = random;
            args.key = key_on(state, d);
            Tensor handle = state.on(d);
            if (with_state) args.state = static_cast<StepState*>(handle.mutable_raw());
            if (with_state) args.epoch = state_on(epoch, d);
            return args;
          });
          for (const Pair& pair : {out, labels, state})
            compare.same(pair, windows, " windows of ", length, " in ", tokens,
                         bytes ? " bytes" : " numbers", random ? ", at random" : "");
        }
}

}  // namespace

std::span<const KernelCase> embedding_kernel_cases() {
  static constexpr KernelCase kAll[] = {
      {"embedding", check_embedding_case},
      {"group_tokens", check_group_tokens_case},
      {"embedding_backward", check_embedding_backward_case},
      {"rotary", check_rotary_case},
      {"swiglu", check_swiglu_case},
      {"swiglu_backward", check_swiglu_backward_case},
      {"gather_windows", check_gather_windows_case},
  };
  return kAll;
}

}  // namespace ulp::cases
