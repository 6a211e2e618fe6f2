#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/matmul_unit.h"
#include "nn/policy.h"

namespace ulp::nn {

/// A product of a layer as it will be computed.
struct PlannedProduct {
  const char* name;   // "forward", "dx", "dw"
  int64_t m, n, k;    // a (m, k) · b (k, n)
  int64_t parts = 1;  // of k, one after another, where operands have factors that differ along it
  int64_t matrices = 1, steps = 1;  // so many such products, side by side or one after another
  MatrixUnit unit{};
  std::string problem{};  // not empty: it cannot be computed so, and why
};
/// "128 × 32 × 64: bf16 tensor cores, 12 matrices".
std::string to_string(const PlannedProduct& product);

/// A module of a model, as one forward pass showed it.
struct TreeNode {
  Module* module = nullptr;
  std::string name;
  int depth = 0;
  std::vector<int> open;  // for each level above: 1 if a sibling follows there
  bool last = true;       // of its siblings
  bool seen = false;      // its container called it, through operator()
  Shape input, output;    // of a batch of one; as seen last
  bool needs_dx = false;  // some parameter before it is trained
  int64_t parameters = 0, parameter_bytes = 0, buffer_bytes = 0;  // its own
};

/// What is known of a model after one forward pass of one sample of zeros, in evaluation mode.
class ModelTree {
 public:
  /// model: initialised, with formats set. sample: the shape of one; dtype: I32 of tokens. On the CPU. Throws what the model
  /// throws.
  ModelTree(Run& run, Module& model, const std::string& name, const Shape& sample,
            DType dtype = DType::F32);

  const std::vector<TreeNode>& nodes() const { return nodes_; }  // outer before inner, in order
  /// The products of a layer (Module::product_shapes) for a batch of samples, under the formats that it has now.
  std::vector<PlannedProduct> products(const TreeNode& node, int64_t batch, Math math) const;

  int64_t parameters() const;
  int64_t parameter_bytes() const;
  int64_t buffer_bytes() const;

 private:
  void add(Module& module, const std::string& name, int depth, const std::vector<int>& open,
           bool last);

  std::vector<TreeNode> nodes_;
};

/// The tree for people: shapes without the batch, parameters, below each layer its formats and products.
std::string tree_text(const ModelTree& tree, const std::vector<Layer>& layers, int64_t batch,
                      Math math);

/// The roles of a layer and their formats in lines: "input e4m3  weight e4m3  output fp32".
std::vector<std::string> role_lines(const Layer& layer);

}  // namespace ulp::nn
