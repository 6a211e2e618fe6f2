#include "core/error.h"

#include <fmt/args.h>
#include <fmt/format.h>

namespace ulp {

std::string format_message(std::string_view format, std::initializer_list<ErrorArg> args) {
  fmt::dynamic_format_arg_store<fmt::format_context> store;
  for (const ErrorArg& arg : args) {
    switch (arg.kind()) {
      case ErrorArg::Kind::Integer: store.push_back(arg.integer()); break;
      case ErrorArg::Kind::Real: store.push_back(arg.real()); break;
      case ErrorArg::Kind::Text: store.push_back(arg.text()); break;
    }
  }
  return fmt::vformat(format, store);
}

}  // namespace ulp
