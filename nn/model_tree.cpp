#include "nn/model_tree.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <set>

#include "autograd/attention.h"
#include "core/block_map.h"
#include "core/error.h"
#include "kernels/attention.h"

namespace ulp::nn {
namespace {

/// An operand of a product before it is made: (rows, columns), summed over its columns or, turned, its rows, along which its groups
/// run.
struct PlannedOperand {
  Shape matrix;
  bool turned;
  DType type;
  bool fits_tf32;
  int64_t factor_run = 0;  // how many elements along the reduction share a factor; 0: all of them
  int hadamard = 0;

  int64_t outer() const { return matrix[turned ? 1 : 0]; }
  int64_t summed() const { return matrix[turned ? 0 : 1]; }
};

/// As RoleUse::operand makes it of a tensor of type `source`, with factors apart.
PlannedOperand with_factors(const Quantizer& q, DType source, const Shape& matrix, bool turned,
                            Math math) {
  const DType type = q.is_identity() ? source : operand_type(q, math);
  PlannedOperand o{matrix, turned, type, !q.is_identity() && ulp::fits_tf32(q)};
  o.hadamard = q.transform.hadamard;
  const int axis = turned ? 0 : 1;
  if (q.scale.kind == Scale::Kind::F32 && factor_count(q, matrix, axis) != 1) {
    const BlockExtent extent = block_extent(q, matrix, axis);
    o.factor_run = turned ? extent.rows : extent.columns;
  }
  return o;
}

/// As ops::attention makes it.
PlannedOperand as_values(const Quantizer& q, const Shape& matrix, bool turned) {
  const ops::AttentionOperand kind = ops::attention_operand(q);
  return {matrix, turned, kind.type, kind.fits_tf32};
}

/// a (m, k) · b (n, k)ᵀ.
PlannedProduct plan(const char* name, const PlannedOperand& a, const PlannedOperand& b,
                    const Accumulator& sums, Math math) {
  PlannedProduct p{name, a.outer(), b.outer(), a.summed()};
  std::set<int64_t> cuts{p.k};
  for (const int64_t run : {a.factor_run, b.factor_run})
    for (int64_t at = run; run > 0 && at < p.k; at += run) cuts.insert(at);
  p.parts = static_cast<int64_t>(cuts.size());
  if (a.hadamard != b.hadamard) {
    p.problem = "one operand is rotated and the other is not so";
    return p;
  }
  const bool tf32 = (a.fits_tf32 || a.type != DType::F32) && (b.fits_tf32 || b.type != DType::F32);
  try {
    p.unit = matrix_unit(ProductKind{a.type, b.type, p.m, p.n, *cuts.begin(), math, tf32,
                                     sums.is_simulated()})
                 .unit;
  } catch (const Error& error) {
    p.problem = error.what();
  }
  return p;
}

/// That of a batch, of the shape that a batch of one has.
Shape of_batch(const Shape& one, int64_t batch) {
  std::vector<int64_t> sizes;
  for (int axis = 0; axis < one.rank(); ++axis)
    sizes.push_back(one[axis] * (axis == 0 ? batch : 1));
  return Shape(sizes);
}

int64_t bytes_of(const Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(size_of(tensor.dtype()));
}

/// The parameters of the module itself.
template <class T>
std::vector<T*> own(std::vector<T*> all, Module& module, std::vector<T*> (Module::*list)()) {
  std::set<const T*> below;
  for (const Module::Child& child : module.children())
    for (const T* one : (child.module->*list)()) below.insert(one);
  std::erase_if(all, [&](const T* one) { return below.contains(one); });
  return all;
}

std::string shape_text(const TreeNode& node) {
  if (!node.seen) return "?";
  std::string text;
  for (int axis = 1; axis < node.output.rank(); ++axis)
    text += (axis == 1 ? "" : "×") + std::to_string(node.output[axis]);
  return text.empty() ? "1" : text;
}

/// What a part makes that its layer keeps to itself: a row for each place of x.
Shape part_output(const Module& part, const Shape& x) {
  const std::optional<ProductShapes> shapes = part.product_shapes(x, {});
  std::vector<int64_t> sizes;
  for (int axis = 0; axis + 1 < x.rank(); ++axis) sizes.push_back(x[axis]);
  if (shapes) sizes.push_back(shapes->out);
  return Shape(sizes);
}

/// Columns that a UTF-8 text takes.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}
std::string padded(const std::string& text, size_t width) {
  return text + std::string(width - std::min(width, width_of(text)), ' ');
}

std::string branch(const TreeNode& node, bool below) {
  std::string text;
  for (const int open : node.open) text += open != 0 ? "│ " : "  ";
  if (node.depth == 0) return text;
  return text + (below ? node.last ? "  " : "│ " : node.last ? "└ " : "├ ");
}

std::string count_text(const TreeNode& node) {
  if (node.parameters == 0) return "";
  return fmt::format("{} parameters, {} bytes", node.parameters, node.parameter_bytes);
}

constexpr const char* kForwardRoles[] = {"input", "weight", "output", "interior"};
constexpr const char* kDxRoles[] = {"grad_output_dx", "weight_dx", "grad_input"};
constexpr const char* kDwRoles[] = {"grad_output_dw", "input_dw", "grad_weight"};

template <size_t N>
std::string roles_text(const Layer& layer, const char* const (&names)[N]) {
  std::string text;
  const auto add = [&](const char* name, const std::string& value) {
    text += (text.empty() ? "" : "  ") + std::string(name) + " " + value;
  };
  for (const char* name : names) {
    if (!layer.uses(name)) continue;
    for (const Role& role : kRoles)
      if (std::string_view(role.name) == name) add(name, to_string(layer.formats->*role.quantizer));
    for (const ProductRole& product : kProductRoles)
      if (std::string_view(product.result) == name && layer.has_product())
        add(product.sums, to_string(layer.formats->*product.accumulator));
  }
  return text;
}

}  // namespace

std::string to_string(const PlannedProduct& p) {
  if (!p.problem.empty()) return p.problem;
  std::string text = fmt::format("{} × {} × {}: {}", p.m, p.n, p.k, to_string(p.unit));
  if (p.parts != 1) text += fmt::format(", in {} parts", p.parts);
  if (p.matrices != 1) text += fmt::format(", {} matrices", p.matrices);
  if (p.steps != 1) text += fmt::format(", {} steps", p.steps);
  return text;
}

void ModelTree::add(Module& module, const std::string& name, int depth,
                    const std::vector<int>& open, bool last) {
  TreeNode node;
  node.module = &module;
  node.name = name;
  node.depth = depth;
  node.open = open;
  node.last = last;
  for (const Parameter* p : own(module.parameters(), module, &Module::parameters)) {
    node.parameters += p->value.numel();
    node.parameter_bytes += bytes_of(p->value);
  }
  for (const Buffer* buffer : own(module.buffers(), module, &Module::buffers))
    node.buffer_bytes += bytes_of(buffer->value);
  nodes_.push_back(node);
  std::vector<int> below = open;
  if (depth > 0) below.push_back(last ? 0 : 1);
  const std::vector<Module::Child> children = module.children();
  for (size_t i = 0; i < children.size(); ++i)
    add(*children[i].module, children[i].name, depth + 1, below, i + 1 == children.size());
}

ModelTree::ModelTree(Run& run, Module& model, const std::string& name, const Shape& sample,
                     DType dtype) {
  add(model, name, 0, {}, true);
  std::map<const Module*, TreeNode*> at;
  for (TreeNode& node : nodes_) at[node.module] = &node;
  model.observe([&](Module& module, const Var& x, const Var& y) {
    const auto found = at.find(&module);
    if (found == at.end()) return;
    TreeNode& node = *found->second;
    node.seen = true;
    node.input = x.shape();
    node.output = y.value.defined() ? y.shape() : part_output(module, x.shape());
    node.needs_dx = x.needs_grad();
  });
  struct Unobserve {
    Module& model;
    ~Unobserve() { model.observe({}); }
  } const unobserve{model};
  const EvaluationMode mode(model);
  Tape tape(run);
  std::vector<int64_t> shape{1};
  for (int axis = 0; axis < sample.rank(); ++axis) shape.push_back(sample[axis]);
  model(tape, tape.constant(Tensor::zeros(Shape(shape), dtype, run.device())));
}

std::vector<PlannedProduct> ModelTree::products(const TreeNode& node, int64_t batch,
                                                Math math) const {
  const OpFormats* f = node.module->formats();
  if (!has_product(node.module->type()) || f == nullptr || !node.seen) return {};
  const std::optional<ProductShapes> shapes =
      node.module->product_shapes(of_batch(node.input, batch), of_batch(node.output, batch));
  if (!shapes) return {};
  const ProductShapes& s = *shapes;
  const bool matrices = s.repeat == ProductShapes::Repeat::Matrices,
             stepwise = s.repeat == ProductShapes::Repeat::Steps;
  const auto operand = [&](const Quantizer& q, const Shape& matrix, bool turned,
                           DType source = DType::F32) {
    return matrices ? as_values(q, matrix, turned) : with_factors(q, source, matrix, turned, math);
  };
  std::vector<PlannedProduct> all;
  const auto add = [&](const char* name, const PlannedOperand& a, const PlannedOperand& b,
                       const Accumulator& sums, int64_t steps) {
    if (steps < 1) return;
    all.push_back(plan(name, a, b, sums, matrices ? batched_math(math) : math));
    all.back().steps = steps;
    all.back().matrices = matrices ? s.count : 1;
  };
  const int64_t steps = stepwise ? s.count : 1, all_rows = s.rows * steps;
  const Shape w{s.out, s.in};
  add("forward", operand(f->input, {s.rows, s.in}, false), operand(f->weight, w, false, s.weight),
      f->forward_acc, steps);
  if (node.needs_dx)
    add("dx", operand(f->grad_output_dx, {s.rows, s.out}, false),
        operand(f->weight_dx, w, true, s.weight), f->dx_acc, stepwise ? steps - 1 : 1);
  const PlannedOperand g = operand(f->grad_output_dw, {all_rows, s.out}, true),
                       x = operand(f->input_dw, {all_rows, s.in}, true);
  add("dw", s.turned ? x : g, s.turned ? g : x, f->dw_acc, 1);
  return all;
}

int64_t ModelTree::parameters() const {
  int64_t sum = 0;
  for (const TreeNode& node : nodes_) sum += node.parameters;
  return sum;
}
int64_t ModelTree::parameter_bytes() const {
  int64_t sum = 0;
  for (const TreeNode& node : nodes_) sum += node.parameter_bytes;
  return sum;
}
int64_t ModelTree::buffer_bytes() const {
  int64_t sum = 0;
  for (const TreeNode& node : nodes_) sum += node.buffer_bytes;
  return sum;
}

std::vector<std::string> role_lines(const Layer& layer) {
  const std::string mask = layer.formats->clamp_mask ? "  clamp_mask" : "";
  const std::string forward = roles_text(layer, kForwardRoles) + mask,
                    dx = roles_text(layer, kDxRoles), dw = roles_text(layer, kDwRoles);
  if (dw.empty()) return {forward + (forward.empty() || dx.empty() ? "" : "  ") + dx};
  std::vector<std::string> lines;
  for (const std::string& line : {forward, dx, dw})
    if (!line.empty()) lines.push_back(line);
  return lines;
}

std::string tree_text(const ModelTree& tree, const std::vector<Layer>& layers, int64_t batch,
                      Math math) {
  std::map<const OpFormats*, const Layer*> by_formats;
  for (const Layer& layer : layers) by_formats[layer.formats] = &layer;
  size_t names = 0, descriptions = 0, shapes = 0;
  for (const TreeNode& node : tree.nodes()) {
    names = std::max(names, width_of(branch(node, false) + node.name));
    descriptions = std::max(descriptions, width_of(node.module->description()));
    shapes = std::max(shapes, width_of(shape_text(node)));
  }
  std::string text;
  const auto line = [&](std::string one) {
    one.erase(one.find_last_not_of(' ') + 1);
    text += one + "\n";
  };
  for (size_t i = 0; i < tree.nodes().size(); ++i) {
    const TreeNode& node = tree.nodes()[i];
    line(padded(branch(node, false) + node.name, names) + "  " +
         padded(node.module->description(), descriptions) + "  " +
         padded(shape_text(node), shapes) + "  " + count_text(node));
    const auto layer = by_formats.find(node.module->formats());
    if (node.module->formats() == nullptr || layer == by_formats.end()) continue;
    const bool parent = i + 1 < tree.nodes().size() && tree.nodes()[i + 1].depth > node.depth;
    const std::string indent = branch(node, true) + (parent ? "│   " : "    ");
    for (const std::string& roles : role_lines(*layer->second)) line(indent + roles);
    const std::vector<PlannedProduct> products = tree.products(node, batch, math);
    for (const PlannedProduct& product : products)
      line(indent + fmt::format("{:<8} {}", product.name, to_string(product)));
    if (!products.empty() && !node.needs_dx)
      line(indent + "dx       not needed: nothing before it is trained");
  }
  const auto loss = std::find_if(layers.begin(), layers.end(),
                                 [](const Layer& l) { return l.type == LayerType::Loss; });
  if (loss == layers.end()) return text;
  line(padded(loss->path, names) + "  " + loss->description);
  for (const std::string& roles : role_lines(*loss)) line("    " + roles);
  return text;
}

}  // namespace ulp::nn
