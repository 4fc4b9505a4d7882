#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"

namespace quicksilver {
namespace {

/// Reads the header as it streams by: nothing but the tensors is kept, nesting is bounded by the states, and a name
/// that stands twice is seen (a parsed object would hide it).
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::deque<StoredTensor> tensors;
  std::string error;  ///< Empty: none.

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected(PrintableName(text)); }
  bool binary(binary_t&) override { return Unexpected("bytes"); }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool key(string_t& name) override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("header: expected JSON, found something else at byte ", position));
  }

 private:
  enum class State {
    kStart,
    kTensors,
    kTensor,
    kFields,
    kType,
    kShape,
    kDimensions,
    kOffsets,
    kBounds,
    kMetadata,
    kMetadataKeys,
    kMetadataValue,
    kEnd
  };

  bool Fail(std::string message) {
    if (error.empty()) error = std::move(message);
    return false;
  }
  bool Unexpected(const std::string& found);
  std::string Where() const;
  bool StartField(const std::string& name);
  bool EndTensor();

  State state_ = State::kStart;
  bool metadata_seen_ = false;
  bool type_seen_ = false;
  bool shape_seen_ = false;
  bool offsets_seen_ = false;
  std::vector<uint64_t> bounds_;
};

std::string HeaderReader::Where() const {
  if (state_ >= State::kMetadata && state_ <= State::kMetadataValue) return "header: __metadata__";
  if (tensors.empty()) return "header";
  return absl::StrCat("tensor '", PrintableName(tensors.back().name), "'");
}

bool HeaderReader::Unexpected(const std::string& found) {
  const char* expected = "an object";
  switch (state_) {
    case State::kType:
      expected = "the name of a type";
      break;
    case State::kShape:
    case State::kDimensions:
      expected = "a shape of non-negative integers";
      break;
    case State::kOffsets:
    case State::kBounds:
      expected = "data_offsets of two non-negative integers";
      break;
    case State::kMetadataValue:
      expected = "a string";
      break;
    default:
      break;
  }
  return Fail(absl::StrCat(Where(), ": expected ", expected, ", found ", found));
}

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (state_ == State::kDimensions) {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return Unexpected(absl::StrCat(value));
    std::vector<int64_t>& shape = tensors.back().shape;
    if (shape.size() == kSafetensorsDimensionsMax) {
      return Fail(absl::StrCat(Where(), ": expected at most ", kSafetensorsDimensionsMax, " dimensions, found more"));
    }
    shape.push_back(static_cast<int64_t>(value));
    return true;
  }
  if (state_ == State::kBounds && bounds_.size() < 2) {
    bounds_.push_back(value);
    return true;
  }
  return Unexpected(absl::StrCat(value));
}

bool HeaderReader::string(string_t& value) {
  if (state_ == State::kMetadataValue) {
    state_ = State::kMetadataKeys;
    return true;
  }
  if (state_ != State::kType) return Unexpected("a string");
  state_ = State::kFields;
  for (StoredType type : {StoredType::kF32, StoredType::kBf16, StoredType::kF16}) {
    if (value != StoredTypeName(type)) continue;
    tensors.back().type = type;
    return true;
  }
  return Fail(absl::StrCat(Where(), ": expected dtype F32, BF16 or F16, found ", PrintableName(value)));
}

bool HeaderReader::start_object(std::size_t) {
  switch (state_) {
    case State::kStart:
      state_ = State::kTensors;
      return true;
    case State::kTensor:
      state_ = State::kFields;
      type_seen_ = shape_seen_ = offsets_seen_ = false;
      bounds_.clear();
      return true;
    case State::kMetadata:
      state_ = State::kMetadataKeys;
      return true;
    default:
      return Unexpected("an object");
  }
}

bool HeaderReader::end_object() {
  switch (state_) {
    case State::kFields:
      return EndTensor();
    case State::kMetadataKeys:
      state_ = State::kTensors;
      return true;
    default:
      state_ = State::kEnd;
      return true;
  }
}

bool HeaderReader::EndTensor() {
  StoredTensor& tensor = tensors.back();
  if (!type_seen_ || !shape_seen_ || !offsets_seen_) {
    return Fail(absl::StrCat(Where(), ": expected dtype, shape and data_offsets, found no ",
                             !type_seen_    ? "dtype"
                             : !shape_seen_ ? "shape"
                                            : "data_offsets"));
  }
  if (bounds_.size() != 2 || bounds_[0] > bounds_[1]) {
    return Fail(absl::StrCat(Where(), ": expected data_offsets [begin, end] with begin <= end, found [",
                             absl::StrJoin(bounds_, ", "), "]"));
  }
  tensor.offset = bounds_[0];
  tensor.bytes = bounds_[1] - bounds_[0];
  state_ = State::kTensors;
  return true;
}

bool HeaderReader::start_array(std::size_t) {
  if (state_ == State::kShape) {
    state_ = State::kDimensions;
    return true;
  }
  if (state_ == State::kOffsets) {
    state_ = State::kBounds;
    return true;
  }
  return Unexpected("an array");
}

bool HeaderReader::end_array() {
  state_ = State::kFields;
  return true;
}

bool HeaderReader::key(string_t& name) {
  if (state_ == State::kMetadataKeys) {
    state_ = State::kMetadataValue;
    return true;
  }
  if (state_ == State::kFields) return StartField(name);
  if (name == "__metadata__") {
    if (metadata_seen_) return Fail("header: expected one __metadata__, found two");
    metadata_seen_ = true;
    state_ = State::kMetadata;
    return true;
  }
  if (name.empty() || name.size() > kSafetensorsNameBytesMax) {
    return Fail(absl::StrCat("header: expected tensor names of 1 to ", kSafetensorsNameBytesMax,
                             " bytes, found one of ", name.size()));
  }
  if (tensors.size() == kSafetensorsTensorsMax) {
    return Fail(absl::StrCat("header: expected at most ", kSafetensorsTensorsMax, " tensors, found more"));
  }
  tensors.emplace_back().name = name;
  state_ = State::kTensor;
  return true;
}

bool HeaderReader::StartField(const std::string& name) {
  bool* seen = nullptr;
  if (name == "dtype") {
    seen = &type_seen_;
    state_ = State::kType;
  } else if (name == "shape") {
    seen = &shape_seen_;
    state_ = State::kShape;
  } else if (name == "data_offsets") {
    seen = &offsets_seen_;
    state_ = State::kOffsets;
  }
  if (seen == nullptr || *seen) {
    return Fail(absl::StrCat(Where(), ": expected dtype, shape and data_offsets once each, found ",
                             seen == nullptr ? "" : "a second ", "'", PrintableName(name), "'"));
  }
  *seen = true;
  return true;
}

absl::Status CheckSize(const std::string& file, const StoredTensor& tensor) {
  uint64_t bytes = StoredBytes(tensor.type);
  for (const int64_t dimension : tensor.shape) {
    if (__builtin_mul_overflow(bytes, static_cast<uint64_t>(dimension), &bytes)) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", PrintableName(tensor.name), "': shape [",
                                                     absl::StrJoin(tensor.shape, ", "), "] overflows 64 bits"));
    }
  }
  if (bytes == tensor.bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": tensor '", PrintableName(tensor.name), "': ", StoredTypeName(tensor.type), " [",
                   absl::StrJoin(tensor.shape, ", "), "]: expected ", bytes, " bytes, found ", tensor.bytes));
}

absl::Status CheckCoverage(const std::string& file, const std::deque<StoredTensor>& tensors, uint64_t data_bytes) {
  std::vector<const StoredTensor*> by_offset;
  by_offset.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) by_offset.push_back(&tensor);
  std::sort(by_offset.begin(), by_offset.end(), [](const StoredTensor* a, const StoredTensor* b) {
    return std::pair(a->offset, a->bytes) < std::pair(b->offset, b->bytes);
  });
  uint64_t covered = 0;
  for (const StoredTensor* tensor : by_offset) {
    if (tensor->offset != covered) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", PrintableName(tensor->name),
                                                     "': expected it to begin at byte ", covered,
                                                     " of the data, where the one before ends, found ", tensor->offset,
                                                     tensor->offset < covered ? " (overlap)" : " (hole)"));
    }
    if (tensor->bytes > data_bytes - covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": tensor '", PrintableName(tensor->name), "': expected it to end within the ", data_bytes,
          " bytes of data, found its end at ", tensor->offset + tensor->bytes, " (is the file truncated?)"));
    }
    covered += tensor->bytes;
  }
  if (covered == data_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": expected ", covered, " bytes of data for its tensors, found ", data_bytes));
}

}  // namespace

const char* StoredTypeName(StoredType type) {
  switch (type) {
    case StoredType::kF32:
      return "F32";
    case StoredType::kBf16:
      return "BF16";
    case StoredType::kF16:
      break;
  }
  return "F16";
}

std::string PrintableName(const std::string& name) {
  constexpr size_t kShown = 120;
  std::string printable = absl::Utf8SafeCHexEscape(name.substr(0, kShown));
  if (name.size() > kShown) printable += "...";
  return printable;
}

absl::StatusOr<std::deque<StoredTensor>> ParseSafetensorsHeader(const std::string& file, std::string_view header,
                                                                uint64_t data_bytes) {
  HeaderReader reader;
  const bool parsed = nlohmann::json::sax_parse(header.begin(), header.end(), &reader);
  if (!parsed) return absl::InvalidArgumentError(absl::StrCat(file, ": ", reader.error));
  std::deque<StoredTensor>& tensors = reader.tensors;
  std::sort(tensors.begin(), tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  for (size_t i = 1; i < tensors.size(); ++i) {
    if (tensors[i].name != tensors[i - 1].name) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": tensor '", PrintableName(tensors[i].name), "': expected once, found twice"));
  }
  for (const StoredTensor& tensor : tensors) RETURN_IF_ERROR(CheckSize(file, tensor));
  RETURN_IF_ERROR(CheckCoverage(file, tensors, data_bytes));
  return std::move(tensors);
}

}  // namespace quicksilver
