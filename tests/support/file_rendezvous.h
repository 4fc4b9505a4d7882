#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "worker/collectives/rendezvous.h"

namespace quicksilver {

/// A store for processes of one host: a file a key in a directory that exists. For tests of ranks without their
/// service.
class FileRendezvous final : public RendezvousStore {
 public:
  explicit FileRendezvous(std::filesystem::path directory) : directory_(std::move(directory)) {}

  absl::Status Put(const std::string& key, const std::string& value) override {
    const std::filesystem::path path = PathOf(key), whole = path.string() + ".part";
    std::ofstream(whole, std::ios::binary) << value;
    std::error_code error;
    std::filesystem::rename(whole, path, error);  // Readers see all of it or nothing.
    return error ? absl::UnavailableError(absl::StrCat("rendezvous: ", error.message())) : absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> Get(const std::vector<std::string>& keys, absl::Duration timeout) override {
    const absl::Duration deadline = MonotonicNow() + timeout;
    std::vector<std::string> values;
    while (values.size() < keys.size()) {
      if (std::ifstream file(PathOf(keys[values.size()]), std::ios::binary); file) {
        values.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
      } else if (MonotonicNow() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("rendezvous: '", keys[values.size()], "' is missing"));
      } else {
        absl::SleepFor(absl::Milliseconds(2));
      }
    }
    return values;
  }

 private:
  std::filesystem::path PathOf(const std::string& key) const {
    return directory_ / absl::StrReplaceAll(key, {{"/", "_"}});
  }

  const std::filesystem::path directory_;
};

}  // namespace quicksilver
