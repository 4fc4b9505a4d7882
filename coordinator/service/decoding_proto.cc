#include "coordinator/service/decoding_proto.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace quicksilver {
namespace {

using google::protobuf::FieldDescriptor;

const FieldDescriptor& Descriptor(const DecodingField& field) {
  const FieldDescriptor* found = v1::Decoding::descriptor()->FindFieldByName(std::string(field.name));
  CHECK(found != nullptr);
  return *found;
}

void Put(const FieldDescriptor& field, double value, v1::Decoding& proto) {
  const google::protobuf::Reflection& reflection = *v1::Decoding::GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.SetEnumValue(&proto, &field, static_cast<int>(value));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.SetBool(&proto, &field, value != 0);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.SetUInt32(&proto, &field, static_cast<uint32_t>(value));
    default:
      return reflection.SetFloat(&proto, &field, static_cast<float>(value));
  }
}

// Nothing when the field is not given.
std::optional<double> Take(const FieldDescriptor& field, const v1::Decoding& proto) {
  const google::protobuf::Reflection& reflection = *v1::Decoding::GetReflection();
  // Fields without presence are given when they are not zero.
  if (!reflection.HasField(proto, &field)) return std::nullopt;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection.GetEnumValue(proto, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(proto, &field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(proto, &field);
    default:
      return reflection.GetFloat(proto, &field);
  }
}

}  // namespace

v1::Decoding ToProto(const DecodingChoice& choice) {
  v1::Decoding proto;
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    const std::optional<double> value = choice.Get(DecodingIndex(i));
    if (value) Put(Descriptor(kDecodingFields[i]), *value, proto);
  }
  return proto;
}

std::variant<DecodingChoice, ApiError> FromProto(const v1::Decoding& proto) {
  DecodingChoice choice;
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    const DecodingField& field = kDecodingFields[i];
    const std::optional<double> value = Take(Descriptor(field), proto);
    if (!value) continue;
    const std::string path = "decoding." + std::string(field.name);
    if (field.kind == DecodingKind::kName) {
      if (*value < 1 || *value > static_cast<double>(field.names.size())) {
        return InvalidRequest("invalid_value", path,
                              absl::StrCat(path, " is ", *value, ", not one of 1 (", std::string(field.names.front()),
                                           ") to ", field.names.size(), " (", std::string(field.names.back()), ")."));
      }
    } else if (const auto [min, max] = BoundsOf(DecodingIndex(i), choice); !(*value >= min && *value <= max)) {
      return InvalidRequest("invalid_value", path,
                            absl::StrCat(path, " is ", *value, ", not in [", min, ", ", max, "]."));
    }
    choice.Set(DecodingIndex(i), *value);
  }
  return choice;
}

std::string_view NameOf(std::span<const std::string_view> names, int number) {
  return number >= 1 && static_cast<size_t>(number) <= names.size() ? names[static_cast<size_t>(number - 1)]
                                                                    : std::string_view();
}

std::vector<std::string_view> PolicyNames(const google::protobuf::RepeatedField<int>& policies) {
  std::vector<std::string_view> names;
  for (const int policy : policies) {
    if (const std::string_view name = NameOf(kPolicyNames, policy); !name.empty()) names.push_back(name);
  }
  return names;
}

}  // namespace quicksilver
