#include "kernels/cuda/rows.cuh"
#include "kernels/recurrent.h"
#include "kernels/recurrent_math.h"

namespace ulp::cuda {
namespace {

/// A rounding with its draw read once. R: Rounder or InteriorRounder.
template <class R>
struct Draw {
  const R& rounder;
  RandomSource random;
  __device__ explicit Draw(const R& r) : rounder(r), random(r.random()) {}
  __device__ __forceinline__ float operator()(int64_t index, float value) const {
    return round_interior(rounder, random, index, value);
  }
};

Rounder rounder_of(const char* kernel, Stream stream, const RecurrentRounding& r) {
  return make_elementwise_rounder(kernel, stream.device, r.format, r.key);
}

/// The values, or null for zeros.
const float* maybe(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }
float* written_floats(const Tensor& t) { return static_cast<float*>(written(t)); }

/// Calls body(row, column, cell) for this thread's cells of (rows, width).
template <class Body>
__device__ __forceinline__ void for_cells(int64_t cells, int64_t width, const Body& body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < cells; i += step)
    body(i / width, i % width, i);
}

/// The sum of those that there are, from the left.
__device__ __forceinline__ float sum_of_gradients(const float* a, const float* b, const float* c,
                                                  int64_t i) {
  float sum = a == nullptr ? 0.0f : canonical(a[i]);
  bool any = a != nullptr;
  if (b != nullptr) {
    sum = canonical(any ? sum + b[i] : b[i]);
    any = true;
  }
  if (c != nullptr) sum = canonical(any ? sum + c[i] : c[i]);
  return sum;
}

struct LstmStep {
  const float *input, *hidden, *c_before;
  float *saved, *c, *h;
  int64_t cells, width;
  bool makes_cell, makes_hidden;
  InteriorRounder interior[3];  // of the sums, the gates, tanh(c)
  Rounder cell, state;
};

__global__ void __launch_bounds__(kThreads) lstm_step_kernel(const __grid_constant__ LstmStep w) {
  const Draw sums(w.interior[0]), gates(w.interior[1]), tanhs(w.interior[2]);
  const Draw cell(w.cell), state(w.state);
  for_cells(w.cells, w.width, [&](int64_t n, int64_t j, int64_t i) {
    float* const s = w.saved + n * 5 * w.width + j;
    float c, o;
    if (w.makes_cell) {
      float gate[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t at = (n * 4 + k) * w.width + j;
        const float z = sums(at, canonical(w.input[at] + w.hidden[at]));
        gate[k] = gates(at, recurrent::gate(k, z));
        s[k * w.width] = gate[k];
      }
      o = gate[3];
      c = cell(i, canonical(recurrent::new_cell(gate[0], gate[1], gate[2], w.c_before[i])));
      w.c[i] = c;
    } else {
      o = s[3 * w.width];
      c = w.c[i];
    }
    if (!w.makes_hidden) return;
    const float tc = tanhs(i, tanh_of(c));
    s[4 * w.width] = tc;
    w.h[i] = state(i, canonical(o * tc));
  });
}

struct LstmStepBackward {
  const float *grad_y, *grad_h, *grad_c, *saved, *c_before;
  float *gates, *grad_c_before;
  int64_t cells, width;
  Rounder state, format, cell;
};

__global__ void __launch_bounds__(kThreads)
    lstm_step_backward_kernel(const __grid_constant__ LstmStepBackward w) {
  const Draw state(w.state), format(w.format), cell(w.cell);
  for_cells(w.cells, w.width, [&](int64_t n, int64_t j, int64_t i) {
    const float* const s = w.saved + n * 5 * w.width + j;
    const float dh = state(i, sum_of_gradients(w.grad_y, w.grad_h, nullptr, i));
    const auto g =
        recurrent::lstm_gradient(dh, w.grad_c == nullptr ? 0.0f : w.grad_c[i], s[0], s[w.width],
                                 s[2 * w.width], s[3 * w.width], s[4 * w.width], w.c_before[i]);
    const float gate[4] = {g.i, g.f, g.g, g.o};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t at = (n * 4 + k) * w.width + j;
      w.gates[at] = format(at, canonical(gate[k]));
    }
    w.grad_c_before[i] = cell(i, canonical(g.c_before));
  });
}

struct GruStep {
  const float *input, *hidden, *h_before;
  float *saved, *h;
  int64_t cells, width;
  InteriorRounder interior[2];  // of the sums, the gates
  Rounder state;
};

__global__ void __launch_bounds__(kThreads) gru_step_kernel(const __grid_constant__ GruStep w) {
  const Draw sums(w.interior[0]), gates(w.interior[1]);
  const Draw state(w.state);
  for_cells(w.cells, w.width, [&](int64_t n, int64_t j, int64_t i) {
    float* const s = w.saved + n * 4 * w.width + j;
    float gate[3];
    float hidden_n = 0;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const int64_t at = (n * 3 + k) * w.width + j;
      const float u = w.hidden[at];
      if (k == 2) hidden_n = u;
      const float sum = k == 2 ? fma_of(gate[0], u, w.input[at]) : w.input[at] + u;
      gate[k] = gates(at, recurrent::gate(k, sums(at, canonical(sum))));
      s[k * w.width] = gate[k];
    }
    s[3 * w.width] = canonical(hidden_n);
    w.h[i] = state(i, canonical(recurrent::new_state(gate[1], gate[2], w.h_before[i])));
  });
}

struct GruStepBackward {
  const float *grad_y, *grad_h, *grad_direct, *saved, *h_before;
  float *input_gates, *hidden_gates, *direct;
  int64_t cells, width;
  Rounder state, input, hidden;
};

__global__ void __launch_bounds__(kThreads)
    gru_step_backward_kernel(const __grid_constant__ GruStepBackward w) {
  const Draw state(w.state), input(w.input), hidden(w.hidden);
  for_cells(w.cells, w.width, [&](int64_t n, int64_t j, int64_t i) {
    const float* const s = w.saved + n * 4 * w.width + j;
    const float dh = state(i, sum_of_gradients(w.grad_y, w.grad_h, w.grad_direct, i));
    const auto g = recurrent::gru_gradient(dh, s[0], s[w.width], s[2 * w.width], s[3 * w.width],
                                           w.h_before[i]);
    const float to_input[3] = {g.r, g.z, g.n}, to_hidden[3] = {g.r, g.z, g.hidden_n};
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const int64_t at = (n * 3 + k) * w.width + j;
      w.input_gates[at] = input(at, canonical(to_input[k]));
      w.hidden_gates[at] = hidden(at, canonical(to_hidden[k]));
    }
    w.direct[i] = canonical(g.direct);
  });
}

}  // namespace

void lstm_step(Stream stream, const LstmStepArgs& args) {
  check_lstm_step(stream, args);
  check_type("lstm_step", args.c, DType::F32);
  LstmStep w{};
  w.makes_cell = args.part != LstmPart::Hidden;
  w.makes_hidden = args.part != LstmPart::Cell;
  w.cells = args.c.numel();
  w.width = args.c.size(1);
  w.saved = written_floats(args.saved);
  w.c = written_floats(args.c);
  if (w.makes_cell) {
    w.input = args.input.data<float>();
    w.hidden = args.hidden.data<float>();
    w.c_before = args.c_before.data<float>();
  }
  if (w.makes_hidden) w.h = written_floats(args.h);
  make_interior("lstm_step", stream, args.interior.format, args.interior.key, args.trace,
                w.interior);
  w.cell = rounder_of("lstm_step", stream, args.cell);
  w.state = rounder_of("lstm_step", stream, args.state);
  launch("lstm_step", stream, blocks_for(w.cells, kThreads), kThreads, lstm_step_kernel, w);
}

void lstm_step_backward(Stream stream, const LstmStepBackwardArgs& args) {
  check_lstm_step_backward(stream, args);
  check_type("lstm_step_backward", args.c_before, DType::F32);
  LstmStepBackward w{};
  w.grad_y = maybe(args.grad_y);
  w.grad_h = maybe(args.grad_h);
  w.grad_c = maybe(args.grad_c);
  w.saved = args.saved.data<float>();
  w.c_before = args.c_before.data<float>();
  w.gates = written_floats(args.gates);
  w.grad_c_before = written_floats(args.grad_c_before);
  w.cells = args.c_before.numel();
  w.width = args.c_before.size(1);
  w.state = rounder_of("lstm_step_backward", stream, args.state);
  w.format = rounder_of("lstm_step_backward", stream, args.gates_format);
  w.cell = rounder_of("lstm_step_backward", stream, args.cell);
  launch("lstm_step_backward", stream, blocks_for(w.cells, kThreads), kThreads,
         lstm_step_backward_kernel, w);
}

void gru_step(Stream stream, const GruStepArgs& args) {
  check_gru_step(stream, args);
  check_type("gru_step", args.h_before, DType::F32);
  GruStep w{};
  w.input = args.input.data<float>();
  w.hidden = args.hidden.data<float>();
  w.h_before = args.h_before.data<float>();
  w.saved = written_floats(args.saved);
  w.h = written_floats(args.h);
  w.cells = args.h_before.numel();
  w.width = args.h_before.size(1);
  make_interior("gru_step", stream, args.interior.format, args.interior.key, args.trace,
                w.interior);
  w.state = rounder_of("gru_step", stream, args.state);
  launch("gru_step", stream, blocks_for(w.cells, kThreads), kThreads, gru_step_kernel, w);
}

void gru_step_backward(Stream stream, const GruStepBackwardArgs& args) {
  check_gru_step_backward(stream, args);
  check_type("gru_step_backward", args.h_before, DType::F32);
  GruStepBackward w{};
  w.grad_y = maybe(args.grad_y);
  w.grad_h = maybe(args.grad_h);
  w.grad_direct = maybe(args.grad_direct);
  w.saved = args.saved.data<float>();
  w.h_before = args.h_before.data<float>();
  w.input_gates = written_floats(args.input_gates);
  w.hidden_gates = written_floats(args.hidden_gates);
  w.direct = written_floats(args.direct);
  w.cells = args.h_before.numel();
  w.width = args.h_before.size(1);
  w.state = rounder_of("gru_step_backward", stream, args.state);
  w.input = rounder_of("gru_step_backward", stream, args.input_format);
  w.hidden = rounder_of("gru_step_backward", stream, args.hidden_format);
  launch("gru_step_backward", stream, blocks_for(w.cells, kThreads), kThreads,
         gru_step_backward_kernel, w);
}

}  // namespace ulp::cuda
