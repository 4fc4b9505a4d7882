#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "coordinator/frontend/grpc/grpc_server.h"
#include "coordinator/service/inference_service.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "quicksilver/v1/inference.grpc.pb.h"
#include "tests/coordinator/scripted_group.h"

namespace quicksilver {

struct Answer {
  std::vector<v1::GenerateEvent> events;
  std::string text;
  grpc::Status status;
  std::string request_id;  // Of the initial metadata.
};

// The whole coordinator behind its gRPC port, a scripted group behind it, a real client before it.
class GrpcFrontendTest : public testing::Test {
 protected:
  void SetUp() override {
    group_ = std::make_unique<ScriptedGroup>(DemoGroup(*text_));
    options_.cluster.discovery.sources = {*ParseWorkerSource("", group_->address())};
    metrics_ = std::make_unique<Metrics>("demo");
    options_.dispatcher.resume_wait = absl::Milliseconds(200);
    service_ = InferenceService::Create(options_, text_, *metrics_);
    auto server = GrpcServer::Start(server_options_, *service_, *metrics_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    channel_ = grpc::CreateChannel(Address(), grpc::InsecureChannelCredentials());
    stub_ = v1::Inference::NewStub(channel_);
    const absl::Time end = absl::Now() + absl::Seconds(10);
    while (service_->NotReady() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  }

  std::string Address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  static v1::GenerateRequest Ask() {
    v1::GenerateRequest request;
    request.set_model("demo");
    request.set_prompt("def f");
    return request;
  }

  std::vector<int32_t> Ids(const std::string& text) { return *text_->Encode(text, 1000); }

  Answer Generate(const v1::GenerateRequest& request, grpc::ClientContext& context) {
    Answer answer;
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateEvent event;
    while (reader->Read(&event)) {
      answer.text += event.delta().text();
      answer.events.push_back(event);
    }
    answer.status = reader->Finish();
    const auto id = context.GetServerInitialMetadata().find("x-request-id");
    if (id != context.GetServerInitialMetadata().end()) {
      answer.request_id = std::string(id->second.data(), id->second.size());
    }
    return answer;
  }

  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Generate(request, context);
  }

  void AnswerAll(const std::string& text) {
    group_->OnSubmit([this, text](const v1::Submit& submit) { group_->Send(WholeAnswer(submit, Ids(text))); });
  }

  std::shared_ptr<const TextModel> text_ = *TextModel::Load("models/demo");
  InferenceOptions options_;
  GrpcServerOptions server_options_{.listen = "127.0.0.1:0"};
  std::unique_ptr<ScriptedGroup> group_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<InferenceService> service_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

// Every detail of a failed call, by type.
struct Details {
  google::rpc::Status status;
  google::rpc::ErrorInfo info;
  google::rpc::RequestInfo request;
  google::rpc::BadRequest bad;
  google::rpc::RetryInfo retry;
  google::rpc::QuotaFailure quota;
};

inline Details DetailsOf(const grpc::Status& status) {
  Details details;
  EXPECT_TRUE(details.status.ParseFromString(status.error_details()));
  for (const auto& any : details.status.details()) {
    any.UnpackTo(&details.info) || any.UnpackTo(&details.request) || any.UnpackTo(&details.bad) ||
        any.UnpackTo(&details.retry) || any.UnpackTo(&details.quota);
  }
  return details;
}

}  // namespace quicksilver
