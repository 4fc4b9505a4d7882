#include "common/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "common/exit_codes.h"

namespace quicksilver {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Parsed {
  int limit = 1;
  std::string model;
  std::vector<std::string> workers;
  std::optional<int> exit;
  std::string errors;
};

Parsed Parse(std::vector<const char*> arguments) {
  Parsed parsed;
  CLI::App app("test", "program");
  app.add_option("--queue-limit", parsed.limit)->check(CLI::Range(1, 10));
  app.add_option("--model", parsed.model)->required();
  app.add_option("--workers", parsed.workers);
  arguments.insert(arguments.begin(), "program");
  testing::internal::CaptureStderr();
  testing::internal::CaptureStdout();
  parsed.exit = ParseOptions(app, static_cast<int>(arguments.size()), arguments.data());
  testing::internal::GetCapturedStdout();
  parsed.errors = testing::internal::GetCapturedStderr();
  return parsed;
}

class OptionsTest : public testing::Test {
 protected:
  void TearDown() override {
    unsetenv("QUICKSILVER_QUEUE_LIMIT");
    unsetenv("QUICKSILVER_CONFIG");
  }

  std::string File(const std::string& text) {
    const std::string path = testing::TempDir() + "/options.yaml";
    std::ofstream(path) << text;
    return path;
  }
};

TEST_F(OptionsTest, FlagsWinOverEnvironmentOverFileOverDefault) {
  const std::string file = File("queue-limit: 3\nmodel: from-file\n");
  EXPECT_EQ(Parse({"--model=m"}).limit, 1);
  EXPECT_EQ(Parse({"--config", file.c_str()}).limit, 3);
  setenv("QUICKSILVER_QUEUE_LIMIT", "4", 1);
  EXPECT_EQ(Parse({"--config", file.c_str()}).limit, 4);
  EXPECT_EQ(Parse({"--config", file.c_str(), "--queue-limit", "5"}).limit, 5);
  EXPECT_EQ(Parse({"--config", file.c_str()}).model, "from-file");
}

TEST_F(OptionsTest, AFileMayHoldLists) {
  const std::string file = File("model: m\nworkers: [a:1, b:2]\n");
  EXPECT_THAT(Parse({"--config", file.c_str()}).workers, ElementsAre("a:1", "b:2"));
}

TEST_F(OptionsTest, TheFileMayBeNamedByTheEnvironment) {
  setenv("QUICKSILVER_CONFIG", File("model: m\nqueue-limit: 7\n").c_str(), 1);
  EXPECT_EQ(Parse({}).limit, 7);
}

TEST_F(OptionsTest, ABadValueNamesOptionValueAndSource) {
  Parsed parsed = Parse({"--model=m", "--queue-limit=11"});
  EXPECT_EQ(parsed.exit, kExitUsage);
  EXPECT_THAT(parsed.errors, AllOf(HasSubstr("--queue-limit"), HasSubstr("11")));

  const std::string file = File("model: m\nqueue-limit: 12\n");
  parsed = Parse({"--config", file.c_str()});
  EXPECT_EQ(parsed.exit, kExitUsage);
  EXPECT_THAT(parsed.errors, AllOf(HasSubstr("12"), HasSubstr(file + ":2")));

  setenv("QUICKSILVER_QUEUE_LIMIT", "many", 1);
  parsed = Parse({"--model=m"});
  EXPECT_EQ(parsed.exit, kExitUsage);
  EXPECT_THAT(parsed.errors, AllOf(HasSubstr("many"), HasSubstr("QUICKSILVER_QUEUE_LIMIT")));
}

TEST_F(OptionsTest, UnknownKeysAndUnreadableFilesAreRefusedWithTheirPlace) {
  const std::string file = File("model: m\nqueue_limit: 3\n");
  EXPECT_THAT(Parse({"--config", file.c_str()}).errors, AllOf(HasSubstr(file + ":2"), HasSubstr("queue_limit")));
  EXPECT_THAT(Parse({"--config", "/nonexistent.yaml"}).errors, HasSubstr("/nonexistent.yaml"));
  const std::string broken = File("model: [m\n");
  EXPECT_EQ(Parse({"--config", broken.c_str()}).exit, kExitUsage);
  EXPECT_EQ(Parse({"--model=m", "--no-such-option"}).exit, kExitUsage);
}

TEST_F(OptionsTest, AMissingRequiredOptionIsNamedAndHelpEndsWell) {
  const Parsed parsed = Parse({});
  EXPECT_EQ(parsed.exit, kExitUsage);
  EXPECT_THAT(parsed.errors, HasSubstr("--model"));
  EXPECT_EQ(Parse({"--help"}).exit, kExitOk);
  EXPECT_EQ(Parse({"--version"}).exit, kExitOk);
}

}  // namespace
}  // namespace quicksilver
