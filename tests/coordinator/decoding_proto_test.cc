#include "coordinator/service/decoding_proto.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <gtest/gtest.h>

#include <limits>
#include <set>

namespace quicksilver {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;

std::string Upper(std::string_view name) {
  std::string upper(name);
  for (char& c : upper) c = c == '_' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

// What the contract gets later cannot be forgotten here.
TEST(DecodingProtoTest, TheTableHasEveryFieldOfTheContractOnceAndOfItsKind) {
  std::set<std::string> named;
  for (const DecodingField& field : kDecodingFields) {
    SCOPED_TRACE(std::string(field.name));
    EXPECT_TRUE(named.insert(std::string(field.name)).second);
    const FieldDescriptor* found = v1::Decoding::descriptor()->FindFieldByName(std::string(field.name));
    ASSERT_NE(found, nullptr);
    const auto kind = found->cpp_type() == FieldDescriptor::CPPTYPE_ENUM     ? DecodingKind::kName
                      : found->cpp_type() == FieldDescriptor::CPPTYPE_UINT32 ? DecodingKind::kCount
                      : found->cpp_type() == FieldDescriptor::CPPTYPE_FLOAT  ? DecodingKind::kNumber
                                                                             : DecodingKind::kFlag;
    EXPECT_EQ(field.kind, kind);
    EXPECT_FALSE(field.help.empty());
    if (kind != DecodingKind::kName) continue;
    const EnumDescriptor& values = *found->enum_type();
    ASSERT_EQ(values.value_count(), static_cast<int>(field.names.size()) + 1);
    const std::string unspecified(values.value(0)->name());
    const std::string prefix = unspecified.substr(0, unspecified.rfind("UNSPECIFIED"));
    for (int i = 1; i < values.value_count(); ++i) {
      EXPECT_EQ(values.value(i)->number(), i);
      EXPECT_EQ(values.value(i)->name(), prefix + Upper(field.names[static_cast<size_t>(i - 1)]));
    }
  }
  EXPECT_EQ(named.size(), static_cast<size_t>(v1::Decoding::descriptor()->field_count()));
}

TEST(DecodingProtoTest, EveryFieldGoesThereAndBack) {
  DecodingChoice choice;
  for (size_t i = 0; i < kDecodingFieldCount; ++i) {
    const DecodingField& field = kDecodingFields[i];
    const bool name = field.kind == DecodingKind::kName;
    choice.Set(DecodingIndex(i),
               name ? static_cast<double>(field.names.size()) : BoundsOf(DecodingIndex(i), choice).max);
  }
  const v1::Decoding proto = ToProto(choice);
  EXPECT_EQ(proto.policy(), v1::POLICY_AUTOREGRESSIVE);
  EXPECT_EQ(proto.cache(), v1::CACHE_VICINITY);
  EXPECT_EQ(proto.post_steps_max(), 256u);
  EXPECT_EQ(proto.entropy_bound(), 1000.0f);
  EXPECT_TRUE(proto.finish_blocks());
  EXPECT_EQ(std::get<DecodingChoice>(FromProto(proto)), choice);
  EXPECT_EQ(ToProto({}).ByteSizeLong(), 0u);
  EXPECT_EQ(std::get<DecodingChoice>(FromProto({})), DecodingChoice());
}

TEST(DecodingProtoTest, ZeroIsAValueWhereTheContractTellsItFromNone) {
  v1::Decoding proto;
  proto.set_post_steps_max(0);
  proto.set_threshold(0);
  const DecodingChoice choice = std::get<DecodingChoice>(FromProto(proto));
  EXPECT_EQ(choice.Get("post_steps_max"), 0.0);
  EXPECT_EQ(choice.Get("threshold"), 0.0);
  EXPECT_EQ(choice.Get("remasking"), std::nullopt);
}

TEST(DecodingProtoTest, ValuesOutOfBoundsAreNamedWithTheBound) {
  const auto refusal = [](const v1::Decoding& proto) {
    const auto read = FromProto(proto);
    const auto* error = std::get_if<ApiError>(&read);
    return error == nullptr ? "" : error->param + ": " + error->message;
  };
  v1::Decoding proto;
  proto.set_post_steps_max(257);
  EXPECT_EQ(refusal(proto), "decoding.post_steps_max: decoding.post_steps_max is 257, not in [0, 256].");
  proto.Clear();
  proto.set_steps(0);
  EXPECT_EQ(refusal(proto), "decoding.steps: decoding.steps is 0, not in [1, 65536].");
  proto.Clear();
  proto.set_kl_threshold(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT(refusal(proto), testing::HasSubstr("decoding.kl_threshold is nan"));
  proto.Clear();
  proto.set_edit(static_cast<v1::Edit>(3));
  EXPECT_THAT(refusal(proto), testing::HasSubstr("decoding.edit is 3, not one of 1 (off) to 2 (threshold)"));
  proto.Clear();
  proto.set_threshold(2);
  EXPECT_EQ(refusal(proto), "") << "the worker knows the model's policy";
  proto.set_policy(v1::POLICY_THRESHOLD);
  EXPECT_THAT(refusal(proto), testing::HasSubstr("decoding.threshold is 2, not in [0, 1]"));
  proto.set_policy(v1::POLICY_MULTI_BLOCK);
  EXPECT_EQ(refusal(proto), "");
  proto.Clear();
  proto.set_confidence(v1::CONFIDENCE_ENTROPY);
  proto.set_threshold(0.5);
  EXPECT_THAT(refusal(proto), testing::HasSubstr("decoding.threshold is 0.5, not in [-20, 0]"));
}

}  // namespace
}  // namespace quicksilver
