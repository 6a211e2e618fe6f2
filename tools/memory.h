#pragma once

#include <new>

namespace ulp::tools {

// The memory of the ulp command: its operator new throws AllocationFailed, which knows what was asked for.

/// From here on memory that is missing where nothing can catch it ends the program with one line and status 1, and some is
/// kept aside for the messages of what can be caught.
void begin_memory();

/// Prints "ulp: out of memory, asked for N bytes" on the standard error, for which it needs no memory.
void print_out_of_memory(const std::bad_alloc& error) noexcept;

}  // namespace ulp::tools
