#include "common/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <new>
#include <string>

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

TEST(LogTest, ALineIsOneJsonObjectWithTimeLevelComponentAndFields) {
  ASSERT_TRUE(InitLog("worker", "info"));
  testing::internal::CaptureStderr();
  LogWarning("group lost", {{"group", "a\"b"}, {"epoch", 7}, {"seconds", 0.5}, {"ready", false}});
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_THAT(line, MatchesRegex("\\{\"ts\":\"[0-9-]+T[0-9:.]+Z\",\"level\":\"warning\",.*\\}\n"));
  EXPECT_THAT(line, AllOf(HasSubstr("\"component\":\"worker\""), HasSubstr("\"msg\":\"group lost\""),
                          HasSubstr("\"group\":\"a\\\"b\""), HasSubstr("\"epoch\":7,\"seconds\":0.5,\"ready\":false")));
}

TEST(LogTest, LinesBelowTheLevelAreNotWritten) {
  ASSERT_TRUE(InitLog("worker", "error"));
  testing::internal::CaptureStderr();
  LogWarning("quiet");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  EXPECT_FALSE(InitLog("worker", "loud"));
  ASSERT_TRUE(InitLog("worker", "info"));
}

/// What is written to stderr until the end of the scope goes to `ends`, where nobody but Read() takes it.
class StderrTo {
 public:
  using Ends = std::array<int, 2>;  ///< For reading and for writing.

  explicit StderrTo(Ends ends) : ends_(ends), saved_(dup(STDERR_FILENO)) {
    fcntl(ends_[0], F_SETFL, O_NONBLOCK);
    dup2(ends_[1], STDERR_FILENO);
  }
  ~StderrTo() {
    dup2(saved_, STDERR_FILENO);
    for (const int descriptor : {saved_, ends_[0], ends_[1]}) close(descriptor);
  }
  /// What is there now, `bytes_max` at most.
  std::string Read(size_t bytes_max = 1 << 16) {
    std::string text(bytes_max, '\0');
    const ssize_t got = read(ends_[0], text.data(), text.size());
    text.resize(got < 0 ? 0 : static_cast<size_t>(got));
    return text;
  }

 private:
  const Ends ends_;
  const int saved_;
};

StderrTo::Ends PipeOfAPage() {
  StderrTo::Ends ends;
  EXPECT_EQ(pipe(ends.data()), 0);
  EXPECT_GT(fcntl(ends[1], F_SETPIPE_SZ, 4096), 0);
  return ends;
}

StderrTo::Ends Socket() {
  StderrTo::Ends ends;
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
  return ends;
}

StderrTo::Ends Terminal() {
  StderrTo::Ends ends;
  ends[0] = posix_openpt(O_RDWR | O_NOCTTY);
  EXPECT_TRUE(grantpt(ends[0]) == 0 && unlockpt(ends[0]) == 0);
  ends[1] = open(ptsname(ends[0]), O_RDWR | O_NOCTTY);
  EXPECT_GE(ends[1], 0);
  return ends;
}

int64_t Lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

// A reader of our log that stands still must not stop us.
TEST(LogTest, LinesThatNobodyTakesAreDroppedAndCountedAndTheNextOneSaysSo) {
  ASSERT_TRUE(InitLog("worker", "info"));
  StderrTo pipe(PipeOfAPage());
  const uint64_t before = LogLinesDropped();
  for (int i = 0; i < 100; ++i) LogInfo("a line that is rather long", {{"number", i}});
  const uint64_t dropped = LogLinesDropped() - before;
  const std::string text = pipe.Read();
  EXPECT_GT(Lines(text), 0);
  EXPECT_EQ(static_cast<uint64_t>(Lines(text)) + dropped, 100u);
  LogInfo("again");
  EXPECT_THAT(pipe.Read(), HasSubstr("\"msg\":\"again\",\"lines_dropped\":" + std::to_string(dropped) + "}"));
  LogInfo("and again");
  EXPECT_THAT(pipe.Read(), HasSubstr("\"msg\":\"and again\"}"));
}

TEST(LogTest, NeitherASocketNorATerminalThatNobodyReadsStopsUs) {
  ASSERT_TRUE(InitLog("worker", "info"));
  for (const StderrTo::Ends& ends : {Socket(), Terminal()}) {
    StderrTo nobody(ends);
    const uint64_t before = LogLinesDropped();
    for (int i = 0; i < 5000; ++i) LogInfo("a line that is rather long", {{"number", i}});
    EXPECT_GT(LogLinesDropped() - before, 100u);
    EXPECT_GT(Lines(nobody.Read()), 10);
  }
}

// Longer than what a pipe that is ready takes without waiting.
TEST(LogTest, ALineOfWhichAPartIsTakenIsCountedAndTheNextOneIsWhole) {
  ASSERT_TRUE(InitLog("worker", "info"));
  StderrTo pipe(PipeOfAPage());
  const uint64_t before = LogLinesDropped();
  LogInfo("long", {{"text", std::string(10'000, 'x')}});
  LogInfo("lost");
  EXPECT_EQ(LogLinesDropped() - before, 2u);
  EXPECT_THAT(pipe.Read(), HasSubstr("xxx"));
  LogInfo("next");
  EXPECT_THAT(pipe.Read(), MatchesRegex("\n\\{.*\"msg\":\"next\",\"lines_dropped\":[0-9]+\\}\n"));
}

// Each may find room and lose it to the other before it writes: of two such lines one fits.
TEST(LogTest, OfTwoProcessesThatShareAPipeNeitherWaits) {
  ASSERT_TRUE(InitLog("worker", "info"));
  constexpr int kRounds = 3000;
  StderrTo shared(PipeOfAPage());
  void* const memory =
      mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  std::atomic<int>& arrived = *new (memory) std::atomic<int>(0);
  const auto meet = [&arrived, met = 0]() mutable {
    ++arrived;
    for (met += 2; arrived < met;) sched_yield();
  };
  std::array<pid_t, 2> children;
  for (pid_t& child : children) {
    child = fork();
    if (child != 0) continue;
    alarm(20);
    auto wait = meet;
    for (int i = 0; i < kRounds; ++i) {
      wait();
      LogInfo("long", {{"text", std::string(3000, 'x')}});
      wait();
      if (&child == &children[0]) shared.Read();
    }
    _exit(0);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status) << ": one has waited for a reader";
  }
  munmap(memory, sizeof(arrived));
}

TEST(JsonQuotedTest, EscapesControlsAndReplacesWhatIsNotUtf8) {
  EXPECT_EQ(JsonQuoted("a\n\x01\\\""), "\"a\\u000a\\u0001\\\\\\\"\"");
  EXPECT_EQ(JsonQuoted("سلام 😀"), "\"سلام 😀\"");
  EXPECT_EQ(JsonQuoted("x\xC3"), "\"x\xEF\xBF\xBD\"");
  EXPECT_EQ(JsonQuoted("\xED\xA0\x80"), "\"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"");  // A surrogate.
}

}  // namespace
}  // namespace quicksilver
