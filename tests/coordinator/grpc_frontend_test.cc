#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "tests/coordinator/grpc_frontend_fixture.h"
#include "tests/coordinator/health.grpc.pb.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::SizeIs;

namespace health = grpc::health::v1;

TEST_F(GrpcFrontendTest, StreamsStartedDeltasAndFinished) {
  AnswerAll("hello");
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "mine-1");
  const Answer answer = Generate(Ask(), context);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.text, "hello");
  EXPECT_EQ(answer.request_id, "mine-1");
  EXPECT_EQ(answer.events.front().started().request_id(), "mine-1");
  EXPECT_EQ(answer.events.front().started().system_fingerprint(), "fp_0123456789");
  EXPECT_EQ(answer.events.back().finished().reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(answer.events.back().finished().completion_tokens(), Ids("hello").size());
  EXPECT_GT(answer.events.back().finished().tokens_per_forward(), 0);
}

// The last event and the end of the stream race with the writes before them.
TEST_F(GrpcFrontendTest, EveryStreamCarriesItsLastEvent) {
  AnswerAll("hello");
  v1::GenerateRequest request = Ask();
  request.set_canvases(true);
  request.set_choices(2);
  for (int i = 0; i < 100; ++i) {
    const Answer answer = Generate(request);
    ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
    ASSERT_TRUE(answer.events.back().has_finished()) << answer.events.back().ShortDebugString();
    ASSERT_EQ(std::count_if(answer.events.begin(), answer.events.end(), [](const auto& e) { return e.has_finished(); }),
              2);
  }
}

TEST_F(GrpcFrontendTest, AnInvalidRequestIdIsReplaced) {
  AnswerAll("x");
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "no spaces allowed");
  const Answer answer = Generate(Ask(), context);
  EXPECT_TRUE(answer.status.ok());
  EXPECT_THAT(answer.request_id, HasSubstr("req-"));
}

class GrpcRefusalTest : public GrpcFrontendTest {
 protected:
  // Reason and field of a request's refusal.
  std::string FieldOf(const v1::GenerateRequest& request) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const Details details = DetailsOf(answer.status);
    EXPECT_EQ(details.status.code(), answer.status.error_code());
    EXPECT_EQ(details.status.message(), answer.status.error_message());
    EXPECT_EQ(details.info.domain(), "quicksilver.v1.Inference");
    EXPECT_EQ(details.request.request_id(), answer.request_id);
    EXPECT_THAT(details.bad.field_violations(), SizeIs(1));
    return details.bad.field_violations_size() == 0
               ? ""
               : details.info.reason() + " " + details.bad.field_violations(0).field();
  }
};

TEST_F(GrpcRefusalTest, InvalidArgumentsNameTheFieldInTheStatusDetails) {
  v1::GenerateRequest request = Ask();
  request.mutable_sampling()->set_temperature(2.5f);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.temperature");
  request = Ask();
  request.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.temperature");
  request = Ask();
  request.mutable_sampling()->set_top_p(0);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.top_p");
  request = Ask();
  request.set_max_tokens(0);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE max_tokens");
  request = Ask();
  request.set_choices(9);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE choices");
  request = Ask();
  request.add_stop("");
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE stop[0]");
  request = Ask();
  for (int i = 0; i < 5; ++i) request.add_stop("s");
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE stop");
  request = Ask();
  request.mutable_chat();
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE chat.messages");
  request.mutable_chat()->add_messages()->set_role("nobody");
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE chat.messages[0].role");
  request = Ask();
  request.clear_input();
  EXPECT_EQ(FieldOf(request), "MISSING_REQUIRED_PARAMETER input");
  request = Ask();
  request.clear_model();
  EXPECT_EQ(FieldOf(request), "MISSING_REQUIRED_PARAMETER model");
  request = Ask();
  request.mutable_decoding()->set_threshold(-0.1f);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE decoding.threshold");
  request = Ask();
  request.mutable_decoding()->set_policy(static_cast<v1::Policy>(99));
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE decoding.policy");
  request = Ask();
  request.set_max_tokens(100000);
  EXPECT_EQ(FieldOf(request), "CONTEXT_LENGTH_EXCEEDED prompt");
}

TEST_F(GrpcRefusalTest, WhatAModelCannotDoIsNamedToo) {
  v1::GenerateRequest request = Ask();
  request.mutable_decoding()->set_policy(v1::POLICY_WINO);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE decoding.policy");
  request = Ask();
  request.mutable_decoding()->set_expansion(257);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE decoding.expansion");
  request = Ask();
  (*request.mutable_sampling()->mutable_logit_bias())[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.logit_bias.5");
  request = Ask();
  (*request.mutable_sampling()->mutable_logit_bias())[-5] = 1;
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.logit_bias.-5");
  request = Ask();
  request.mutable_sampling()->set_presence_penalty(2.5f);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.presence_penalty");
  request = Ask();
  request.mutable_sampling()->mutable_forbidden_ids()->Resize(1025, 1);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.forbidden_ids");
  request = Ask();
  request.mutable_sampling()->set_top_log_probabilities(21);
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE sampling.top_log_probabilities");
  request = Ask();
  request.mutable_infill()->set_suffix("tail");
  EXPECT_EQ(FieldOf(request), "UNSUPPORTED_PARAMETER infill.suffix");
  request = Ask();
  request.mutable_infill()->add_fixed_ids(text_->FindSpecial("<|MASK|>"));
  EXPECT_EQ(FieldOf(request), "INVALID_VALUE infill.fixed_ids[0]");
}

TEST_F(GrpcFrontendTest, CodesFollowTheTable) {
  v1::GenerateRequest request = Ask();
  request.set_model("unheard-of");
  Answer answer = Generate(request);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(answer.status).info.reason(), "MODEL_NOT_FOUND");

  group_.reset();
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (!service_->NotReady() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  answer = Generate(Ask());
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const Details details = DetailsOf(answer.status);
  EXPECT_EQ(details.info.reason(), "NO_READY_WORKER");
  EXPECT_GE(details.retry.retry_delay().seconds(), 1);
}

TEST_F(GrpcFrontendTest, ALostGroupAbortsTheStreamBehindItsText) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Ask());
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  group_->Send(FinalTokens(*submit, Ids("half"), static_cast<uint32_t>(submit->prompt_ids_size()), 1));
  std::string text;
  v1::GenerateEvent event;
  while (text.empty() && reader->Read(&event)) text += event.delta().text();
  group_.reset();
  while (reader->Read(&event)) text += event.delta().text();
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(text, "half");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(DetailsOf(status).info.reason(), "WORKER_LOST");
}

TEST_F(GrpcFrontendTest, AClientThatCancelsFreesItsSequence) {
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, Ask());
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(group_->NextCancel(), submit->sequence_id());
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  EXPECT_EQ(metrics_->requests_running.Value(), 0);
  const absl::Time end = absl::Now() + absl::Seconds(10);
  while (metrics_->client_disconnects.Value() < 1 && absl::Now() < end) absl::SleepFor(absl::Milliseconds(2));
  EXPECT_EQ(metrics_->client_disconnects.Value(), 1);
}

TEST_F(GrpcFrontendTest, TheClientsDeadlineFreesItsSequence) {
  grpc::ClientContext context;
  const absl::Time start = absl::Now();
  context.set_deadline(absl::ToChronoTime(start + absl::Milliseconds(300)));
  const Answer answer = Generate(Ask(), context);
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_EQ(group_->NextCancel(), submit->sequence_id());
  EXPECT_TRUE(service_->WaitIdle(absl::Seconds(10)));
}

TEST_F(GrpcFrontendTest, AMessageBeyondTheLimitIsRefusedAndTheServerLives) {
  v1::GenerateRequest request = Ask();
  request.set_prompt(std::string(17 << 20, 'x'));
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  AnswerAll("still here");
  EXPECT_EQ(Generate(Ask()).text, "still here");
}

TEST_F(GrpcFrontendTest, WhatIsAskedReachesTheWorkerAndWhatItSaysComesBack) {
  v1::GenerateRequest request = Ask();
  v1::Sampling& sampling = *request.mutable_sampling();
  sampling.set_top_log_probabilities(1);
  sampling.add_forbidden_ids(7);
  (*sampling.mutable_logit_bias())[4] = 2.0f;
  sampling.set_frequency_penalty(0.5f);
  request.mutable_decoding()->set_policy(v1::POLICY_DYNAMIC);
  request.mutable_decoding()->set_profile(v1::PROFILE_FAST);
  request.mutable_decoding()->set_post_steps_max(0);
  request.mutable_infill()->set_draft_text("ok");
  v1::Submit seen;
  group_->OnSubmit([&](const v1::Submit& submit) {
    seen = submit;
    v1::SequenceUpdate update = WholeAnswer(submit, Ids("ok"));
    for (v1::Commit& commit : *update.mutable_commits()) {
      commit.set_log_probability(-0.5f);
      v1::TopToken& top = *commit.add_top();
      top.set_id(commit.token());
      top.set_log_probability(-0.5f);
    }
    update.set_policy(v1::POLICY_DYNAMIC);
    update.set_cache(v1::CACHE_NONE);
    group_->Send(update);
  });
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(seen.decoding().profile(), v1::PROFILE_FAST);
  EXPECT_TRUE(seen.decoding().has_post_steps_max());
  EXPECT_EQ(seen.sampling().biases_size(), 2);
  EXPECT_EQ(seen.sampling().frequency_penalty(), 0.5f);
  EXPECT_EQ(seen.draft_ids_size(), static_cast<int>(Ids("ok").size()));
  std::string bytes;
  for (const v1::GenerateEvent& event : answer.events) {
    for (const v1::TokenLogProbability& token : event.delta().tokens()) {
      bytes += token.text();
      EXPECT_EQ(token.log_probability(), -0.5f);
      ASSERT_THAT(token.top(), SizeIs(1));
      EXPECT_EQ(token.top(0).id(), token.id());
    }
  }
  EXPECT_EQ(bytes, "ok");
  EXPECT_EQ(answer.events.back().finished().policy(), v1::POLICY_DYNAMIC);
  EXPECT_EQ(answer.events.back().finished().cache(), v1::CACHE_NONE);
}

TEST_F(GrpcFrontendTest, ListsTheModels) {
  grpc::ClientContext context;
  v1::ListModelsReply reply;
  ASSERT_TRUE(stub_->ListModels(&context, {}, &reply).ok());
  ASSERT_THAT(reply.models(), SizeIs(1));
  EXPECT_EQ(reply.models(0).id(), "demo");
  EXPECT_EQ(reply.models(0).family(), "sdar");
  EXPECT_THAT(reply.models(0).policies(), testing::ElementsAre(v1::POLICY_STATIC, v1::POLICY_DYNAMIC));
  EXPECT_FALSE(reply.models(0).infill());
  EXPECT_TRUE(reply.models(0).ready());
}

TEST_F(GrpcFrontendTest, HealthFollowsReadiness) {
  const auto stub = health::Health::NewStub(channel_);
  const auto check = [&](const std::string& service) {
    grpc::ClientContext context;
    health::HealthCheckRequest request;
    request.set_service(service);
    health::HealthCheckResponse reply;
    const grpc::Status status = stub->Check(&context, request, &reply);
    return status.ok() ? static_cast<int>(reply.status()) : -static_cast<int>(status.error_code());
  };
  server_->UpdateHealth();
  EXPECT_EQ(check(""), health::HealthCheckResponse::SERVING);
  EXPECT_EQ(check("readiness"), health::HealthCheckResponse::SERVING);
  EXPECT_EQ(check("unheard-of"), -static_cast<int>(grpc::StatusCode::NOT_FOUND));

  grpc::ClientContext context;
  health::HealthCheckRequest request;
  request.set_service("readiness");
  const auto watch = stub->Watch(&context, request);
  health::HealthCheckResponse reply;
  ASSERT_TRUE(watch->Read(&reply));
  EXPECT_EQ(reply.status(), health::HealthCheckResponse::SERVING);
  group_.reset();
  ASSERT_TRUE(watch->Read(&reply));
  EXPECT_EQ(reply.status(), health::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(check(""), health::HealthCheckResponse::NOT_SERVING);
  EXPECT_EQ(check("liveness"), health::HealthCheckResponse::SERVING);
  context.TryCancel();
  watch->Finish();
}

TEST_F(GrpcFrontendTest, AnAddressInUseIsNamed) {
  const auto second = GrpcServer::Start({.listen = Address()}, *service_, *metrics_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(Address()));
}

}  // namespace
}  // namespace quicksilver
