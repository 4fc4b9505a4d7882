#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Leaves the enclosing function with the status of `expr` unless it is OK.
#define RETURN_IF_ERROR(expr)                                                 \
  do {                                                                        \
    if (::absl::Status qs_status = (expr); !qs_status.ok()) return qs_status; \
  } while (false)

#define QS_CONCAT_INNER(a, b) a##b
#define QS_CONCAT(a, b) QS_CONCAT_INNER(a, b)
#define QS_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                        \
  if (!tmp.ok()) return tmp.status();       \
  lhs = std::move(tmp).value()

// ASSIGN_OR_RETURN(const Foo foo, MakeFoo()): declares or assigns, or leaves with the error.
#define ASSIGN_OR_RETURN(lhs, expr) QS_ASSIGN_OR_RETURN(QS_CONCAT(qs_statusor_, __LINE__), lhs, expr)
