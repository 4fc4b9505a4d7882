#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/jinja_ast.h"
#include "coordinator/text/jinja_lexer.h"

namespace quicksilver::jinja {

/// Walks the tokens; the statement parser shares it with its own rules.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[at_]; }
  void Skip() {
    if (at_ + 1 < tokens_.size()) ++at_;  // The last one is kEnd.
  }
  bool SkipIf(Token::Kind kind, std::string_view text);
  absl::Status Expect(Token::Kind kind, std::string_view text);
  absl::StatusOr<std::string> ExpectName();
  absl::Status Unexpected() const;

  /// One expression, or a tuple of several parted by commas. Without `conditional`, an "if" ends it.
  absl::StatusOr<ExpressionPtr> ParseTuple(bool conditional);
  absl::StatusOr<ExpressionPtr> ParseExpression();

 private:
  using Node = std::unique_ptr<Expression>;
  using Rule = absl::StatusOr<ExpressionPtr> (ExpressionParser::*)();

  Node Make(Expression::Kind kind, std::string name = "") const;
  // Ends a node: notes its depth, or refuses it.
  absl::StatusOr<ExpressionPtr> Done(Node node) const;
  absl::StatusOr<ExpressionPtr> Binary(Expression::Kind kind, std::string name, ExpressionPtr left,
                                       ExpressionPtr right) const;
  absl::StatusOr<ExpressionPtr> ParseArithmetic(Rule operand, std::string_view operators);

  absl::StatusOr<ExpressionPtr> ParseOr();
  absl::StatusOr<ExpressionPtr> ParseAnd();
  absl::StatusOr<ExpressionPtr> ParseNot();
  absl::StatusOr<ExpressionPtr> ParseCompare();
  std::string TakeCompareOperator();
  absl::StatusOr<ExpressionPtr> ParseSum();
  absl::StatusOr<ExpressionPtr> ParseConcat();
  absl::StatusOr<ExpressionPtr> ParseProduct();
  absl::StatusOr<ExpressionPtr> ParsePower();
  absl::StatusOr<ExpressionPtr> ParseUnary();
  absl::StatusOr<ExpressionPtr> ParseSigned(bool with_filters);
  absl::StatusOr<ExpressionPtr> ParsePrimary();
  absl::StatusOr<ExpressionPtr> ParseName();
  absl::StatusOr<ExpressionPtr> ParseNumber();
  absl::StatusOr<ExpressionPtr> ParseParenthesized();
  absl::StatusOr<ExpressionPtr> ParseListOrDict();
  absl::StatusOr<ExpressionPtr> ParsePostfix(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseDot(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseSubscript(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseFilters(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseFilter(ExpressionPtr node);
  absl::StatusOr<ExpressionPtr> ParseTest(ExpressionPtr node);
  absl::Status ParseArguments(Expression& node);

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;  // Of the rules that recur.
};

}  // namespace quicksilver::jinja
