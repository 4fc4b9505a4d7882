#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/http/exchange.h"
#include "common/http/message.h"

namespace quicksilver::http {

using Handler = std::function<Response(const Request&)>;
/// Called on the connection's thread, which it must not block; the reply may come later from anywhere.
using AsyncHandler = std::function<void(Request, std::shared_ptr<Exchange>)>;

struct RouteEntry {
  std::string method;
  std::string pattern;  ///< A path, or a prefix when it ends in '*'.
  Handler handler;      ///< One of the two.
  AsyncHandler async_handler;
};

/// Which handler serves a path. An exact pattern wins over a prefix, a longer prefix over a shorter one.
class Router {
 public:
  void Add(RouteEntry entry);

  struct Match {
    const RouteEntry* entry = nullptr;  ///< Null: no route.
    std::string rest;
    std::string allow;  ///< Not empty: the path exists for these methods.
  };
  /// HEAD is served by GET.
  Match Find(std::string_view method, std::string_view path) const;

 private:
  std::vector<RouteEntry> entries_;
};

}  // namespace quicksilver::http
