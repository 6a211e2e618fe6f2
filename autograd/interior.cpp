#include "autograd/interior.h"

namespace ulp::ops {

RandomKey interior_key(const RoleUse& use, const Quantizer& interior, uint32_t draws) {
  if (interior.is_identity()) return {};
  return use.tape.run().key(use.site.stream("interior"), draws);
}

InteriorTrace interior_trace(const RoleUse& use, const Quantizer& interior,
                             std::initializer_list<Shape> shapes) {
  InteriorTrace trace;
  const Run& run = use.tape.run();
  if (run.role_stats() == nullptr || interior.is_identity()) return trace;
  size_t draw = 0;
  for (const Shape& shape : shapes) {
    if (shape.numel() > 0) trace.at[draw] = Tensor::empty(shape, DType::F32, run.device());
    ++draw;
  }
  return trace;
}

void count_interior(const RoleUse& use, const Quantizer& interior, const RandomKey& key,
                    const InteriorTrace& trace) {
  for (uint32_t draw = 0; draw < trace.at.size(); ++draw) {
    const Tensor& met = trace.at[draw];
    if (!met.defined()) continue;
    QuantiseUse how;
    how.quantizer = interior;
    how.key = later_draw(key, draw);
    how.stats = use.stats_for(met, interior, "interior");
    how.gaps = true;
    quantised(use.tape.stream(), met, how);
  }
}

}  // namespace ulp::ops
