#include "optim/schedule.h"

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cmath>
#include <numbers>
#include <optional>

#include "core/error.h"
#include "core/format_text.h"
#include "core/number_text.h"

namespace ulp::optim {
namespace {

using Kind = ScheduleSpec::Kind;

struct KindName {
  Kind kind;
  const char *name, *form;
};
constexpr KindName kKinds[] = {
    {Kind::Constant, "constant", "constant"},
    {Kind::Linear, "linear", "linear[:FLOOR]"},
    {Kind::Cosine, "cosine", "cosine[:FLOOR]"},
    {Kind::Step, "step", "step[:FACTOR[@MOMENT,...]]"},
    {Kind::OneCycle, "onecycle", "onecycle[:UP[,DIV[,FINAL]]][@HIGH,LOW]"},
    {Kind::Swalp, "swalp", "swalp[:RATIO[@MOMENT]]"},
};

const KindName& entry_of(Kind kind) {
  for (const KindName& entry : kKinds)
    if (entry.kind == kind) return entry;
  throw_error("schedule: no such kind");
}

std::optional<int64_t> count_in(std::string_view text) {
  return text::number_from_to<int64_t>(text, 0, INT64_MAX);
}

double number_between(std::string_view text, const std::string& what, double least, double most) {
  const auto value = text::number_from_to<double>(text, least, most);
  ULP_CHECK(value, "{} must be a number from {} to {}, got '{}'", what, least, most, text);
  return *value;
}

std::vector<Moment> parse_moments(std::string_view text, const std::string& what) {
  std::vector<Moment> moments;
  for (const std::string_view part : text::split(text, ','))
    moments.push_back(Moment::parse(part, what));
  return moments;
}

/// "A@B": both parts; without @ the second is empty.
std::pair<std::string_view, std::optional<std::string_view>> at_sign(std::string_view text) {
  const size_t at = text.find('@');
  if (at == std::string_view::npos) return {text, {}};
  return {text.substr(0, at), text.substr(at + 1)};
}

std::string joined(const std::vector<Moment>& moments) {
  std::string text;
  for (const Moment& m : moments) text += (text.empty() ? "" : ",") + m.text();
  return text;
}

void set_defaults(ScheduleSpec& spec) {
  if (spec.kind == Kind::Step) {
    spec.factor = 0.1;
    spec.moments = {{0.5, Moment::Unit::Fraction}, {0.75, Moment::Unit::Fraction}};
  }
  if (spec.kind == Kind::Swalp) {
    spec.factor = 0.2;
    spec.moments = {{0.67, Moment::Unit::Fraction}};
  }
  if (spec.kind == Kind::OneCycle) {
    spec.up = 0.45;
    spec.div = 10;
    spec.final_div = 100;
  }
}

/// "HIGH,LOW".
MomentumCycle parse_cycle(std::string_view text) {
  const auto parts = text::split(text, ',');
  ULP_CHECK(parts.size() == 2, "onecycle: the momenta are two, as in @0.95,0.85, got '@{}'", text);
  MomentumCycle cycle;
  cycle.high = number_between(parts[0], "onecycle: the higher momentum", 0.001, 0.9999);
  cycle.low = number_between(parts[1], "onecycle: the lower momentum", 0, cycle.high);
  return cycle;
}

void parse_numbers(ScheduleSpec& spec, std::string_view text) {
  const std::string name = entry_of(spec.kind).name;
  switch (spec.kind) {
    case Kind::Constant: throw_error("constant takes no numbers, got ':{}'", text);
    case Kind::Linear:
    case Kind::Cosine: spec.floor = number_between(text, name + ": the floor", 0, 1); return;
    case Kind::Step:
    case Kind::Swalp: {
      const auto [factor, moments] = at_sign(text);
      const char* what = spec.kind == Kind::Step ? ": the factor" : ": the ratio";
      spec.factor = number_between(factor, name + what, 0, 1);
      if (moments) spec.moments = parse_moments(*moments, name + ": a moment");
      ULP_CHECK(spec.kind == Kind::Step || spec.moments.size() == 1,
                "swalp: there is one moment, got '{}'", *moments);
      return;
    }
    case Kind::OneCycle: {
      const auto [numbers, momentum] = at_sign(text);
      const auto parts = text::split(numbers, ',');
      ULP_CHECK(parts.size() <= 3, "onecycle: there are at most three numbers, got '{}'", numbers);
      if (!numbers.empty() || !momentum)
        spec.up = number_between(parts[0], "onecycle: the rise's share of the run", 0.001, 0.5);
      if (parts.size() > 1)
        spec.div = number_between(parts[1], "onecycle: the first divisor", 1, 1e9);
      if (parts.size() > 2)
        spec.final_div = number_between(parts[2], "onecycle: the last divisor", 1, 1e9);
      if (momentum) spec.momentum = parse_cycle(*momentum);
      return;
    }
  }
}

}  // namespace

Moment Moment::parse(std::string_view text, const std::string& what) {
  std::optional<double> value;
  Unit unit = Unit::Steps;
  if (text.ends_with('e')) {
    unit = Unit::Epochs;
    if (const auto count = count_in(text.substr(0, text.size() - 1)))
      value = static_cast<double>(*count);
  } else if (text.find('.') != std::string_view::npos) {
    unit = Unit::Fraction;
    value = text::number_from_to<double>(text, 0, 1);
  } else if (const auto count = count_in(text)) {
    value = static_cast<double>(*count);
  }
  ULP_CHECK(value && *value <= 0x1p53,
            "{} must be a share of the run such as 0.5, steps such as 300 or epochs such as 12e, "
            "got '{}'",
            what, text);
  return {*value, unit};
}

std::string Moment::text() const {
  if (unit == Unit::Fraction) {
    char digits[400];
    const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed);
    const std::string out(digits, end.ptr);
    return out.find('.') == std::string::npos ? out + ".0" : out;
  }
  return fmt::format("{}{}", static_cast<int64_t>(value), unit == Unit::Epochs ? "e" : "");
}

int64_t Moment::steps(int64_t total_steps, int64_t epoch_steps) const {
  switch (unit) {
    case Unit::Fraction: return std::llround(value * static_cast<double>(total_steps));
    case Unit::Steps: return static_cast<int64_t>(value);
    case Unit::Epochs: {
      ULP_CHECK(epoch_steps > 0, "the moment {} is in epochs, and how long one is is not known",
                text());
      const double steps = value * static_cast<double>(epoch_steps);
      ULP_CHECK(steps <= 0x1p53, "the moment {} is too far away", text());
      return static_cast<int64_t>(steps);
    }
  }
  return 0;
}

ScheduleSpec ScheduleSpec::parse(std::string_view text) {
  ScheduleSpec spec;
  std::string_view rest = text;
  constexpr std::string_view kWarmup = "warmup:";
  if (rest.starts_with(kWarmup)) {
    const size_t plus = rest.find('+');
    ULP_CHECK(plus != std::string_view::npos,
              "a warm-up goes before a schedule, as in warmup:500+cosine, got '{}'", text);
    spec.warmup = Moment::parse(rest.substr(kWarmup.size(), plus - kWarmup.size()), "warmup");
    rest.remove_prefix(plus + 1);
  }
  const size_t colon = std::min(rest.find(':'), rest.find('@'));  // onecycle@0.95,0.85
  const std::string_view name = rest.substr(0, colon);
  bool found = false;
  std::string forms;
  for (const KindName& entry : kKinds) {
    forms += std::string(forms.empty() ? "" : ", ") + entry.form;
    if (name != entry.name) continue;
    spec.kind = entry.kind;
    found = true;
  }
  ULP_CHECK(found, "unknown schedule '{}': wanted {}, after warmup:MOMENT+ if you like", rest,
            forms);
  set_defaults(spec);
  if (colon != std::string_view::npos)
    parse_numbers(spec, rest.substr(rest[colon] == ':' ? colon + 1 : colon));
  ULP_CHECK(spec.kind != Kind::OneCycle || spec.warmup.value == 0,
            "onecycle rises by itself and takes no warm-up, got '{}'", text);
  if (spec.warmup.value == 0) spec.warmup = {};
  return spec;
}

std::string ScheduleSpec::text() const {
  std::string out = warmup.value == 0 ? "" : fmt::format("warmup:{}+", warmup.text());
  out += entry_of(kind).name;
  switch (kind) {
    case Kind::Constant: return out;
    case Kind::Linear:
    case Kind::Cosine: return out + fmt::format(":{}", floor);
    case Kind::Step:
    case Kind::Swalp: return out + fmt::format(":{}@{}", factor, joined(moments));
    case Kind::OneCycle:
      out += fmt::format(":{},{},{}", up, div, final_div);
      return momentum ? out + fmt::format("@{},{}", momentum->high, momentum->low) : out;
  }
  return out;
}

Schedule::Schedule(ScheduleSpec spec, double base, int64_t total_steps, int64_t epoch_steps)
    : spec_(std::move(spec)),
      base_(base),
      total_(total_steps),
      warmup_(spec_.warmup.steps(total_steps, epoch_steps)) {
  ULP_CHECK(warmup_ == 0 || warmup_ < total_,
            "the schedule {} warms up for {} steps, and the run has {}", spec_.text(), warmup_,
            total_);
  for (const Moment& moment : spec_.moments) {
    const int64_t at = moment.steps(total_steps, epoch_steps);
    ULP_CHECK(moments_.empty() || at >= moments_.back(),
              "the schedule {} has moments that do not ascend: step {} after step {}", spec_.text(),
              at, moments_.back());
    ULP_CHECK(at <= total_, "the schedule {} has a moment after {} steps, and the run has {}",
              spec_.text(), at, total_);
    moments_.push_back(at);
  }
}

double Schedule::factor(int64_t step) const {
  if (step < warmup_) return static_cast<double>(step + 1) / static_cast<double>(warmup_);
  const auto since = [&](int64_t end) {  // the share of the time from the warm-up to `end`
    return end <= warmup_
               ? 1.0
               : static_cast<double>(step - warmup_) / static_cast<double>(end - warmup_);
  };
  const double t = std::min(1.0, since(total_));
  switch (spec_.kind) {
    case Kind::Constant: return 1;
    case Kind::Linear: return 1 - (1 - spec_.floor) * t;
    case Kind::Cosine:
      return spec_.floor + (1 - spec_.floor) * 0.5 * (1 + std::cos(std::numbers::pi * t));
    case Kind::Step: {
      double factor = 1;
      for (const int64_t at : moments_)
        if (step >= at) factor *= spec_.factor;
      return factor;
    }
    case Kind::OneCycle: {
      const double start = 1 / spec_.div, end = start / spec_.final_div;
      if (t < spec_.up) return start + (1 - start) * (t / spec_.up);
      if (t < 2 * spec_.up) return 1 - (1 - start) * ((t - spec_.up) / spec_.up);
      return spec_.up == 0.5 ? start
                             : start - (start - end) * ((t - 2 * spec_.up) / (1 - 2 * spec_.up));
    }
    case Kind::Swalp: {
      const double u = since(moments_.front());
      if (u <= 0.5) return 1;
      return u <= 0.9 ? 1 - (1 - spec_.factor) * ((u - 0.5) / 0.4) : spec_.factor;
    }
  }
  return 1;
}

double Schedule::momentum(int64_t step) const {
  if (!spec_.momentum) return 0;
  const double t = std::min(1.0, static_cast<double>(step) / static_cast<double>(total_));
  const double risen = t < spec_.up       ? t / spec_.up
                       : t < 2 * spec_.up ? 1 - (t - spec_.up) / spec_.up
                                          : 0;
  return spec_.momentum->high - (spec_.momentum->high - spec_.momentum->low) * risen;
}

std::vector<float> Schedule::momenta(int64_t first, int64_t count) const {
  std::vector<float> all;
  for (int64_t step = first; spec_.momentum && step < first + count; ++step)
    all.push_back(static_cast<float>(momentum(step)));
  return all;
}

double Schedule::lr(int64_t step) const { return base_ * factor(step); }

std::vector<float> Schedule::rates(int64_t first, int64_t count) const {
  std::vector<float> all;
  for (int64_t step = first; step < first + count; ++step)
    all.push_back(static_cast<float>(lr(step)));
  return all;
}

std::string Schedule::describe() const {
  std::string text;
  if (warmup_ > 0) text = fmt::format("rising over {} steps, then ", warmup_);
  const auto near = [](double part, int64_t of) {
    return std::llround(part * static_cast<double>(of));
  };
  switch (spec_.kind) {
    case Kind::Constant: return text + "constant";
    case Kind::Linear:
    case Kind::Cosine:
      return text + fmt::format("{} to {:.6g} after {} steps",
                                spec_.kind == Kind::Linear ? "linear" : "a half cosine",
                                spec_.floor * base_, total_);
    case Kind::Step:
      return text + fmt::format("× {} after step {}", spec_.factor, fmt::join(moments_, ", "));
    case Kind::OneCycle:
      text += fmt::format(
          "from {:.6g} up until step {}, down again until step {}, to {:.6g} after {} steps",
          base_ / spec_.div, near(spec_.up, total_), near(2 * spec_.up, total_),
          base_ / spec_.div / spec_.final_div, total_);
      if (spec_.momentum)
        text += fmt::format("; the momentum meanwhile from {:.6g} to {:.6g} and back",
                            spec_.momentum->high, spec_.momentum->low);
      return text;
    case Kind::Swalp: {
      const int64_t span = std::max<int64_t>(0, moments_.front() - warmup_);
      return text + fmt::format(
                        "constant until step {}, linear to {:.6g} until step {}, then constant; "
                        "for averages from step {} on",
                        warmup_ + near(0.5, span), spec_.factor * base_, warmup_ + near(0.9, span),
                        moments_.front());
    }
  }
  return text;
}

}  // namespace ulp::optim
