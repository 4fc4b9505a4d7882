#include "coordinator/text/jinja_expression_parser.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_builtins.h"

namespace quicksilver::jinja {
namespace {

using Kind = Expression::Kind;

constexpr int kDepthMax = 200;

bool Contains(std::string_view words, std::string_view word) {
  for (size_t at = 0; at < words.size();) {
    const size_t end = std::min(words.find(' ', at), words.size());
    if (words.substr(at, end - at) == word) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace

bool ExpressionParser::SkipIf(Token::Kind kind, std::string_view text) {
  if (!current().Is(kind, text)) return false;
  Skip();
  return true;
}

absl::Status ExpressionParser::Unexpected() const {
  const Token& token = current();
  switch (token.kind) {
    case Token::Kind::kEnd:
      return ErrorAt(token.line, "unexpected end of the template");
    case Token::Kind::kBlockEnd:
    case Token::Kind::kVariableEnd:
      return ErrorAt(token.line, "unexpected end of the tag");
    default:
      return ErrorAt(token.line, absl::StrFormat("unexpected '%s'", token.text));
  }
}

absl::Status ExpressionParser::Expect(Token::Kind kind, std::string_view text) {
  return SkipIf(kind, text) ? absl::OkStatus() : Unexpected();
}

absl::StatusOr<std::string> ExpressionParser::ExpectName() {
  if (current().kind != Token::Kind::kName) return Unexpected();
  std::string name = current().text;
  Skip();
  return name;
}

ExpressionParser::Node ExpressionParser::Make(Kind kind, std::string name) const {
  auto node = std::make_unique<Expression>();
  node->kind = kind;
  node->line = current().line;
  node->name = std::move(name);
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Done(Node node) const {
  for (const ExpressionPtr& child : node->children) {
    if (child != nullptr) node->depth = std::max(node->depth, child->depth + 1);
  }
  for (const auto& [name, child] : node->keywords) node->depth = std::max(node->depth, child->depth + 1);
  if (node->depth > kDepthMax) return ErrorAt(node->line, "the expression is too long or nested too deep");
  return ExpressionPtr(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::Binary(Kind kind, std::string name, ExpressionPtr left,
                                                       ExpressionPtr right) const {
  Node node = Make(kind, std::move(name));
  node->children.push_back(std::move(left));
  node->children.push_back(std::move(right));
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTuple(bool conditional) {
  const auto parse = [&] { return conditional ? ParseExpression() : ParseOr(); };
  ASSIGN_OR_RETURN(ExpressionPtr first, parse());
  if (!current().IsOperator(",")) return first;
  Node tuple = Make(Kind::kList);
  tuple->children.push_back(std::move(first));
  while (SkipIf(Token::Kind::kOperator, ",")) {
    if (current().kind == Token::Kind::kBlockEnd || current().kind == Token::Kind::kVariableEnd ||
        current().IsOperator(")")) {
      break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr next, parse());
    tuple->children.push_back(std::move(next));
  }
  return Done(std::move(tuple));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseExpression() {
  if (depth_ >= kDepthMax) return ErrorAt(current().line, "the expression is nested too deep");
  ++depth_;
  ASSIGN_OR_RETURN(ExpressionPtr result, ParseOr());
  while (current().IsName("if")) {
    Node node = Make(Kind::kConditional);
    Skip();
    ASSIGN_OR_RETURN(ExpressionPtr condition, ParseOr());
    ExpressionPtr otherwise;
    if (SkipIf(Token::Kind::kName, "else")) {
      ASSIGN_OR_RETURN(otherwise, ParseExpression());
    }
    node->children.push_back(std::move(condition));
    node->children.push_back(std::move(result));
    node->children.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(result, Done(std::move(node)));
  }
  --depth_;
  return result;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseOr() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseAnd());
  while (SkipIf(Token::Kind::kName, "or")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseAnd());
    ASSIGN_OR_RETURN(left, Binary(Kind::kOr, "or", std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseAnd() {
  ASSIGN_OR_RETURN(ExpressionPtr left, ParseNot());
  while (SkipIf(Token::Kind::kName, "and")) {
    ASSIGN_OR_RETURN(ExpressionPtr right, ParseNot());
    ASSIGN_OR_RETURN(left, Binary(Kind::kAnd, "and", std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseNot() {
  if (!current().IsName("not")) return ParseCompare();
  Node node = Make(Kind::kNot);
  Skip();
  if (++depth_ > kDepthMax) return ErrorAt(current().line, "the expression is nested too deep");
  ASSIGN_OR_RETURN(ExpressionPtr operand, ParseNot());
  --depth_;
  node->children.push_back(std::move(operand));
  return Done(std::move(node));
}

std::string ExpressionParser::TakeCompareOperator() {
  const Token token = current();
  if (token.kind == Token::Kind::kOperator && Contains("== != < <= > >=", token.text)) {
    Skip();
    return token.text;
  }
  if (SkipIf(Token::Kind::kName, "in")) return "in";
  if (token.IsName("not") && tokens_[at_ + 1].IsName("in")) {
    Skip();
    Skip();
    return "not in";
  }
  return "";
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseCompare() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseSum());
  Node node = Make(Kind::kCompare);
  for (std::string op = TakeCompareOperator(); !op.empty(); op = TakeCompareOperator()) {
    ASSIGN_OR_RETURN(ExpressionPtr operand, ParseSum());
    node->operators.push_back(std::move(op));
    node->children.push_back(std::move(operand));
  }
  if (node->operators.empty()) return first;
  node->children.insert(node->children.begin(), std::move(first));
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseArithmetic(Rule operand, std::string_view operators) {
  ASSIGN_OR_RETURN(ExpressionPtr left, (this->*operand)());
  while (current().kind == Token::Kind::kOperator && Contains(operators, current().text)) {
    const std::string op = current().text;
    Skip();
    ASSIGN_OR_RETURN(ExpressionPtr right, (this->*operand)());
    ASSIGN_OR_RETURN(left, Binary(Kind::kArithmetic, op, std::move(left), std::move(right)));
  }
  return left;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSum() {
  return ParseArithmetic(&ExpressionParser::ParseConcat, "+ -");
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseConcat() {
  ASSIGN_OR_RETURN(ExpressionPtr first, ParseProduct());
  if (!current().IsOperator("~")) return first;
  Node node = Make(Kind::kConcat);
  node->children.push_back(std::move(first));
  while (SkipIf(Token::Kind::kOperator, "~")) {
    ASSIGN_OR_RETURN(ExpressionPtr next, ParseProduct());
    node->children.push_back(std::move(next));
  }
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseProduct() {
  return ParseArithmetic(&ExpressionParser::ParsePower, "* / // %");
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePower() {
  return ParseArithmetic(&ExpressionParser::ParseUnary, "**");
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseUnary() { return ParseSigned(/*with_filters=*/true); }

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSigned(bool with_filters) {
  if (++depth_ > kDepthMax) return ErrorAt(current().line, "the expression is nested too deep");
  ExpressionPtr node;
  if (current().IsOperator("-") || current().IsOperator("+")) {
    Node signed_node = Make(Kind::kNegate);
    const bool negates = current().IsOperator("-");
    Skip();
    ASSIGN_OR_RETURN(node, ParseSigned(/*with_filters=*/false));
    if (negates) {
      signed_node->children.push_back(std::move(node));
      ASSIGN_OR_RETURN(node, Done(std::move(signed_node)));
    }
  } else {
    ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  if (with_filters) {
    ASSIGN_OR_RETURN(node, ParseFilters(std::move(node)));
  }
  --depth_;
  return node;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePrimary() {
  switch (current().kind) {
    case Token::Kind::kName:
      return ParseName();
    case Token::Kind::kInteger:
    case Token::Kind::kFloat:
      return ParseNumber();
    case Token::Kind::kString: {
      Node node = Make(Kind::kLiteral);
      std::string text;
      for (; current().kind == Token::Kind::kString; Skip()) text += current().text;
      node->value = Value::Literal(std::move(text));
      return Done(std::move(node));
    }
    default:
      break;
  }
  if (current().IsOperator("(")) return ParseParenthesized();
  if (current().IsOperator("[") || current().IsOperator("{")) return ParseListOrDict();
  return Unexpected();
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseName() {
  const std::string name = current().text;
  Node node = Make(Kind::kLiteral, name);
  Skip();
  if (name == "true" || name == "True") {
    node->value = Value(true);
  } else if (name == "false" || name == "False") {
    node->value = Value(false);
  } else if (name == "none" || name == "None") {
    node->value = Value(None{});
  } else if (Contains("and or not in is if else", name)) {
    return ErrorAt(node->line, absl::StrFormat("unexpected '%s'", name));
  } else if (current().IsOperator("(")) {
    node->kind = Kind::kCall;
    RETURN_IF_ERROR(ParseArguments(*node));
  } else {
    node->kind = Kind::kName;
  }
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseNumber() {
  const Token token = current();
  Node node = Make(Kind::kLiteral);
  Skip();
  const char* const begin = token.text.data();
  const char* const end = begin + token.text.size();
  int64_t integer = 0;
  double real = 0;
  const bool fits = token.kind == Token::Kind::kInteger ? std::from_chars(begin, end, integer).ec == std::errc()
                                                        : std::from_chars(begin, end, real).ec == std::errc();
  if (!fits) return ErrorAt(token.line, absl::StrCat("number ", token.text, " is out of range"));
  node->value = token.kind == Token::Kind::kInteger ? Value(integer) : Value(real);
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseParenthesized() {
  Node empty = Make(Kind::kList);
  Skip();
  if (SkipIf(Token::Kind::kOperator, ")")) return Done(std::move(empty));
  ASSIGN_OR_RETURN(ExpressionPtr inner, ParseTuple(/*conditional=*/true));
  RETURN_IF_ERROR(Expect(Token::Kind::kOperator, ")"));
  return inner;
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseListOrDict() {
  const bool is_dict = current().IsOperator("{");
  const std::string_view closer = is_dict ? "}" : "]";
  Node node = Make(is_dict ? Kind::kDict : Kind::kList);
  Skip();
  while (!SkipIf(Token::Kind::kOperator, closer)) {
    if (!node->children.empty()) {
      RETURN_IF_ERROR(Expect(Token::Kind::kOperator, ","));
      if (SkipIf(Token::Kind::kOperator, closer)) break;
    }
    ASSIGN_OR_RETURN(ExpressionPtr item, ParseExpression());
    node->children.push_back(std::move(item));
    if (!is_dict) continue;
    RETURN_IF_ERROR(Expect(Token::Kind::kOperator, ":"));
    ASSIGN_OR_RETURN(ExpressionPtr value, ParseExpression());
    node->children.push_back(std::move(value));
  }
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParsePostfix(ExpressionPtr node) {
  while (true) {
    if (current().IsOperator(".")) {
      ASSIGN_OR_RETURN(node, ParseDot(std::move(node)));
    } else if (current().IsOperator("[")) {
      ASSIGN_OR_RETURN(node, ParseSubscript(std::move(node)));
    } else if (current().IsOperator("(")) {
      return ErrorAt(current().line, "this call is not supported");
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseDot(ExpressionPtr node) {
  Skip();
  if (current().kind == Token::Kind::kInteger) {
    ASSIGN_OR_RETURN(ExpressionPtr index, ParseNumber());
    return Binary(Kind::kItem, "", std::move(node), std::move(index));
  }
  Node field = Make(Kind::kAttribute);
  ASSIGN_OR_RETURN(field->name, ExpectName());
  field->children.push_back(std::move(node));
  if (current().IsOperator("(")) {
    field->kind = Kind::kMethod;
    if (!IsMethod(field->name)) {
      return ErrorAt(field->line, absl::StrCat("method ", field->name, "() is not supported"));
    }
    RETURN_IF_ERROR(ParseArguments(*field));
  }
  return Done(std::move(field));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseSubscript(ExpressionPtr node) {
  Node item = Make(Kind::kItem);
  Skip();
  item->children.push_back(std::move(node));
  for (bool more = true; more;) {
    ExpressionPtr bound;
    if (!current().IsOperator(":") && !current().IsOperator("]")) {
      ASSIGN_OR_RETURN(bound, ParseExpression());
    }
    item->children.push_back(std::move(bound));
    more = SkipIf(Token::Kind::kOperator, ":");
    if (more) item->kind = Kind::kSlice;
    if (item->children.size() > 4) return Unexpected();
  }
  RETURN_IF_ERROR(Expect(Token::Kind::kOperator, "]"));
  if (item->kind == Kind::kItem && item->children[1] == nullptr) return ErrorAt(item->line, "empty subscript");
  if (item->kind == Kind::kSlice) item->children.resize(4);
  return Done(std::move(item));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFilters(ExpressionPtr node) {
  while (true) {
    if (SkipIf(Token::Kind::kOperator, "|")) {
      ASSIGN_OR_RETURN(node, ParseFilter(std::move(node)));
    } else if (SkipIf(Token::Kind::kName, "is")) {
      ASSIGN_OR_RETURN(node, ParseTest(std::move(node)));
    } else {
      return node;
    }
  }
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseFilter(ExpressionPtr subject) {
  Node node = Make(Kind::kFilter);
  ASSIGN_OR_RETURN(node->name, ExpectName());
  if (!IsFilter(node->name)) return ErrorAt(node->line, absl::StrCat("filter ", node->name, " is not supported"));
  node->children.push_back(std::move(subject));
  if (current().IsOperator("(")) RETURN_IF_ERROR(ParseArguments(*node));
  return Done(std::move(node));
}

absl::StatusOr<ExpressionPtr> ExpressionParser::ParseTest(ExpressionPtr subject) {
  const bool negated = SkipIf(Token::Kind::kName, "not");
  Node node = Make(Kind::kTest);
  if (current().IsOperator("==") || current().IsOperator("!=")) return Unexpected();
  ASSIGN_OR_RETURN(node->name, ExpectName());
  if (!IsTest(node->name)) return ErrorAt(node->line, absl::StrCat("test ", node->name, " is not supported"));
  node->children.push_back(std::move(subject));
  const Token& next = current();
  const bool is_word = next.kind == Token::Kind::kName && !Contains("else or and if is not in", next.text);
  if (next.IsOperator("(")) {
    RETURN_IF_ERROR(ParseArguments(*node));
  } else if (is_word || next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
             next.kind == Token::Kind::kFloat || next.IsOperator("[") || next.IsOperator("{")) {
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParsePrimary());
    ASSIGN_OR_RETURN(argument, ParsePostfix(std::move(argument)));
    node->children.push_back(std::move(argument));
  }
  Node inverse = Make(Kind::kNot);
  ASSIGN_OR_RETURN(ExpressionPtr test, Done(std::move(node)));
  if (!negated) return test;
  inverse->children.push_back(std::move(test));
  return Done(std::move(inverse));
}

absl::Status ExpressionParser::ParseArguments(Expression& node) {
  Skip();
  for (bool first = true; !SkipIf(Token::Kind::kOperator, ")"); first = false) {
    if (!first) {
      RETURN_IF_ERROR(Expect(Token::Kind::kOperator, ","));
      if (SkipIf(Token::Kind::kOperator, ")")) break;
    }
    const bool is_keyword = current().kind == Token::Kind::kName && tokens_[at_ + 1].IsOperator("=");
    std::string keyword;
    if (is_keyword) {
      keyword = current().text;
      Skip();
      Skip();
    }
    ASSIGN_OR_RETURN(ExpressionPtr argument, ParseExpression());
    if (is_keyword) {
      node.keywords.emplace_back(std::move(keyword), std::move(argument));
    } else if (!node.keywords.empty()) {
      return ErrorAt(node.line, "a plain argument follows a keyword");
    } else {
      node.children.push_back(std::move(argument));
    }
  }
  return absl::OkStatus();
}

}  // namespace quicksilver::jinja
