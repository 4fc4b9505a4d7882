// What a stream of gRPC carries beside text, and what becomes of clients that do not read it.
#include <gmock/gmock.h>

#include <thread>

#include "coordinator/frontend/client_canvas.h"
#include "tests/coordinator/grpc_frontend_fixture.h"

namespace quicksilver {
namespace {

using ::testing::SizeIs;

using GrpcStreamsTest = GrpcFrontendTest;

ClientCanvas CanvasOf(const Answer& answer) {
  ClientCanvas canvas;
  for (const v1::GenerateEvent& event : answer.events) {
    if (!event.has_frame()) continue;
    FrameEvent frame{.committed = event.frame().committed(), .extent = event.frame().extent()};
    for (const v1::Span& span : event.frame().spans()) {
      const SpanOp op = span.op() == v1::Span::OP_FINAL    ? SpanOp::kFinal
                        : span.op() == v1::Span::OP_COMMIT ? SpanOp::kCommit
                                                           : SpanOp::kReplace;
      frame.spans.push_back({op, span.first(), span.tokens(), span.text()});
    }
    canvas.Apply(frame);
  }
  return canvas;
}

TEST_F(GrpcStreamsTest, TheFramesOfAChoiceEndWithItsText) {
  AnswerAll("hello frames");
  v1::GenerateRequest request = Ask();
  request.set_canvases(true);
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  const ClientCanvas canvas = CanvasOf(answer);
  EXPECT_EQ(canvas.final_text(), "hello frames");
  EXPECT_EQ(canvas.Text("?"), "hello frames");
  ASSERT_TRUE(answer.events.back().has_finished()) << "frames come before the end of their choice";
}

TEST_F(GrpcStreamsTest, TermsOfTheRequestReachTheWorker) {
  AnswerAll("x");
  v1::GenerateRequest request = Ask();
  request.set_priority(v1::PRIORITY_BATCH);
  request.set_cache_key("key");
  request.set_latency_target_seconds(20);
  v1::Submit seen;
  group_->OnSubmit([&](const v1::Submit& submit) {
    seen = submit;
    v1::SequenceUpdate update = WholeAnswer(submit, Ids("x"), v1::SequenceEnd::REASON_DEADLINE);
    update.mutable_end()->set_cached_tokens(3);
    update.mutable_end()->set_paced_steps(2);
    group_->Send(update);
  });
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(seen.priority(), v1::PRIORITY_BATCH);
  EXPECT_EQ(seen.tenant(), "default");
  EXPECT_FALSE(seen.cache_salt().empty());
  EXPECT_GT(seen.target_micros(), 15'000'000u);
  const v1::Finished& finished = answer.events.back().finished();
  EXPECT_EQ(finished.cached_tokens(), 3u);
  EXPECT_EQ(finished.paced_steps(), 2u);
  EXPECT_TRUE(finished.deadline_reached());
}

TEST_F(GrpcStreamsTest, TermsOutsideTheirRangesAreNamed) {
  const auto field_of = [&](const v1::GenerateRequest& request) {
    const Answer answer = Generate(request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    const Details details = DetailsOf(answer.status);
    EXPECT_THAT(details.bad.field_violations(), SizeIs(1));
    return details.bad.field_violations_size() == 0 ? "" : details.bad.field_violations(0).field();
  };
  v1::GenerateRequest request = Ask();
  request.set_priority(static_cast<v1::Priority>(9));
  EXPECT_EQ(field_of(request), "priority");
  request = Ask();
  request.set_cache_key(std::string(257, 'k'));
  EXPECT_EQ(field_of(request), "cache_key");
  for (const double seconds : {-1.0, 601.0, 0.0001, std::numeric_limits<double>::quiet_NaN()}) {
    request = Ask();
    request.set_latency_target_seconds(seconds);
    EXPECT_EQ(field_of(request), "latency_target_seconds") << seconds;
  }
}

// reliability.md 34.
TEST_F(GrpcStreamsTest, StreamsWithTheSameIdNeverCross) {
  group_->OnSubmit([this](const v1::Submit& submit) {
    const std::vector<int32_t> ids(submit.prompt_ids().begin(), submit.prompt_ids().end());
    group_->Send(WholeAnswer(submit, ids));
  });
  std::vector<Answer> answers(8);
  std::vector<std::thread> clients;
  for (size_t i = 0; i < answers.size(); ++i) {
    clients.emplace_back([&, i] {
      grpc::ClientContext context;
      context.AddMetadata("x-request-id", "same");
      v1::GenerateRequest request = Ask();
      request.set_prompt("echo " + std::to_string(i));
      answers[i] = Generate(request, context);
    });
  }
  for (std::thread& client : clients) client.join();
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_TRUE(answers[i].status.ok()) << answers[i].status.error_message();
    EXPECT_EQ(answers[i].text, "echo " + std::to_string(i));
    EXPECT_EQ(answers[i].request_id, "same");
  }
}

class TenantsTest : public GrpcFrontendTest {
 protected:
  TenantsTest() {
    server_options_.tenant_header = "x-tenant";
    options_.dispatcher.tenants.tenants["limited"].requests_per_minute = 1;
  }
  Answer AskAs(const std::vector<std::string>& tenants) {
    grpc::ClientContext context;
    for (const std::string& tenant : tenants) context.AddMetadata("x-tenant", tenant);
    return Generate(Ask(), context);
  }
};

TEST_F(TenantsTest, TheTenantIsWhomTheProxyNames) {
  std::string tenant;
  group_->OnSubmit([&](const v1::Submit& submit) {
    tenant = submit.tenant();
    group_->Send(WholeAnswer(submit, Ids("x")));
  });
  EXPECT_TRUE(AskAs({"acme"}).status.ok());
  EXPECT_EQ(tenant, "acme");
  EXPECT_TRUE(AskAs({}).status.ok());
  EXPECT_EQ(tenant, "default");
  EXPECT_EQ(DetailsOf(AskAs({"a", "b"}).status).bad.field_violations(0).field(), "x-tenant");
}

TEST_F(TenantsTest, ATenantOverItsLimitIsToldWhenToComeBack) {
  AnswerAll("x");
  EXPECT_TRUE(AskAs({"limited"}).status.ok());
  const Answer answer = AskAs({"limited"});
  EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const Details details = DetailsOf(answer.status);
  EXPECT_EQ(details.info.reason(), "RATE_LIMIT_EXCEEDED");
  EXPECT_EQ(details.request.request_id(), answer.request_id);
  EXPECT_GE(details.retry.retry_delay().seconds(), 1);
  ASSERT_THAT(details.quota.violations(), SizeIs(1));
  EXPECT_EQ(details.quota.violations(0).subject(), "tenant:limited");
  EXPECT_TRUE(AskAs({"another"}).status.ok());
}

class SlowReaderTest : public GrpcFrontendTest {
 protected:
  SlowReaderTest() { server_options_.write_stall_timeout = absl::Milliseconds(300); }
};

TEST_F(SlowReaderTest, AClientThatReadsNothingIsCutOff) {
  // Flow control is per connection: a small window makes the server wait soon.
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 16384);
  const auto stub =
      v1::Inference::NewStub(grpc::CreateCustomChannel(Address(), grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  v1::GenerateRequest ask = Ask();
  ask.set_canvases(true);
  const auto reader = stub->Generate(&context, ask);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  const uint32_t begin = static_cast<uint32_t>(submit->prompt_ids_size());
  const absl::Time end = absl::Now() + absl::Seconds(10);
  const int32_t id = Ids("x")[0];
  for (uint32_t i = 0; metrics_->slow_client_disconnects.Value() < 1 && absl::Now() < end; ++i) {
    const uint32_t at = std::min(i, 450u);
    group_->Send(FinalTokens(*submit, {id}, begin + at, i + 1));
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(metrics_->slow_client_disconnects.Value(), 1);
  EXPECT_EQ(group_->NextCancel(), submit->sequence_id());
  v1::GenerateEvent event;
  while (reader->Read(&event)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

// Frames that wait for it are joined, nothing final is lost.
TEST_F(GrpcStreamsTest, AClientThatReadsLateHasTheExactCanvas) {
  grpc::ChannelArguments args;
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
  stub_ = v1::Inference::NewStub(grpc::CreateCustomChannel(Address(), grpc::InsecureChannelCredentials(), args));
  grpc::ClientContext context;
  v1::GenerateRequest ask = Ask();
  ask.set_canvases(true);
  const auto reader = stub_->Generate(&context, ask);
  const std::optional<v1::Submit> submit = group_->NextSubmit();
  ASSERT_TRUE(submit.has_value());
  const uint32_t begin = static_cast<uint32_t>(submit->prompt_ids_size());
  const std::vector<int32_t> ids(450, Ids("x")[0]);
  // Each step commits one token, the farthest first, and every eighth closes its block.
  uint32_t steps = 0;
  for (uint32_t block = 0; block < 55; ++block) {
    for (uint32_t i = 8; i-- > 0;) {
      v1::SequenceUpdate update = FinalTokens(*submit, {ids[0]}, begin + block * 8 + i, ++steps);
      update.set_final_before(begin + (i == 0 ? (block + 1) * 8 : block * 8));
      group_->Send(update);
    }
  }
  group_->Send(WholeAnswer(*submit, ids));
  ASSERT_TRUE(service_->WaitIdle(absl::Seconds(10)));
  Answer answer;
  for (v1::GenerateEvent event; reader->Read(&event);) {
    answer.text += event.delta().text();
    answer.events.push_back(event);
  }
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(answer.text, std::string(450, 'x'));
  EXPECT_EQ(CanvasOf(answer).Text("?"), answer.text);
  const auto frames =
      std::count_if(answer.events.begin(), answer.events.end(), [](const auto& e) { return e.has_frame(); });
  EXPECT_LT(frames, steps / 2);
}

}  // namespace
}  // namespace quicksilver
