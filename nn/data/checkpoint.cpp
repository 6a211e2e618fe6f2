#include "nn/data/checkpoint.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <system_error>

#include "core/codes.h"
#include "core/error.h"
#include "core/memory_error.h"
#include "core/quantizer.h"

namespace ulp::nn {
namespace fs = std::filesystem;
namespace {

constexpr const char* kLayout = "ulp_checkpoint";
constexpr const char* kLayoutNumber = "1";
constexpr const char* kSeed = "seed";
constexpr std::string_view kState = "state.", kFormat = "format.", kNote = "note.";
constexpr std::string_view kText = "text.", kScaling = "delayed_scaling.";

/// visit(name, field) for every field. A field that is added to StepState does not compile before it is added here.
template <class State, class F>
void each_field(State& state, F visit) {
  auto& [random_step, optimizer_step, loss_scale, found_inf, batch_offset, grad_factor, good_steps,
         skipped_steps, grad_norm] = state;
  visit("random_step", random_step);
  visit("optimizer_step", optimizer_step);
  visit("loss_scale", loss_scale);
  visit("found_inf", found_inf);
  visit("batch_offset", batch_offset);
  visit("grad_factor", grad_factor);
  visit("good_steps", good_steps);
  visit("skipped_steps", skipped_steps);
  visit("grad_norm", grad_norm);
}

/// What comes after the prefix, if that is how the name begins.
std::optional<std::string> after(std::string_view prefix, const std::string& name) {
  if (!name.starts_with(prefix)) return {};
  return name.substr(prefix.size());
}

std::string with(std::string_view prefix, const std::string& name) {
  return std::string(prefix) + name;
}

/// The number that a text is, all of it, and finite.
template <class T>
bool parse_number(const std::string& text, T& number) {
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stop != end) return false;
  if constexpr (std::is_floating_point_v<T>) return std::isfinite(number);
  return true;
}

/// A text of a file as one short line.
std::string shown(const std::string& text) {
  constexpr size_t kMost = 80;
  std::string line = text.substr(0, kMost);
  for (char& c : line)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  return text.size() <= kMost ? line : line + "...";
}

Tensor text_tensor(const std::string& text) {
  Tensor tensor = Tensor::empty({static_cast<int64_t>(text.size())}, DType::U8, kCpu);
  copy_bytes(tensor.mutable_raw(), kCpu, text.data(), kCpu, text.size());
  return tensor;
}

/// Takes a file apart. Errors name it.
class Parser {
 public:
  Parser(SafetensorsFile file, std::string name) : file_(std::move(file)), name_(std::move(name)) {}

  Checkpoint parse() {
    check(file_.metadata.contains(kLayout), "no checkpoint: its metadata has no {}", kLayout);
    check(file_.has_checksum, "no whole checkpoint: it has no checksum");
    check_version(file_.metadata[kLayout] == kLayoutNumber,
                  "its layout is '{}', and this program reads {}", shown(file_.metadata[kLayout]),
                  kLayoutNumber);
    for (const auto& [key, text] : file_.metadata) parse_text(key, text);
    check(has_seed_, "its metadata has no {}", kSeed);
    parse_state();
    for (const auto& [name, tensor] : file_.tensors) parse_tensor(name, tensor);
    for (const auto& [name, format] : result_.formats)
      check(result_.tensors.contains(name), "its metadata has a format for {}, which it lacks",
            shown(name));
    return std::move(result_);
  }

 private:
  template <class... A>
  void check(bool condition, std::string_view format, const A&... args) const {
    if (!condition) throw Damaged(name_ + ": " + format_message(format, {ErrorArg(args)...}));
  }

  /// The checksum is right: what is missing or too much was written so.
  template <class... A>
  void check_version(bool condition, std::string_view format, const A&... args) const {
    if (!condition)
      throw OtherVersion(name_ + ": another version of ulp wrote it: " +
                         format_message(format, {ErrorArg(args)...}));
  }

  void parse_text(const std::string& key, const std::string& text) {
    if (key == kLayout) return;
    if (key == kSeed) {
      check(parse_number(text, result_.seed), "its {} is '{}'; wanted a number from 0 to 2^64 - 1",
            kSeed, shown(text));
      has_seed_ = true;
    } else if (const auto field = after(kState, key)) {
      fields_[*field] = text;
    } else if (const auto tensor = after(kFormat, key)) {
      result_.formats[*tensor] = text;
    } else if (const auto note = after(kNote, key)) {
      result_.notes[*note] = text;
    } else {
      check_version(false, "its metadata has {}, which a checkpoint has not", shown(key));
    }
  }

  void parse_state() {
    each_field(result_.state, [this](const char* name, auto& field) {
      check_version(fields_.contains(name), "its metadata has no {}{}", kState, name);
      check(parse_number(fields_[name], field), "its {}{} is '{}', which is no such number", kState,
            name, shown(fields_[name]));
      fields_.erase(name);
    });
    check_version(fields_.empty(), "its metadata has {}{}, which this program does not know",
                  kState, fields_.empty() ? "" : shown(fields_.begin()->first));
    const StepState& state = result_.state;
    check(state.random_step >= 1, "its state.random_step is 0, which is before the first step");
    check(state.loss_scale > 0, "its state.loss_scale is {}; wanted a number above 0",
          state.loss_scale);
    check(state.batch_offset >= 0 && state.batch_offset <= INT64_MAX / 2,
          "its state.batch_offset is {}", state.batch_offset);
    check(state.found_inf == 0, "its state.found_inf is {}; between two steps it is 0",
          state.found_inf);
    for (const auto& [name, value] :
         {std::pair("grad_factor", state.grad_factor), {"grad_norm", state.grad_norm}})
      check(value >= 0, "its state.{} is {}; wanted a number from 0 on", name, value);
  }

  void parse_tensor(const std::string& name, const Tensor& tensor) {
    if (const auto stream = scaling_stream(name)) {
      try {
        check_scaling(name_, name, tensor);
      } catch (const MemoryError& error) {
        throw MemoryError(name_ + ": " + error.what());
      } catch (const Error& error) {
        throw Damaged(error.what());
      }
      result_.scalings[*stream] = tensor;
    } else if (const auto text = after(kText, name)) {
      check(tensor.dtype() == DType::U8 && tensor.rank() == 1, "{} must be U8 of one axis, got {}",
            shown(name), tensor);
      result_.texts[*text] = {static_cast<const char*>(tensor.raw()),
                              static_cast<size_t>(tensor.bytes())};
    } else {
      result_.tensors[name] = tensor;
    }
  }

  SafetensorsFile file_;
  std::string name_;
  Checkpoint result_;
  std::map<std::string, std::string> fields_;
  bool has_seed_ = false;
};

/// Throws unless a tensor of a run holds what one with this name and format can.
void check_numbers(const std::string& file, const std::string& key, const std::string& format,
                   const Tensor& tensor) {
  if (format == "i32" && tensor.dtype() == DType::I32) {
    for (const int32_t count : std::span(tensor.data<int32_t>(), tensor.numel()))
      ULP_CHECK(count >= 0, "{}: {} is {}; wanted a number from 0 on", file, key, count);
    return;
  }
  const bool factors = key.ends_with(".scales") || key.ends_with(".factor");
  if (factors && tensor.dtype() == DType::F32 && format != "none")
    for (const float x : tensor.to_floats())
      ULP_CHECK(x >= 0, "{}: {} holds {}; wanted numbers from 0 on", file, key, x);
  if (!key.ends_with(".codes") || tensor.dtype() != DType::U8 || format == "none") return;
  // A device looks the numbers of a table's codes up without asking.
  const CodeRule rule = make_code_rule(Quantizer::parse(format).format);
  if (rule.kind != CodeRule::Kind::Table) return;
  const auto* bytes = static_cast<const uint8_t*>(tensor.raw());
  const int64_t count = tensor.bytes() * 8 / rule.bits;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t bit = i * rule.bits;
    uint32_t two = bytes[bit / 8];
    if (bit % 8 + rule.bits > 8) two |= uint32_t{bytes[bit / 8 + 1]} << 8;
    const auto code = static_cast<int32_t>(two >> (bit % 8) & ((uint32_t{1} << rule.bits) - 1));
    ULP_CHECK(code < rule.table_size, "{}: {} holds the code {}, and {} has {} numbers", file, key,
              code, format, rule.table_size);
  }
}

std::string format_of(const Checkpoint& checkpoint, const std::string& tensor) {
  const auto at = checkpoint.formats.find(tensor);
  return at == checkpoint.formats.end() ? "none" : at->second;
}

void check_same(const Checkpoint& saved, const std::string& name, const Run& run,
                const Checkpoint& live) {
  ULP_CHECK(saved.seed == run.seed(), "{}: its seed is {} and the run's {}", name,
            std::to_string(saved.seed), std::to_string(run.seed()));
  for (const auto& [key, tensor] : live.tensors) {
    const auto at = saved.tensors.find(key);
    ULP_CHECK(at != saved.tensors.end(), "{}: there is no tensor {}", name, key);
    ULP_CHECK(at->second.dtype() == tensor.dtype() && at->second.shape() == tensor.shape(),
              "{}: {} must be {} {}, got {} {}", name, key, tensor.dtype(), tensor.shape(),
              at->second.dtype(), at->second.shape());
    ULP_CHECK(tensor.is_contiguous(), "{}: {} of the run has gaps; it cannot be restored", name,
              key);
    const std::string wanted = format_of(live, key), found = format_of(saved, key);
    ULP_CHECK(found == wanted, "{}: the format of {} is {} and the run's {}", name, key,
              shown(found), wanted);
    check_numbers(name, key, wanted, at->second);
  }
  for (const auto& [key, tensor] : saved.tensors)
    ULP_CHECK(live.tensors.contains(key), "{}: it holds {}, which the run has not", name,
              shown(key));
  for (const auto& [stream, scaling] : run.scalings())
    ULP_CHECK(saved.scalings.contains(stream),
              "{}: there is no {}, which the run has used already; restore into a new run", name,
              scaling_name(stream));
}

void copy_into(Tensor to, const Tensor& from) {
  copy_bytes(to.mutable_raw(), to.device(), from.raw(), from.device(),
             static_cast<size_t>(from.bytes()));
}

Tensor copy_on(Device device, const Tensor& from) {
  const Tensor copy = Tensor::empty(from.shape(), from.dtype(), device);
  copy_into(copy, from);
  return copy;
}

}  // namespace

void Checkpoint::add(const std::map<std::string, Tensor>& more,
                     const std::map<std::string, std::string>& their_formats) {
  for (const auto& [name, tensor] : more) {
    ULP_CHECK(tensor.defined(), "checkpoint: {} holds no tensor", name);
    ULP_CHECK(!name.starts_with(kText) && !name.starts_with(kScaling),
              "checkpoint: no tensor can be named {}; {}… and {}… mean something else", name, kText,
              kScaling);
    ULP_CHECK(tensors.emplace(name, tensor).second, "checkpoint: two tensors are named {}", name);
  }
  for (const auto& [name, format] : their_formats) {
    ULP_CHECK(tensors.contains(name), "checkpoint: {} has a format, {}, and there is no tensor",
              name, format);
    ULP_CHECK(formats.emplace(name, format).second, "checkpoint: {} has two formats", name);
  }
}

Checkpoint checkpoint_of(const Run& run, const std::vector<Parameter*>& parameters) {
  Checkpoint c;
  c.seed = run.seed();
  copy_bytes(&c.state, kCpu, run.device_state(), run.device(), sizeof c.state);
  std::map<std::string, Tensor> values;
  for (const Parameter* p : parameters)
    ULP_CHECK(values.emplace(p->path, p->value).second, "checkpoint: two tensors are named {}",
              p->path);
  c.add(values, {});
  c.scalings = run.scalings();
  return c;
}

Checkpoint checkpoint_of(const Run& run, Module& model) {
  Checkpoint c = checkpoint_of(run, model.parameters());
  std::map<std::string, Tensor> values;
  for (const Buffer* b : model.buffers())
    ULP_CHECK(values.emplace(b->path, b->value).second, "checkpoint: two tensors are named {}",
              b->path);
  c.add(values, {});
  return c;
}

void save_checkpoint(const fs::path& path, const Checkpoint& c) {
  std::map<std::string, Tensor> tensors = c.tensors;
  for (const auto& [stream, state] : c.scalings) tensors[scaling_name(stream)] = state;
  for (const auto& [name, text] : c.texts) tensors[with(kText, name)] = text_tensor(text);
  std::map<std::string, std::string> metadata{{kLayout, kLayoutNumber},
                                              {kSeed, std::to_string(c.seed)}};
  each_field(c.state, [&metadata](const char* name, const auto& field) {
    metadata[with(kState, name)] = fmt::format("{}", field);
  });
  for (const auto& [name, format] : c.formats) metadata[with(kFormat, name)] = format;
  for (const auto& [name, text] : c.notes) metadata[with(kNote, name)] = text;
  save_safetensors(path, tensors, metadata, Checksum::Yes);
}

Checkpoint load_checkpoint(const fs::path& path) {
  return Parser(load_safetensors(path), path.native()).parse();
}

Checkpoint parse_checkpoint(std::span<const uint8_t> bytes, const std::string& name) {
  return Parser(parse_safetensors(bytes, name), name).parse();
}

void restore(const Checkpoint& saved, const std::string& name, Run& run, const Checkpoint& live) {
  check_same(saved, name, run, live);
  for (const auto& [key, tensor] : live.tensors) copy_into(tensor, saved.tensors.at(key));
  for (const auto& [stream, state] : saved.scalings) {
    const auto at = run.scalings().find(stream);
    if (at != run.scalings().end() && at->second.shape() == state.shape())
      copy_into(at->second, state);
    else
      run.set_scaling(stream, copy_on(run.device(), state));
  }
  run.keep_scalings();
  run.set_state(saved.state);
}

std::string scaling_name(uint32_t stream) { return fmt::format("{}{:08x}", kScaling, stream); }

std::optional<uint32_t> scaling_stream(const std::string& name) {
  const auto digits = after(kScaling, name);
  uint32_t stream = 0;
  if (!digits) return {};
  const auto [end, error] =
      std::from_chars(digits->data(), digits->data() + digits->size(), stream, 16);
  if (error != std::errc() || scaling_name(stream) != name) return {};
  return stream;
}

void check_scaling(const std::string& file, const std::string& name, const Tensor& tensor) {
  ULP_CHECK(tensor.dtype() == DType::F32 && tensor.rank() == 1 && tensor.numel() >= 2,
            "{}: {} is not the state of a delayed scale (F32, a scale and magnitudes)", file, name);
  for (const float x : tensor.to_floats())
    ULP_CHECK(std::isfinite(x) && x >= 0, "{}: {} holds {}", file, name, x);
}

}  // namespace ulp::nn
