#include "kernels/recurrent.h"

namespace ulp {
namespace {

/// What a kernel's tensors must be: (N, width), one type.
class Checks {
 public:
  Checks(const char* kernel, Stream stream, const Tensor& cells)
      : kernel_(kernel), stream_(stream) {
    ULP_CHECK(cells.defined() && cells.rank() == 2 && cells.size(1) >= 1,
              "{}: states must be (N, H) with H >= 1, got {}", kernel, cells);
    n_ = cells.size(0);
    h_ = cells.size(1);
    type_ = cells.dtype();
    ULP_CHECK(type_ == DType::F32 || type_ == DType::F64, "{}: wanted F32, got {}", kernel, type_);
  }
  void tensor(const Tensor& t, int64_t parts) const {
    check_kernel_tensor(kernel_, stream_, t, {n_, parts * h_});
    ULP_CHECK(t.dtype() == type_, "{}: wanted tensors of {}, got {}", kernel_, type_, t.dtype());
  }
  void maybe(const Tensor& t, int64_t parts) const {
    if (t.defined()) tensor(t, parts);
  }
  void rounding(const RecurrentRounding& r) const {
    ULP_CHECK(r.format.is_elementwise(),
              "{}: {}: block formats cannot be applied inside this kernel", kernel_, r.format);
    ULP_CHECK(type_ == DType::F32 || r.format.is_identity(), "{}: F64 values are not quantised",
              kernel_);
  }

 private:
  const char* kernel_;
  Stream stream_;
  int64_t n_ = 0, h_ = 0;
  DType type_ = DType::F32;
};

}  // namespace

void check_lstm_step(Stream stream, const LstmStepArgs& args) {
  const Checks check("lstm_step", stream, args.c);
  if (args.part != LstmPart::Hidden) {
    check.tensor(args.input, 4);
    check.tensor(args.hidden, 4);
    check.tensor(args.c_before, 1);
  }
  check.tensor(args.saved, 5);
  check.tensor(args.c, 1);
  if (args.part != LstmPart::Cell) check.tensor(args.h, 1);
  for (const RecurrentRounding* r : {&args.interior, &args.cell, &args.state}) check.rounding(*r);
  const int64_t n = args.c.size(0), h = args.c.size(1);
  const Shape met[] = {{n, 4 * h}, {n, 4 * h}, {n, h}};
  check_interior_trace("lstm_step", stream, args.trace, met);
}

void check_lstm_step_backward(Stream stream, const LstmStepBackwardArgs& args) {
  const Checks check("lstm_step_backward", stream, args.c_before);
  for (const Tensor* t : {&args.grad_y, &args.grad_h, &args.grad_c}) check.maybe(*t, 1);
  check.tensor(args.saved, 5);
  check.tensor(args.c_before, 1);
  check.tensor(args.gates, 4);
  check.tensor(args.grad_c_before, 1);
  for (const RecurrentRounding* r : {&args.state, &args.gates_format, &args.cell})
    check.rounding(*r);
}

void check_gru_step(Stream stream, const GruStepArgs& args) {
  const Checks check("gru_step", stream, args.h_before);
  check.tensor(args.input, 3);
  check.tensor(args.hidden, 3);
  check.tensor(args.h_before, 1);
  check.tensor(args.saved, 4);
  check.tensor(args.h, 1);
  for (const RecurrentRounding* r : {&args.interior, &args.state}) check.rounding(*r);
  const int64_t n = args.h_before.size(0), h = args.h_before.size(1);
  const Shape met[] = {{n, 3 * h}, {n, 3 * h}};
  check_interior_trace("gru_step", stream, args.trace, met);
}

void check_gru_step_backward(Stream stream, const GruStepBackwardArgs& args) {
  const Checks check("gru_step_backward", stream, args.h_before);
  for (const Tensor* t : {&args.grad_y, &args.grad_h, &args.grad_direct}) check.maybe(*t, 1);
  check.tensor(args.saved, 4);
  check.tensor(args.h_before, 1);
  check.tensor(args.input_gates, 3);
  check.tensor(args.hidden_gates, 3);
  check.tensor(args.direct, 1);
  for (const RecurrentRounding* r : {&args.state, &args.input_format, &args.hidden_format})
    check.rounding(*r);
}

}  // namespace ulp
