#include <doctest/doctest.h>

#include "tests/near.h"

using namespace ulp;
using namespace ulp::tests;

// What the comparisons with PyTorch's results rest on.
TEST_SUITE("near") {
  TEST_CASE("bounds follow the largest reference; a NaN anywhere, or another size, is not near") {
    using V = std::vector<double>;
    CHECK(near(V{100, 0.0005}, V{100, 0}));
    CHECK_FALSE(near(V{100, 0.002}, V{100, 0}));
    CHECK(near(V{}, V{}));
    CHECK_FALSE(near(V{1}, V{1, 1}));
    for (const V& values : {V{NAN, 1, 1}, V{1, NAN, 1}, V{1, 1, NAN}}) {
      CHECK_FALSE(near(values, V{1, 1, 1}));
      CHECK_FALSE(near(V{1, 1, 1}, values));
    }
    CHECK_FALSE(near(V{INFINITY, 1}, V{1, 1}));
    const nlohmann::json reference = {{"shape", {1, 2}}, {"values", {1.0, 2.0}}};
    CHECK(near(tensor_of(reference), reference));
    CHECK_FALSE(near(tensor_of(reference).reshape({2}), reference));
    CHECK_FALSE(near(Tensor(), reference));
  }
}
