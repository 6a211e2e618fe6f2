#include "kernels/embedding.h"

#include "kernels/rounded_result.h"

namespace ulp {
namespace {

void check_floats(const char* kernel, Stream stream, const Tensor& in, const Tensor& out,
                  const Quantizer& output) {
  check_kernel_tensor(kernel, stream, in, in.shape());
  check_kernel_tensor(kernel, stream, out, out.shape());
  check_rounded_result(kernel, in, out, output);
}

void check_numbers(const char* kernel, Stream stream, const char* what, const Tensor& tensor,
                   int64_t count) {
  check_kernel_tensor(kernel, stream, tensor, {count});
  ULP_CHECK(tensor.dtype() == DType::I32, "{}: {} must be I32 ({}), got {}", kernel, what, count,
            tensor);
}

void check_rank(const char* kernel, const char* what, const Tensor& tensor, int rank) {
  ULP_CHECK(tensor.defined() && tensor.rank() == rank, "{}: {} must have {} axes, got {}", kernel,
            what, rank, tensor);
}

}  // namespace

void check_embedding(Stream stream, const EmbeddingArgs& a) {
  check_rank("embedding", "table", a.table, 2);
  check_rank("embedding", "out", a.out, 2);
  check_floats("embedding", stream, a.table, a.out, a.output);
  ULP_CHECK(a.out.size(1) == a.table.size(1), "embedding: rows of {} and of {} differ", a.table,
            a.out);
  check_numbers("embedding", stream, "tokens", a.tokens, a.out.size(0));
}

void check_group_tokens(Stream stream, const GroupTokensArgs& a) {
  check_rank("group_tokens", "tokens", a.tokens, 1);
  check_rank("group_tokens", "starts", a.starts, 1);
  ULP_CHECK(a.tokens.numel() <= INT32_MAX / 2 && a.starts.numel() >= 1,
            "group_tokens: {} tokens are too many, or starts {} too few", a.tokens.numel(),
            a.starts.numel());
  check_numbers("group_tokens", stream, "tokens", a.tokens, a.tokens.numel());
  check_numbers("group_tokens", stream, "order", a.order, a.tokens.numel());
  check_numbers("group_tokens", stream, "starts", a.starts, a.starts.numel());
}

void check_embedding_backward(Stream stream, const EmbeddingBackwardArgs& a) {
  check_rank("embedding_backward", "grad", a.grad, 2);
  check_rank("embedding_backward", "out", a.out, 2);
  check_floats("embedding_backward", stream, a.grad, a.out, a.output);
  ULP_CHECK(a.grad.size(1) == a.out.size(1), "embedding_backward: rows of {} and of {} differ",
            a.grad, a.out);
  check_numbers("embedding_backward", stream, "order", a.order, a.grad.size(0));
  check_numbers("embedding_backward", stream, "starts", a.starts, a.out.size(0) + 1);
}

void check_rotary(Stream stream, const RotaryArgs& a) {
  check_rank("rotary", "in", a.in, 4);
  check_floats("rotary", stream, a.in, a.out, a.output);
  ULP_CHECK(a.out.shape() == a.in.shape() && a.in.size(3) % 2 == 0,
            "rotary: in and out must be (N, T, H, D) with an even D, got {} and {}", a.in, a.out);
  check_kernel_tensor("rotary", stream, a.turns, {a.in.size(1), a.in.size(3) / 2, 2});
  const DType wanted = a.in.dtype() == DType::F64 ? DType::F64 : DType::F32;
  ULP_CHECK(a.turns.dtype() == wanted, "rotary: turns must be {}, got {}", wanted, a.turns);
}

void check_swiglu(Stream stream, const SwigluArgs& a) {
  check_rank("swiglu", "in", a.in, 2);
  check_floats("swiglu", stream, a.in, a.out, a.output);
  ULP_CHECK(a.in.size(1) % 2 == 0 && a.out.shape() == Shape({a.in.size(0), a.in.size(1) / 2}),
            "swiglu: in must be (N, 2 C) and out (N, C), got {} and {}", a.in, a.out);
}

void check_swiglu_backward(Stream stream, const SwigluBackwardArgs& a) {
  check_rank("swiglu_backward", "in", a.in, 2);
  check_floats("swiglu_backward", stream, a.in, a.out, a.output);
  check_floats("swiglu_backward", stream, a.grad, a.out, a.output);
  ULP_CHECK(a.in.size(1) % 2 == 0 && a.out.shape() == a.in.shape() &&
                a.grad.shape() == Shape({a.in.size(0), a.in.size(1) / 2}),
            "swiglu_backward: in and out must be (N, 2 C) and grad (N, C), got {}, {} and {}", a.in,
            a.out, a.grad);
}

void check_gather_windows(Stream stream, const GatherWindowsArgs& a) {
  check_rank("gather_windows", "text", a.text, 1);
  check_rank("gather_windows", "out", a.out, 2);
  check_kernel_tensor("gather_windows", stream, a.text, a.text.shape());
  ULP_CHECK(a.text.dtype() == DType::U8 || a.text.dtype() == DType::I32,
            "gather_windows: the text must be U8 or I32, got {}", a.text);
  check_kernel_tensor("gather_windows", stream, a.out, a.out.shape());
  ULP_CHECK(a.out.dtype() == DType::I32, "gather_windows: out must be I32, got {}", a.out);
  check_numbers("gather_windows", stream, "labels", a.labels, a.out.numel());
  ULP_CHECK(a.length() >= 1 && a.text.numel() > a.length() && a.text.numel() <= INT32_MAX,
            "gather_windows: windows of {} tokens in a text of {}", a.length(), a.text.numel());
  ULP_CHECK(a.random || (a.state == nullptr && a.begin >= 0 &&
                         (a.begin + a.windows()) * a.length() < a.text.numel()),
            "gather_windows: {} windows of {} tokens from number {} on in a text of {}",
            a.windows(), a.length(), a.begin, a.text.numel());
}

}  // namespace ulp
