#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/marked_text.h"
#include "coordinator/text/text.h"

namespace quicksilver {

/// A model's chat template, rendered as the transformers library renders it, with add_generation_prompt on and no
/// tools. Immutable, thread-safe.
class ChatTemplate {
 public:
  /// `variables`: bos_token and the like, for the template to print; literal. InvalidArgument names the line of what is
  /// not supported.
  static absl::StatusOr<ChatTemplate> Parse(std::string_view source,
                                            std::vector<std::pair<std::string, std::string>> variables);

  /// The messages' contents and names come out marked as content, and so do roles but the few that chat formats know.
  /// InvalidArgument: the template raised, or has no meaning for these messages. ResourceExhausted: it does too much.
  absl::StatusOr<MarkedText> Render(const std::vector<TemplateMessage>& messages) const;

 private:
  struct Program;
  explicit ChatTemplate(std::shared_ptr<const Program> program) : program_(std::move(program)) {}

  std::shared_ptr<const Program> program_;
};

}  // namespace quicksilver
