#pragma once

#include <google/protobuf/repeated_field.h>

#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "coordinator/core/api_error.h"
#include "coordinator/core/decoding_choice.h"
#include "quicksilver/v1/inference.pb.h"

namespace quicksilver {

/// kDecodingFields in terms of the contract; found by name, so that a field is spelled once.
v1::Decoding ToProto(const DecodingChoice& choice);
/// The error names the field (`decoding.…`), its value and the bound.
std::variant<DecodingChoice, ApiError> FromProto(const v1::Decoding& proto);

/// Of a number of one of the contract's enumerations; empty: none of `names`.
std::string_view NameOf(std::span<const std::string_view> names, int number);
std::vector<std::string_view> PolicyNames(const google::protobuf::RepeatedField<int>& policies);

}  // namespace quicksilver
