#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"

namespace quicksilver::jinja {

/// Parses the subset of Jinja that chat templates use: text, output, if, for (with filter, else, break, continue), set,
/// generation blocks; every expression but starred arguments. InvalidArgument names the line of the first thing that
/// is wrong or not supported, unknown filters, tests and methods included.
absl::StatusOr<Body> Parse(std::string_view source);

}  // namespace quicksilver::jinja
