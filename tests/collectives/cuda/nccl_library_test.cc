#include "worker/collectives/cuda/nccl_library.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/fake_nccl/fake_nccl.h"

namespace quicksilver {
namespace {

using ::testing::HasSubstr;

// The stand-ins look for this in the program; nothing else here would link it.
[[maybe_unused]] auto* const volatile linked = &cudaLaunchHostFunc;

constexpr char kReal[] = REAL_NCCL;  // Empty where the build found none.

FakeNcclControl& Fake() {
  void* handle = dlopen(FAKE_NCCL, RTLD_NOW);
  return *reinterpret_cast<FakeNcclControl* (*)()>(dlsym(handle, "FakeNccl"))();
}

TEST(NcclLibraryTest, TheRealLibraryLoadsAndMakesUniqueIdsWithoutADevice) {
  if (kReal[0] == '\0') GTEST_SKIP() << "NCCL is not installed";
  const auto library = NcclLibrary::Load(kReal);
  ASSERT_TRUE(library.ok()) << library.status();
  EXPECT_GE((*library)->version(), NCCL_VERSION_CODE);
  EXPECT_THAT((*library)->version_text(), HasSubstr("2."));
  EXPECT_NE((*library)->get_last_error, nullptr);
  ncclUniqueId first = {}, second = {};
  EXPECT_EQ((*library)->get_unique_id(&first), ncclSuccess);
  EXPECT_EQ((*library)->get_unique_id(&second), ncclSuccess);
  EXPECT_NE(std::string(first.internal, sizeof(first)), std::string(second.internal, sizeof(second)));
}

// No device and no driver: an error of NCCL has to become one of ours, with its own words.
TEST(NcclLibraryTest, AnErrorOfTheRealLibraryNamesTheCall) {
  if (kReal[0] == '\0') GTEST_SKIP() << "NCCL is not installed";
  const auto library = NcclLibrary::Load(kReal);
  ASSERT_TRUE(library.ok()) << library.status();
  const absl::Status status = (*library)->ToStatus(ncclRemoteError, "ncclAllReduce");
  EXPECT_TRUE(absl::IsUnavailable(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("ncclAllReduce: remote process exited"));
}

TEST(NcclLibraryTest, AMissingLibraryIsNamed) {
  const auto library = NcclLibrary::Load("/nowhere/libnccl.so.2");
  EXPECT_TRUE(absl::IsNotFound(library.status())) << library.status();
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("/nowhere/libnccl.so.2"));
}

TEST(NcclLibraryTest, AFileThatIsNoLibraryIsNamed) {
  const auto library = NcclLibrary::Load("/proc/self/cmdline");
  EXPECT_TRUE(absl::IsNotFound(library.status())) << library.status();
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("/proc/self/cmdline"));
}

TEST(NcclLibraryTest, AMissingFunctionIsNamed) {
  const auto library = NcclLibrary::Load(INCOMPLETE_NCCL);
  EXPECT_TRUE(absl::IsNotFound(library.status())) << library.status();
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("has no function ncclCommAbort"));
  EXPECT_THAT(std::string(library.status().message()), HasSubstr(INCOMPLETE_NCCL));
}

TEST(NcclLibraryTest, AnOldLibraryIsRefusedWithBothVersions) {
  Fake().version = 21705;
  const auto library = NcclLibrary::Load(FAKE_NCCL);
  Fake().Reset();
  EXPECT_TRUE(absl::IsFailedPrecondition(library.status())) << library.status();
  EXPECT_THAT(std::string(library.status().message()), HasSubstr("version 2.17.5, at least 2.18.1"));
}

}  // namespace
}  // namespace quicksilver
