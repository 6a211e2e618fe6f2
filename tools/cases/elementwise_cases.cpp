// Element-wise kernels.

#include <array>
#include <vector>

#include "tools/cases/core_cases.h"

namespace ulp::cases {

void check_elementwise(Comparison& compare, const Kernel<ElementwiseArgs>& kernel, size_t inputs) {
  const Pair state = step_state(compare, some_step());
  // The first input once more is the third, where there is one.
  const auto once = [&](const std::array<Pair, 2>& in, const Pair& out, const char* format,
                        double alpha) {
    compare.run(kernel, [&](Side d) {
      ElementwiseArgs args;
      for (size_t k = 0; k < inputs; ++k) args.in[k] = in[k % 2].on(d);
      args.out = out.on(d);
      args.alpha = alpha;
      args.beta = 0.9;
      args.output = Quantizer::parse(format);
      args.key = key_on(state, d);
      return args;
    });
    compare.same(out, to_string(in[0].reference), ", ", to_string(in[1].reference), " to ",
                 to_string(out.reference), " as ", std::string(format));
  };
  const std::vector<Shape> shapes = {{},     {0},      {1},       {5},         {8},
                                     {4099}, {33, 65}, {3, 5, 7}, {2, 3, 5, 7}};
  for (const Shape& shape : shapes)
    for (const Domain domain : {Domain::Hard, Domain::Modest, Domain::Wide})
      for (const char* format : {"fp32", "e4m3", "e5m2:sr", "fixed16.8-wrap:sr4f"}) {
        if (!compare.takes(shape.numel())) continue;
        once({compare.input(shape, DType::F32, domain, 121),
              compare.input(shape, DType::F32, domain, 122)},
             compare.output(shape), format, -0.7);
      }
  for (const DType a : {DType::F32, DType::BF16, DType::F16, DType::F8E4M3, DType::F8E5M2,
                        DType::I32, DType::I8, DType::U8})
    for (const DType b : kFloats)
      for (const char* format : {"fp32", "bf16", "e5m2:sr", "e4m3:rtz"}) {
        if (!compare.takes(5 * 1003)) continue;
        const Pair x = compare.input({1003}, a, Domain::Hard, 123),
                   y = compare.input({1003}, b, Domain::Hard, 124);
        const DType store = storage_type(Quantizer::parse(format));
        once({x, y}, compare.output({1003}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, compare.output({1002}, store), format, 1.5);
        once({unaligned(x), unaligned(y)}, unaligned(compare.output({1003}, store)), format, 1.5);
        const Pair one = compare.input({1}, b, Domain::Modest, 125);  // serves every element
        once({x, one}, compare.output({1003}, store), format, 1.5);
        once({one, y}, compare.output({1003}, store), format, 1.5);
      }
  // Large enough for tiles, whose ends and rows lie askew.
  for (const char* format : {"e5m2:sr", "posit8.1"})
    for (const Shape& shape : {Shape{2049, 1031}, Shape{1031, 2052}}) {
      const bool first = shape[0] == 2049 && format[0] == 'e';
      if (!compare.takes(shape.numel(), first ? "tiles" : "")) continue;
      const Shape second = inputs == 1 ? shape : Shape{shape[1]};
      once({repeated(compare, shape, DType::BF16, Domain::Modest, 131),
            repeated(compare, second, DType::F32, Domain::Hard, 132)},
           compare.output(shape, storage_type(Quantizer::parse(format))), format, 1.5);
    }
  for (const Shape& shape : {Shape{33, 65}, Shape{3, 5, 12}, Shape{7, 1024}})
    for (const DType b : {DType::F32, DType::BF16, DType::F8E4M3})
      for (const char* format : {"fp32", "e5m2:sr"}) {
        if (inputs < 2 || !compare.takes(shape.numel())) continue;
        const Pair row = compare.input({shape[shape.rank() - 1] + 1}, b, Domain::Modest, 128),
                   all = compare.input(shape, DType::F32, Domain::Hard, 129);
        const DType store = storage_type(Quantizer::parse(format));
        once({all, compare.input({shape[shape.rank() - 1]}, b, Domain::Modest, 130)},
             compare.output(shape, store), format, 1.5);
        once({all, unaligned(row)}, compare.output(shape, store), format, 1.5);
      }
  // In place.
  const Pair x = compare.input({2051}, DType::F32, Domain::Hard, 126);
  once({x, compare.input({2051}, DType::F32, Domain::Hard, 127)}, x, "fp32", 0.5);
}

}  // namespace ulp::cases
