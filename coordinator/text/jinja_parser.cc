#include "coordinator/text/jinja_parser.h"

#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_expression_parser.h"
#include "coordinator/text/jinja_lexer.h"

namespace quicksilver::jinja {
namespace {

using Kind = Statement::Kind;
using TokenKind = Token::Kind;

constexpr int kDepthMax = 64;

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : in_(std::move(tokens)) {}

  absl::StatusOr<Body> Run() {
    std::string end;
    return ParseBody({}, end);
  }

 private:
  using Node = std::unique_ptr<Statement>;

  // Up to one of the tags in `ends`, whose name is left in `end`; up to the end of the template where `ends` is empty.
  absl::StatusOr<Body> ParseBody(std::vector<std::string_view> ends, std::string& end);
  absl::StatusOr<Node> ParseTag(const std::string& tag, int line);
  absl::StatusOr<Node> ParseIf(int line);
  absl::StatusOr<Node> ParseFor(int line);
  absl::StatusOr<Node> ParseSet(int line);
  absl::StatusOr<Node> ParseGeneration(int line);
  absl::StatusOr<Node> ParseJump(Kind kind, int line);
  absl::StatusOr<std::vector<std::string>> ParseTargets();
  absl::Status EndTag() { return in_.Expect(TokenKind::kBlockEnd, ""); }

  static Node Make(Kind kind, int line) {
    Node node = std::make_unique<Statement>();
    node->kind = kind;
    node->line = line;
    return node;
  }

  ExpressionParser in_;
  int depth_ = 0;
  int loops_ = 0;
};

absl::StatusOr<Body> Parser::ParseBody(std::vector<std::string_view> ends, std::string& end) {
  if (++depth_ > kDepthMax) return ErrorAt(in_.current().line, "tags are nested too deep");
  Body body;
  while (true) {
    const Token token = in_.current();
    if (token.kind == TokenKind::kEnd) {
      if (!ends.empty()) return ErrorAt(token.line, absl::StrFormat("the template ends before '%s'", ends.back()));
      break;
    }
    in_.Skip();
    if (token.kind == TokenKind::kText) {
      Node node = Make(Kind::kText, token.line);
      node->text = token.text;
      body.push_back(std::move(node));
    } else if (token.kind == TokenKind::kVariableBegin) {
      Node node = Make(Kind::kOutput, token.line);
      ASSIGN_OR_RETURN(node->expression, in_.ParseTuple(/*conditional=*/true));
      RETURN_IF_ERROR(in_.Expect(TokenKind::kVariableEnd, ""));
      body.push_back(std::move(node));
    } else {
      ASSIGN_OR_RETURN(const std::string tag, in_.ExpectName());
      bool ended = false;
      for (const std::string_view candidate : ends) ended = ended || tag == candidate;
      if (ended) {
        end = tag;
        break;
      }
      ASSIGN_OR_RETURN(Node node, ParseTag(tag, token.line));
      body.push_back(std::move(node));
    }
  }
  --depth_;
  return body;
}

absl::StatusOr<Parser::Node> Parser::ParseTag(const std::string& tag, int line) {
  if (tag == "if") return ParseIf(line);
  if (tag == "for") return ParseFor(line);
  if (tag == "set") return ParseSet(line);
  if (tag == "generation") return ParseGeneration(line);
  if (tag == "break") return ParseJump(Kind::kBreak, line);
  if (tag == "continue") return ParseJump(Kind::kContinue, line);
  return ErrorAt(line, absl::StrFormat("tag '%s' is not supported here", tag));
}

absl::StatusOr<Parser::Node> Parser::ParseIf(int line) {
  Node node = Make(Kind::kIf, line);
  std::string end = "elif";
  while (end == "elif") {
    Statement::Branch branch;
    ASSIGN_OR_RETURN(branch.condition, in_.ParseTuple(/*conditional=*/false));
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}, end));
    node->branches.push_back(std::move(branch));
  }
  if (end == "else") {
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(node->otherwise, ParseBody({"endif"}, end));
  }
  RETURN_IF_ERROR(EndTag());
  return node;
}

absl::StatusOr<std::vector<std::string>> Parser::ParseTargets() {
  const bool parenthesized = in_.SkipIf(TokenKind::kOperator, "(");
  std::vector<std::string> targets;
  do {
    ASSIGN_OR_RETURN(std::string name, in_.ExpectName());
    targets.push_back(std::move(name));
  } while (in_.SkipIf(TokenKind::kOperator, ","));
  if (parenthesized) RETURN_IF_ERROR(in_.Expect(TokenKind::kOperator, ")"));
  return targets;
}

absl::StatusOr<Parser::Node> Parser::ParseFor(int line) {
  Node node = Make(Kind::kFor, line);
  ASSIGN_OR_RETURN(node->targets, ParseTargets());
  RETURN_IF_ERROR(in_.Expect(TokenKind::kName, "in"));
  ASSIGN_OR_RETURN(node->expression, in_.ParseTuple(/*conditional=*/false));
  if (in_.SkipIf(TokenKind::kName, "if")) {
    ASSIGN_OR_RETURN(node->condition, in_.ParseExpression());
  }
  RETURN_IF_ERROR(EndTag());
  std::string end;
  ++loops_;
  ASSIGN_OR_RETURN(node->body, ParseBody({"else", "endfor"}, end));
  --loops_;
  if (end == "else") {
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(node->otherwise, ParseBody({"endfor"}, end));
  }
  RETURN_IF_ERROR(EndTag());
  return node;
}

absl::StatusOr<Parser::Node> Parser::ParseSet(int line) {
  Node node = Make(Kind::kSet, line);
  ASSIGN_OR_RETURN(node->targets, ParseTargets());
  if (node->targets.size() == 1 && in_.SkipIf(TokenKind::kOperator, ".")) {
    node->kind = Kind::kSetField;
    ASSIGN_OR_RETURN(node->field, in_.ExpectName());
  }
  if (in_.SkipIf(TokenKind::kOperator, "=")) {
    ASSIGN_OR_RETURN(node->expression, in_.ParseTuple(/*conditional=*/true));
    RETURN_IF_ERROR(EndTag());
    return node;
  }
  if (node->targets.size() > 1 || node->kind == Kind::kSetField) return in_.Unexpected();
  node->kind = Kind::kSetBlock;
  RETURN_IF_ERROR(EndTag());
  std::string end;
  ASSIGN_OR_RETURN(node->body, ParseBody({"endset"}, end));
  RETURN_IF_ERROR(EndTag());
  return node;
}

absl::StatusOr<Parser::Node> Parser::ParseGeneration(int line) {
  Node node = Make(Kind::kBlock, line);
  RETURN_IF_ERROR(EndTag());
  std::string end;
  ASSIGN_OR_RETURN(node->body, ParseBody({"endgeneration"}, end));
  RETURN_IF_ERROR(EndTag());
  return node;
}

absl::StatusOr<Parser::Node> Parser::ParseJump(Kind kind, int line) {
  if (loops_ == 0) return ErrorAt(line, "break or continue stands outside a loop");
  RETURN_IF_ERROR(EndTag());
  return Make(kind, line);
}

}  // namespace

absl::StatusOr<Body> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Lex(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace quicksilver::jinja
