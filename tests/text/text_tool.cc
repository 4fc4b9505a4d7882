// Answers JSON requests, one a line, with the library's own functions, for tests/text/oracle_test.py.
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/chat_template.h"
#include "coordinator/text/text.h"
#include "nlohmann/json.hpp"

namespace quicksilver {
namespace {

using nlohmann::json;

json Failure(const absl::Status& status) {
  return {{"code", static_cast<int>(status.code())}, {"error", std::string(status.message())}};
}

std::vector<TemplateMessage> Messages(const json& request) {
  std::vector<TemplateMessage> messages;
  for (const json& message : request.at("messages")) {
    messages.push_back(
        {.role = message.at("role"), .content = message.at("content"), .name = message.value("name", "")});
  }
  return messages;
}

json Render(const json& request) {
  std::vector<std::pair<std::string, std::string>> variables;
  for (const auto& [name, value] : request.at("variables").items()) variables.emplace_back(name, value);
  const auto chat_template = ChatTemplate::Parse(request.at("template").get<std::string>(), std::move(variables));
  if (!chat_template.ok()) return Failure(chat_template.status());
  const auto text = chat_template->Render(Messages(request));
  if (!text.ok()) return Failure(text.status());
  return {{"text", text->text()}};
}

json Answer(const json& request, std::shared_ptr<const TextModel>& model) {
  const std::string op = request.at("op");
  if (op == "load") {
    const auto loaded = TextModel::Load(request.at("directory"));
    if (!loaded.ok()) return Failure(loaded.status());
    model = *loaded;
    return {{"size", model->size()}, {"digest", model->digest()}};
  }
  if (op == "render") return Render(request);
  if (op == "decode") {
    Detokenizer detokenizer(*model);
    std::string text;
    for (const int32_t id : request.at("ids")) text += detokenizer.Push(id);
    return {{"text", text + detokenizer.Finish()}};
  }
  const size_t ids_max = request.value("ids_max", size_t{1} << 30);
  const auto ids = op == "encode" ? model->Encode(request.at("text").get_ref<const std::string&>(), ids_max)
                                  : model->EncodeChat(Messages(request), ids_max);
  if (!ids.ok()) return Failure(ids.status());
  return {{"ids", *ids}};
}

}  // namespace
}  // namespace quicksilver

int main() {
  std::ios::sync_with_stdio(false);
  std::shared_ptr<const quicksilver::TextModel> model;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << quicksilver::Answer(nlohmann::json::parse(line), model).dump() << std::endl;
  }
}
