#include "coordinator/text/chat_template.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_evaluator.h"
#include "coordinator/text/jinja_parser.h"
#include "coordinator/text/utf8.h"

namespace quicksilver {
namespace {

constexpr size_t kSourceBytesMax = 1 << 20;
// Bytes touched, a step of the evaluator counted as some; about a second.
constexpr size_t kWorkMax = size_t{1} << 30;

// Templates may build a special token around a role ("<|" ~ role ~ "|>"), which is safe for these.
bool IsKnownRole(const std::string& role) {
  static constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool", "function"};
  return std::find(std::begin(kRoles), std::end(kRoles), role) != std::end(kRoles);
}

}  // namespace

struct ChatTemplate::Program {
  jinja::Body body;
  jinja::Dict variables;
};

absl::StatusOr<ChatTemplate> ChatTemplate::Parse(std::string_view source,
                                                 std::vector<std::pair<std::string, std::string>> variables) {
  if (source.size() > kSourceBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a template of ", source.size(), " bytes is longer than ", kSourceBytesMax));
  }
  if (!IsValidUtf8(source)) return absl::InvalidArgumentError("the template is not valid UTF-8");
  auto program = std::make_shared<Program>();
  ASSIGN_OR_RETURN(program->body, jinja::Parse(source));
  for (auto& [name, text] : variables) program->variables.emplace_back(name, jinja::Value::Literal(text));
  program->variables.emplace_back("add_generation_prompt", jinja::Value(true));
  return ChatTemplate(std::move(program));
}

absl::StatusOr<MarkedText> ChatTemplate::Render(const std::vector<TemplateMessage>& messages) const {
  jinja::List list;
  for (const TemplateMessage& message : messages) {
    if (!IsValidUtf8(message.role) || !IsValidUtf8(message.content) || !IsValidUtf8(message.name)) {
      return absl::InvalidArgumentError("a message is not valid UTF-8");
    }
    jinja::Dict dict;
    dict.emplace_back("role", IsKnownRole(message.role) ? jinja::Value::Literal(message.role)
                                                        : jinja::Value(MarkedText::Content(message.role)));
    dict.emplace_back("content", jinja::Value(MarkedText::Content(message.content)));
    if (!message.name.empty()) dict.emplace_back("name", jinja::Value(MarkedText::Content(message.name)));
    list.emplace_back(std::move(dict));
  }
  jinja::Dict variables = program_->variables;
  variables.emplace_back("messages", jinja::Value(std::move(list)));
  absl::StatusOr<MarkedText> text = jinja::Render(program_->body, std::move(variables), kWorkMax);
  if (text.ok()) return text;
  return absl::Status(text.status().code(), absl::StrCat("chat template: ", text.status().message()));
}

}  // namespace quicksilver
