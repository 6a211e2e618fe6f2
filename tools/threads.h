#pragma once

#include <optional>
#include <string>

namespace ulp::tools {

/// Sets the number of CPU threads, as --threads says or as OpenMP has it, and starts them. Throws UsageError for a wrong
/// number, and ulp::Error where the system has no room for so many: OpenMP would end the program with a message of its own.
void use_threads(const std::optional<std::string>& threads);

}  // namespace ulp::tools
