#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "core/device.h"
#include "kernels/kernels.h"

namespace ulp::tools {

// One function per subcommand of `ulp`; each adds its options and a callback that runs it. Callbacks report what is
// wrong by throwing ulp::Error (exit 1) or ulp::UsageError (exit 2).
void add_train(CLI::App& app);
void add_eval(CLI::App& app);
void add_sample(CLI::App& app);
void add_sweep(CLI::App& app);
void add_recipes(CLI::App& app);
void add_experiment(CLI::App& app);
void add_bench(CLI::App& app);
void add_bench_quantize(CLI::App& bench);    // below add_bench
void add_bench_step(CLI::App& bench);        // the same
void add_bench_ops(CLI::App& bench);         // the same
void add_bench_checkpoint(CLI::App& bench);  // the same
void add_bench_optimizer(CLI::App& bench);   // the same
void add_formats(CLI::App& app);
void add_explain(CLI::App& app);
void add_quantize(CLI::App& app);
void add_plot(CLI::App& app);
void add_compare(CLI::App& app);

/// "cpu", "cuda", "cuda:1". Throws UsageError for anything else.
Device parse_device(const std::string& text);
/// A text as kernels/matmul_unit.h names it; without one the device's default. Throws UsageError for anything else, and for
/// all but strict on the CPU.
Math math_value(const std::optional<std::string>& text, Device device);
void add_math(CLI::App& app, std::optional<std::string>& math);

}  // namespace ulp::tools
