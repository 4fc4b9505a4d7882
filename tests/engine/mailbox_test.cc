#include "worker/engine/mailbox.h"

#include "gtest/gtest.h"
#include "quicksilver/v1/group.pb.h"
#include "worker/collectives/gloo_control.h"

namespace quicksilver {
namespace {

constexpr int kSequences = 256;

// A storm of resumes: prompts are short, what was generated is long.
TEST(MailboxTest, TheTokensOfCheckpointsBoundAnEntryAsThoseOfPromptsDo) {
  constexpr int kTokens = 1 << 17;
  Mailbox mailbox(kSequences);
  v1::Submit submit;
  submit.add_prompt_ids(1);
  for (int i = 0; i < kTokens; ++i) submit.mutable_checkpoint()->add_tokens(150000);
  for (uint64_t id = 1; id <= kSequences; ++id) {
    submit.set_sequence_id(id);
    ASSERT_TRUE(mailbox.Submit(1, submit, 1).ok());
  }
  uint64_t next = 1;
  while (next <= kSequences) {
    const Inbox inbox = mailbox.Take(/*idle=*/false, absl::ZeroDuration());
    ASSERT_FALSE(inbox.submissions.empty());
    v1::LogEntry entry;
    for (const Submission& submission : inbox.submissions) {
      EXPECT_EQ(submission.submit.sequence_id(), next++);
      *entry.add_admissions()->mutable_submit() = submission.submit;
    }
    EXPECT_LE(entry.ByteSizeLong(), kControlMessageBytesMax);
  }
}

}  // namespace
}  // namespace quicksilver
