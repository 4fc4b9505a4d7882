#include "coordinator/text/text.h"
#include "coordinator/text/utf8.h"

namespace quicksilver {

std::string Detokenizer::Push(int32_t id) {
  held_.append(text_->TokenBytes(id));
  std::string text;
  held_.erase(0, AppendReplacingInvalid(held_, /*final=*/false, text));
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  AppendReplacingInvalid(held_, /*final=*/true, text);
  held_.clear();
  return text;
}

}  // namespace quicksilver
