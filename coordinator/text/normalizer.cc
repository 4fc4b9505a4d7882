#include "coordinator/text/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

constexpr int kSequenceDepthMax = 8;
constexpr size_t kFormsMax = 16;
constexpr size_t kTextBytesMax = 1 << 30;  // ICU counts in int32.

const icu::Normalizer2* FindForm(const std::string& type, UErrorCode& error) {
  if (type == "NFC") return icu::Normalizer2::getNFCInstance(error);
  if (type == "NFD") return icu::Normalizer2::getNFDInstance(error);
  if (type == "NFKC") return icu::Normalizer2::getNFKCInstance(error);
  if (type == "NFKD") return icu::Normalizer2::getNFKDInstance(error);
  return nullptr;
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::Parse(const nlohmann::json& spec) {
  Normalizer normalizer;
  RETURN_IF_ERROR(normalizer.Add(spec, 0));
  return normalizer;
}

absl::Status Normalizer::Add(const nlohmann::json& spec, int depth) {
  if (spec.is_null()) return absl::OkStatus();
  if (!spec.is_object() || !spec.contains("type") || !spec["type"].is_string()) {
    return absl::InvalidArgumentError("normalizer has no type");
  }
  const auto& type = spec["type"].get_ref<const std::string&>();
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return absl::InvalidArgumentError("normalizer sequences are nested too deep");
    if (!spec.contains("normalizers") || !spec["normalizers"].is_array()) {
      return absl::InvalidArgumentError("normalizer Sequence has no list of normalizers");
    }
    for (const auto& part : spec["normalizers"]) RETURN_IF_ERROR(Add(part, depth + 1));
    return absl::OkStatus();
  }
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* form = FindForm(type, error);
  if (U_FAILURE(error)) return absl::InternalError(absl::StrCat("ICU cannot load ", type, ": ", u_errorName(error)));
  if (form == nullptr) return absl::InvalidArgumentError(absl::StrCat("normalizer type ", type, " is not supported"));
  if (forms_.size() == kFormsMax) return absl::InvalidArgumentError("too many normalizers");
  forms_.push_back(form);
  return absl::OkStatus();
}

absl::StatusOr<std::string_view> Normalizer::Apply(std::string_view text, std::string& storage) const {
  if (text.size() > kTextBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat("a text of ", text.size(), " bytes is too long to normalize"));
  }
  for (const void* form_erased : forms_) {
    const auto* form = static_cast<const icu::Normalizer2*>(form_erased);
    const icu::StringPiece piece(text.data(), static_cast<int32_t>(text.size()));
    UErrorCode error = U_ZERO_ERROR;
    if (form->isNormalizedUTF8(piece, error) && U_SUCCESS(error)) continue;
    std::string normalized;
    icu::StringByteSink<std::string> sink(&normalized);
    error = U_ZERO_ERROR;
    form->normalizeUTF8(0, piece, sink, nullptr, error);
    if (U_FAILURE(error)) return absl::InternalError(absl::StrCat("ICU normalization failed: ", u_errorName(error)));
    storage = std::move(normalized);
    text = storage;
  }
  return text;
}

}  // namespace quicksilver
