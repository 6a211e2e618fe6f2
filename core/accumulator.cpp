#include "core/accumulator.h"

#include <charconv>
#include <vector>

#include "core/error.h"
#include "core/format_text.h"
#include "core/pattern.h"

namespace ulp {
namespace {

constexpr std::string_view kChunk = "chunk", kKahan = "kahan";

// What rounding by way of fp32 rounded to odd leaves exact (core/accumulate.h): two bits more than the format's.
constexpr int kMostSumBits = 22, kLeastSumQuantum = -147;

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw_error(
      "sums '{}': {}; they are kept in \"fp32\", \"F\" (one rounding a term), \"F/G\" (products to "
      "F, sums to "
      "G), \"chunkN/F\", \"chunkN/F/G\" (sums of N terms in F, their sum in G) or \"kahan/F\"",
      shortened(text), why);
}

Quantizer format_of(std::string_view text, std::string_view part) {
  Quantizer format;
  try {
    format = Quantizer::parse(part);
  } catch (const Error& error) {
    refuse(text, error.what());
  }
  const std::string problem = sum_misfit(format);
  if (!problem.empty()) refuse(text, problem);
  return format;
}

}  // namespace

uint32_t Accumulator::draws() const {
  switch (kind) {
    case Kind::Fp32: return 0;
    case Kind::Fused: return 1;
    case Kind::Rounded:
    case Kind::Chunked: return 2;
    case Kind::Kahan: return 4;
  }
  return 0;
}

bool Accumulator::is_stochastic() const {
  for (uint32_t draw = 0; draw < draws(); ++draw)
    if (roundings()[draw]->is_stochastic()) return true;
  return false;
}

std::array<const Quantizer*, 4> Accumulator::roundings() const {
  switch (kind) {
    case Kind::Rounded:
    case Kind::Chunked: return {&inner, &sum, nullptr, nullptr};
    case Kind::Kahan: return {&sum, &sum, &sum, &sum};
    default: return {&sum, nullptr, nullptr, nullptr};
  }
}

Accumulator Accumulator::parse(std::string_view text) {
  const std::vector<std::string_view> parts = text::split(text, '/');
  Accumulator a;
  const std::string_view first = parts[0];
  if (first.starts_with(kChunk)) {
    const std::string_view digits = first.substr(kChunk.size());
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), a.chunk);
    if (error != std::errc() || end != digits.data() + digits.size() || a.chunk < 1 ||
        digits.empty())
      refuse(text, "a chunk has from 1 to 2147483647 terms, as in chunk64/e6m9");
    if (parts.size() != 2 && parts.size() != 3)
      refuse(text, "chunks need one or two formats, as in chunk64/e6m9");
    a.kind = Kind::Chunked;
    a.inner = format_of(text, parts[1]);
    a.sum = parts.size() == 3 ? format_of(text, parts[2]) : a.inner;
    return a;
  }
  if (first == kKahan) {
    if (parts.size() != 2) refuse(text, "kahan needs one format, as in kahan/e6m9");
    a.kind = Kind::Kahan;
    a.sum = format_of(text, parts[1]);
    return a;
  }
  if (parts.size() > 2) refuse(text, "there are at most two formats");
  a.sum = format_of(text, parts.back());
  if (parts.size() == 1) {
    if (!a.sum.is_identity()) a.kind = Kind::Fused;
    return a;
  }
  a.kind = Kind::Rounded;
  a.inner = format_of(text, first);
  return a;
}

std::string to_string(const Accumulator& a) {
  using Kind = Accumulator::Kind;
  switch (a.kind) {
    case Kind::Fp32: return "fp32";
    case Kind::Fused: return to_string(a.sum);
    case Kind::Rounded: return to_string(a.inner) + "/" + to_string(a.sum);
    case Kind::Chunked:
      return std::string(kChunk) + std::to_string(a.chunk) + "/" + to_string(a.inner) +
             (a.inner == a.sum ? "" : "/" + to_string(a.sum));
    case Kind::Kahan: return std::string(kKahan) + "/" + to_string(a.sum);
  }
  return "";
}

std::string sum_misfit(const Quantizer& q) {
  if (q.is_identity()) return "";
  const auto no = [&](const char* why) { return to_string(q) + " " + why; };
  const FormatKind kind = q.format.kind;
  if (!q.is_elementwise() || q.scale.kind != Scale::Kind::None || kind == FormatKind::BlockFloat ||
      kind == FormatKind::Hbfp)
    return no(
        "rounds tensors, and a sum is one number; take a format without blocks, scales or "
        "rotations, "
        "such as e6m9");
  if (kind == FormatKind::Codebook)
    return no("is a table, and sums are kept in floats, fixed point or posits");
  if (q.format.overflow == Overflow::Wrap || q.format.overflow == Overflow::None)
    return no("has no bounds at which a sum stays; take one that clamps");
  const FormatLimits limits = limits_of(q.format);
  if (limits.significant_bits > kMostSumBits)
    return no(
        "has more significant bits than the 22 with which a sum is rounded once; take fewer, or "
        "fp32");
  if (limits.quantum < kLeastSumQuantum)
    return no("reaches below 2^-147, where fp32 has no bits left to round a sum once");
  return "";
}

std::string misfit(const Accumulator& a) {
  if (a.kind == Accumulator::Kind::Chunked && a.chunk < 1)
    return "a chunk has at least 1 term, got " + std::to_string(a.chunk);
  if (a.kind == Accumulator::Kind::Fused && a.sum.is_identity())
    return "one rounding a term needs a format; fp32 sums are Kind::Fp32";
  for (uint32_t draw = 0; draw < a.draws(); ++draw) {
    const std::string problem = sum_misfit(*a.roundings()[draw]);
    if (!problem.empty()) return problem;
  }
  return "";
}

}  // namespace ulp
