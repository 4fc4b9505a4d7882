#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/text/jinja_value.h"

namespace quicksilver::jinja {

struct Expression;
using ExpressionPtr = std::unique_ptr<const Expression>;

/// One node of an expression. `children` holds the operands in the order of the source.
struct Expression {
  enum class Kind {
    kLiteral,     ///< value
    kName,        ///< name
    kList,        ///< children; tuples too
    kDict,        ///< children: key, value, key, value, …
    kAttribute,   ///< children[0].name
    kItem,        ///< children[0][children[1]]
    kSlice,       ///< children[0][children[1]:children[2]:children[3]]; an absent bound is null
    kCall,        ///< name(children…, keywords…)
    kMethod,      ///< children[0].name(children[1]…, keywords…)
    kFilter,      ///< children[0] | name(children[1]…, keywords…)
    kTest,        ///< children[0] is name(children[1]…)
    kNot,         ///< not children[0]
    kNegate,      ///< -children[0]
    kArithmetic,  ///< children[0] name children[1]: + - * / // % **
    kConcat,      ///< children[0] ~ children[1] …
    kCompare,     ///< children[0] operators[0] children[1] operators[1] …
    kAnd,
    kOr,
    kConditional,  ///< children[1] if children[0] else children[2], which may be null
  };
  Kind kind = Kind::kLiteral;
  int line = 0;
  int depth = 1;  ///< Of the tree under this node; bounded, since walking it recurs.
  std::string name;
  Value value;
  std::vector<ExpressionPtr> children;
  std::vector<std::pair<std::string, ExpressionPtr>> keywords;
  std::vector<std::string> operators;
};

struct Statement;
using Body = std::vector<std::unique_ptr<const Statement>>;

struct Statement {
  enum class Kind {
    kText,      ///< text
    kOutput,    ///< expression
    kIf,        ///< branches; otherwise
    kFor,       ///< targets in expression if condition: body, or otherwise when nothing ran
    kSet,       ///< targets = expression
    kSetField,  ///< targets[0].field = expression
    kSetBlock,  ///< targets[0] = what body prints
    kBlock,     ///< body
    kBreak,
    kContinue,
  };
  struct Branch {
    ExpressionPtr condition;
    Body body;
  };
  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  ExpressionPtr expression;
  ExpressionPtr condition;
  std::vector<std::string> targets;
  std::string field;
  std::vector<Branch> branches;
  Body body;
  Body otherwise;
};

}  // namespace quicksilver::jinja
