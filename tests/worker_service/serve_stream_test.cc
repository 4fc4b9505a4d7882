#include "worker/service/serve_stream.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "quicksilver/v1/worker.grpc.pb.h"

namespace quicksilver {
namespace {

v1::WorkerMessage StepOf(uint64_t sequence, size_t bytes) {
  v1::WorkerMessage message;
  v1::SequenceUpdate& update = *message.mutable_step()->add_updates();
  update.set_sequence_id(sequence);
  update.mutable_end()->set_error_message(std::string(bytes, 'x'));
  return message;
}

// Streams on a real server; what they ask of the engine is written down.
class StreamServer : public v1::Worker::CallbackService, public ServeHandler {
 public:
  StreamServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<v1::Worker::CallbackService*>(this));
    server_ = builder.BuildAndStart();
  }
  ~StreamServer() override {
    server_->Shutdown(absl::ToChronoTime(absl::Now()));
    server_->Wait();
    server_.reset();
  }

  grpc::ServerBidiReactor<v1::CoordinatorMessage, v1::WorkerMessage>* Serve(
      grpc::CallbackServerContext* context) override {
    MutexLock lock(mutex_);
    stream_ = std::make_shared<ServeStream>(1, *context, *this);
    stream_->Begin();
    return stream_.get();
  }
  v1::GroupInfo Info() const override { return {}; }
  v1::Heartbeat Beat() override { return {}; }
  v1::SequenceUpdate OnSubmit(uint64_t, const v1::Submit&) override { return {}; }
  void OnCancel(uint64_t, uint64_t) override {}
  void OnClosed(uint64_t) override {
    std::shared_ptr<ServeStream> last;
    MutexLock lock(mutex_);
    last = std::move(stream_);
    ++closed_;
  }

  std::shared_ptr<ServeStream> stream() {
    MutexLock lock(mutex_);
    return stream_;
  }
  bool AwaitClosed(absl::Duration bound) {
    for (const absl::Time end = absl::Now() + bound; absl::Now() < end; absl::SleepFor(absl::Milliseconds(5))) {
      MutexLock lock(mutex_);
      if (closed_ == 1) return true;
    }
    return false;
  }
  std::unique_ptr<v1::Worker::Stub> Dial() const {
    return v1::Worker::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port_), grpc::InsecureChannelCredentials()));
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  Mutex mutex_;
  std::shared_ptr<ServeStream> stream_ GUARDED_BY(mutex_);
  int closed_ GUARDED_BY(mutex_) = 0;
};

class ServeStreamTest : public ::testing::Test {
 protected:
  // Says hello and reads the two messages that answer it.
  ServeStreamTest() {
    context_.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(60)));
    call_ = stub_->Serve(&context_);
    v1::CoordinatorMessage hello;
    hello.mutable_hello();
    call_->Write(hello);
    v1::WorkerMessage message;
    EXPECT_TRUE(call_->Read(&message) && message.has_info());
    EXPECT_TRUE(call_->Read(&message) && message.has_heartbeat());
  }

  StreamServer server_;
  std::unique_ptr<v1::Worker::Stub> stub_ = server_.Dial();
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::CoordinatorMessage, v1::WorkerMessage>> call_;
};

TEST_F(ServeStreamTest, MessagesOfManyThreadsArriveOnceAndThoseOfOneThreadInOrder) {
  constexpr uint64_t kThreads = 3, kEach = 400;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kEach; ++i) server_.stream()->Push(StepOf(t * kEach + i, 100));
    });
  }
  std::vector<uint64_t> next(kThreads, 0);
  for (uint64_t i = 0; i < kThreads * kEach; ++i) {
    v1::WorkerMessage message;
    ASSERT_TRUE(call_->Read(&message));
    const uint64_t id = message.step().updates(0).sequence_id();
    EXPECT_EQ(id % kEach, next[id / kEach]++);
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(ServeStreamTest, ACoordinatorThatDoesNotReadLosesItsStreamWithoutHoldingUpTheEngine) {
  const std::shared_ptr<ServeStream> stream = server_.stream();
  const absl::Time start = absl::Now();
  // Twice the bound, after what the connection's flow control takes.
  for (size_t sent = 0; sent < 3 * kStreamBytesMax; sent += 1 << 20) stream->Push(StepOf(1, 1 << 20));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(server_.AwaitClosed(absl::Seconds(10)));
}

TEST_F(ServeStreamTest, CloseSendsWhatIsQueuedFirst) {
  for (uint64_t i = 0; i < 50; ++i) server_.stream()->Push(StepOf(i, 1000));
  server_.stream()->Close({grpc::StatusCode::UNAVAILABLE, "the group is shutting down"});
  v1::WorkerMessage message;
  uint64_t read = 0;
  while (call_->Read(&message)) EXPECT_EQ(message.step().updates(0).sequence_id(), read++);
  EXPECT_EQ(read, 50u);
  EXPECT_EQ(call_->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(server_.AwaitClosed(absl::Seconds(10)));
}

TEST_F(ServeStreamTest, OneUnsentHeartbeatIsEnough) {
  const std::shared_ptr<ServeStream> stream = server_.stream();
  // More than the window takes, so that the heartbeats behind it wait.
  for (int i = 0; i < 10; ++i) stream->Push(StepOf(1, 1 << 20));
  for (int i = 0; i < 100; ++i) stream->PushBeat({});
  stream->Close(grpc::Status::OK);
  v1::WorkerMessage message;
  int beats = 0;
  while (call_->Read(&message)) beats += message.has_heartbeat() ? 1 : 0;
  EXPECT_EQ(beats, 1);
}

TEST_F(ServeStreamTest, ASecondHelloIsAnError) {
  v1::CoordinatorMessage hello;
  hello.mutable_hello();
  call_->Write(hello);
  v1::WorkerMessage message;
  EXPECT_FALSE(call_->Read(&message));
  EXPECT_EQ(call_->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(server_.AwaitClosed(absl::Seconds(10)));
}

}  // namespace
}  // namespace quicksilver
