#include "coordinator/text/jinja_evaluator.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_macros.h"
#include "coordinator/text/jinja_arithmetic.h"
#include "coordinator/text/jinja_builtins.h"
#include "coordinator/text/jinja_lexer.h"
#include "coordinator/text/jinja_strings.h"

namespace quicksilver::jinja {
namespace {

using Result = absl::StatusOr<Value>;
using Kind = Expression::Kind;

constexpr size_t kStepWork = 512;  // What one step counts for, in bytes.
constexpr size_t kOutputWork = 3;  // What one byte of output counts for: it stays, so it bounds the memory too.
constexpr int kValueDepthMax = 32;
constexpr size_t kNamespacesMax = 10'000;

class Evaluator {
 public:
  Evaluator(Dict variables, size_t work_max) : work_(work_max) { frames_.push_back(std::move(variables)); }

  // How a body ended.
  enum class Flow { kNext, kBreak, kContinue };
  absl::StatusOr<Flow> Run(const Body& body, MarkedText& out);

 private:
  absl::StatusOr<Flow> RunOne(const Statement& statement, MarkedText& out);
  absl::StatusOr<Flow> RunIf(const Statement& statement, MarkedText& out);
  absl::StatusOr<Flow> RunFor(const Statement& statement, MarkedText& out);
  absl::StatusOr<List> LoopItems(const Statement& statement);
  absl::Status Print(const Statement& statement, MarkedText& out);
  absl::Status SetField(const Statement& statement);
  absl::Status Bind(const std::vector<std::string>& targets, const Value& value, int line);

  // Evaluate adds the line to what its helpers complain of.
  Result Evaluate(const Expression& node);
  Result EvaluateNode(const Expression& node);
  Result EvaluateSequence(const Expression& node);
  Result EvaluateCompare(const Expression& node);
  Result EvaluateItem(const Expression& node);
  Result EvaluateSlice(const Expression& node);
  Result EvaluateConcat(const Expression& node);
  Result EvaluateConditional(const Expression& node);
  Result Call(const Expression& node);
  Result MakeNamespace(Arguments arguments);
  Result Range(const Arguments& arguments);
  absl::StatusOr<Arguments> EvaluateArguments(const Expression& node, size_t from);
  Value Lookup(std::string_view name) const;

  Work work_;
  std::vector<Dict> frames_;  // Innermost last.
  // Values point at these; they live as long as the rendering, so that a namespace that holds itself does not leak.
  std::vector<std::unique_ptr<Namespace>> namespaces_;
  std::vector<std::unique_ptr<Loop>> loops_;
};

absl::Status AtLine(const absl::Status& status, int line) {
  const std::string message(status.message());
  if (message.starts_with("line ")) return status;
  return absl::Status(status.code(), absl::StrCat("line ", line, ": ", message));
}

Value Evaluator::Lookup(std::string_view name) const {
  for (auto frame = frames_.rbegin(); frame != frames_.rend(); ++frame) {
    if (const Value* found = Find(*frame, name)) return *found;
  }
  return {};
}

absl::StatusOr<Evaluator::Flow> Evaluator::Run(const Body& body, MarkedText& out) {
  for (const auto& statement : body) {
    RETURN_IF_ERROR(work_.Charge(kStepWork));
    ASSIGN_OR_RETURN(const Flow flow, RunOne(*statement, out));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunOne(const Statement& statement, MarkedText& out) {
  switch (statement.kind) {
    case Statement::Kind::kText:
      RETURN_IF_ERROR(work_.Charge(statement.text.size()));
      out.AppendLiteral(statement.text);
      return Flow::kNext;
    case Statement::Kind::kOutput:
      RETURN_IF_ERROR(Print(statement, out));
      return Flow::kNext;
    case Statement::Kind::kIf:
      return RunIf(statement, out);
    case Statement::Kind::kFor:
      return RunFor(statement, out);
    case Statement::Kind::kSet: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
      RETURN_IF_ERROR(Bind(statement.targets, value, statement.line));
      return Flow::kNext;
    }
    case Statement::Kind::kSetField:
      RETURN_IF_ERROR(SetField(statement));
      return Flow::kNext;
    case Statement::Kind::kSetBlock: {
      MarkedText text;
      ASSIGN_OR_RETURN(const Flow flow, Run(statement.body, text));
      Put(frames_.back(), statement.targets[0], Value(std::move(text)));
      return flow;
    }
    case Statement::Kind::kBlock:
      return Run(statement.body, out);
    case Statement::Kind::kBreak:
      return Flow::kBreak;
    case Statement::Kind::kContinue:
      return Flow::kContinue;
  }
  return absl::InternalError("unknown statement");
}

absl::Status Evaluator::Print(const Statement& statement, MarkedText& out) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
  const absl::StatusOr<MarkedText> text = TextOf(value, work_);
  if (!text.ok()) return AtLine(text.status(), statement.line);
  RETURN_IF_ERROR(work_.Charge(kOutputWork * text->size()));
  out.Append(*text);
  return absl::OkStatus();
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunIf(const Statement& statement, MarkedText& out) {
  for (const Statement::Branch& branch : statement.branches) {
    ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition));
    if (condition.truthy()) return Run(branch.body, out);
  }
  return Run(statement.otherwise, out);
}

absl::StatusOr<List> Evaluator::LoopItems(const Statement& statement) {
  ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
  absl::StatusOr<List> items = Items(value, work_);
  if (!items.ok()) return AtLine(items.status(), statement.line);
  if (statement.condition == nullptr) return items;
  List kept;
  for (Value& item : *items) {
    frames_.emplace_back();
    RETURN_IF_ERROR(Bind(statement.targets, item, statement.line));
    ASSIGN_OR_RETURN(const Value keep, Evaluate(*statement.condition));
    frames_.pop_back();
    if (keep.truthy()) kept.push_back(std::move(item));
  }
  return kept;
}

absl::StatusOr<Evaluator::Flow> Evaluator::RunFor(const Statement& statement, MarkedText& out) {
  ASSIGN_OR_RETURN(const List items, LoopItems(statement));
  if (items.empty()) return Run(statement.otherwise, out);
  loops_.push_back(std::make_unique<Loop>());
  Loop* const loop = loops_.back().get();
  loop->length = static_cast<int64_t>(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    RETURN_IF_ERROR(work_.Charge(kStepWork));
    loop->index0 = static_cast<int64_t>(i);
    loop->previous = i > 0 ? items[i - 1] : Value();
    loop->next = i + 1 < items.size() ? items[i + 1] : Value();
    frames_.emplace_back();
    Put(frames_.back(), "loop", Value(static_cast<const Loop*>(loop)));
    RETURN_IF_ERROR(Bind(statement.targets, items[i], statement.line));
    ASSIGN_OR_RETURN(const Flow flow, Run(statement.body, out));
    frames_.pop_back();
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

absl::Status Evaluator::SetField(const Statement& statement) {
  ASSIGN_OR_RETURN(Value value, Evaluate(*statement.expression));
  Namespace* const space = Lookup(statement.targets[0]).as_namespace();
  if (space == nullptr) {
    return ErrorAt(statement.line, absl::StrCat("'", statement.targets[0], "' is not a namespace"));
  }
  Put(space->fields, statement.field, std::move(value));
  return absl::OkStatus();
}

absl::Status Evaluator::Bind(const std::vector<std::string>& targets, const Value& value, int line) {
  if (targets.size() == 1) {
    Put(frames_.back(), targets[0], value);
    return absl::OkStatus();
  }
  const List* parts = value.list();
  if (parts == nullptr || parts->size() != targets.size()) {
    return ErrorAt(line, absl::StrFormat("%d names are set from %s", targets.size(), value.type_name()));
  }
  for (size_t i = 0; i < targets.size(); ++i) Put(frames_.back(), targets[i], (*parts)[i]);
  return absl::OkStatus();
}

Result Evaluator::Evaluate(const Expression& node) {
  RETURN_IF_ERROR(work_.Charge(kStepWork));
  Result result = EvaluateNode(node);
  if (!result.ok()) return AtLine(result.status(), node.line);
  return result;
}

Result Evaluator::EvaluateNode(const Expression& node) {
  switch (node.kind) {
    case Kind::kLiteral:
      return node.value;
    case Kind::kName:
      return Lookup(node.name);
    case Kind::kList:
    case Kind::kDict:
      return EvaluateSequence(node);
    case Kind::kItem:
      return EvaluateItem(node);
    case Kind::kSlice:
      return EvaluateSlice(node);
    case Kind::kCall:
      return Call(node);
    case Kind::kConcat:
      return EvaluateConcat(node);
    case Kind::kCompare:
      return EvaluateCompare(node);
    case Kind::kConditional:
      return EvaluateConditional(node);
    default:
      break;
  }
  ASSIGN_OR_RETURN(const Value first, Evaluate(*node.children[0]));
  switch (node.kind) {
    case Kind::kAttribute:
      return Attribute(first, node.name);
    case Kind::kNot:
      return Value(!first.truthy());
    case Kind::kNegate:
      return Negate(first);
    case Kind::kAnd:
      return first.truthy() ? Evaluate(*node.children[1]) : first;
    case Kind::kOr:
      return first.truthy() ? first : Evaluate(*node.children[1]);
    case Kind::kArithmetic: {
      ASSIGN_OR_RETURN(const Value second, Evaluate(*node.children[1]));
      return Arithmetic(node.name, first, second, work_);
    }
    default:
      break;
  }
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node, 1));
  if (node.kind == Kind::kFilter) return ApplyFilter(node.name, first, std::move(arguments), work_);
  if (node.kind == Kind::kMethod) return CallMethod(node.name, first, std::move(arguments), work_);
  ASSIGN_OR_RETURN(const bool holds, ApplyTest(node.name, first, std::move(arguments), work_));
  return Value(holds);
}

Result Evaluator::EvaluateSequence(const Expression& node) {
  List items;
  for (const ExpressionPtr& child : node.children) {
    ASSIGN_OR_RETURN(Value item, Evaluate(*child));
    if (item.depth() >= kValueDepthMax) return absl::InvalidArgumentError("a list is nested too deep");
    items.push_back(std::move(item));
  }
  if (node.kind == Kind::kList) return Value(std::move(items));
  Dict dict;
  for (size_t i = 0; i < items.size(); i += 2) {
    // A key would lose its marks.
    if (!items[i].is_text() || !items[i].text()->content().empty()) {
      return absl::InvalidArgumentError("only the template's own texts can be keys");
    }
    Put(dict, items[i].text()->text(), items[i + 1]);
  }
  return Value(std::move(dict));
}

Result Evaluator::EvaluateConcat(const Expression& node) {
  MarkedText joined;
  for (const ExpressionPtr& child : node.children) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*child));
    ASSIGN_OR_RETURN(const MarkedText text, TextOf(value, work_));
    joined.Append(text);
  }
  return Value(std::move(joined));
}

Result Evaluator::EvaluateConditional(const Expression& node) {
  ASSIGN_OR_RETURN(const Value condition, Evaluate(*node.children[0]));
  if (condition.truthy()) return Evaluate(*node.children[1]);
  return node.children[2] == nullptr ? Value() : Evaluate(*node.children[2]);
}

Result Evaluator::EvaluateCompare(const Expression& node) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*node.children[0]));
  for (size_t i = 0; i < node.operators.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*node.children[i + 1]));
    const std::string& op = node.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      if (left.is_text()) RETURN_IF_ERROR(work_.Charge(left.text()->size()));
      holds = Equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      ASSIGN_OR_RETURN(const bool found, IsIn(left, right, work_));
      holds = found == (op == "in");
    } else {
      ASSIGN_OR_RETURN(holds, Ordered(op, left, right));
    }
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

Result Evaluator::EvaluateItem(const Expression& node) {
  ASSIGN_OR_RETURN(const Value subject, Evaluate(*node.children[0]));
  ASSIGN_OR_RETURN(const Value key, Evaluate(*node.children[1]));
  if (key.is_text()) return Attribute(subject, key.text()->text());
  return ItemAt(subject, key, work_);
}

Result Evaluator::EvaluateSlice(const Expression& node) {
  ASSIGN_OR_RETURN(const Value subject, Evaluate(*node.children[0]));
  Value bounds[3];
  for (size_t i = 0; i < 3; ++i) {
    if (node.children[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(bounds[i], Evaluate(*node.children[i + 1]));
  }
  return SliceOf(subject, bounds[0], bounds[1], bounds[2], work_);
}

absl::StatusOr<Arguments> Evaluator::EvaluateArguments(const Expression& node, size_t from) {
  Arguments arguments;
  for (size_t i = from; i < node.children.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*node.children[i]));
    arguments.plain.push_back(std::move(value));
  }
  for (const auto& [name, expression] : node.keywords) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expression));
    arguments.keywords.emplace_back(name, std::move(value));
  }
  return arguments;
}

Result Evaluator::Call(const Expression& node) {
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(node, 0));
  if (!Lookup(node.name).is_undefined()) {
    return absl::InvalidArgumentError(absl::StrCat("'", node.name, "' cannot be called"));
  }
  if (node.name == "namespace") return MakeNamespace(std::move(arguments));
  if (node.name == "range") return Range(arguments);
  if (node.name == "dict" && arguments.plain.empty()) {
    Dict dict;
    for (auto& [name, value] : arguments.keywords) {
      if (value.depth() >= kValueDepthMax) return absl::InvalidArgumentError("a dict is nested too deep");
      Put(dict, name, std::move(value));
    }
    return Value(std::move(dict));
  }
  if (node.name == "raise_exception" && arguments.plain.size() == 1) {
    ASSIGN_OR_RETURN(const MarkedText why, TextOf(arguments.plain[0], work_));
    return absl::InvalidArgumentError(why.text());
  }
  return absl::InvalidArgumentError(absl::StrCat("'", node.name, "' is undefined"));
}

Result Evaluator::MakeNamespace(Arguments arguments) {
  if (namespaces_.size() == kNamespacesMax) return absl::ResourceExhaustedError("too many namespaces");
  if (!arguments.plain.empty()) return absl::InvalidArgumentError("namespace() takes keywords only");
  auto space = std::make_unique<Namespace>();
  for (auto& [name, value] : arguments.keywords) Put(space->fields, name, std::move(value));
  namespaces_.push_back(std::move(space));
  return Value(namespaces_.back().get());
}

Result Evaluator::Range(const Arguments& arguments) {
  std::vector<int64_t> bounds;
  for (const Value& argument : arguments.plain) {
    if (!argument.integer().has_value()) return absl::InvalidArgumentError("range() takes integers");
    bounds.push_back(*argument.integer());
  }
  if (bounds.empty() || bounds.size() > 3 || !arguments.keywords.empty()) {
    return absl::InvalidArgumentError("range() takes one to three integers");
  }
  if (bounds.size() == 1) bounds.insert(bounds.begin(), 0);
  const int64_t step = bounds.size() == 3 ? bounds[2] : 1;
  return RangeList(bounds[0], bounds[1], step, work_);
}

}  // namespace

absl::StatusOr<MarkedText> Render(const Body& body, Dict variables, size_t work_max) {
  Evaluator evaluator(std::move(variables), work_max);
  MarkedText out;
  const absl::StatusOr<Evaluator::Flow> flow = evaluator.Run(body, out);
  if (!flow.ok()) return flow.status();
  return out;
}

}  // namespace quicksilver::jinja
