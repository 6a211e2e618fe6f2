#include "autograd/embedding.h"

#include "autograd/elementwise.h"
#include "kernels/embedding.h"

namespace ulp::ops {
namespace {

DType result_type(const Tensor& in) { return in.dtype() == DType::F64 ? DType::F64 : DType::F32; }

/// "sequence 2, place 7"; "place 7".
std::string place_text(const Shape& shape, int64_t i) {
  const int last = shape.rank() - 1;
  if (last < 1) return "place " + std::to_string(i);
  return "sequence " + std::to_string(i / shape[last]) + ", place " +
         std::to_string(i % shape[last]);
}

void check_tokens(const Tensor& tokens, int64_t count) {
  ULP_CHECK(tokens.defined() && tokens.dtype() == DType::I32,
            "embedding: tokens must be I32, got {}", tokens);
  if (tokens.device() != kCpu) return;
  const Tensor plain = tokens.to_cpu_contiguous();
  for (int64_t i = 0; i < plain.numel(); ++i)
    ULP_CHECK(plain.data<int32_t>()[i] >= 0 && plain.data<int32_t>()[i] < count,
              "embedding: token {} at {} is not in [0, {})", plain.data<int32_t>()[i],
              place_text(tokens.shape(), i), count);
}

}  // namespace

Var embedding(Tape& tape, const Tensor& tokens, const Var& table, const OpFormats& f,
              RandomSite site) {
  ULP_CHECK(table.value.defined() && table.shape().rank() == 2,
            "embedding: the table must be (V, D), got {}", table.value);
  const int64_t count = table.shape()[0], columns = table.shape()[1];
  check_tokens(tokens, count);
  const Stream stream = tape.stream();
  const RoleUse use{tape, site};
  const Tensor own = kernels::contiguous(stream, tokens).reshape({tokens.numel()});
  const Tensor weights =
      use.narrow(kernels::contiguous(stream, table.value), f.weight, "weight", 1);
  const Tensor y = Tensor::empty({own.numel(), columns},
                                 use.result_type(weights, use.fused(f.output)), weights.device());
  kernels::embedding(stream,
                     {weights, own, y, use.fused(f.output), use.fused_key(f.output, "output")});
  std::vector<int64_t> extents;
  for (int i = 0; i < tokens.rank(); ++i) extents.push_back(tokens.size(i));
  extents.push_back(columns);
  const Saved saved = tape.save("embedding", own);
  return tape.record(
      "embedding", f, {table},
      use.after(y, f.output, "output", 1).reshape(Shape(std::span<const int64_t>(extents))),
      [=](std::span<const Tensor> grads, Needs) -> std::vector<Tensor> {
        const Tensor& places = saved.get();
        const Tensor g =
            use.narrow(kernels::contiguous(stream, grads[0]).reshape({places.numel(), columns}),
                       f.grad_output_dw, "grad_output_dw", 0);
        const Tensor order = Tensor::empty(places.shape(), DType::I32, places.device());
        const Tensor starts = Tensor::empty({count + 1}, DType::I32, places.device());
        kernels::group_tokens(stream, {places, order, starts});
        const Tensor dw = Tensor::empty({count, columns}, result_type(g), g.device());
        kernels::embedding_backward(stream, {g, order, starts, dw, use.fused(f.grad_weight),
                                             use.fused_key(f.grad_weight, "grad_weight")});
        return {use.fuses(f.grad_weight) ? dw : use.result(dw, f.grad_weight, "grad_weight", 1)};
      });
}

Var add_positions(Tape& tape, const Var& x, const Var& table, int64_t offset, const OpFormats& f,
                  RandomSite site) {
  ULP_CHECK(table.value.defined() && table.shape().rank() == 2,
            "positions: the table must be (C, D), got {}", table.value);
  const int64_t context = table.shape()[0], columns = table.shape()[1];
  ULP_CHECK(x.value.defined() && x.shape().rank() == 3 && x.shape()[2] == columns,
            "positions: x must be (N, T, {}) for a table of shape {}, got {}", columns,
            table.shape(), x.value);
  const int64_t batch = x.shape()[0], length = x.shape()[1];
  ULP_CHECK(offset >= 0 && length <= context - offset,
            "positions: there are {} of them, and x {} begins at number {}; take shorter sequences",
            context, x.shape(), offset);
  const Stream stream = tape.stream();
  const RoleUse use{tape, site};
  const Tensor rows = kernels::contiguous(stream, table.value.slice(0, offset, offset + length));
  const Tensor flat = kernels::contiguous(stream, x.value).reshape({batch, length * columns});
  const Tensor y = apply(use, kernels::add, {flat, rows.reshape({length * columns})}, {}, {}, "");
  return tape.record("positions", f, {x, table},
                     use.kept(y.reshape(x.shape()), f.output, "output", 2),
                     [=](std::span<const Tensor> grads, Needs needs) -> std::vector<Tensor> {
                       const Tensor g = kernels::contiguous(stream, grads[0]);
                       Tensor dx, dw;
                       if (needs[0]) dx = use.kept(g, f.grad_input, "grad_input", 2);
                       if (needs[1]) {
                         dw = Tensor::empty({context, columns}, result_type(g), g.device());
                         if (length < context) kernels::fill(stream, {dw});
                         const Tensor part = dw.slice(0, offset, offset + length);
                         kernels::sum(stream, {g, part, 1, batch, length * columns});
                         dw = use.result(dw, f.grad_weight, "grad_weight", 1);
                       }
                       return {dx, dw};
                     });
}

}  // namespace ulp::ops
