#include "tools/scaling_options.h"

#include <fmt/core.h>

#include <cmath>

#include "tools/format_options.h"
#include "tools/values.h"

namespace ulp::tools {
namespace {

constexpr double kFirstScale = 65536;

optim::Moment moment_value(const char* flag, const std::string& text) {
  try {
    return optim::Moment::parse(text, flag);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

/// Throws if a flag was given that means nothing without another.
void check_needs(const char* flag, const std::optional<std::string>& given, bool there,
                 const char* other) {
  if (given && !there) throw UsageError(std::string(flag) + " needs " + other);
}

}  // namespace

void ScalingOptions::add_to(CLI::App& app) {
  const char* group = "Scaling, clipping, schedule";
  app.add_option("--lr-schedule", lr_schedule_,
                 "constant, linear[:FLOOR], cosine[:FLOOR], step[:FACTOR[@MOMENT,...]], "
                 "onecycle[:UP[,DIV[,FINAL]]][@HIGH,LOW] (@: the momentum goes down and up again), "
                 "swalp[:RATIO[@MOMENT]]; warmup:MOMENT+ before any but "
                 "onecycle; a MOMENT is a share of the run (0.5), steps (300) or epochs (12e)")
      ->capture_default_str()
      ->group(group);
  app.add_option(
         "--loss-scale", loss_scale_,
         "the loss gradient is multiplied by it; dynamic: it follows the gradients, and steps "
         "with Inf or NaN in one are skipped")
      ->capture_default_str()
      ->group(group);
  add_text(
      app, "--grad-scaling", grad_scaling_,
      "gradients are multiplied by it (default: 1 / loss scale; 1 where that is dynamic, which "
      "is undone by itself)")
      ->group(group);
  add_text(app, "--loss-scale-start", start_, "the first dynamic scale (default: 65536)")
      ->group(group);
  add_text(app, "--loss-scale-growth", growth_, "its factor after good steps (default: 2)")
      ->group(group);
  add_text(app, "--loss-scale-interval", interval_,
           "good steps in a row until then (default: 2000)")
      ->group(group);
  add_text(app, "--loss-scale-backoff", backoff_, "its factor after a skipped step (default: 0.5)")
      ->group(group);
  add_text(app, "--loss-scale-min", least_, "the least dynamic scale (default: 2^-24)")
      ->group(group);
  add_text(app, "--loss-scale-max", most_, "the largest dynamic scale (default: 2^24)")
      ->group(group);
  add_text(app, "--clip-norm", clip_norm_,
           "the largest L2 norm of all gradients together, after scaling (default: any)")
      ->group(group);
  app.add_option("--grad-order", grad_order_,
                 "scale-first: gradients are scaled and clipped before --grads rounds them; "
                 "quantise-first: afterwards")
      ->capture_default_str()
      ->group(group);
  app.add_option("--accumulate-steps", accumulate_,
                 "batches a step: their gradients are added in fp32 and stand for one batch of all "
                 "of them")
      ->capture_default_str()
      ->group(group);
  const char* averages = "Average of the weights, tested beside them";
  add_text(
      app, "--average", average_,
      "swa: the mean of the weights after every epoch of the last quarter; ema: an exponential "
      "mean after every step; none (the default); with batch norm a forward pass over the training "
      "data before each test of it")
      ->group(averages);
  add_text(
      app, "--average-format", average_format_,
      "the stored average (default: fp32), not packed, in the narrowest type that holds it: 1 byte "
      "a weight for e4m3, e5m2, e3m2, e2m3 and e2m1, 2 for bf16, fp16 and bfp8, else 4")
      ->group(averages);
  add_text(app, "--average-start", average_start_,
           "the MOMENT of the first weights (default: 0.75 for swa, 0 for ema)")
      ->group(averages);
  add_text(app, "--average-every", average_every_,
           "the time from weights to weights (default: 1e for swa, 1 for ema)")
      ->group(averages);
  add_text(app, "--ema-decay", decay_, "what is kept of the average (default: 0.999)")
      ->group(averages);
}

double ScalingOptions::grad_scaling(const Experiment& e) const {
  if (grad_scaling_)
    return number_value("--grad-scaling", *grad_scaling_, Zero::Refused, "--grads");
  if (e.scaling.dynamic) return 1;
  const double inverse = 1 / e.scaling.loss_scale;
  if (std::isinf(static_cast<float>(inverse)))
    throw UsageError("--loss-scale " + loss_scale_ +
                     ": gradients × 1 / loss scale is beyond fp32; give a --grad-scaling too");
  return inverse;
}

void ScalingOptions::resolve_scaling(Experiment& e) const {
  optim::GradScalerOptions& s = e.scaling;
  s = {};
  s.dynamic = loss_scale_ == "dynamic";
  const auto number = [](const char* flag, const std::optional<std::string>& text, double absent) {
    return text ? number_value(flag, *text, Zero::Refused) : absent;
  };
  for (const auto& [flag, given] : {std::pair("--loss-scale-start", &start_),
                                    {"--loss-scale-growth", &growth_},
                                    {"--loss-scale-backoff", &backoff_},
                                    {"--loss-scale-interval", &interval_},
                                    {"--loss-scale-min", &least_},
                                    {"--loss-scale-max", &most_}})
    check_needs(flag, *given, s.dynamic, "--loss-scale dynamic");
  try {
    s.loss_scale = s.dynamic ? number("--loss-scale-start", start_, kFirstScale)
                             : number_value("--loss-scale", loss_scale_, Zero::Refused);
  } catch (const UsageError& error) {
    throw UsageError(error.what() + std::string(s.dynamic ? "" : "; or dynamic"));
  }
  s.growth = number("--loss-scale-growth", growth_, s.growth);
  s.backoff = number("--loss-scale-backoff", backoff_, s.backoff);
  s.least = number("--loss-scale-min", least_, s.least);
  s.most = number("--loss-scale-max", most_, s.most);
  if (interval_)
    s.interval = integer_value<int64_t>("--loss-scale-interval", *interval_, 1, UINT32_MAX);
  s.clip_norm = number("--clip-norm", clip_norm_, 0);
  s.grad_scaling = grad_scaling(e);
  if (s.dynamic) check_dynamic(s);
  try {
    optim::check(s);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

/// Names the flags that were given.
void ScalingOptions::check_dynamic(const optim::GradScalerOptions& s) const {
  const auto shown = [](const char* flag, const std::optional<std::string>& given, double value) {
    return fmt::format("{} {}{}", flag, given ? *given : fmt::format("{}", value),
                       given ? "" : " (the default)");
  };
  const std::string start = shown("--loss-scale-start", start_, s.loss_scale),
                    least = shown("--loss-scale-min", least_, s.least),
                    most = shown("--loss-scale-max", most_, s.most);
  for (const auto& [text, value] : {std::pair(&least, s.least), {&most, s.most}})
    if (!(value >= 0x1p-126 && value <= 0x1p126))
      throw UsageError(*text + ": it must be from 2^-126 to 2^126");
  if (s.least > s.most) throw UsageError(least + " is above " + most);
  if (s.loss_scale < s.least) throw UsageError(start + " is below " + least);
  if (s.loss_scale > s.most) throw UsageError(start + " is above " + most);
  if (s.growth < 1 || s.growth > 0x1p126)
    throw UsageError("--loss-scale-growth takes a number from 1 to 2^126, got " + *growth_);
  if (s.backoff >= 1 || static_cast<float>(s.backoff) >= 1)
    throw UsageError("--loss-scale-backoff takes a number above 0 and below 1, got " + *backoff_);
}

std::optional<Averaging> ScalingOptions::resolve_average() const {
  if (average_ == "none") return {};
  for (const auto& [flag, given] : {std::pair("--average-format", &average_format_),
                                    {"--average-start", &average_start_},
                                    {"--average-every", &average_every_}})
    check_needs(flag, *given, average_.has_value(), "--average swa or ema");
  const bool ema = average_ == "ema";
  check_needs("--ema-decay", decay_, ema, "--average ema");
  if (!average_) return {};
  if (!ema && average_ != "swa")
    throw UsageError("--average takes none, swa or ema, got '" + *average_ + "'");
  Averaging a;
  a.options.kind = ema ? optim::AverageOptions::Kind::Ema : optim::AverageOptions::Kind::Swa;
  if (average_format_) {
    a.options.format = format_value("--average-format", *average_format_);
    const std::string problem = misfit(a.options.format);
    if (!problem.empty()) throw UsageError("--average-format: " + problem);
    if (a.options.format.scale.kind == Scale::Kind::Delayed)
      throw UsageError("--average-format " + *average_format_ +
                       ": an average is rounded at some steps only; take +scale=current");
  }
  a.start = moment_value("--average-start", average_start_.value_or(ema ? "0" : "0.75"));
  a.every = moment_value("--average-every", average_every_.value_or(ema ? "1" : "1e"));
  if (a.every.value == 0)
    throw UsageError("--average-every takes a time above 0, got " + *average_every_);
  if (decay_) {
    a.options.decay = number_value("--ema-decay", *decay_, Zero::Allowed);
    if (a.options.decay >= 1)
      throw UsageError("--ema-decay takes a number below 1, got " + *decay_);
  }
  return a;
}

void ScalingOptions::resolve_schedule(Experiment& e) const {
  optim::ScheduleSpec spec;
  try {
    spec = optim::ScheduleSpec::parse(lr_schedule_);
  } catch (const Error& error) {
    throw UsageError(std::string("--lr-schedule: ") + error.what());
  }
  e.lr_schedule = spec.text();
  if (!spec.momentum) return;
  const bool sgd = e.optimizer.algorithm == optim::Algorithm::Sgd;
  if (sgd && e.optimizer.momentum == 0)
    throw UsageError("--lr-schedule " + lr_schedule_ +
                     " moves the momentum and needs a --momentum-coef above 0");
  (sgd ? e.optimizer.momentum : e.optimizer.beta1) = spec.momentum->high;
}

void ScalingOptions::resolve(Experiment& e) const {
  resolve_schedule(e);
  if (grad_order_ != "scale-first" && grad_order_ != "quantise-first")
    throw UsageError("--grad-order takes scale-first or quantise-first, got '" + grad_order_ + "'");
  e.optimizer.grad_order =
      grad_order_ == "scale-first" ? GradOrder::ScaleFirst : GradOrder::QuantiseFirst;
  e.accumulate_steps = integer_value<int64_t>("--accumulate-steps", accumulate_, 1, 1000000);
  resolve_scaling(e);
  e.optimizer.grad_scaling = e.scaling.grad_scaling;
  e.average = resolve_average();
}

}  // namespace ulp::tools
