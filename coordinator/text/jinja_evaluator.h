#pragma once

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/marked_text.h"

namespace quicksilver::jinja {

/// Runs a template. InvalidArgument names the line where it raised or used a value as what it is not;
/// ResourceExhausted: `work_max` bytes were touched.
absl::StatusOr<MarkedText> Render(const Body& body, Dict variables, size_t work_max);

}  // namespace quicksilver::jinja
