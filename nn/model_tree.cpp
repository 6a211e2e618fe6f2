#include "nn/model_tree.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/block_map.h"
#include "core/error.h"

namespace ulp::nn {
namespace {

/// An operand of a product before it is made: (rows, columns), quantised with groups along `axis`; then perhaps turned.
struct PlannedOperand {
  const Quantizer& quantizer;
  DType source;
  Shape matrix;
  int axis;
  bool turned;

  DType type(Math math) const {
    return quantizer.is_identity() ? source : operand_type(quantizer, math);
  }
  bool tf32(Math math) const {
    return type(math) != DType::F32 || (!quantizer.is_identity() && fits_tf32(quantizer));
  }
  /// How many elements along the reduction share a factor; 0: all of them.
  int64_t factor_run() const {
    if (quantizer.scale.kind != Scale::Kind::F32 || factor_count(quantizer, matrix, axis) == 1)
      return 0;
    const BlockExtent extent = block_extent(quantizer, matrix, axis);
    return turned ? extent.rows : extent.columns;
  }
};

/// a (m, k) · b (n, k)ᵀ.
PlannedProduct plan(const char* name, const PlannedOperand& a, const PlannedOperand& b,
                    const Accumulator& sums, Math math) {
  PlannedProduct p{name, a.matrix[a.turned ? 1 : 0], b.matrix[b.turned ? 1 : 0],
                   a.matrix[a.turned ? 0 : 1]};
  std::set<int64_t> cuts{p.k};
  for (const int64_t run : {a.factor_run(), b.factor_run()})
    for (int64_t at = run; run > 0 && at < p.k; at += run) cuts.insert(at);
  p.parts = static_cast<int64_t>(cuts.size());
  if (a.quantizer.transform.hadamard != b.quantizer.transform.hadamard) {
    p.problem = "one operand is rotated and the other is not so";
    return p;
  }
  try {
    p.unit = matrix_unit(ProductKind{a.type(math), b.type(math), p.m, p.n, *cuts.begin(), math,
                                     a.tf32(math) && b.tf32(math), sums.is_simulated()})
                 .unit;
  } catch (const Error& error) {
    p.problem = error.what();
  }
  return p;
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
  return fmt::format("{} × {} × {}: {}{}", p.m, p.n, p.k, to_string(p.unit),
                     p.parts == 1 ? "" : fmt::format(", in {} parts", p.parts));
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
    node.output = y.shape();
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
  const Parameter* weight = nullptr;
  for (const Parameter* p : own(node.module->parameters(), *node.module, &Module::parameters))
    if (p->value.rank() >= 2 && weight == nullptr) weight = p;
  if (weight == nullptr) return {};
  const int64_t out = weight->value.size(0), in = weight->value.numel() / std::max<int64_t>(1, out);
  const int64_t channels = node.output[node.output.rank() - 1];
  const int64_t rows = batch * node.output.numel() / std::max<int64_t>(1, channels);
  const DType stored = weight->value.dtype();
  const Shape x{rows, in}, g{rows, out}, w{out, in};
  std::vector<PlannedProduct> all;
  all.push_back(plan("forward", {f->input, DType::F32, x, 1, false},
                     {f->weight, stored, w, 1, false}, f->forward_acc, math));
  if (node.needs_dx)
    all.push_back(plan("dx", {f->grad_output_dx, DType::F32, g, 1, false},
                       {f->weight_dx, stored, w, 0, true}, f->dx_acc, math));
  all.push_back(plan("dw", {f->grad_output_dw, DType::F32, g, 0, true},
                     {f->input_dw, DType::F32, x, 0, true}, f->dw_acc, math));
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
