#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace quicksilver {

/// Places where tests let a program fail. The option --failpoints (QUICKSILVER_FAILPOINTS) says how, for example
///   worker.after_forward[1]=kill@0.01; group.skip_step=fail(3)+20; worker.before_step=delay(200ms)^0; seed=7
///
///   rule   = POINT ["[" KEY "]"] "=" ACTION ["@" PROBABILITY] ["+" HITS] ["^" RESTARTS], several joined by ";"
///   KEY      only hits with this key, whose meaning depends on the point (kFailpoints); without it: any
///   ACTION   kill: SIGKILL to the process itself; exit(CODE); fail or fail(TIMES): what failing means at that point;
///            hang: the thread sleeps forever; delay(DURATION)
///   @P       only this share of the hits: drawn from `seed` (default 0) and the number of the hit, so it repeats
///   exactly +N       not the first N hits (of this rule, in this process) ^N       only while the group has been
///   formed anew at most N times
///
/// Only sources compiled with the definition QUICKSILVER_FAILPOINTS look at them: they are compiled once more for
/// programs that only tests use (qs_failpoints_variant in cmake/targets.cmake); in what is shipped a point is nothing.
struct Failpoint {
  absl::string_view name;
  absl::string_view key;
  absl::string_view failing;  ///< What fail means there; empty: nothing, the point takes only the other actions.
};

inline constexpr Failpoint kFailpoints[] = {
    {"worker.init", "rank", ""},
    {"worker.prepare_step", "rank", ""},
    {"worker.before_step", "rank", ""},
    {"worker.after_forward", "rank", ""},
    {"group.skip_step", "rank", "the rank leaves out a step, so that the others wait for it in a collective"},
    {"engine.nan_row", "seed of the sequence", "the logits of one row become NaN"},
    {"engine.poison", "seed of the sequence", ""},
};

/// Index in kFailpoints; a name that is not there does not compile.
consteval size_t FailpointIndex(absl::string_view name) {
  size_t index = 0;
  while (kFailpoints[index].name != name) ++index;
  return index;
}

/// Reads the rules; call once, before threads. `restarts`: how often the group was formed before. FailedPrecondition
/// when there are rules and the program looks at none (`compiled_in`); InvalidArgument names what is wrong with them.
absl::Status InitFailpoints(bool compiled_in, absl::string_view rules, uint64_t restarts);

/// One line a point.
std::string DescribeFailpoints();

/// Does what the rules say at this hit; whether the caller is to fail. Thread-safe.
bool HitFailpoint(size_t index, uint64_t key);

/// What a point is where failpoints are not compiled in.
constexpr bool PassFailpoint(size_t, uint64_t) { return false; }

// Whether the caller is to fail: if (QS_FAILPOINT("group.skip_step", rank)) return absl::OkStatus();
#ifdef QUICKSILVER_FAILPOINTS
#define QS_FAILPOINTS_COMPILED_IN true
#define QS_FAILPOINT(name, key) ::quicksilver::HitFailpoint(::quicksilver::FailpointIndex(name), key)
#else
#define QS_FAILPOINTS_COMPILED_IN false
#define QS_FAILPOINT(name, key) ::quicksilver::PassFailpoint(::quicksilver::FailpointIndex(name), key)
#endif

}  // namespace quicksilver
