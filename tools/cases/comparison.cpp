#include "tools/cases/comparison.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "core/convert.h"
#include "core/grid.h"

namespace ulp::cases {
namespace {

constexpr uint32_t kHardBits[] = {
    0x00000000, 0x80000000, 0x7FC00000, 0xFFC00001, 0x7F800001, 0x7F800000, 0xFF800000, 0x00000001,
    0x80000001, 0x007FFFFF, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x3F800000, 0xBF800001,
    0x3F7FFFFF, 0x43E00000, 0x43E80000, 0x43E80001, 0x47600000, 0x47700000, 0xC7700000, 0x477FE000,
    0x477FF000, 0x40C00000, 0x40E00000, 0x33800000, 0x33000001, 0x3B000000, 0x7F000000, 0x00400000};

float draw(Domain domain, Words& words) {
  const uint32_t word = words.next();
  const float modest = (uniform01(word) - 0.5f) * 8.0f;
  switch (domain) {
    case Domain::Modest: return word % 16 == 0 ? 0.0f : modest;
    case Domain::Wide: return std::ldexp(modest, static_cast<int>(words.below(81)) - 40);
    case Domain::Tiny: return std::ldexp(modest, -75);
    case Domain::Few: return static_cast<float>(static_cast<int>(word % 9) - 4) * 0.5f;
    case Domain::Hard: break;
  }
  switch (words.below(4)) {
    case 0: return float_of(kHardBits[word % std::size(kHardBits)]);
    case 1: return float_of(word);
    default: return modest;
  }
}

const char* format_of(DType dtype) {
  switch (dtype) {
    case DType::BF16: return "bf16";
    case DType::F16: return "fp16";
    case DType::F8E4M3: return "e4m3";
    case DType::F8E5M2: return "e5m2";
    default: return "fp32";
  }
}

/// "0x3F800000" and, of floats, what that is: "1 (0x3F800000)".
std::string element_text(const Tensor& t, int64_t i) {
  const size_t width = size_of(t.dtype());
  const auto* bytes = static_cast<const uint8_t*>(t.raw()) + static_cast<size_t>(i) * width;
  std::string hex = "0x";
  for (size_t b = width; b-- > 0;) {
    hex += "0123456789ABCDEF"[bytes[b] >> 4];
    hex += "0123456789ABCDEF"[bytes[b] & 15];
  }
  if (!is_float_up_to_32(t.dtype())) return hex;
  char number[32];
  std::snprintf(number, sizeof number, "%.9g",
                static_cast<double>(load_as_float(t.raw(), t.dtype(), i)));
  return std::string(number) + " (" + hex + ")";
}

}  // namespace

std::string to_string(const Place& place) {
  if (place.device.type != DeviceType::Cpu) return to_string(place.device);
  return std::string("cpu ") + cpu::to_string(place.isa) + ", " + std::to_string(place.threads) +
         (place.threads == 1 ? " thread" : " threads");
}

Tensor values(const Shape& shape, DType dtype, Domain domain, uint64_t seed) {
  Words words(seed);
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  auto* bytes = static_cast<uint8_t*>(t.mutable_raw());
  const size_t width = size_of(dtype);
  const bool small_float = is_float_up_to_32(dtype) && dtype != DType::F32;
  const Grid grid = make_grid(Quantizer::parse(format_of(dtype)));
  for (int64_t i = 0; i < t.numel(); ++i) {
    const bool codes =
        !is_float_up_to_32(dtype) || (small_float && domain == Domain::Hard && words.below(2) == 0);
    if (codes) {
      for (size_t b = 0; b < width; ++b)
        bytes[static_cast<size_t>(i) * width + b] = static_cast<uint8_t>(words.next());
      continue;
    }
    const float x = draw(domain, words);
    if (small_float)
      store_float(bytes, dtype, i, quantise_value(x, grid, 0));
    else
      std::memcpy(bytes + i * 4, &x, 4);  // NaN payloads stay
  }
  return t;
}

Comparison::Comparison(const ComparisonOptions& options)
    : options_(options), isa_before_(cpu::current_isa()), threads_before_(omp_get_max_threads()) {
  for (const Place& place : {options.reference, options.other}) {
    stream_of(place.device);
    ULP_CHECK(cpu::has_isa(place.isa), "compare: this machine has no {}",
              cpu::to_string(place.isa));
  }
}

Comparison::~Comparison() {
  cpu::set_isa(isa_before_);
  omp_set_num_threads(threads_before_);
}

bool Comparison::takes(int64_t work, const std::string& kind) {
  constexpr int64_t kFirst = 16, kStride = 13;  // no divisor of the lengths of the cases' loops
  constexpr int64_t kMostWork = 1 << 24, kMostOfKind = 1 << 25;
  if (options_.extent == Extent::Full) return true;
  if (!kind.empty() && work <= kMostOfKind && kinds_.insert(kind).second) return true;
  if (work > kMostWork) return false;
  const int64_t index = offered_++;
  return index < kFirst || index % kStride == 0;
}

Pair Comparison::both(const Tensor& cpu) const {
  Pair pair;
  for (const Side side : {Side::Reference, Side::Other}) {
    Tensor own = Tensor::empty(cpu.shape(), cpu.dtype(), place(side).device);
    copy_bytes(own.mutable_raw(), own.device(), cpu.raw(), kCpu, static_cast<size_t>(own.bytes()));
    (side == Side::Reference ? pair.reference : pair.other) = own;
  }
  return pair;
}

Pair Comparison::input(const Shape& shape, DType dtype, Domain domain, uint64_t seed) const {
  return both(values(shape, dtype, domain, options_.seed * 1000 + seed));
}

Pair Comparison::output(const Shape& shape, DType dtype) const {
  Tensor t = Tensor::empty(shape, dtype, kCpu);
  std::memset(t.mutable_raw(), 0xCD, static_cast<size_t>(t.bytes()));
  return both(t);
}

void Comparison::on_both(const std::function<void(Side)>& f) {
  ++outcome_.runs;
  for (const Side side : {Side::Reference, Side::Other}) {
    cpu::set_isa(place(side).isa);
    omp_set_num_threads(place(side).threads);
    f(side);
  }
}

std::string Comparison::compare(const Pair& pair) {
  const Tensor a = pair.reference.to_cpu_contiguous(), b = pair.other.to_cpu_contiguous();
  const size_t width = size_of(a.dtype());
  const auto* x = static_cast<const uint8_t*>(a.raw());
  const auto* y = static_cast<const uint8_t*>(b.raw());
  outcome_.values += a.numel();
  int64_t wrong = 0, first = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const size_t at = static_cast<size_t>(i) * width;
    if (std::memcmp(x + at, y + at, width) != 0 && wrong++ == 0) first = i;
  }
  outcome_.mismatches += wrong;
  if (wrong == 0) return "";
  return "element " + std::to_string(first) + " of " + to_string(a.shape()) + " is " +
         element_text(a, first) + " on " + to_string(options_.reference) + " and " +
         element_text(b, first) + " on " + to_string(options_.other) + "; " +
         std::to_string(wrong) + " differ";
}

Outcome Comparison::outcome_of(std::string name, const std::function<void(Comparison&)>& body) {
  outcome_ = {std::move(name)};
  offered_ = 0;
  kinds_.clear();
  try {
    body(*this);
    for (const Place& place : {options_.reference, options_.other})
      synchronize(stream_of(place.device));
  } catch (const Error& error) {
    if (outcome_.ok()) outcome_.problem = error.what();
  }
  return outcome_;
}

std::span<const KernelCase> kernel_cases() {
  static const std::vector<KernelCase> all = [] {
    std::vector<KernelCase> cases;
    for (const auto& family :
         {core_kernel_cases(), act_kernel_cases(), augment_kernel_cases(), conv_kernel_cases(),
          embedding_kernel_cases(), norm_kernel_cases(), recurrent_kernel_cases()})
      cases.insert(cases.end(), family.begin(), family.end());
    return cases;
  }();
  return all;
}

std::vector<Outcome> compare_kernels(Comparison& comparison, std::span<const char* const> kernels,
                                     std::span<const KernelCase> cases,
                                     const std::function<void(const Outcome&)>& done) {
  std::vector<Outcome> outcomes;
  for (const std::string_view kernel : kernels) {
    const auto found = std::find_if(cases.begin(), cases.end(),
                                    [&](const KernelCase& c) { return c.kernel == kernel; });
    Outcome outcome{std::string(kernel)};
    if (found == cases.end()) {
      outcome.problem = "no case for kernel " + outcome.name;
    } else if (found->run == nullptr) {
      outcome.within = found->within;
      outcome.runs = comparison.runs_of(kernel);
    } else {
      outcome = comparison.outcome_of(outcome.name, found->run);
    }
    if (found != cases.end()) {
      if (outcome.ok() && comparison.runs_of(kernel) == 0)
        outcome.problem = "the case for kernel " + outcome.name + " does not run it";
    }
    if (done) done(outcome);
    outcomes.push_back(std::move(outcome));
  }
  return outcomes;
}

}  // namespace ulp::cases
